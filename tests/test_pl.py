"""The pictures draw, return their axes, and show what they say."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import pl
from sclatent.datasets import simulate
from sclatent.metrics import mean_change, top_responding


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return simulate(120, 30, cell_types=2, density=0.6)


@pytest.fixture
def arms(cells: AnnData) -> dict[str, AnnData]:
    """Control cells, and stimulated cells in two parts of which one plays the generated ones."""
    condition = cells.obs["condition"]
    stimulated = cells[condition == "stimulated"]
    return {"control": cells[condition == "control"], "real": stimulated[::2], "generated": stimulated[1::2].copy()}


def reverse(adata: AnnData) -> AnnData:
    return adata[:, adata.var_names[::-1]]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_umap_shows_every_cell_and_changes_none(arms, tmp_path):
    real = arms["real"].copy()
    axes = pl.umap(real, reverse(arms["generated"]), color="cell_type", n_pcs=5, save=tmp_path / "umap.png")
    assert [ax.get_title() for ax in axes] == ["real and generated", "cell_type"]
    for ax in axes:
        assert sum(len(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) > 1) == 60
    assert (tmp_path / "umap.png").stat().st_size > 0
    assert "X_umap" not in real.obsm
    assert "cells" not in real.obs


def test_umap_names_a_missing_column(arms):
    with pytest.raises(KeyError, match="color='dose' is not a column of real"):
        pl.umap(arms["real"], arms["generated"], color="dose")


def test_mean_expression_finds_genes_by_name(arms, tmp_path):
    axes = plt.subplots(1, 2)[1]
    assert pl.mean_expression(arms["real"], arms["generated"], ax=axes[0], save=tmp_path / "mean.png") is axes[0]
    pl.mean_expression(arms["real"], reverse(arms["generated"]), ax=axes[1])
    straight, reversed_ = (np.asarray(ax.collections[0].get_offsets()) for ax in axes)
    np.testing.assert_allclose(straight, reversed_[::-1])
    assert (tmp_path / "mean.png").stat().st_size > 0


def test_response_names_the_top_genes(arms, tmp_path):
    change = mean_change(arms["real"], arms["control"])
    predicted = {"cells": arms["generated"], "itself": change}
    axes = pl.response(arms["real"], predicted, arms["control"], n_names=3, save=tmp_path / "response.png")
    assert [ax.get_title() for ax in axes] == ["cells", "itself"]
    written = {text.get_text() for text in axes[1].texts}
    assert set(arms["real"].var_names[top_responding(change, 3)]) < written
    assert "r = 1.000" in written
    assert (tmp_path / "response.png").stat().st_size > 0


def test_top_genes_are_in_order(arms, tmp_path):
    ax = pl.top_genes(arms["real"], {"cells": arms["generated"]}, arms["control"], 5, save=tmp_path / "top.pdf")
    change = pd.Series(mean_change(arms["real"], arms["control"]), arms["real"].var_names)
    expected = change[change.abs().nlargest(5).index].sort_values()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(expected.index)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], expected)
    assert (tmp_path / "top.pdf").stat().st_size > 0


def test_history_has_a_panel_a_stage(tmp_path):
    keys = [f"{stage}_loss_{split}" for stage in ("autoencoder", "diffusion") for split in ("train", "validation")]
    history = {key: pd.DataFrame({key: [3.0, 2.0, 1.0]}).rename_axis("epoch") for key in keys}
    axes = pl.history(history, save=tmp_path / "history.png")
    assert [ax.get_title() for ax in axes] == ["autoencoder", "diffusion"]
    assert all(len(ax.lines) == 2 for ax in axes)
    assert (tmp_path / "history.png").stat().st_size > 0
    pl.history({keys[0]: history[keys[0]].iloc[:1]})  # one epoch, no validation
    with pytest.raises(ValueError, match="no losses"):
        pl.history({})
