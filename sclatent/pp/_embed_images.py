"""From images of cells to vectors, by an encoder that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from sclatent.data import by_rows, get_features, read_rows
from sclatent.data._reading import dense

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INTERPOLATIONS = ("bilinear", "bicubic")
ROUNDING = 1e-3  # of floats that were scaled in half precision
UNS_KEY = "sclatent_embed_images"


def embed_images(
    adata: AnnData,
    image_key: str,
    encoder: nn.Module | Callable[[Tensor], Tensor | np.ndarray],
    *,
    key_added: str = "X_embedding",
    image_shape: Sequence[int] | None = None,
    n_channels: int | None = None,
    size: int | tuple[int, int] | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    progress_bar: bool = True,
) -> None:
    """Embed the image of every cell with a pretrained encoder.

    Images are scaled to [0, 1], brought to the size and the number of channels that the encoder wants, and normalised.
    Where an argument is left out, the encoder's ``pretrained_cfg`` decides if it has one, as the models of timm and
    :func:`efficientnet_lite0` do. The images in memory are those of one batch.

    Parameters
    ----------
    adata
        Cells with an image each.
    image_key
        Key of ``adata.obsm`` with the images: ``uint8``, or floats in [0, 1]. Shape (cells, height, width), (cells,
        height, width, channels), or flat, (cells, height * width * channels) with the channels last.
        Leave images of 8 bits as ``uint8``: they are resized with the rounding that encoders saw in training.
    encoder
        A torch module, or any callable, from a float tensor (cells, channels, height, width) to a tensor or array
        (cells, dim) or (cells, dim, height, width), of which the average over space is taken. A module is put in eval
        mode and on ``device``, and given back as it was.
    key_added
        Key of ``adata.obsm`` for the embedding.
    image_shape
        (height, width) or (height, width, channels) of flat images, ``adata.uns["image_shape"]`` by default.
    n_channels
        Channels that the encoder wants. Grey images are repeated; others must have as many. By default what the encoder
        says; else 3 for grey images, and for others the channels that they have.
    size
        Height and width, in pixels, to resize images to, with antialiasing; a number is both. By default what the
        encoder says, else images stay as they are. The whole image is resized, nothing is cropped.
    interpolation
        How to resize. By default what the encoder says, else ``"bilinear"``.
    mean, std
        Taken from, and divided into, images in [0, 1]: a number, or one for each channel. By default what the encoder
        says, else those of ImageNet; 0 and 1 leave images as they are.
    batch_size
        Images that are embedded together; the result does not depend on it. By default 64, and 16 on a CPU, which more
        make slower.
    device
        Where to embed. ``"auto"``: where the encoder is if that is a GPU, else a GPU if there is one. A callable that
        is no torch module cannot be moved: ``"auto"`` hands it tensors on the CPU.
    progress_bar
        Whether to show progress, images/s and the time that is left.

    Returns
    -------
    None
        It adds ``adata.obsm[key_added]``, float32 (cells, dim), and how it was made in
        ``adata.uns["sclatent_embed_images"][key_added]``. If something goes wrong, nothing is added.

    Raises
    ------
    KeyError
        ``image_key`` is not in ``adata.obsm``.
    ValueError
        An argument or the images are not as described, or the encoder returned another shape, NaN or infinite values.
    TypeError
        ``encoder`` cannot be called, or returned neither a tensor nor an array.

    Examples
    --------
    Any torch module that takes images, or a function, is an encoder:

    >>> import sclatent, torch
    >>> adata = sclatent.datasets.blood_cells()[:20].copy()
    >>> encoder = torch.nn.Conv2d(in_channels=3, out_channels=8, kernel_size=5)
    >>> sclatent.pp.embed_images(adata, "image", encoder, key_added="X_conv")
    >>> adata.obsm["X_conv"].shape
    (20, 8)

    One that was trained on photographs, of the extra ``images``:

    >>> encoder = sclatent.pp.efficientnet_lite0()  # doctest: +SKIP
    >>> sclatent.pp.embed_images(adata, "image", encoder, key_added="X_effnet")  # doctest: +SKIP

    One from timm, without its last layer; a vision transformer is made for one size of images:

    >>> import timm  # doctest: +SKIP
    >>> name, size = "vit_small_patch14_dinov2", 224
    >>> encoder = timm.create_model(name, pretrained=True, num_classes=0, img_size=size)  # doctest: +SKIP
    >>> sclatent.pp.embed_images(adata, "image", encoder, key_added="X_dino", size=size)  # doctest: +SKIP
    """
    if isinstance(encoder, type) or not callable(encoder):
        raise TypeError(
            f"encoder={encoder!r} must be a torch module, or a callable from a tensor of images to a tensor; for "
            "instance sclatent.pp.efficientnet_lite0()."
        )
    if key_added == image_key:
        raise ValueError(f"key_added={key_added!r} is where the images are: choose another name for the embedding.")
    place = _place(encoder, device)
    batch_size = (16 if place.type == "cpu" else 64) if batch_size is None else batch_size
    _check_at_least_1("batch_size", batch_size)
    images, shape = _find_images(adata, image_key, image_shape)
    prepare = _preparation(encoder, shape[-1], shape[:2], n_channels, size, interpolation, mean, std)
    batches = [slice(start, min(start + batch_size, adata.n_obs)) for start in range(0, adata.n_obs, batch_size)]
    _check_values(images, batches, f"adata.obsm[{image_key!r}]")

    name = getattr(encoder, "__name__", type(encoder).__name__)  # of a function, or of the class of a module
    embedding = None
    with (
        _lent(encoder, place) as dtype,
        tqdm(total=adata.n_obs, desc="embedding", unit=" images", disable=not progress_bar) as bar,
    ):
        for rows in batches:
            batch = prepare(dense(read_rows(images, rows)).reshape(-1, *shape), place).to(dtype)
            features = _features(encoder, batch, name, rows.start)
            if embedding is None:
                embedding = np.empty((adata.n_obs, features.shape[1]), dtype=np.float32)
            elif features.shape[1] != embedding.shape[1]:
                raise ValueError(
                    f"encoder={name} returned {embedding.shape[1]} features for the first images and "
                    f"{features.shape[1]} from row {rows.start} on: it must return as many for every image."
                )
            embedding[rows] = features
            bar.update(len(features))

    adata.obsm[key_added] = embedding
    made = {"version": version("sclatent"), "encoder": name, "image_key": image_key, "image_shape": list(shape)}
    adata.uns[UNS_KEY] = {**adata.uns.get(UNS_KEY, {}), key_added: {**made, **prepare.describe(shape[:2])}}


# ---- the images


def _find_images(adata: AnnData, key: str, given: Sequence[int] | None) -> tuple[Any, tuple[int, int, int]]:
    """Find the images, as they are stored, and the (height, width, channels) of each."""
    if key not in adata.obsm:
        raise KeyError(f"image_key={key!r} is not in adata.obsm, which has {list(adata.obsm)}.")
    if adata.n_obs == 0:
        raise ValueError("adata has no cells, so there is nothing to embed.")
    images, place = get_features(adata, key, None)
    is_flat = len(images.shape) == 2
    where = f"{place} of shape {images.shape}"
    if images.dtype == object:
        raise ValueError(
            f"{where} holds objects, not numbers: images must all have one size; resize them and stack them as (cells, "
            "height, width) or (cells, height, width, channels)."
        )
    if len(images.shape) not in (2, 3, 4) or 0 in images.shape:
        raise ValueError(
            f"{where} does not hold images: (cells, height, width), (cells, height, width, channels) or (cells, height "
            "* width * channels) was expected."
        )
    images = by_rows(images, place)
    argument = "image_shape" if given is not None else 'adata.uns["image_shape"]'
    if given is None and is_flat:
        if "image_shape" not in adata.uns:
            raise ValueError(
                f"{where} is flat: give image_shape=(height, width), or (height, width, channels), or store it as "
                'adata.uns["image_shape"].'
            )
        given = adata.uns["image_shape"]
    shape = images.shape[1:] if given is None else tuple(np.atleast_1d(given).tolist())
    is_shape = len(shape) in (2, 3) and all(isinstance(n, int | np.integer) and n >= 1 for n in shape)
    whole = (*shape, 1)[:3]  # grey has one channel
    if is_shape and is_flat:
        fits = np.prod(shape) == images.shape[1]
    else:
        fits = is_shape and whole == (*images.shape[1:], 1)[:3]
    if not fits:
        has = f"{images.shape[1]} values" if is_flat else f"the shape {images.shape[1:]}"
        raise ValueError(
            f"{argument}={shape} does not fit {where}, where an image has {has}: (height, width) or (height, "
            "width, channels) was expected."
        )
    return images, whole


def _check_values(images: Any, batches: list[slice], where: str) -> None:
    """Raise a ``ValueError`` unless all images can be scaled to [0, 1], before the first is embedded."""
    dtype = read_rows(images, slice(0, 1)).dtype
    if dtype in (np.uint8, np.bool_):
        return
    if dtype.kind != "f":
        raise ValueError(
            f"{where} has values of type {dtype}: uint8, or floats in [0, 1], were expected. Store values of 0 to 255 "
            'as .astype("uint8"); divide others by the largest that the camera can give, 65535 for 16 bits.'
        )
    for rows in batches:
        block = dense(read_rows(images, rows))
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{where} has values that are NaN or infinite, the first in row {rows.start + np.argmin(finite)}: "
                "remove these cells, or replace the values."
            )
        if block.min() < -ROUNDING or block.max() > 1 + ROUNDING:
            raise ValueError(
                f"{where} has floats from {block.min():g} to {block.max():g} in the rows {rows.start} to "
                f"{rows.stop - 1}: floats in [0, 1], or uint8, were expected. Divide images of 0 to 255 by 255; bring "
                "others to [0, 1] by one minimum and maximum for all cells, which keeps them comparable."
            )


# ---- what the encoder is given


@dataclass
class _Preparation:
    """From images as they are stored to what the encoder takes."""

    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]  # one for each channel
    std: tuple[float, ...]

    def __call__(self, block: np.ndarray, device: torch.device) -> Tensor:
        """Turn images (cells, height, width, channels) into a tensor (cells, n_channels, *size)."""
        is_byte = block.dtype == np.uint8
        x = torch.from_numpy(block.astype(np.uint8 if is_byte else np.float32)).movedim(-1, 1)
        if x.shape[-2:] != self.size:
            # Bytes stay bytes, which only the CPU can resize: it rounds as Pillow does, with which encoders are
            # trained. EfficientNet-Lite0 sees the difference (correlation with floats that were not rounded: 0.98).
            x = interpolate(x, self.size, mode=self.interpolation, antialias=True)
        x = x.to(device)
        x = x.float() / 255 if is_byte else x.clamp(0, 1)  # bicubic overshoots, and so does rounding
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std  # one channel becomes as many as the means are

    def describe(self, before: tuple[int, int]) -> dict[str, Any]:
        """Say what is done to images of a height and width, in values that h5ad can hold."""
        how = self.interpolation if self.size != before else "none"
        return {
            "n_channels": len(self.mean), "size": list(self.size), "interpolation": how,
            "mean": list(self.mean), "std": list(self.std),
        }  # fmt: skip


def _preparation(
    encoder: Callable,
    channels: int,
    before: tuple[int, int],
    n_channels: int | None,
    size: int | tuple[int, int] | None,
    interpolation: str | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> _Preparation:
    """Settle how images are prepared, by the arguments, else by what the encoder says, else by default."""
    said = getattr(encoder, "pretrained_cfg", None)
    said = said if isinstance(said, Mapping) else {}
    said_channels, *said_size = said.get("input_size") or (3 if channels == 1 else channels, *before)

    n_channels = said_channels if n_channels is None else n_channels
    _check_at_least_1("n_channels", n_channels)
    if channels not in (1, n_channels):
        raise ValueError(
            f"The images have {channels} channels, the last axis of their shape, and the encoder wants "
            f"n_channels={n_channels}: choose as many of them, such as images[..., :{n_channels}], or give n_channels=."
        )
    wanted: Any = said_size if size is None else size
    sides = (wanted, wanted) if np.ndim(wanted) == 0 else tuple(wanted)
    if len(sides) != 2:
        raise ValueError(f"size={sides} must be a number of pixels, or (height, width).")
    for n in sides:
        _check_at_least_1("size", n)
    if interpolation is None:
        interpolation = said["interpolation"] if said.get("interpolation") in INTERPOLATIONS else "bilinear"
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} must be one of {list(INTERPOLATIONS)}.")
    values = {
        argument: _per_channel(argument, given, said.get(argument) or IMAGENET[argument], n_channels)
        for argument, given in (("mean", mean), ("std", std))
    }
    if min(values["std"]) <= 0:
        raise ValueError(f"std={std!r} must be above 0.")
    return _Preparation((int(sides[0]), int(sides[1])), interpolation, **values)


def _per_channel(
    argument: str, given: float | Sequence[float] | None, default: Sequence[float], n_channels: int
) -> tuple[float, ...]:
    values = np.atleast_1d(np.asarray(default if given is None else given, dtype=float))
    if values.shape not in ((1,), (n_channels,)) or not np.isfinite(values).all():
        which = ", of the encoder or of ImageNet," if given is None else ""
        raise ValueError(
            f"{argument}={values.tolist()}{which} does not fit images with {n_channels} channels, the last axis of "
            f"their shape: give {argument}=, a finite number or one for each channel."
        )
    return tuple(np.broadcast_to(values, n_channels).tolist())


def _check_at_least_1(argument: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{argument}={value!r} must be a whole number, at least 1.")


# ---- the encoder


def _first_tensor(encoder: nn.Module) -> Tensor | None:
    tensors = chain(encoder.parameters(), encoder.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)


def _place(encoder: Callable, device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if not isinstance(encoder, nn.Module):
        return torch.device("cpu")
    first = _first_tensor(encoder)
    if first is not None and first.device.type != "cpu":
        return first.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _lent(encoder: Callable, device: torch.device) -> Iterator[torch.dtype]:
    """Have an encoder in eval mode on a device, then give it back as it was; yields the type of its weights."""
    if not isinstance(encoder, nn.Module):
        yield torch.float32
        return
    first = _first_tensor(encoder)
    modes = {module: module.training for module in encoder.modules()}  # parts may be frozen in another mode
    before = device if first is None else first.device
    try:
        encoder.eval().to(device)
        yield torch.float32 if first is None else first.dtype
    finally:
        encoder.to(before)
        for module, mode in modes.items():
            module.training = mode


@torch.inference_mode()
def _features(encoder: Callable, batch: Tensor, name: str, start: int) -> np.ndarray:
    """Embed a batch and check what came out: (images, dim)."""
    try:
        output = encoder(batch)
    except Exception as error:
        error.add_note(
            f"encoder={name} was given images of shape {tuple(batch.shape)}, {batch.dtype} on {batch.device}: size=, "
            "n_channels= and device= change that."
        )
        raise
    if not isinstance(output, Tensor | np.ndarray):
        raise TypeError(
            f"encoder={name} returned {type(output).__name__}: a tensor or array (images, dim) was expected. Give a "
            "callable that takes it out, such as lambda images: model(images).pooler_output."
        )
    tensor = torch.as_tensor(output).float()
    if tensor.ndim == 4:
        tensor = tensor.mean(dim=(2, 3))
    if tensor.ndim != 2 or len(tensor) != len(batch) or tensor.shape[1] == 0:
        raise ValueError(
            f"encoder={name} returned the shape {tuple(output.shape)} for {len(batch)} images: ({len(batch)}, dim) or "
            f"({len(batch)}, dim, height, width) was expected. Give a callable that brings it to that, such as lambda "
            "images: model(images)[:, 0] for the first token of a transformer."
        )
    features = tensor.cpu().numpy()
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"encoder={name} returned values that are NaN or infinite, first for the image in row "
            f"{start + np.argmin(finite)}: weights in half precision may overflow, encoder.float() does not."
        )
    return features
