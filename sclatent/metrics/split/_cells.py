"""Cells that are held out whatever was done to them: at random, or in a window of a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from sclatent.data import check_categorical, check_keys, check_whole, is_number, short_repr
from sclatent.data._levels import factorize

from .._cells import rows_of_groups
from ._fold import Fold, check_names, fold_of, stream_of_folds


def random(adata: AnnData, groupby: str | Sequence[str] | None = None, test_size: float = 0.5, seed: int = 0) -> Fold:
    """Hold out cells at random, as large a share of every group: for generated cells beside real ones.

    Parameters
    ----------
    adata
        The cells.
    groupby
        Column of obs, or several, whose combinations are the groups. None takes all cells as one.
    test_size
        Share of the cells of a group that is held out, rounded to whole cells. One at least stays in training; of a
        single cell none is held out.
    seed
        Seed of the choice.

    Returns
    -------
    Fold
        The fold.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If levels are missing, or ``test_size`` is not between 0 and 1, or so small that no cells are held out.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(200, 50, cell_types=["B", "T"])
    >>> fold = split.random(adata, groupby="cell_type", test_size=0.25)
    >>> fold.asked["cell_type"].value_counts().to_dict() == {"B": 25, "T": 25}
    True
    """
    keys = _checked(adata, groupby)
    if not (is_number(test_size) and 0 < test_size < 1):
        raise ValueError(f"test_size={short_repr(test_size)} must be a number above 0 and below 1.")
    rng = stream_of_folds(seed)
    held_out = np.zeros(adata.n_obs, dtype=bool)
    # scikit-learn's stratified split refuses groups of one cell, which rare combinations have
    for rows in rows_of_groups(adata.obs, keys, "adata").values() if keys else [np.arange(adata.n_obs)]:
        held_out[rng.permutation(rows)[: min(round(test_size * len(rows)), len(rows) - 1)]] = True
    if not held_out.any():
        raise ValueError(f"test_size={test_size} holds out none of {adata.n_obs} cells: some were expected.")
    return fold_of(adata, "random", held_out, ~held_out, keys, keys)


def window(adata: AnnData, key: str, low: float, high: float, groupby: str | Sequence[str] | None = None) -> Fold:
    """Hold out all cells in a window of a number, such as a time.

    Parameters
    ----------
    adata
        The cells.
    key
        Column of obs with the number.
    low, high
        The window: numbers of at least ``low`` and below ``high``, which may be infinite.
    groupby
        Columns of obs with groups, such as cell types, that are asked for and compared one by one.

    Returns
    -------
    Fold
        The fold, called ``"time 12 to 24"``.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If it holds no finite numbers, or the window has no cells or all.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(200, 50, cell_types=["B", "T"])
    >>> adata.obs["time"] = np.repeat([0.0, 12.0, 24.0, 36.0], 50)
    >>> fold = split.window(adata, "time", 12, 36, groupby="cell_type")
    >>> sorted(fold.asked["time"].unique().tolist())
    [12.0, 24.0]
    """
    keys = _checked(adata, groupby)
    for argument, value in {"low": low, "high": high}.items():
        if not is_number(value) and value not in (-np.inf, np.inf):
            raise ValueError(f"{argument}={short_repr(value)} must be a number, the {argument} end of the window.")
    return _window(adata, key, _numbers(adata, key), low, high, keys)


def windows(adata: AnnData, key: str, n_windows: int = 5, groupby: str | Sequence[str] | None = None) -> list[Fold]:
    """Hold out windows of a number that have about as many cells, each of them once.

    In the first and the last one a model is asked to extrapolate; ``windows(...)[1:-1]`` are those in between.

    Parameters
    ----------
    adata, key, groupby
        As of :func:`window`.
    n_windows
        Number of windows, between quantiles of the number.

    Returns
    -------
    list[Fold]
        The folds, in the order of the number.

    Raises
    ------
    KeyError, ValueError
        As of :func:`window`; and if the number has too few values for so many windows.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> from sclatent.metrics import split
    >>> adata = sclatent.datasets.simulate(200, 50, cell_types=["B", "T"])
    >>> adata.obs["time"] = np.repeat([0.0, 12.0, 24.0, 36.0], 50)
    >>> [fold.name for fold in split.windows(adata, "time", n_windows=4)]
    ['time 0 to 12', 'time 12 to 24', 'time 24 to 36', 'time from 36']
    """
    keys = _checked(adata, groupby)
    check_whole("n_windows", n_windows, 2)
    values = _numbers(adata, key)
    starts = np.unique(np.quantile(values, np.arange(n_windows) / n_windows, method="higher"))
    if len(starts) < n_windows:
        raise ValueError(
            f"n_windows={n_windows}: adata.obs[{key!r}] has the same number for so many cells that there are "
            f"{len(starts)} windows. Give fewer, or make them one by one: window."
        )
    ends = [*starts[1:], np.inf]
    return [_window(adata, key, values, low, high, keys) for low, high in zip(starts, ends, strict=True)]


def _window(adata: AnnData, key: str, values: np.ndarray, low: float, high: float, groupby: Sequence[str]) -> Fold:
    held_out = (values >= low) & (values < high)
    if not 0 < held_out.sum() < len(values):
        raise ValueError(
            f"low={low}, high={high}: {held_out.sum()} of the {len(values)} cells have such a number in adata.obs"
            f"[{key!r}], which is {values.min():g} to {values.max():g}; some were expected, and others to train on."
        )
    start, end = (np.format_float_positional(float(number), trim="-") for number in (low, high))  # all their digits
    name = f"{key} from {start}" if np.isinf(high) else f"{key} {start} to {end}"
    return fold_of(adata, name, held_out, ~held_out, dict.fromkeys([*groupby, key]), groupby)


def _checked(adata: AnnData, groupby: str | Sequence[str] | None) -> list[str]:
    keys = check_keys(groupby, "groupby")
    check_names(adata)
    for key in keys:
        check_categorical(adata.obs, key, "groupby")
    return keys


def _numbers(adata: AnnData, key: str) -> np.ndarray:
    """Values of a column of obs; raises unless they are finite numbers."""
    check_categorical(adata.obs, key, "key")
    codes, levels = factorize(adata.obs[key])
    if wrong := [level for level in levels if not is_number(level)]:
        raise ValueError(f"key={key!r}: finite numbers were expected in adata.obs[{key!r}], not {wrong[0]!r}.")
    return np.array(levels, dtype=float)[codes]
