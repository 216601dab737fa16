"""Execute notebooks again and keep their outputs: ``make tutorials``, or ``python tutorials/execute.py FILE ...``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

WITHOUT_WIDGETS = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # progress bars of text, which every viewer shows

# claims of the text as expressions in the variables of the notebook, with tolerance for other machines and seeds
CLAIMS = {
    "1_quickstart": [
        'summary.loc["pearson", "sample"] > summary.loc["pearson", ["cell mean", "mean shift", "linear shift"]].max()',
        'summary.loc["energy", "counterfactual"] < summary.loc["energy", "control as it is"]',
        "(again.X != generated.X).nnz == 0",
        "moved.obs_names.equals(control_cells.obs_names)",
    ],
    "2_perturbation_prediction": [
        'summary.loc["energy", "counterfactual"] < summary.loc["energy", ["sample", "linear shift"]].min()',
        "size[0] < size[1] < size[-1]",
        'likeness.loc["noise level 0", "with itself"] > likeness.loc["noise level 0", "with another cell"] + 0.1',
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
    "6_perturbations_nobody_measured": [
        'summary["predict_change"].drop("unseen pair with synergy").min() > 0.9',
        '(summary[["counterfactual", "predict_change"]].min(axis=1) > summary["mean of the others"] + 0.1).all()',
        'summary.loc["unseen pair", "predict_change"] > summary.loc["unseen pair", "sum of single effects"]',
        'summary.loc["unseen pair with synergy", "predict_change"] < summary.loc["unseen pair"].max() - 0.02',
        'worth["with features"].mean() < worth[["without features", "sum of single effects"]].mean().min()',
        "same_sign > 0.95",
        'covered["unseen pair with synergy"] < 0.8 < min(covered["unseen pair"], covered["unseen gene"])',
        'far.loc["OR2T8", "mean sd"] > 1.7 * far.loc[unseen_genes, "mean sd"].max()',
        'far.loc["OR2T8", "correlation"] > 0.85 and "OR2T8" in str(said[0].message)',
        '(dose_error["predict_change"] < dose_error["measured at 10 nM"]).all()',
    ],
}
# claims that the smaller networks of the tests do not reach
CLAIMS_OF_FULL_SIZE = {
    "2_perturbation_prediction": ['summary.loc["energy", "counterfactual"] < summary.loc["energy", "mean shift"]'],
    "6_perturbations_nobody_measured": ['(between.loc["generated"] < 0.9 * between.loc["without the network"]).all()'],
}


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True)
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(
            nbformat.v4.new_code_cell(check_of(CLAIMS[path.stem] + CLAIMS_OF_FULL_SIZE.get(path.stem, [])))
        )
        with TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook, kernel_name="python3", coalesce_streams=True, record_timing=False,
                resources={"metadata": {"path": folder}},
            )  # fmt: skip
            client.execute(env={**os.environ, **WITHOUT_WIDGETS})
        if wrong := json.loads(notebook.cells.pop().outputs[-1].text):
            raise SystemExit("it claims what its results do not show, and stays as it was:\n" + "\n".join(wrong))
        new = path.with_suffix(".new")  # a notebook that fails half-way does not take the place of a good one
        nbformat.write(notebook, new)
        new.replace(path)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


def check_of(claims: list[str]) -> str:
    """A cell that prints which of some claims do not hold."""
    return f"import json\nprint(json.dumps([claim for claim in {claims!r} if not eval(claim)]))"


if __name__ == "__main__":
    main()
