"""The columns of obs that a model is conditioned on, as they are set up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
from anndata import AnnData

from sclatent.data import (
    check_categorical,
    check_keys,
    check_labels,
    check_levels,
    check_no_empty_level,
    check_roles,
    plain_level,
    short_repr,
    warn_of_copies,
)
from sclatent.data._kinds import KINDS, Category, FeatureTable, Kind, Number, Set
from sclatent.data._schema import LEVELS, NAME, check, dict_of, optional

ConditionKeys: TypeAlias = Mapping[str, Kind] | Sequence[str] | str | None


def check_columns(
    adata: AnnData,
    condition_keys: ConditionKeys,
    batch_key: str | None,
    labels_key: str | None = None,
    unlabeled_category: Any = None,
    size_factor_key: str | None = None,
    written: Sequence[str] = (),
    is_query: bool = False,
) -> tuple[dict[str, Any], list[Any] | None]:
    """Return arguments of the condition keys, and the labels; raise unless columns can be what they are set up as.

    Parameters
    ----------
    adata
        Cells.
    condition_keys, batch_key, labels_key, unlabeled_category, size_factor_key
        As of ``setup_anndata``. The batch may be a condition or the label, too.
    written
        Columns that generated cells have besides.
    is_query
        Whether these are cells to use a model on, which may be of one level alone.
    """
    obs, kinds = adata.obs, check_kinds(condition_keys)
    keys = list(kinds)
    check_roles(written, condition_keys=keys, labels_key=labels_key, size_factor_key=size_factor_key)
    check_roles(written, batch_key=batch_key, size_factor_key=size_factor_key)
    labels = None if labels_key is None else check_labels(obs, labels_key, unlabeled_category)
    named = [(key, "condition_keys") for key in keys]
    if batch_key is not None:
        named.append((batch_key, "batch_key"))
    for key, argument in named:
        least = 1 if is_query or key == batch_key else 2
        check_categorical(obs, key, argument, min_levels=least)
        check_no_empty_level(obs, key, argument)
        levels = check_levels(obs, key, argument)
        if argument == "condition_keys":
            check_values_of_kind(key, kinds[key], levels)
    if not is_query:
        columns = dict.fromkeys([*keys, labels_key, batch_key])
        warn_of_copies(obs, [key for key in columns if key is not None])
    return describe_kinds(adata, kinds), labels


def check_kinds(condition_keys: ConditionKeys) -> dict[str, Kind]:
    """Return the kind of every condition key."""
    if not isinstance(condition_keys, Mapping):
        return {key: Category() for key in check_keys(condition_keys)}
    for key, kind in condition_keys.items():
        if not isinstance(kind, Category | Set | Number):
            raise ValueError(
                f"condition_keys: the kind of {key!r} is {short_repr(kind)}: one of sclatent.conditions was expected, "
                "Category(), Set() or Number()."
            )
    check_keys(list(condition_keys))
    for key, kind in condition_keys.items():
        if isinstance(kind, Number) and kind.of is not None:
            owner = condition_keys.get(kind.of)
            if owner is None or isinstance(owner, Number):
                raise ValueError(
                    f"condition_keys: {key!r} is a dose of={kind.of!r}, which is none of the other keys that are no "
                    f"numbers: {[name for name, other in condition_keys.items() if not isinstance(other, Number)]}."
                )
    return dict(condition_keys)


def check_values_of_kind(key: str, kind: Kind, levels: list[Any]) -> None:
    """Raise unless the levels of a column can be values of its kind."""
    for level in levels:
        try:
            if isinstance(kind, Number):
                kind.value_of(level)
            elif isinstance(kind, Set):
                kind.members_of(level)
        except ValueError as error:
            raise ValueError(f"condition_keys: adata.obs[{key!r}]: {error}.") from error
    if isinstance(kind, Set) and kind.control is not None and kind.control not in levels:
        raise ValueError(
            f"condition_keys: control={kind.control!r} is no level of adata.obs[{key!r}], which has "
            f"{short_repr(levels)}."
        )


def describe_kinds(adata: AnnData, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the arguments of ``setup_anndata`` that say what kinds the conditions are, as JSON can say them."""
    described: dict[str, Any] = {"condition_keys": list(kinds)}
    if all(isinstance(kind, Category) and kind.features is None for kind in kinds.values()):
        return described
    described["condition_kinds"] = {}
    for key, kind in kinds.items():
        fields = {name: value for name, value in vars(kind).items() if name != "features"}
        entry: dict[str, Any] = {"kind": kind.name, **fields}
        if _has_features(kind):
            table = FeatureTable.of(_frame(adata, key, kind), f"condition_keys[{key!r}]", _needed(adata.obs, key, kind))
            entry["features"] = table
        described["condition_kinds"][key] = entry
    return described


def kinds_of(setup: Mapping[str, Any]) -> tuple[dict[str, Kind], dict[str, FeatureTable]]:
    """Return kinds and features of condition keys, as :func:`describe_kinds` has said them."""
    kinds: dict[str, Kind] = {}
    features = {}
    for key, entry in setup.get("condition_kinds", {}).items():
        fields = {name: value for name, value in entry.items() if name not in ("kind", "features")}
        kinds[key] = KINDS[entry["kind"]](**fields)
        if "features" in entry:
            features[key] = entry["features"]
    return kinds, features


def check_saved_columns(setup: Mapping[str, Any], levels: Any) -> None:
    """Raise unless what a saved model says of its columns holds together: arguments, and levels of conditions."""
    check(levels, dict_of(LEVELS), "model.json: levels of conditions")
    if list(levels) != [str(key) for key in setup["condition_keys"]]:
        raise ValueError(
            f"model.json: levels of {list(levels)} are not those of condition_keys={setup['condition_keys']}"
        )
    if "labels_key" in setup:
        kinds = {"labels_key": optional(NAME), "labels": optional(LEVELS), "unlabeled_category": NAME}
        check(setup, kinds, "model.json.registry.setup_args")
        if (setup["labels"] is None) != (setup["labels_key"] is None):
            raise ValueError(f"model.json: labels_key={setup['labels_key']!r}, but labels={setup['labels']!r}")


def _has_features(kind: Kind) -> bool:
    return not isinstance(kind, Number) and kind.features is not None


def _frame(adata: AnnData, key: str, kind: Kind) -> Any:
    features = None if isinstance(kind, Number) else kind.features
    if not isinstance(features, str):
        return features
    if features not in adata.uns:
        raise KeyError(
            f"condition_keys[{key!r}]: features={features!r} is not in adata.uns, which has {list(adata.uns)}."
        )
    return adata.uns[features]


def _needed(obs: pd.DataFrame, key: str, kind: Kind) -> list[Any]:
    """Names that must have features: levels, or members of sets."""
    levels = [plain_level(level) for level in pd.unique(obs[key])]
    return sorted({m for level in levels for m in kind.members_of(level)}) if isinstance(kind, Set) else levels
