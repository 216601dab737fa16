"""Names of groups in several AnnData, which are compared as they are written: 1 is not "1", nor "B " "B"."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from sclatent.data._levels import combination_name
from sclatent.data._warnings import warn_user


def levels_of(group: Hashable) -> tuple[Hashable, ...]:
    """Levels of a group, one a key: a group of several keys is the tuple of them, of one key the level itself."""
    return group if isinstance(group, tuple) else (group,)


def name_of(group: Hashable, keys: Sequence[str]) -> Hashable:
    """What a group is called in a table: the level of one key, or ``"cell_type=B, donor=101"``."""
    return combination_name(dict(zip(keys, group, strict=True))) if isinstance(group, tuple) else group


def alike(names: Iterable[Hashable], others: Iterable[Hashable]) -> dict[Hashable, Hashable]:
    """Names that are written in another way among other names, and how: as a number, with blanks, in capitals.

    Parameters
    ----------
    names, others
        Names of groups.

    Returns
    -------
    dict[Hashable, Hashable]
        By name, the other name; of names that are not among the others themselves.
    """
    others = dict.fromkeys(others)
    read = {_read(other): other for other in others}
    return {name: read[_read(name)] for name in names if name not in others and _read(name) in read}


def warn_of_alike(argument: str, groups: Iterable[Hashable], others: Iterable[Hashable], keys: Sequence[str]) -> None:
    """Warn of groups of an argument that real cells write in another way.

    Parameters
    ----------
    argument
        The argument.
    groups, others
        Its groups, and those of the real cells.
    keys
        Columns of obs with the groups.
    """
    levels, other_levels = (list(map(levels_of, some)) for some in (groups, others))
    for k, key in enumerate(keys):
        if found := alike([of_group[k] for of_group in levels], [of_group[k] for of_group in other_levels]):
            warn_user(
                f"{argument}.obs[{key!r}] has {list(found)[:5]}, real has {list(found.values())[:5]}: these are "
                f"different groups. {_cure(argument, key)}."
            )


def share_controls(names: Sequence[Hashable], groups: Iterable[Hashable], groupby: str) -> bool:
    """Tell whether all groups are to be compared with all control cells, and warn where that may not be meant.

    Control cells have groups of their own where they have one of the perturbed ones. Without any, one name is that of
    the control cells, such as "control" among perturbations; several are meant to be groups.

    Parameters
    ----------
    names, groups
        Groups of the control cells, and of the perturbed ones.
    groupby
        Column of obs with the groups.
    """
    groups = list(groups)
    if not set(names).isdisjoint(groups):
        return False
    if len(names) > 1 or alike(names, groups):
        warn_user(
            f"control.obs[{groupby!r}] has the groups {list(names)[:5]}, and none of those of real, {groups[:5]}: all "
            f"groups are compared with all control cells, whatever their {groupby}. {_cure('control', groupby)}; if "
            f"groups share their control cells, remove the column: del control.obs[{groupby!r}]."
        )
    return True


def _cure(argument: str, groupby: str) -> str:
    column = f"{argument}.obs[{groupby!r}]"
    return f"If they are the same, write them alike, such as by {column} = {column}.astype(str).str.strip()"


def _read(name: Hashable) -> float | str:
    """A name as it is read."""
    text = " ".join(str(name).replace("_", " ").split()).casefold()
    try:
        return float(text)
    except ValueError:
        return text
