"""Files of results: one small CSV a run, below lines that say what it was measured under.

Pandas is all that it needs, so that the documentation is built without the package.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
KEYS = ["dataset", "condition", "source", "kind", "seed"]  # what a row is of; the other columns are metrics


def write_results(path: Path, header: dict[str, str], table: pd.DataFrame) -> None:
    """Write lines ``# key: value``, and below them the table with four significant digits."""
    path.parent.mkdir(exist_ok=True)
    lines = "".join(f"# {key}: {value}\n" for key, value in header.items())
    path.write_text(lines + table.to_csv(index=False, float_format="%.4g"), encoding="utf-8")


def read_results(*patterns: str, folder: Path = RESULTS) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """Read the files of results with names like these, such as ``perturbation-kang-*.csv``.

    Returns
    -------
    The rows of all files, in the order of the patterns and then of the names, and the header of each file.

    Raises
    ------
    FileNotFoundError
        If no file has a name like one of the patterns.
    ValueError
        If two files have a row of the same data set, condition, source and seed, and other values in it.
    """
    paths = []
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if not found:
            raise FileNotFoundError(f"No file of results is like {pattern!r} in {folder.name}/: run its benchmark.")
        paths += [path for path in found if path not in paths]
    tables, headers = [], {}
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line for line in lines if line.startswith("# ")]
        headers[path.name] = dict(line.removeprefix("# ").split(": ", 1) for line in header)
        tables.append(pd.read_csv(path, skiprows=len(header)))
    table = pd.concat(tables, ignore_index=True)
    metrics = table.columns.difference([*KEYS, "seconds"]).tolist()
    table = table.drop_duplicates([*KEYS, *metrics])  # such as floors that two runs have
    if (twice := table[table.duplicated(KEYS)]).size:
        row = ", ".join(map(str, twice.iloc[0][KEYS]))
        raise ValueError(f"{', '.join(headers)} have two rows of {row}: name the files of one run.")
    return table, headers
