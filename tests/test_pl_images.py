"""Pictures of images, and of what ``tl`` has found: what is drawn is what is there."""

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import pl


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def flat(n: int, channels: int = 1, side: int = 16, **obs) -> AnnData:
    """Images of one brightness each, that of their position, stored flat."""
    values = np.repeat(np.arange(n, dtype=np.uint8)[:, None], side * side * channels, axis=1)
    adata = AnnData(obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n)]), obsm={"image": values})
    adata.uns["image_shape"] = [side, side, channels]
    return adata


def drawn(ax, rows: int, columns: int, side: int = 16, above: int = 0) -> np.ndarray:
    """Value in the middle of each image of a mosaic; masked where there is none."""
    canvas = ax.images[0].get_array()
    y, x = (np.arange(n) * (side + 1 + extra) + extra + side // 2 for n, extra in ((rows, above), (columns, 0)))
    return canvas[np.ix_(y, x)]


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_images_have_a_row_a_group(tmp_path):
    adata = flat(9, group=pd.Categorical([*"aaaaabbbc"], categories=[*"cbad"]))
    ax = pl.images(adata, "image", "group", n=3, save=tmp_path / "images.png")
    assert ticks(ax.yaxis) == ["c", "b", "a"]
    found = drawn(ax, 3, 3)
    np.testing.assert_array_equal(found.filled(-1), [[8, -1, -1], [5, 6, 7], [0, 2, 4]])  # spread over the group
    assert ax.images[0].get_clim() == (0, 255)
    assert (tmp_path / "images.png").stat().st_size > 0


def test_images_without_groups_fill_rows_of_eight():
    _, mine = plt.subplots()
    ax = pl.images(flat(20), "image", n=10, ax=mine)
    assert ax is mine
    assert ticks(ax.yaxis) == []
    found = drawn(ax, 2, 8).filled(-1)
    np.testing.assert_array_equal(found[0], np.linspace(0, 19, 10).round()[:8])
    np.testing.assert_array_equal(found[1], [17, 19] + [-1] * 6)


def test_images_are_drawn_in_colour_and_scaled_if_they_are_floats():
    adata = flat(2, channels=3)
    np.testing.assert_allclose(drawn(pl.images(adata, "image"), 1, 2)[0], [[0] * 3, [1 / 255] * 3])
    pixels = np.linspace(-1, 1, 2 * 16 * 16).reshape(2, 16, 16).astype(np.float32)
    ax = pl.images(AnnData(pixels.reshape(2, -1)), image_shape=(16, 16))  # X
    assert ax.images[0].get_clim() == (-1, 1)
    np.testing.assert_allclose(ax.images[0].get_array()[:, :16], pixels[0], rtol=1e-6)


def test_images_say_what_is_wrong():
    adata = flat(2)
    with pytest.raises(KeyError, match=r"adata: obsm_key='picture' is not in adata.obsm, which has \['image'\]"):
        pl.images(adata, "picture")
    with pytest.raises(KeyError, match=r"groupby='dose' is not a column of adata.obs"):
        pl.images(adata, "image", "dose")
    with pytest.raises(ValueError, match="n=0 must be a whole number of at least 1"):
        pl.images(adata, "image", n=0)
    with pytest.raises(ValueError, match=r"adata.X has 7 values a cell, which are no image: give image_shape="):
        pl.images(AnnData(np.zeros((2, 7), dtype=np.float32)))
    with pytest.raises(ValueError, match=r"adata.obsm\['image'\] has images of 2 channels: 1 \(grey\) or 3 \(RGB\)"):
        pl.images(flat(2, channels=2), "image")


def guided() -> AnnData:
    """Two labels, three weights, two starting points, in random order; brightness says which is which."""
    names = ["label", "guidance_weight", "noise"]
    index = pd.MultiIndex.from_product([["b", "a"], [0.0, 1.0, 8.0], [0, 1]], names=names)
    adata = flat(12, **{name: index.get_level_values(name) for name in names})
    adata.obs["label"] = pd.Categorical(adata.obs["label"], categories=["b", "a"])
    adata.uns["guidance"] = {"key": "label"}
    return adata[np.random.default_rng(0).permutation(12)].copy()


def test_guidance_has_a_row_a_label_and_a_column_a_weight(tmp_path):
    ax = pl.guidance(guided(), save=tmp_path / "guidance.png")
    assert ticks(ax.yaxis) == ["b", "a"]
    assert ticks(ax.xaxis) == ["0", "1", "8"]
    np.testing.assert_array_equal(drawn(ax, 2, 3), [[0, 2, 4], [6, 8, 10]])
    ax = pl.guidance(guided(), n=2)
    assert ticks(ax.yaxis) == ["b", "a"]
    np.testing.assert_array_equal(drawn(ax, 4, 3), [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]])
    assert (tmp_path / "guidance.png").stat().st_size > 0


def test_guidance_needs_every_cell():
    with pytest.raises(ValueError, match="adata lacks cells of some labels and weights"):
        pl.guidance(guided()[guided().obs["guidance_weight"] + guided().obs["noise"] > 0].copy())
    plain = flat(2)
    with pytest.raises(KeyError, match=r"adata.uns has no 'guidance'"):
        pl.guidance(plain)
    with pytest.raises(KeyError, match=r"'guidance_weight' is not a column of adata.obs"):
        pl.guidance(flat(2, label=["a", "b"]), groupby="label")


@pytest.fixture
def pair() -> tuple[AnnData, AnnData]:
    """Six cells and the counterfactuals of three of them, in another order: their middle is 50, 0 and -1 brighter."""
    original = flat(6, label=[*"aabbaa"])
    counterfactual = original[[4, 2, 1]].copy()
    counterfactual.obs["label"] = "c"
    images = counterfactual.obsm["image"].reshape(3, 16, 16)
    images[:, 4:12, 4:12] += np.array([50, 0, 255], dtype=np.uint8)[:, None, None]  # 255 is -1 of a byte
    counterfactual.obsm["image"] = images.reshape(3, -1)
    return original, counterfactual


def test_counterfactuals_stand_beside_their_originals(pair, tmp_path):
    axes = pl.counterfactuals(*pair, save=tmp_path / "cf.png")
    assert [ax.get_title() for ax in axes] == ["original", "counterfactual", "difference"]
    old, new, difference = (drawn(ax, 3, 1)[:, 0] for ax in axes)
    np.testing.assert_array_equal(old, [4, 2, 1])
    np.testing.assert_array_equal(new, [54, 2, 0])
    np.testing.assert_array_equal(difference, [50, 0, -1])  # bytes do not wrap around
    low, high = axes[2].images[0].get_clim()
    assert low == -high == -50
    assert "counterfactual − original" in [ax.get_ylabel() for ax in axes[0].figure.axes]  # the colour bar
    assert (tmp_path / "cf.png").stat().st_size > 0


def test_counterfactuals_are_titled_by_their_labels(pair):
    axes = pl.counterfactuals(*pair, labels_key="label", n=2)
    texts = [[text.get_text() for text in ax.texts if text.get_text()] for ax in axes]
    assert texts == [["a", "a"], ["c", "c"], []]
    np.testing.assert_array_equal(drawn(axes[0], 2, 1, above=3)[:, 0], [4, 1])


def test_counterfactuals_are_matched_by_name(pair):
    original, counterfactual = pair
    with pytest.raises(KeyError, match=r"original has no cells \['cell_4', 'cell_1'\]"):
        pl.counterfactuals(original[[0, 2, 3]], counterfactual)
    with pytest.raises(KeyError, match=r"counterfactual: obsm_key='image' is not in adata.obsm"):
        pl.counterfactuals(original, AnnData(obs=counterfactual.obs))
    with pytest.raises(KeyError, match=r"labels_key='type' is not a column of original.obs"):
        pl.counterfactuals(original, counterfactual, labels_key="type")
    with pytest.raises(ValueError, match=r"original has images of shape \(16, 16, 1\), counterfactual of \(8, 8, 1\)"):
        pl.counterfactuals(original, flat(6, side=8))
    original.obs_names = ["cell"] * 6
    with pytest.raises(ValueError, match=r"original.obs_names are not unique"):
        pl.counterfactuals(original, counterfactual)


# ---- curves and bars


@pytest.fixture
def errors() -> pd.DataFrame:
    rows = [
        (model, data_set, level, level * factor, 0.01, level, 50)
        for model, factor in {"JointDiffusion": 0.5, "other": 0.7}.items()
        for data_set in ("here", "there")
        for level in (0.5, 0.01, 0.1)
    ]
    return pd.DataFrame(rows, columns=["model", "data_set", "noise_level", "error", "se", "noise", "n_cells"])


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_reconstruction_error_has_a_curve_a_data_set(errors, tmp_path):
    adata = AnnData(np.zeros((1, 1)), uns={"reconstruction_error": errors[errors["model"] == "JointDiffusion"]})
    ax = pl.reconstruction_error(adata, save=tmp_path / "error.png")
    assert legend(ax) == ["here", "there", "noisy cells as they are"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.005, 0.05, 0.25])  # in the order of the levels
    steps = ax.lines[0].get_xdata()
    np.testing.assert_allclose(np.sin(np.pi / 2 * steps) ** 2, [0.01, 0.1, 0.5])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [0.005 - 0.0196, 0.25 + 0.0196])
    assert ticks(ax.xaxis)[:3] == ["0%", "1%", "10%"]
    assert (tmp_path / "error.png").stat().st_size > 0


def test_reconstruction_error_of_several_models_shares_colours(errors):
    one_level = errors[(errors["model"] == "JointDiffusion") | (errors["noise_level"] == 0.1)]
    ax = pl.reconstruction_error(one_level)
    assert legend(ax) == ["here", "there", "JointDiffusion", "other", "noisy cells as they are"]
    curves = [line for line in ax.lines if line.get_marker() in ("o", "D")]
    assert [line.get_color() for line in curves] == ["C0", "C1", "C0", "C1"]
    assert [len(line.get_xdata()) for line in curves] == [3, 3, 1, 1]


def test_probe_stands_beside_features_and_majority(tmp_path):
    table = pd.DataFrame({"label_key": "type", "noise_level": [0, 0.5], "accuracy": [0.9, 0.5], "se": 0.02})
    table = table.assign(features=0.7, majority=0.3, n_cells=100)
    ax = pl.probe(table, save=tmp_path / "probe.png")
    assert legend(ax) == ["activations of the denoiser", "clean features", "most frequent label"]
    assert [line.get_ydata()[0] for line in ax.lines] == [0.9, 0.7, 0.3]
    assert "type" in ax.get_ylabel()
    assert (tmp_path / "probe.png").stat().st_size > 0
    both = pl.probe(pd.concat([table, table.assign(label_key="phase")]))
    assert len(both.lines) == 6
    assert legend(both)[3] == "phase: activations of the denoiser"


def test_denoising_has_a_bar_a_model(tmp_path):
    table = pd.DataFrame(
        {"model": ["noisy cells", "a", "b"] * 2, "data_set": ["here"] * 3 + ["there"] * 3, "noise_level": 0.1,
         "error": [0.3, 0.1, 0.2, 0.3, 0.25, 0.35], "se": 0.01}
    )  # fmt: skip
    _, mine = plt.subplots()
    ax = pl.denoising(table, ax=mine, save=tmp_path / "denoising.png")
    assert ax is mine
    assert legend(ax) == ["noisy cells", "a", "b"]
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.3, 0.1, 0.25, 0.2, 0.35]
    assert ticks(ax.xaxis) == ["here", "there"]
    assert ax.get_title() == "noise: 10% of the variance"
    assert (tmp_path / "denoising.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["reconstruction_error", "probe", "denoising"])
def test_curves_say_what_is_missing(name):
    draw = getattr(pl, name)
    with pytest.raises(KeyError, match=rf"key='{name}' is not in data.uns, .*: call sclatent.tl.{name} first"):
        draw(AnnData(np.zeros((1, 1))))
    with pytest.raises(KeyError, match=rf"data has no columns \[.*'se'.*\]: .* what sclatent.tl.{name} returns"):
        draw(pd.DataFrame({"noise_level": [0.1]}))
