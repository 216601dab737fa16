"""Tables of the documentation that are made of files of results, by the directive ``{results}``.

Its argument names files in ``benchmarks/results/``, its content is TOML::

    dataset = "pbmc3k"    # rows of the files that count; means over what is left
    condition = "mean"
    [rows]                # sources, and what they are called
    "real half" = "ceiling: one real half to the other"
    SCLDM = "SCLDM"
    [columns]             # metrics, or metrics of one condition, and what they are called; and decimals (3)
    rf_auc = "random-forest AUC"
    frechet = ["Frechet", 1]
    "pearson@PW030" = "PW030"
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from _results import RESULTS, read_results

NOT_TESTED = ["floor", "ceiling", "reference"]  # kinds of rows that are never the best


def results_table(files: str, content: str, folder: Path = RESULTS) -> str:
    """Return the table of a directive, in Markdown.

    Raises
    ------
    ValueError
        If a file is missing, or a row, a column or a condition that is asked for is not in the files.
    """
    options = tomllib.loads(content)
    rows, columns = options.pop("rows"), options.pop("columns")
    table, headers = read_results(*files.split(), folder=folder)
    for key, value in options.items():  # data set and condition
        table = table[table[key].isin([value] if isinstance(value, str) else value)]
    if missing := [*(set(rows) - set(table["source"])), *({c.split("@")[0] for c in columns} - set(table.columns))]:
        where = f" where {options}" if options else ""
        raise ValueError(f"{', '.join(headers)}: there is no {missing}{where}.")
    better = {metric: way for header in headers.values() for metric, way in json.loads(header["better"]).items()}
    table = table[table["source"].isin(rows)]
    tested = table.loc[~table["kind"].isin(NOT_TESTED), "source"].unique()
    cells = [["", "---", *rows.values()]]
    for column, label in columns.items():
        title, decimals = label if isinstance(label, list) else (label, 3)
        found = _column(table, column, decimals, better.get(column.split("@")[0]), tested)
        cells.append([title, "---", *(found.get(source, "") for source in rows)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in zip(*cells, strict=True))
    figures = "".join(cell for column in cells[1:] for cell in column)
    return f":::{{table}} {_caption(table, figures)}\n\n{text}\n:::\n\n{_origin(table, headers)}\n"


def _column(table: pd.DataFrame, column: str, decimals: int, better: str | None, tested: np.ndarray) -> dict[str, str]:
    """Cells of the sources that have a value: means, the best in bold, and standard deviations over seeds."""
    metric, _, condition = column.partition("@")
    part = table[table["condition"] == condition] if condition else table
    values = part.pivot_table(metric, ["source", "seed"], ["dataset", "condition"])
    if lacking := [s for s, of_source in values.groupby("source") if of_source.isna().all().any()]:
        raise ValueError(f"{lacking} lack {column!r} of some of {list(values.columns)}, which others have.")
    # of conditions first, as not all need to have the same seeds
    means = values.groupby("source").mean().mean(axis=1).round(decimals) + 0.0  # never -0
    by_seed = values.dropna().mean(axis=1).groupby("source")
    rivals = means[means.index.isin(tested)]
    badness = {"higher": -rivals, "lower": rivals, "closer to 1": (rivals - 1).abs()}.get(better)
    best = rivals[badness == badness.min()].max() if badness is not None and len(rivals) > 1 else None
    cells = {}
    for source, mean in means.items():
        cell = f"{mean:,.{decimals}f}"
        cells[source] = f"**{cell}**" if source in rivals and mean == best else cell
        if source in by_seed.groups and len(by_seed.get_group(source)) > 1:
            cells[source] += f"<br><small>± {by_seed.std()[source]:,.{decimals}f}</small>"
    if not cells:
        raise ValueError(f"No row has a value of {column!r}.")
    return cells


def _caption(table: pd.DataFrame, figures: str) -> str:
    """Say how many seeds there are, and what small print and bold are."""
    n_seeds = table.groupby("source", sort=False)["seed"].nunique()
    usual = int(n_seeds.mode().iloc[-1])
    caption = "One seed" if usual == 1 else f"Mean over {usual} seeds"
    if others := [f"{source}: {n}" for source, n in n_seeds.items() if n != usual]:
        caption += f" ({', '.join(others)})"
    caption += ", below it the standard deviation" if "±" in figures else ""
    return caption + (". Bold: the best that is neither floor nor ceiling" if "**" in figures else "")


def _origin(table: pd.DataFrame, headers: dict[str, dict[str, str]]) -> str:
    """Say what was run: command, commit, date, seeds and machine, a line each."""
    seeds = ", ".join(map(str, sorted(table["seed"].unique())))
    lines = dict.fromkeys(
        f"<small>`{header['command']}`, commit {header['commit']}, {header['date']}, "
        f"{header['processor']}, threads: {header['threads']}, torch {header['torch']}"
        f"{'; ' + header['note'] if 'note' in header else ''}</small>"
        for header in headers.values()
    )
    return "<br>\n".join([*lines, f"<small>Seeds: {seeds}</small>"])


def setup(app: Any) -> dict[str, bool]:
    """Register the directive; Sphinx is imported here, so that tests can do without it."""
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Results(SphinxDirective):
        required_arguments, final_argument_whitespace, has_content = 1, True, True

        def run(self) -> list[nodes.Node]:
            for path in RESULTS.glob("*.csv"):
                self.env.note_dependency(str(path))
            try:
                text = results_table(self.arguments[0], "\n".join(self.content))
            except (KeyError, OSError, ValueError) as error:
                raise self.error(str(error)) from error
            return self.parse_text_to_nodes(text)

    app.add_directive("results", Results)
    return {"parallel_read_safe": True}
