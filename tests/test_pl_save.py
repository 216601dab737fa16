"""A picture that is written to a file leaves no figure open; one that is not stays open, to be shown."""

import inspect
from collections.abc import Callable

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import pl
from sclatent.datasets import simulate


def counts() -> dict[str, AnnData]:
    cells = simulate(60, 20, library_size=500)
    is_control = cells.obs["condition"] == "control"
    treated = cells[~is_control]
    return {"control": cells[is_control], "real": treated[::2].copy(), "generated": treated[1::2].copy()}


def pixels(**obs) -> AnnData:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    return AnnData(obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(4)]), obsm={"image": images})


def curve(**columns) -> pd.DataFrame:
    return pd.DataFrame({"noise_level": [0.1, 0.5], "error": [0.1, 0.2], "se": 0.01, "model": "m", **columns})


def metrics() -> pd.DataFrame:
    rows = [("all", "ours", "generated", "w2", 1.5, 2.0, 1.0, "lower")]
    return pd.DataFrame(rows, columns=["condition", "source", "kind", "metric", "value", "floor", "ceiling", "better"])


def changes() -> pd.DataFrame:
    return pd.DataFrame(
        {"change": [2.0, -1.0], "lower": [1.0, -3.0], "upper": [3.0, 1.0], "z": [3.3, -0.8]}, ["a", "b"]
    )


def guided() -> AnnData:
    adata = pixels(label=[*"aabb"], guidance_weight=[0.0, 1.0] * 2, noise=0)
    adata.uns["guidance"] = {"key": "label"}
    return adata


CASES = {
    "umap": lambda **kw: pl.umap(*list(counts().values())[1:], n_pcs=3, **kw),
    "gene_statistics": lambda **kw: pl.gene_statistics(*list(counts().values())[1:], **kw),
    "response": lambda **kw: pl.response(counts()["real"], counts()["generated"], counts()["control"], **kw),
    "top_genes": lambda **kw: pl.top_genes(counts()["real"], {"g": counts()["generated"]}, counts()["control"], **kw),
    "volcano": lambda **kw: pl.volcano(changes(), **kw),
    "metrics_heatmap": lambda **kw: pl.metrics_heatmap(metrics(), **kw),
    "history": lambda **kw: pl.history({"diffusion_loss_train": pd.DataFrame({"x": [2.0, 1.0]})}, **kw),
    "images": lambda **kw: pl.images(pixels(), "image", **kw),
    "guidance": lambda **kw: pl.guidance(guided(), **kw),
    "counterfactuals": lambda **kw: pl.counterfactuals(pixels(), pixels(), **kw),
    "reconstruction_error": lambda **kw: pl.reconstruction_error(curve(data_set="d", noise=0.3), **kw),
    "probe": lambda **kw: pl.probe(curve(label_key="l", accuracy=0.5, features=0.4, majority=0.3), **kw),
    "denoising": lambda **kw: pl.denoising(curve(data_set="d").iloc[:1], **kw),
}


@pytest.fixture(autouse=True)
def _close():
    plt.close("all")
    yield
    plt.close("all")


def test_every_picture_is_here():
    assert set(CASES) == set(pl.__all__)


@pytest.mark.parametrize("draw", CASES.values(), ids=CASES)
def test_a_written_figure_is_closed_and_others_are_left_alone(draw: Callable, tmp_path):
    mine = plt.figure()
    axes = draw(save=tmp_path / "picture.png")
    assert plt.get_fignums() == [mine.number]
    assert plt.gcf() is mine
    assert (tmp_path / "picture.png").stat().st_size > 0
    assert len(np.ravel(axes)[0].figure.axes) >= np.size(axes)


def test_a_figure_that_cannot_be_written_is_closed(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        CASES["images"](save=tmp_path / "nowhere" / "picture.png")
    assert plt.get_fignums() == []


def test_what_comes_back_can_be_changed_and_written_again(tmp_path):
    ax = CASES["images"](save=tmp_path / "picture.png")
    ax.set_title("mine")
    ax.figure.savefig(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() != (tmp_path / "picture.png").read_bytes()


@pytest.mark.parametrize("name", ["history", "images", "probe"])
def test_a_figure_that_is_to_be_shown_stays_open(name: str):
    axes = CASES[name]()
    assert plt.get_fignums() == [np.ravel(axes)[0].figure.number]


@pytest.mark.parametrize("name", [name for name in CASES if "ax" in inspect.signature(getattr(pl, name)).parameters])
def test_a_figure_of_the_user_stays_open(name: str, tmp_path):
    figure, mine = plt.subplots()
    assert CASES[name](ax=mine, save=tmp_path / "picture.png") is mine
    assert plt.get_fignums() == [figure.number]
