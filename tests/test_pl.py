"""The pictures draw, return their axes, and show what they say."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.lines import AxLine

from sclatent import pl
from sclatent.datasets import glioblastoma, simulate
from sclatent.metrics import log_normalize, mean_change, slope_of_change, top_responding


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


def test_umap_has_a_panel_a_condition_and_one_layout(arms):
    real, generated = arms["real"], arms["generated"]
    axes = pl.umap(real, generated[generated.obs["cell_type"] == "type_0"].copy(), groupby="cell_type", n_pcs=5)
    assert [ax.get_title() for ax in axes] == ["type_0", "type_1"]  # also what was not generated
    n = {
        "real": (real.obs["cell_type"] == "type_0").sum(), "generated": (generated.obs["cell_type"] == "type_0").sum()
    }  # fmt: skip
    points, colors = zip(*[drawn(ax) for ax in axes], strict=True)
    np.testing.assert_array_equal(*(np.sort(p, axis=0) for p in points))
    for level, color in enumerate(colors):
        for kind, expected in {"real": "#8c8c8c", "generated": "#d62728"}.items():
            shown = np.isclose(color, mpl.colors.to_rgba(expected), atol=0.01).all(axis=1).sum()
            assert shown == (n[kind] if level == 0 else real.n_obs - n["real"] if kind == "real" else 0)
    legend = axes[0].figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["real", "generated"]


def drawn(ax) -> tuple[np.ndarray, np.ndarray]:
    """Places and colours of the points of a panel."""
    points = [c for c in ax.collections if len(c.get_offsets()) > 1]
    return np.concatenate([c.get_offsets() for c in points]), np.concatenate([c.get_facecolors() for c in points])


@pytest.mark.parametrize("argument", ["color", "groupby"])
def test_umap_names_a_missing_column(arms, argument):
    with pytest.raises(KeyError, match=f"{argument}='dose' is not a column of real"):
        pl.umap(arms["real"], arms["generated"], **{argument: "dose"})


def test_gene_statistics_are_those_of_the_genes_by_name(arms, tmp_path):
    real, generated = arms["real"], arms["generated"]
    axes = pl.gene_statistics(real, reverse(generated), save=tmp_path / "genes.png")
    x, y = (log_normalize(cells)[:, ::-1] for cells in (real, generated))
    statistics = [lambda v: v.mean(axis=0), lambda v: v.var(axis=0, ddof=1), lambda v: (v == 0).mean(axis=0)]
    for ax, statistic in zip(axes, statistics, strict=True):
        expected = np.column_stack([statistic(x), statistic(y)])
        np.testing.assert_allclose(ax.collections[0].get_offsets(), expected, rtol=1e-4)
        assert f"r = {np.corrcoef(*expected.T)[0, 1]:.3f}" in ax.texts[0].get_text()
    assert [ax.get_title().split(" (")[0] for ax in axes] == ["mean", "variance", "zero fraction"]
    assert (tmp_path / "genes.png").stat().st_size > 0


def test_gene_statistics_tell_a_shift_from_agreement(arms):
    shallow = arms["real"].copy()
    shallow.X = shallow.X.multiply(np.random.default_rng(0).random(shallow.shape) < 0.4).tocsr()
    zeros = pl.gene_statistics(arms["real"], shallow)[2]
    concordance, r = (float(line.split(" = ")[1]) for line in zeros.texts[0].get_text().split("\n"))
    assert concordance < r - 0.2


def test_response_names_the_top_genes(arms, tmp_path):
    change = mean_change(arms["real"], arms["control"])
    predicted = {"cells": arms["generated"], "itself": change}
    axes = pl.response(arms["real"], predicted, arms["control"], n_names=3, save=tmp_path / "response.png")
    assert [ax.get_title() for ax in axes] == ["cells", "itself"]
    written = {text.get_text() for text in axes[1].texts}
    assert set(arms["real"].var_names[top_responding(change, 3)]) < written
    slope = slope_of_change(arms["real"], change, arms["control"])
    assert f"r = 1.000\nslope = {slope:.2f}" in written
    assert axes[0].get_xlim() == axes[1].get_xlim() == axes[1].get_ylim()
    assert (tmp_path / "response.png").stat().st_size > 0


def test_an_attenuated_response_has_a_flatter_line_than_the_identity(arms):
    change = mean_change(arms["real"], arms["control"])
    predicted = {"half": change / 2, "nothing": 0 * change}
    for ax, factor in zip(pl.response(arms["real"], predicted, arms["control"]), (0.5, 0), strict=True):
        expected = slope_of_change(arms["real"], factor * change, arms["control"])
        identity, fitted = (line.get_slope() for line in ax.lines if isinstance(line, AxLine))
        assert identity == 1
        assert fitted == pytest.approx(expected)
    ax = pl.response(arms["control"][:20], arms["real"], arms["control"])[0]  # a real change that is noise alone
    assert not any("slope" in text.get_text() for text in ax.texts)


def test_names_overlap_neither_each_other_nor_the_edge():
    adata = glioblastoma()
    treated = adata[adata.obs["condition"] != "ctrl"]
    half = np.arange(treated.n_obs) % 2 == 0
    ax = pl.response(treated[half], treated[~half], adata[adata.obs["condition"] == "ctrl"], n_names=12)[0]
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]  # without the lines to the points
    assert len(boxes) == 13
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    inside = ax.get_window_extent().padded(1)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    assert all(inside.y0 <= box.y0 and box.y1 <= inside.y1 for box in boxes)


def test_response_by_group_has_the_control_of_the_group(cells):
    control, real = (cells[cells.obs["condition"] == c] for c in ("control", "stimulated"))
    axes = pl.response(real, {"it": real, "control": control}, control, groupby="cell_type", n_names=1)
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes.flat] == [f"type_{i}, {name}" for i in range(2) for name in ("it", "control")]
    of_type = [a[a.obs["cell_type"] == "type_1"] for a in (real, control)]
    offsets = axes[1, 0].collections[0].get_offsets()
    np.testing.assert_allclose(offsets[:, 0], mean_change(*of_type))
    np.testing.assert_allclose(offsets[:, 0], offsets[:, 1])
    np.testing.assert_array_equal(axes[1, 1].collections[0].get_offsets()[:, 1], 0)

    common = control.copy()
    del common.obs["cell_type"]
    axes = pl.response(real, real, common, groupby="cell_type", n_names=1)
    assert [ax.get_title() for ax in axes.flat] == ["type_0", "type_1"]
    expected = mean_change(real[real.obs["cell_type"] == "type_0"], common)
    np.testing.assert_allclose(axes[0, 0].collections[0].get_offsets()[:, 0], expected)


def test_response_by_several_keys_has_the_control_of_the_context():
    """A treatment of a type is compared with the control cells of this type."""
    cells = simulate(180, 30, cell_types=["A", "B"], conditions=["control", "x", "y"], library_size=300)
    is_control = cells.obs["condition"] == "control"
    real, control = cells[~is_control], cells[is_control]
    axes = pl.response(real, real, control, groupby=["cell_type", "condition"], n_names=0)
    assert axes.shape == (4, 1)
    titles = [ax.get_title() for ax in axes.flat]
    assert titles == [f"cell_type={t}, condition={c}" for t in "AB" for c in "xy"]
    of_b = real[(real.obs["cell_type"] == "B") & (real.obs["condition"] == "x")]
    expected = mean_change(of_b, control[control.obs["cell_type"] == "B"])
    np.testing.assert_allclose(axes[2, 0].collections[0].get_offsets()[:, 0], expected)


def test_response_by_group_says_what_is_wrong(cells):
    control, real = (cells[cells.obs["condition"] == c] for c in ("control", "stimulated"))
    one = real[real.obs["cell_type"] == "type_1"]
    with pytest.raises(KeyError, match="groupby, real: 'dose' is not a column"):
        pl.response(real, real, control, groupby="dose")
    with pytest.raises(ValueError, match=r"'generated' has no cells of \['type_0'\], groups of real"):
        pl.response(real, one, control, groupby="cell_type")
    with pytest.raises(ValueError, match=r"control has cells of some groups but not of \['type_0'\]"):
        pl.response(real, real, control[control.obs["cell_type"] == "type_1"], groupby="cell_type")
    with pytest.raises(TypeError, match="'shift' is an array"):
        pl.response(real, {"shift": np.zeros(30)}, control, groupby="cell_type")


@pytest.fixture
def table() -> pd.DataFrame:
    """Two metrics of two sources in two conditions, all of them, and their mean."""
    values = {  # floor, ceiling, better; of the two sources
        ("w2", "B cells"): (20.0, 10.0, "lower", 15.0, 25.0), ("w2", "T cells"): (30.0, 10.0, "lower", 10.0, 30.0),
        ("recall", "B cells"): (0.2, 0.8, "higher", 0.5, 0.0004), ("recall", "T cells"): (0.9, 0.8, "higher", 0.5, 0.6),
        ("w2", "all"): (20.0, np.nan, "lower", 12.0, 13.0), ("w2", "mean"): (25.0, 10.0, "lower", 12.5, 27.5),
        ("recall", "mean"): (0.55, 0.8, "higher", 0.5, 0.3),
    }  # fmt: skip
    rows = []
    for (metric, condition), (floor, ceiling, better, *found) in values.items():
        kinds = {"ours": "generated", "theirs": "generated", "cell mean": "floor", "real half": "ceiling"}
        for (source, kind), value in zip(kinds.items(), [*found, floor, ceiling], strict=True):
            rows.append((condition, source, kind, metric, value, floor, ceiling, better))
    return pd.DataFrame(rows, columns=["condition", "source", "kind", "metric", "value", "floor", "ceiling", "better"])


def labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_metrics_heatmap_colours_by_floor_and_ceiling(table, tmp_path):
    axes = pl.metrics_heatmap(table, save=tmp_path / "heatmap.png")
    assert [ax.get_title() for ax in axes] == ["best floor", "ours", "theirs", "ceiling"]
    assert labels(axes[0].xaxis) == ["B cells", "T cells", "mean", "all"]
    assert labels(axes[0].yaxis) == ["w2 ↓", "recall ↑"]
    position = [ax.images[0].get_array() for ax in axes]
    assert position[0].mask.all()
    assert position[3].mask.all()
    # no colour without a ceiling, nor where the ceiling is worse than the floor, nor where there is no value
    mask = [[False, False, False, True], [False, True, False, True]]
    np.testing.assert_array_equal(position[1].mask, mask)
    np.testing.assert_allclose(position[1][0, :3], [0.5, 1.0, 12.5 / 15], rtol=1e-5)
    np.testing.assert_allclose(position[1][1, [0, 2]], [0.5, -0.2])
    assert position[2][0, 0] == -0.5
    written = [{t.get_position(): t.get_text() for t in ax.texts} for ax in axes]
    assert written[1] == {
        (0, 0): "15.0", (1, 0): "10.0", (2, 0): "12.5", (3, 0): "12.0", (0, 1): "0.50", (1, 1): "0.50", (2, 1): "0.50"
    }  # fmt: skip
    assert written[2][0, 1] == "4e-4"
    assert (written[0][1, 0], written[3][1, 0]) == ("30.0", "10.0")
    image = axes[2].images[0]
    assert (image.cmap(image.norm(-0.5)) == image.cmap.get_under()).all()
    assert (tmp_path / "heatmap.png").stat().st_size > 0


def test_metrics_heatmap_draws_what_is_asked_for(table):
    axes = pl.metrics_heatmap(table, metrics=["recall"], conditions=["mean", "B cells"], sources=["cell mean", "ours"])
    assert [ax.get_title() for ax in axes] == ["best floor", "cell mean", "ours", "ceiling"]
    assert labels(axes[0].xaxis) == ["mean", "B cells"]
    assert labels(axes[0].yaxis) == ["recall ↑"]
    np.testing.assert_allclose(axes[1].images[0].get_array(), 0)


def test_metrics_heatmap_measures_by_the_floor_that_is_named(table):
    row = (table["source"] == "theirs") & (table["condition"] == "T cells") & (table["metric"] == "recall")
    table.loc[row, "value"] = 0.2
    axes = pl.metrics_heatmap(table, conditions=["T cells"], sources=["ours"], floor="theirs")
    assert [ax.get_title() for ax in axes] == ["theirs", "ours", "ceiling"]
    np.testing.assert_allclose(axes[1].images[0].get_array(), [[1.0], [0.5]])
    assert [text.get_text() for text in axes[0].texts] == ["30.0", "0.20"]


def test_metrics_heatmap_measures_a_slope_by_its_distance_from_1(table):
    slopes = {"ours": 0.75, "theirs": 1.4, "cell mean": 0.5, "real half": 1.0}
    for source, slope in slopes.items():
        row = (table["source"] == source) & (table["metric"] == "w2") & (table["condition"] == "B cells")
        table.loc[row, ["value", "floor", "ceiling", "better"]] = slope, 0.5, 1.0, "closer to 1"
    axes = pl.metrics_heatmap(table, metrics=["w2"], conditions=["B cells"])
    assert labels(axes[0].yaxis) == ["w2 →1"]
    np.testing.assert_allclose([ax.images[0].get_array().item() for ax in axes[1:3]], [0.5, 0.2])


def test_metrics_heatmap_draws_the_mean_over_folds(table):
    other = table.assign(value=table["value"] + 2.0, fold="other")
    axes = pl.metrics_heatmap(pd.concat([table, other]), metrics=["w2"], conditions=["B cells"], sources=["ours"])
    assert [ax.texts[0].get_text() for ax in axes] == ["21.0", "16.0", "11.0"]
    some = pd.concat([table, other[other["source"] != "cell mean"]])  # a floor that one fold lacks has no mean
    with pytest.warns(UserWarning, match="lack folds or seeds that others have: 'cell mean'"):
        axes = pl.metrics_heatmap(some, metrics=["w2"], conditions=["mean"], sources=["ours"], floor="cell mean")
    assert [len(ax.texts) for ax in axes] == [0, 1, 1]


def test_metrics_heatmap_says_what_is_missing(table):
    with pytest.raises(KeyError, match=r"table has no columns \['floor', 'ceiling'\]"):
        pl.metrics_heatmap(table.drop(columns=["floor", "ceiling"]))
    with pytest.raises(ValueError, match=r"table has no metric \['w3'\], but \['w2', 'recall'\]"):
        pl.metrics_heatmap(table, metrics=["w2", "w3"])
    with pytest.raises(ValueError, match='no rows of the kind "generated"'):
        pl.metrics_heatmap(table[table["kind"] != "generated"])


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


def test_parts_of_a_loss_are_drawn_in_the_panel_of_their_stage():
    """As joint models have them; any order of the metrics, as of a model that was loaded."""
    keys = ["diffusion_cross_entropy_train", "diffusion_denoising_loss_train", "autoencoder_loss_train",
            "diffusion_loss_validation", "diffusion_loss_train", "lr-AdamW"]  # fmt: skip
    history = {key: pd.DataFrame({key: [3.0 + i, 2.0 + i]}).rename_axis("epoch") for i, key in enumerate(keys)}
    axes = {ax.get_title(): ax for ax in pl.history(history)}
    assert axes.keys() == {"autoencoder", "diffusion"}
    curves = {line.get_label(): line.get_ydata()[0] for line in axes["diffusion"].lines}
    assert curves == {"train": 7, "validation": 6, "cross entropy (train)": 3, "denoising loss (train)": 4}


def test_volcano_colours_certain_genes_and_names_the_most_certain(tmp_path):
    change = np.array([2.0, -1.5, 0.3, -0.1, 1.0])
    z = np.array([np.inf, -40.0, 1.0, -0.2, 3.0])  # p of 40 standard deviations is 0 in floating point
    sd = np.array([0.1, 0.0375, 0.3, 0.5, 1 / 3])
    table = pd.DataFrame(
        {"change": change, "sd": sd, "lower": change - 1.6 * sd, "upper": change + 1.6 * sd, "z": z}, [*"abcde"]
    )
    figure, ax = plt.subplots()
    assert pl.volcano(table, n_labels=2, ax=ax, save=tmp_path / "volcano.png") is ax
    assert plt.fignum_exists(figure.number)  # of axes that were given
    assert [text.get_text() for text in ax.texts] == ["a", "b"]
    held, down, up = (np.asarray(points.get_offsets()) for points in ax.collections[:3])
    np.testing.assert_array_equal(held[:, 0], [0.3, -0.1])
    np.testing.assert_array_equal(down[:, 0], [-1.5])
    np.testing.assert_array_equal(up[:, 0], [2.0, 1.0])
    np.testing.assert_allclose(up[1, 1], -np.log10(0.0026998), rtol=1e-4)
    assert up[0, 1] == down[0, 1] > 300
    assert (tmp_path / "volcano.png").stat().st_size > 0
    assert pl.volcano(table, n_labels=0).texts[:] == []


def volcano_table(change, sd) -> pd.DataFrame:
    """What predict_change returns of genes of such changes."""
    change, sd = np.asarray(change, dtype=float), np.asarray(sd, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(change == 0, 0.0, change / sd)
    names = [f"G{i}" for i in range(len(change))]
    return pd.DataFrame({"change": change, "sd": sd, "lower": change - sd, "upper": change + sd, "z": z}, names)


def points(ax) -> list[list[list[float]]]:
    """Places of genes whose interval holds 0, of those that go down, and up."""
    return [np.asarray(some.get_offsets()).tolist() for some in ax.collections[:3]]


def test_volcano_of_genes_without_any_uncertainty():
    held, down, up = points(ax := pl.volcano(volcano_table([1.0, -2.0, 0.0], [0.0, 0.0, 0.0])))
    assert (held, [x for x, _ in down], [x for x, _ in up]) == ([[0.0, 0.0]], [-2.0], [1.0])
    assert up[0][1] == down[0][1] > 0
    assert [text.get_text() for text in ax.texts] == ["G0", "G1"]


def test_volcano_leaves_out_genes_of_which_nothing_is_known():
    table = volcano_table([1.0, np.nan, 2.0, np.inf], [0.1, 0.1, np.nan, 0.1])
    ax = pl.volcano(table, n_labels=10)
    assert [len(some) for some in points(ax)] == [0, 0, 1]
    assert [text.get_text() for text in ax.texts] == ["G0"]
    assert ax.get_legend_handles_labels()[1][0] == "interval holds 0 (0)"
    nullable = volcano_table([1.0, -1.0], [0.1, 0.1]).astype("Float64")
    nullable.loc["G1", "z"] = pd.NA
    assert [len(some) for some in points(pl.volcano(nullable))] == [0, 0, 1]


def test_volcano_of_one_gene_and_of_more_labels_than_genes():
    ax = pl.volcano(volcano_table([0.5], [0.1]), n_labels=100)
    assert [text.get_text() for text in ax.texts] == ["G0"]
    assert pl.volcano(volcano_table([0.0], [0.1])).texts[:] == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (volcano_table([], []), "change has 0 genes, none of which has a finite change and a z to draw"),
        (volcano_table([1.0, 2.0], [np.nan, np.nan]), "change has 2 genes, none of which"),
        (volcano_table([1.0], [0.1]).assign(z="high"), r"change must have numbers in its columns .*'high'"),
    ],
)
def test_volcano_of_nothing_says_so(table, message):
    before = plt.get_fignums()
    with pytest.raises(ValueError, match=message):
        pl.volcano(table)
    assert plt.get_fignums() == before


def test_volcano_says_what_is_missing():
    table = pd.DataFrame({"change": [1.0], "lower": [0.5]})
    with pytest.raises(KeyError, match=r"change has no columns \['upper', 'z'\], but \['change', 'lower'\]"):
        pl.volcano(table)
    with pytest.raises(TypeError, match="change is of type list: the DataFrame of predict_change was expected"):
        pl.volcano([1.0])
    with pytest.raises(ValueError, match="n_labels"):
        pl.volcano(table.assign(upper=1.5, z=3.0), n_labels=-1)
