"""What the stages of the models of images and embeddings minimise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sclatent.data import FeatureBatch
from sclatent.diffusion import Process
from sclatent.module import DenoisingAutoencoder, DiT, FeatureAutoencoder, JointDenoiser
from sclatent.nn import OPEN

from ._plans import DiffusionPlan, StagePlan


class ReconstructionPlan(StagePlan):
    """The autoencoder: the mean squared error of standardised features.

    Parameters
    ----------
    autoencoder
        What is trained.
    token_noise
        Standard deviation of the noise on the tokens, which have variance 1: what the decoder learns to bear.
    """

    def __init__(
        self,
        autoencoder: FeatureAutoencoder,
        token_noise: float = 0.1,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__("autoencoder", lr, weight_decay, **kwargs)
        if token_noise < 0:
            raise ValueError(f"token_noise={token_noise!r} must be at least 0.")
        self.trained = autoencoder
        self.token_noise = token_noise

    def losses(self, batch: FeatureBatch, generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,)."""
        x = self.trained.scale(batch.x, batch.batch)
        tokens = self.trained.to_tokens(x)
        noise = torch.randn(tokens.shape, generator=generator, device=generator.device)
        error = self.trained.from_tokens(tokens + self.token_noise * noise) - x
        return error.square().flatten(1).mean(dim=1)

    def validation_losses(self, batch: FeatureBatch, generator: torch.Generator) -> Tensor:
        """Loss of each cell without noise on its tokens, (cells,)."""
        x = self.trained.scale(batch.x, batch.batch)
        return (self.trained.from_tokens(self.trained.to_tokens(x)) - x).square().flatten(1).mean(dim=1)


class DenoisingPlan(StagePlan):
    r"""The denoising autoencoder of DAED: :math:`-\ln p(x_0 | f_\varphi(x_1))` a coordinate."""

    def __init__(
        self, autoencoder: DenoisingAutoencoder, lr: float = 1e-3, weight_decay: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__("denoiser", lr, weight_decay, **kwargs)
        self.trained = autoencoder

    def losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,)."""
        x0 = batch[0]
        noise = torch.randn(x0.shape, generator=generator, device=generator.device)
        return -self.trained.log_prob(x0, self.trained.add_noise(x0, noise)) / x0[0].numel()


class PriorPlan(DiffusionPlan):
    """The prior of DAED: diffusion of x1, which is drawn anew every time."""

    def __init__(self, denoiser: DiT, autoencoder: DenoisingAutoencoder, process: Process, **kwargs: Any) -> None:
        super().__init__(denoiser, process, **kwargs)
        self._add_noise = autoencoder.add_noise

    def _flow_losses(
        self, denoiser: torch.nn.Module, tokens: Tensor, *told: Tensor, generator: torch.Generator
    ) -> Tensor:
        noise = torch.randn(tokens.shape, generator=generator, device=generator.device)
        return super()._flow_losses(denoiser, self._add_noise(tokens, noise), *told, generator=generator)


class JointPlan(DiffusionPlan):
    r"""Joint diffusion: the denoiser on all cells, the classifier on the labelled ones (arXiv 2301.13622, 2411.09434).

    .. math:: L = L_{\text{diffusion}} + \lambda \, \bigl( - \ln p(y | x_1) - \ln p(y | x_t) \bigr) / 2
              + \mu \, L_{\text{consistency}}

    Every minibatch is joined by labelled cells, drawn with replacement, which are classified as they are (at t = 1) and
    with as much noise as the diffusion loss sees, so that the classifier can guide at any time. The labels of all
    labelled cells are learned, also of those on which the diffusion loss is watched.

    Parameters
    ----------
    denoiser
        What is trained.
    process
        How noise comes.
    told
        Whether the denoiser is told the label (for classifier-free guidance).
    classifier_weight
        :math:`\lambda`.
    n_labelled
        Labelled cells that join a minibatch.
    label_smoothing
        Share of the probability that is spread over all labels.
    consistency_weight
        :math:`\mu`, the weight of FixMatch's loss (Sohn et al. 2020) on all cells of the minibatch: where a cell with
        little noise is classified with confidence, the same cell with more noise has to be classified alike.
    threshold
        Confidence from which on a cell takes part in it.
    weak_noise, strong_noise
        Share of the noise in the variance of the two.
    """

    def __init__(
        self,
        denoiser: JointDenoiser,
        process: Process,
        told: bool,
        classifier_weight: float = 0.1,
        n_labelled: int = 64,
        label_smoothing: float = 0.05,
        consistency_weight: float = 0.0,
        threshold: float = 0.95,
        weak_noise: float = 0.05,
        strong_noise: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(denoiser, process, **kwargs)
        for name, value in (("weak_noise", weak_noise), ("strong_noise", strong_noise), ("threshold", threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} must be between 0 and 1.")
        self.told = told
        self.classifier_weight, self.n_labelled, self.label_smoothing = classifier_weight, n_labelled, label_smoothing
        self.consistency_weight, self.threshold = consistency_weight, threshold
        self.weak_noise, self.strong_noise = weak_noise, strong_noise

    def on_train_start(self) -> None:
        """Take the labelled cells, those of the validation split among them."""
        rows = self.trainer.train_dataloader.dataset
        labelled = rows.others[0][:, 0] != OPEN
        self._labelled = rows.tokens[labelled].to(self.device), rows.others[0][labelled, 0].to(self.device)

    def losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,); what is learned of labels is the same for all of them."""
        tokens, codes = batch
        diffusion = super().losses((tokens, self._told_codes(codes)), generator)
        self.log("diffusion_denoising_loss_train", diffusion.mean(), on_step=False, on_epoch=True)
        loss = diffusion
        if self.classifier_weight and len(self._labelled[0]):
            cross_entropy = self._cross_entropy(generator)
            self.log("diffusion_cross_entropy_train", cross_entropy, on_step=False, on_epoch=True)
            loss = loss + self.classifier_weight * cross_entropy
        if self.consistency_weight:
            loss = loss + self.consistency_weight * self._consistency(tokens, generator)
        return loss

    def validation_losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Diffusion loss of each cell under the averaged weights, (cells,)."""
        return super().validation_losses((batch[0], self._told_codes(batch[1])), generator)

    def _told_codes(self, codes: Tensor) -> Tensor:
        return codes if self.told else codes[:, :0]

    def _noisy(self, tokens: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(tokens.shape, generator=generator, device=generator.device)
        return self.process.interpolate(tokens, noise, t)

    def _cross_entropy(self, generator: torch.Generator) -> Tensor:
        tokens, labels = self._labelled
        drawn = torch.randint(len(labels), (self.n_labelled,), generator=generator, device=generator.device)
        z, y = tokens[drawn], labels[drawn]
        t = self.process.draw_time(len(z), generator)
        x = torch.cat([z, self._noisy(z, t, generator)])
        logits = self.trained.logits(x, torch.cat([torch.ones_like(t), t]))
        return F.cross_entropy(logits, y.repeat(2), label_smoothing=self.label_smoothing)

    def _consistency(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        weak, strong = (
            tokens.new_full((len(tokens),), self.process.time(level)) for level in (self.weak_noise, self.strong_noise)
        )
        with torch.no_grad():
            confidence, pseudo = self.trained.logits(self._noisy(tokens, weak, generator), weak).softmax(1).max(dim=1)
        logits = self.trained.logits(self._noisy(tokens, strong, generator), strong)
        return ((confidence >= self.threshold) * F.cross_entropy(logits, pseudo, reduction="none")).mean()
