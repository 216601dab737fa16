"""The notebooks of tutorials/: they run from the first cell to the last, and what they say of their results holds."""

from __future__ import annotations

import importlib.util
import re
from functools import partialmethod
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
from sklearn.ensemble import RandomForestClassifier

from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM
from sclatent.model.base._staged_model import StagedModel

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
HALF = ("3_generation_by_cell_type", "4_images")  # need half of their epochs; a quarter is enough for the others


@pytest.fixture(scope="session")
def claims() -> dict[str, list[str]]:
    """What the text of each notebook claims; ``make tutorials`` checks it with networks of their full size."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CLAIMS


def test_every_notebook_has_claims_to_be_checked(claims):
    assert [path.stem for path in NOTEBOOKS] == list(claims)


@pytest.fixture
def smaller(path, monkeypatch):
    """Networks and forests are smaller and trained for fewer epochs; the claims hold for them, too."""
    part = 2 if path.stem in HALF else 4
    for cls, sizes in {
        SCLDM: {"width": 32, "n_blocks": 1, "n_heads": 2, "denoiser_width": 64, "denoiser_blocks": 2},
        JointLDM: {"width": 32, "denoiser_width": 64, "denoiser_blocks": 2, "n_heads": 2},
        JointDiffusion: {"denoiser_width": 32},
        DAED: {"width": 32, "denoiser_width": 16},
        RandomForestClassifier: {"n_estimators": 10},
    }.items():
        monkeypatch.setattr(cls, "__init__", partialmethod(cls.__init__, **sizes))
    train = StagedModel.train

    def shorter(self, max_epochs, *args, **kwargs):
        epochs = dict.fromkeys(self.STAGES, max_epochs) if isinstance(max_epochs, int) else max_epochs
        train(self, {stage: -(-n // part) for stage, n in epochs.items()}, *args, **kwargs)

    monkeypatch.setattr(StagedModel, "train", shorter)


@pytest.mark.usefixtures("smaller")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_claims_hold(path, claims, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{path.name}, cell {cell.execution_count}", "exec"), names)
                mpl.pyplot.close("all")
    assert [claim for claim in claims[path.stem] if not eval(claim, names)] == []


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
