"""What each of the two stages minimises, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sclatent.data import CellBatch, check_number, check_whole, torch_stream
from sclatent.diffusion import LinearFlow, Process
from sclatent.module import SetAutoencoder
from sclatent.nn import NULL, CellSets, Context


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number.

    Examples
    --------
    >>> from sclatent.train import TrainingDivergedError
    >>> issubclass(TrainingDivergedError, RuntimeError)
    True
    """


class StagePlan(pl.LightningModule):
    """What the stages share: AdamW with warm-up and cosine decay, reproducible noise, and a guard against NaN.

    Parameters
    ----------
    name
        Name of the stage, which its metrics start with.
    lr, weight_decay, betas
        Of AdamW.
    n_warmup_steps
        Steps over which the learning rate rises; from there it falls along a cosine to ``lr_floor`` of its height.
    seed
        Seed of everything drawn in training.

    Examples
    --------
    A plan says what is trained and what each cell costs; the rest is here:

    >>> import torch
    >>> from sclatent.train import StagePlan
    >>> class Centre(StagePlan):
    ...     def __init__(self, **kwargs):
    ...         super().__init__("centre", lr=0.1, weight_decay=0.0, **kwargs)
    ...         self.trained = torch.nn.Linear(2, 1)
    ...     def losses(self, batch, generator):
    ...         return self.trained(batch).square().squeeze(1)
    >>> Centre(seed=1).losses(torch.zeros(5, 2), torch.Generator()).shape
    torch.Size([5])
    """

    trained: torch.nn.Module
    lr_floor = 0.02
    keeps_best = True  # the weights of the best epoch, and training may stop early; else those of the last

    def __init__(
        self,
        name: str,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        n_warmup_steps: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(betas, Sequence) or len(betas) != 2 or 1 in betas:
            raise ValueError(f"betas={betas!r} must be two numbers, each at least 0 and below 1.")
        self.name, self.seed = name, check_whole("seed", seed, least=0)
        self.n_good_epochs = 0  # set at the end of training, as is the history
        self.history: dict[str, pd.DataFrame] = {}
        self.lr, self.weight_decay = check_number("lr", lr), check_number("weight_decay", weight_decay)
        first, second = (check_number("betas", beta, high=1) for beta in betas)
        self.betas = first, second
        self.n_warmup_steps = check_whole("n_warmup_steps", n_warmup_steps, least=0)

    def look_at(self, data: Any) -> None:
        """Take what training needs to know of all cells, those for validation among them; by default nothing."""

    def make_optimizer(self, fused: bool = True) -> torch.optim.Optimizer:
        """AdamW over what is trained; in one operation for all weights, where the device can do that."""
        fused = fused and self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            self.parameter_groups(), lr=self.lr, weight_decay=self.weight_decay, betas=self.betas, fused=fused
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices with weight decay, vectors without: there is no reason why a bias or a scale should be small."""
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # where precision is mixed, Lightning does not clip the gradients of a fused optimizer
        optimizer = self.make_optimizer(fused="mixed" not in str(self.trainer.precision))
        n_steps = max(1, int(self.trainer.estimated_stepping_batches))
        n_warmup = min(self.n_warmup_steps, n_steps // 5)

        def schedule(step: int) -> float:
            if step < n_warmup:
                return (step + 1) / (n_warmup + 1)
            progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
            return self.lr_floor + (1 - self.lr_floor) * (1 + math.cos(math.pi * progress)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Seed the noise of this epoch by its number, so that a resumed training draws what it would have drawn."""
        self.generator = self._stream("training", self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Draw the same noise in every validation, so that losses can be compared."""
        self.validation_generator = self._stream("validation")

    def use_trained_weights(self) -> None:
        """Leave in the network the weights that are to be used; those it was trained with, unless a plan averages."""

    def _stream(self, purpose: str, *position: int) -> torch.Generator:
        return torch_stream(self.seed, f"{purpose} of the {self.name}", *position, device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._log_mean(self.losses(batch, self.generator), "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log_mean(self.validation_losses(batch, self.validation_generator), "validation")

    def losses(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Loss of each cell in training, (cells,)."""
        raise NotImplementedError(f"{type(self).__name__} needs losses(batch, generator), the loss of each cell.")

    def validation_losses(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Loss of each cell in validation, (cells,)."""
        return self.losses(batch, generator)

    def _log_mean(self, losses: Tensor, split: str) -> Tensor:
        loss = losses.mean()
        if not torch.isfinite(loss):
            lower = f'plan_kwargs={{"{self.name}": {{"lr": {self.lr / 4:g}}}}}'
            raise TrainingDivergedError(
                f"The {split} loss of the {self.name} became {float(loss.detach())} in epoch {self.current_epoch + 1}. "
                f"The last good weights are kept. Train with a lower learning rate: {lower}."
            )
        self.log(f"{self.name}_loss_{split}", loss, on_step=False, on_epoch=True, batch_size=len(losses))
        return loss


class AutoencoderPlan(StagePlan):
    r"""Stage one: the negative log-likelihood of the counts, plus ``kl_weight`` times the KL divergence to N(0, I).

    Parameters
    ----------
    autoencoder
        What is trained.
    kl_weight
        Weight of the KL divergence.
    thinning
        The encoder sees a share of the molecules of a cell, drawn for each cell anew between this and 1 (binomial
        thinning, as in molecular cross-validation, Batson et al. 2019), and the decoder has to explain all of them.
        Tokens that remember the sampling noise of the counts do not help it then. 1 is no thinning; counts only.
    dispersion_lr
        Learning rate of the log dispersions, which have several orders of magnitude to go, as a multiple of ``lr``. The
        faster they learn, the more of a gene that only few cells express is put down to dispersion and not to these
        cells: lower it where rare types matter.
    lr, weight_decay
        Of AdamW.
    kwargs
        Further arguments of :class:`StagePlan`.

    Examples
    --------
    >>> import numpy as np
    >>> import sclatent
    >>> import torch
    >>> from sclatent.data import CellRows
    >>> from sclatent.module import SetAutoencoder
    >>> from sclatent.train import AutoencoderPlan
    >>> adata = sclatent.datasets.simulate(50, 40, library_size=200)
    >>> rows = CellRows(adata.X, np.arange(40), None, np.empty((50, 0), dtype=int), np.zeros(50, dtype=int))
    >>> plan = AutoencoderPlan(SetAutoencoder(n_genes=40), thinning=0.5)
    >>> plan.losses(rows[range(8)], torch.Generator().manual_seed(0)).shape  # of 8 cells
    torch.Size([8])
    """

    trained: SetAutoencoder

    def __init__(
        self,
        autoencoder: SetAutoencoder,
        kl_weight: float = 0.0,
        thinning: float = 0.2,
        dispersion_lr: float = 10.0,
        lr: float = 1.5e-3,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__("autoencoder", lr, weight_decay, **kwargs)
        thinning = check_number("thinning", thinning, high=1, above=True)  # at 1 the encoder sees every molecule
        self.trained = autoencoder
        self.kl_weight = kl_weight
        self.dispersion_lr = check_number("dispersion_lr", dispersion_lr, above=True)
        self.thinning = thinning if autoencoder.likelihood.is_count else 1.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the parameters of the likelihood, which are those of its dispersion, a learning rate of their own."""
        dispersion = list(self.trained.likelihood.parameters())
        is_own = set(map(id, dispersion))
        groups = super().parameter_groups()
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in is_own]
        return [*groups, {"params": dispersion, "weight_decay": 0.0, "lr": self.dispersion_lr * self.lr}]

    def losses(self, batch: CellBatch, generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,), from a part of its molecules."""
        if self.thinning == 1:
            return self._losses(batch, generator)
        share = torch.rand(len(batch), generator=generator, device=generator.device)
        share = self.thinning + (1 - self.thinning) * share
        return self._losses(batch, generator, batch.sets.thinned(share, generator))

    def validation_losses(self, batch: CellBatch, generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,), from all of its molecules, as they are encoded after training."""
        return self._losses(batch, generator)

    def _losses(self, batch: CellBatch, generator: torch.Generator, seen: CellSets | None = None) -> Tensor:
        nll, kl = self.trained(batch.sets, batch.library, batch.batch, generator, seen, batch.is_whole)
        return nll + self.kl_weight * kl


class DiffusionPlan(StagePlan):
    """The denoiser: the flow-matching loss on standardised tokens, with dropout of conditions and averaged weights.

    Parameters
    ----------
    denoiser
        What is trained; a minibatch is tokens, condition codes, and library sizes where the denoiser is conditioned on
        them.
    process
        How noise comes; straight paths by default.
    dropout_all
        Probability that a cell loses all its conditions, which trains the unconditional model of guidance.
    dropout_key
        Probability of each condition to be lost on its own, which lets any subset of conditions be given.
    dropout_identity
        Probability that of a level with features the features alone are given, which are all that is known of a level
        that was never measured.
    ema_decay
        Decay of the exponential moving average of the weights. The average is what is validated and what samples.
    lr, weight_decay
        Of AdamW.
    kwargs
        Further arguments of :class:`StagePlan`.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import DiT
    >>> from sclatent.train import DiffusionPlan
    >>> plan = DiffusionPlan(DiT(n_tokens=4, token_dim=8, n_levels=[3], width=32, n_blocks=1), ema_decay=0.99)
    >>> batch = torch.randn(6, 4, 8), torch.zeros(6, 1, dtype=torch.int64)  # tokens and condition codes of 6 cells
    >>> plan.losses(batch, torch.Generator().manual_seed(0)).shape
    torch.Size([6])
    """

    def __init__(
        self,
        denoiser: torch.nn.Module,
        process: Process | None = None,
        dropout_all: float = 0.1,
        dropout_key: float = 0.1,
        dropout_identity: float = 0.2,
        ema_decay: float = 0.999,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__("diffusion", lr, weight_decay, **kwargs)
        self.trained = denoiser
        self.process = LinearFlow() if process is None else process
        self.dropout_all = check_number("dropout_all", dropout_all, high=1)
        self.dropout_key = check_number("dropout_key", dropout_key, high=1)
        self.dropout_identity = check_number("dropout_identity", dropout_identity, high=1)
        self.ema_decay = ema_decay = check_number("ema_decay", ema_decay, high=1)

        def average(means: Sequence[Tensor], weights: Sequence[Tensor], n_averaged: Tensor | int) -> None:
            n = int(n_averaged)  # once for all weights: a GPU has to be waited for
            step = 1 - min(ema_decay, (1 + n) / (10 + n))  # a short memory at first: weights move fast
            for mean, weight in zip(means, weights, strict=True):
                mean.lerp_(weight, step)

        self.averaged = AveragedModel(denoiser, multi_avg_fn=average)

    def losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each cell, (cells,)."""
        tokens, codes, *size = batch
        context = Context(self._dropped(codes, generator), size[0] if size else None)
        return self._flow_losses(self.trained, tokens, context, generator)

    def _dropped(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """Codes (cells, n_keys), some of which are made null."""
        n_draws = 1 + codes.shape[1] * (self.dropout_key > 0)
        uniform = torch.rand(len(codes), n_draws, generator=generator, device=generator.device)
        lost = (uniform[:, :1] < self.dropout_all).expand_as(codes)
        codes = codes.masked_fill(lost | (uniform[:, 1:] < self.dropout_key) if n_draws > 1 else lost, NULL)
        denoiser: Any = self.trained
        for k in getattr(denoiser, "with_features", ()):  # some levels are known by their features alone
            nameless = torch.rand(len(codes), generator=generator, device=generator.device) < self.dropout_identity
            codes[:, k] += (nameless & (codes[:, k] != NULL)) * denoiser.n_levels[k]
        return codes

    def validation_losses(self, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each cell under the averaged weights and all its conditions, (cells,)."""
        tokens, codes, *size = batch
        return self._flow_losses(self.averaged, tokens, Context(codes, size[0] if size else None), generator)

    def _flow_losses(
        self, denoiser: torch.nn.Module, tokens: Tensor, context: Context, generator: torch.Generator
    ) -> Tensor:
        t = self.process.draw_time(len(tokens), generator)
        noise = torch.randn(tokens.shape, generator=generator, device=generator.device)
        return self.process.loss(lambda x, t: denoiser(x, t, context), tokens, noise, t)

    def on_train_start(self) -> None:
        """Begin to count steps, where a resumed training left off."""
        self._n_steps = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average, once a step: several minibatches may make one."""
        if self.global_step > self._n_steps:
            self._n_steps = self.global_step
            self.averaged.update_parameters(self.trained)

    def use_trained_weights(self) -> None:
        """Leave the average in the denoiser: it is what samples."""
        self.trained.load_state_dict(self.averaged.module.state_dict())
