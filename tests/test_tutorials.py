"""The notebooks of tutorials/: they run from the first cell to the last, and what they say of their results holds."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# what the text claims, in the names of the notebook, with room for another machine or seed
CLAIMS = {
    "1_quickstart": [
        'summary.loc["pearson", "sample"] > summary.loc["pearson", ["cell mean", "mean shift", "linear shift"]].max()',
        'summary.loc["energy", "counterfactual"] < summary.loc["energy", "control as it is"]',
        "(again.X != generated.X).nnz == 0",
        "moved.obs_names.equals(control_cells.obs_names)",
    ],
    "2_perturbation_prediction": [
        'summary.loc["energy", "counterfactual"] < summary.loc["energy", "mean shift"]',
        "size[0] < size[1] < size[-1]",
        'likeness.loc["keep = 1", "with itself"] > likeness.loc["keep = 1", "with another cell"] + 0.1',
        'abs(likeness.loc["sample", "with itself"] - likeness.loc["sample", "with another cell"]) < 0.1',
        "correlation[10] > 0.3 > abs(correlation[250])",
        'pooled.loc["energy", "all alike"] > 2 * pooled.loc["energy", "cells"]',
    ],
    "3_generation_by_cell_type": [
        'all(verdict.loc[(t, "generated"), t] > 0.8 for t in common)',
        'verdict.loc["Dendritic cells"]["Dendritic cells"].idxmax() == "real"',
        'augmentation.loc["forest"]["dendritic, recall"].idxmin() == "training cells"',
        'guidance.xs("variance of tokens", axis=1, level=1).diff().iloc[1:].lt(0).all(axis=None)',
        'library.loc["generated, half", "fraction of zeros"] > library.loc["generated", "fraction of zeros"] + 0.02',
        'abs(library["fraction of zeros"].loc[["generated, half", "real, half"]].diff().iloc[-1]) < 0.01',
        "transfer.iloc[1, 1] > 0.85 and transfer.iloc[2, 0] < transfer.iloc[0, 0]",
    ],
    "4_images": [
        'accuracy["JointLDM"] > accuracy["logistic regression"] - 0.01',
        'dial["recognised"].is_monotonic_increasing and dial["variance of a label"].is_monotonic_decreasing',
        'embedding["seen as the target after"] > embedding["seen as the target before"] + 0.3',
        'embedding["nearer to itself than the nearest real one"] > 0.7',
        'trade["seen as the target"].iloc[-1] > trade["seen as the target"].iloc[0] + 0.1',
        'trade["nearer to itself"].iloc[0] > 0.9',
    ],
    "5_diffusion_steps": [
        "abs(by_level['blood cells, held out'] / by_level['training data'] - 1).max() < 0.1",
        "abs(by_level['nuclei'] / by_level['training data'] - 1).loc[:0.1].max() < 0.1",
        "by_level.loc[0.9, 'nuclei'] > 1.3 * by_level.loc[0.9, 'training data']",
        "(best['DAED'] < best['plain diffusion']).all() and (best['plain diffusion'] < best['noisy cells']).all()",
        "probe['accuracy'].iloc[0] > probe['features'].iloc[0] + 0.05",
        "probe['accuracy'].iloc[0] > probe['accuracy'].iloc[-1] + 0.1",
        "recognised[4.0] > recognised[1.0] > recognised[0.0] + 0.2",
    ],
}


def test_every_notebook_has_claims_to_be_checked():
    assert [path.stem for path in NOTEBOOKS] == list(CLAIMS)


def execute(path: Path, folder: Path) -> dict[str, bool]:
    """Execute a notebook, and say which of its claims hold, in one more cell of it."""
    notebook = nbformat.read(path, as_version=4)
    claims = f"import json\nprint(json.dumps({{claim: bool(eval(claim)) for claim in {CLAIMS[path.stem]!r}}}))"
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(notebook.cells[-1].outputs[-1].text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_claims_hold(path, tmp_path):
    assert execute(path, tmp_path) == dict.fromkeys(CLAIMS[path.stem], True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_are_those_of_one_run(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    said = "\n".join(output.text for output in outputs if output.output_type == "stream")
    assert "Warning" not in said
    assert not re.search(r"(?:^|\s)/(?:home|tmp|root|usr|work)/", said), "a path of the machine that it ran on"
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (FOLDER / link).exists(), link
