"""What the stages of the models of images and embeddings minimise."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sclatent.data import FeatureBatch, TokenRows, check_number, check_whole
from sclatent.diffusion import Process
from sclatent.module import DenoisingAutoencoder, FeatureAutoencoder, JointDenoiser
from sclatent.nn import NULL, Context, Dropout

from ._plans import DiffusionPlan, StagePlan

LEAST_MIXUP = 0.01  # hardly ever mixes: smaller ones would be drawn for ever


class ReconstructionPlan(StagePlan):
    """The autoencoder: the mean squared error of standardised features.

    Parameters
    ----------
    autoencoder
        What is trained.
    token_noise
        Standard deviation of the noise on the tokens in training, which the decoder learns to bear.
    lr, weight_decay
        Of AdamW.
    kwargs
        Further arguments of :class:`StagePlan`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.data import FeatureBatch, check_number, check_whole
    >>> from sclatent.module import VectorAutoencoder
    >>> from sclatent.train import ReconstructionPlan
    >>> plan = ReconstructionPlan(VectorAutoencoder(dim=16, n_tokens=2, token_dim=4), token_noise=0.1)
    >>> none, batch = torch.empty(6, 0, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)  # no labels, one batch
    >>> plan.losses(FeatureBatch(torch.randn(6, 16), none, batch), torch.Generator().manual_seed(0)).shape
    torch.Size([6])
    """

    trained: FeatureAutoencoder

    def __init__(
        self,
        autoencoder: FeatureAutoencoder,
        token_noise: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__("autoencoder", lr, weight_decay, **kwargs)
        self.trained = autoencoder
        self.token_noise = check_number("token_noise", token_noise)

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
    r"""The denoising autoencoder of DAED: :math:`-\ln p(x_0 | f_\varphi(x_1))` a coordinate.

    Parameters
    ----------
    autoencoder
        What is trained.
    lr, weight_decay
        Of AdamW.
    kwargs
        Further arguments of :class:`StagePlan`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import DenoisingAutoencoder
    >>> from sclatent.train import DenoisingPlan
    >>> autoencoder = DenoisingAutoencoder((16,), noise_level=0.1, width=32, n_blocks=1)
    >>> tokens = torch.randn(6, autoencoder.n_tokens, autoencoder.token_dim)
    >>> DenoisingPlan(autoencoder).losses((tokens,), torch.Generator().manual_seed(0)).shape
    torch.Size([6])
    """

    trained: DenoisingAutoencoder

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
    """The prior of DAED: diffusion of x1, which is drawn anew every time.

    Parameters
    ----------
    denoiser
        What is trained.
    autoencoder
        What puts the noise on.
    process
        How the noise of diffusion comes.
    kwargs
        Further arguments of :class:`DiffusionPlan`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.diffusion import VariancePreserving
    >>> from sclatent.module import DenoisingAutoencoder, DiT
    >>> from sclatent.train import PriorPlan
    >>> autoencoder = DenoisingAutoencoder((16,), noise_level=0.1, width=32, n_blocks=1)
    >>> shape = autoencoder.n_tokens, autoencoder.token_dim
    >>> plan = PriorPlan(DiT(*shape, width=32, n_blocks=1), autoencoder, VariancePreserving())
    >>> batch = torch.randn(6, *shape), torch.empty(6, 0, dtype=torch.int64)  # clean tokens, no labels
    >>> plan.losses(batch, torch.Generator().manual_seed(0)).shape
    torch.Size([6])
    """

    def __init__(
        self, denoiser: torch.nn.Module, autoencoder: DenoisingAutoencoder, process: Process, **kwargs: Any
    ) -> None:
        super().__init__(denoiser, process, **kwargs)
        self._add_noise = autoencoder.add_noise

    def _flow_losses(
        self, denoiser: torch.nn.Module, tokens: Tensor, context: Context, generator: torch.Generator
    ) -> Tensor:
        noise = torch.randn(tokens.shape, generator=generator, device=generator.device)
        return super()._flow_losses(denoiser, self._add_noise(tokens, noise), context, generator)


class JointPlan(DiffusionPlan):
    r"""Joint diffusion: the denoiser on all cells, the classifier on the labelled ones (arXiv 2301.13622, 2411.09434).

    .. math:: L = L_{\text{diffusion}} - \lambda \ln p(y | x_t) + \mu L_{\text{consistency}}

    Every minibatch is joined by labelled cells, drawn with replacement, with as much noise as signal at most, and one
    in four with any amount, so that the classifier can guide from the beginning. They are mixed in pairs, as their
    labels are (mixup, Zhang et al. 2018). The labels of all labelled cells are learned, also of those on which the
    diffusion loss is watched.

    Cells without a label learn from the averaged weights (FixMatch, Sohn et al. 2020, with noise as augmentation): what
    these are confident of when they see the cell as it is, the denoiser has to say of the noisy cell that it is given
    for the diffusion loss anyway. Before that, their mean prediction is brought to the frequencies of the labels
    (distribution alignment, Berthelot et al. 2020).

    Parameters
    ----------
    denoiser
        What is trained.
    process
        How noise comes.
    classifier_weight
        :math:`\lambda`.
    n_labelled
        Labelled cells that join a minibatch.
    mixup
        Parameter of the Beta distribution of the mixing proportion; 0 mixes nothing.
    consistency_weight
        :math:`\mu`; from 0 in the first third of training. Without unlabelled cells it does nothing.
    threshold
        Confidence from which on a cell takes part in it.
    strong_noise
        Share of noise in the variance, up to which a noisy cell takes part in it.
    ema_decay
        Decay of the exponential moving average of the weights, which is what the unlabelled cells learn from, too.
    kwargs
        Further arguments of :class:`DiffusionPlan`.

    Examples
    --------
    Its arguments are given to ``train`` by the name of the stage, such as
    ``model.train(plan_kwargs={"diffusion": {"mixup": 0.0}})``:

    >>> from sclatent.diffusion import LinearFlow
    >>> from sclatent.module import DiT, JointDenoiser
    >>> from sclatent.train import JointPlan
    >>> process = LinearFlow()
    >>> denoiser = JointDenoiser(DiT(4, 8, n_levels=[3], width=32, n_blocks=1), (4, 8), n_labels=3, process=process)
    >>> plan = JointPlan(denoiser, process, mixup=0.0, lr=1e-3)
    >>> plan.mixup, plan.threshold
    (0.0, 0.8)
    """

    trained: JointDenoiser
    mean_prediction: Tensor
    # the denoiser may be at its best before the classifier has learned anything, and consistency comes late
    keeps_best = False

    def __init__(
        self,
        denoiser: JointDenoiser,
        process: Process,
        classifier_weight: float = 1.0,
        n_labelled: int = 64,
        mixup: float = 0.5,
        consistency_weight: float = 2.5,
        threshold: float = 0.8,
        strong_noise: float = 0.7,
        ema_decay: float = 0.99,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dropout_key", 0.1 if len(denoiser.n_levels) > 1 else 0.0)  # one is all of them
        super().__init__(denoiser, process, ema_decay=ema_decay, **kwargs)
        self.classifier_weight = check_number("classifier_weight", classifier_weight)
        self.n_labelled = check_whole("n_labelled", n_labelled)
        self.mixup = check_number("mixup", mixup)
        if 0 < self.mixup < LEAST_MIXUP:
            raise ValueError(f"mixup={mixup!r} must be 0, which mixes nothing, or at least {LEAST_MIXUP}.")
        self.consistency_weight = check_number("consistency_weight", consistency_weight)
        self.threshold = check_number("threshold", threshold, high=1)
        self.strong_noise = check_number("strong_noise", strong_noise, high=1)
        self.earliest = process.time(self.strong_noise)
        self.equal = process.time(0.5)
        n_labels = denoiser.linear.out_features
        self.register_buffer("mean_prediction", torch.full((n_labels,), 1 / n_labels))

    def look_at(self, data: TokenRows) -> None:
        """Take the labelled cells, those of the validation split among them."""
        tokens, codes = data[range(len(data))]
        labelled = codes[:, -1] != NULL
        self._labelled = tokens[labelled], codes[labelled, -1]
        self._all_labelled = bool(labelled.all())
        frequency = torch.bincount(self._labelled[1], minlength=len(self.mean_prediction)) + 1.0
        self._frequency = frequency / frequency.sum()

    def on_train_start(self) -> None:
        """Move the labelled cells to the device."""
        super().on_train_start()
        tokens, labels = self._labelled
        self._labelled = tokens.to(self.device), labels.to(self.device)
        self._frequency = self._frequency.to(self.device)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Seed dropout by the minibatch, as a resumed training does not know what was drawn before."""
        minibatch = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        with Dropout.drawing_from(self._stream("dropout", minibatch), self.trained):
            return super().training_step(batch, batch_idx)

    def losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,); what is learned of labels is the same for all of them."""
        z, codes = batch
        t = self.process.draw_time(len(z), generator)
        noise = torch.randn(z.shape, generator=generator, device=generator.device)
        x, context = self.process.interpolate(z, noise, t), self._context(self._dropped(codes, generator))
        v, logits = self.trained.joint(x, t, context)
        diffusion = (v - self.process.velocity(z, noise, t)).square().flatten(1).mean(dim=1)
        cross_entropy = self._cross_entropy(generator) if len(self._labelled[0]) else z.new_zeros(())
        self.log("diffusion_denoising_loss_train", diffusion.mean(), on_step=False, on_epoch=True)
        self.log("diffusion_cross_entropy_train", cross_entropy, on_step=False, on_epoch=True)
        loss = diffusion + self.classifier_weight * cross_entropy
        progress = self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches))
        ramp = min(1.0, max(0.0, (progress - 0.3) / 0.1))
        if self.consistency_weight * ramp and not self._all_labelled:
            learns = (codes[:, -1] == NULL) & (t >= self.earliest)
            loss = loss + self.consistency_weight * ramp * self._consistency(z, logits, learns)
        return loss

    def validation_losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Diffusion loss of each cell under the averaged weights, (cells,)."""
        tokens, codes = batch
        return self._flow_losses(self.averaged, tokens, self._context(codes), generator)

    def _context(self, codes: Tensor) -> Context:
        return Context(codes[:, : len(self.trained.n_levels)])

    def _cross_entropy(self, generator: torch.Generator) -> Tensor:
        tokens, labels = self._labelled
        n, device = self.n_labelled, generator.device
        drawn = torch.randint(len(labels), (n,), generator=generator, device=device)
        z, y = tokens[drawn], F.one_hot(labels[drawn], len(self.mean_prediction)).float()
        if self.mixup:
            # Beta(a, a) by two gamma variables, each from uniform ones that the generator draws (Johnk's method)
            share = self._beta(n, generator)
            z = share[:, None, None] * z + (1 - share[:, None, None]) * z.roll(1, 0)
            y = share[:, None] * y + (1 - share[:, None]) * y.roll(1, 0)
        t = torch.rand(n, generator=generator, device=device)
        t[n // 4 :] = self.equal + (1 - self.equal) * t[n // 4 :]
        noise = torch.randn(z.shape, generator=generator, device=device)
        return F.cross_entropy(self.trained.logits(self.process.interpolate(z, noise, t), t), y)

    def _beta(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw from Beta(mixup, mixup), (n,)."""
        draws = torch.empty(0, device=generator.device)
        while len(draws) < n:
            u = torch.rand(2, 4 * n, generator=generator, device=generator.device).clamp(min=1e-6)
            a, b = u ** (1 / self.mixup)
            total = a + b  # 0 where both are too small for a float
            draws = torch.cat([draws, (a / total)[(total > 0) & (total <= 1)]])
        return draws[:n]

    def _consistency(self, z: Tensor, logits: Tensor, learns: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = cast(JointDenoiser, self.averaged.module)  # torch does not say of which class the average is
            teacher.eval()
            p = teacher.logits(z, z.new_ones(len(z))).softmax(dim=1)
            self.mean_prediction.lerp_(p.mean(dim=0), 0.01)
            p = p * self._frequency / self.mean_prediction.clamp(min=1e-6)
            confidence, pseudo = (p / p.sum(dim=1, keepdim=True)).max(dim=1)
        return ((learns & (confidence >= self.threshold)) * F.cross_entropy(logits, pseudo, reduction="none")).mean()
