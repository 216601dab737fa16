"""Loss curves."""

from __future__ import annotations

import os
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ._figures import save_figure


def history(history: Mapping[str, pd.DataFrame], save: str | os.PathLike | None = None) -> np.ndarray:
    """Draw the losses of training and validation, one panel for each stage.

    Where the loss of training is a sum, as that of a denoiser with a classifier, its parts have curves of their own.
    ``validation`` is comparable with ``denoising loss (train)`` there, as no labels are looked at in validation.

    Parameters
    ----------
    history
        ``model.history``: tables by names such as ``"autoencoder_loss_train"``.
    save
        File to write the picture to; a new figure is closed then.

    Returns
    -------
    np.ndarray
        The axes.

    Examples
    --------
    >>> import sclatent
    >>> from sclatent.model import SCLDM
    >>> adata = sclatent.datasets.simulate(100, 50, library_size=500)
    >>> SCLDM.setup_anndata(adata)
    >>> model = SCLDM(adata, width=32, denoiser_width=32)
    >>> model.train(max_epochs=2)
    >>> axes = sclatent.pl.history(model.history)
    >>> [ax.get_title() for ax in axes]
    ['autoencoder', 'diffusion']
    """
    found = {key.rpartition("_loss_")[0] for key in history if key.endswith(("_loss_train", "_loss_validation"))}
    # a part of the loss of a stage is called after it: "diffusion_denoising_loss_train"
    names = [name for name in found if not any(name.startswith(f"{other}_") for other in found)]
    stages: dict[str, dict[str, pd.Series]] = {}
    for key, frame in history.items():
        for name in names:
            if key.startswith(f"{name}_") and key.endswith(("_train", "_validation")):
                stages.setdefault(name, {})[_label(key.removeprefix(f"{name}_"))] = frame.iloc[:, 0]
    if not stages:
        raise ValueError("history has no losses: call model.train() first and give model.history.")
    figure, axes = plt.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.2), squeeze=False, layout="constrained")
    for ax, (stage, losses) in zip(axes[0], stages.items(), strict=True):
        _curves(ax, stage, losses)
    save_figure(figure, save)
    return axes[0]


def _label(metric: str) -> str:
    """What a curve is called: "loss_train" is "train", "cross_entropy_train" is "cross entropy (train)"."""
    what, _, split = metric.rpartition("_")
    return split if what == "loss" else f"{what.replace('_', ' ')} ({split})"


def _curves(ax: Axes, stage: str, losses: Mapping[str, pd.Series]) -> None:
    # train before validation before parts, whichever was logged first
    for label, values in sorted(losses.items(), key=lambda item: ("(" in item[0], item[0])):
        ax.plot(values.index + 1, values.to_numpy(), label=label)
    # the first epochs fall from a height that would flatten all the rest
    settled = np.concatenate([values.to_numpy()[len(values) // 10 :] for values in losses.values()])
    margin = 0.05 * np.ptp(settled)
    if margin > 0:
        ax.set_ylim(settled.min() - margin, settled.max() + margin)
    ax.set(title=stage, xlabel="epoch", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
