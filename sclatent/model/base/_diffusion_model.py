"""Models with a denoiser: flows between noise and tokens, guidance, and what the denoiser sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from sclatent.data import cell_rng, is_number
from sclatent.data._random import Purpose
from sclatent.diffusion import classifier, classifier_free, solve
from sclatent.module import JointDenoiser
from sclatent.nn import NULL, Context

from ._guidance import Guidance, GuidanceWeights, Weight, guidance_weights
from ._latent_model import LatentModel

Solver = Literal["heun", "euler", "adaptive"]


class DiffusionModel(LatentModel):
    """A :class:`LatentModel` whose denoiser carries tokens from noise to data and back, with guidance."""

    GUIDED_BY: ClassVar[Guidance | None] = None  # what guides by default, if the model has it

    # ---- guidance

    @property
    def _ways(self) -> list[Guidance]:
        """What the model can be guided by, the default first."""
        denoiser = self.module.denoiser
        free, head = bool(denoiser.n_levels), isinstance(denoiser, JointDenoiser)
        ways: list[Guidance] = []
        ways += ["classifier-free"] if free else []
        ways += ["classifier"] if head else []
        ways += ["both"] if free and head else []
        return sorted(ways, key=lambda way: way != self.GUIDED_BY)

    @property
    def _default_guidance(self) -> Guidance | None:
        """What guides where nothing is asked for; None where there is nothing to be guided to."""
        return next(iter(self._ways), None)

    def _weights(self, guidance: Guidance | None, weight: Weight) -> GuidanceWeights:
        keys = self.conditions.keys[: self._n_keys]
        weights = guidance_weights(guidance, weight, self._ways, keys, type(self).__name__)
        for key, member, _ in weights.members:
            self.conditions.spaces[keys[key]].check_member(member, "guidance_weight")
        return weights

    # ---- flows

    def _noise(self, seed: int, cells: np.ndarray, purpose: Purpose = "noise") -> Tensor:
        """Noise of the shape of the tokens of cells; a cell has always the same."""
        shape = self.module.autoencoder.n_tokens, self.module.autoencoder.token_dim
        noise = np.stack([cell_rng(seed, purpose, i).standard_normal(shape) for i in cells]).astype(np.float32)
        return torch.from_numpy(noise).to(self.device)

    def _latent(self, batch: Any, seed: int, cells: np.ndarray) -> Tensor:
        """Standardised tokens of measured cells."""
        return self.module.standardize(self.domain.encode(self.module, batch))

    def _add_noise(self, z: Tensor, noise_level: float, seed: int, cells: np.ndarray) -> tuple[Tensor, Tensor]:
        """Noisy tokens of the process, and their times (cells,)."""
        t = z.new_full((len(z),), self.process.time(noise_level))
        return self.process.interpolate(z, self._noise(seed, cells), t), t

    def _noisy(
        self,
        z: Tensor,
        source: np.ndarray,
        size: Tensor | None,
        noise_level: float,
        inversion: bool,
        solver: Solver,
        n_steps: int | None,
        seed: int,
        cells: np.ndarray,
    ) -> Tensor:
        """Noisy tokens of measured cells, by inversion or with noise that is drawn."""
        if not inversion:
            return self._add_noise(z, noise_level, seed, cells)[0]
        plain = GuidanceWeights(None, 1.0, 0.0)
        return self._flow(z, source, size, plain, 1.0, self.process.time(noise_level), solver, n_steps)

    @torch.no_grad()
    def _shift(self, source: np.ndarray, target: np.ndarray, size: Tensor | None, time: float) -> Tensor:
        """How far the mean of the baseline moves; a cell of unknown conditions is taken to be where it is."""
        codes = self._known(source, target), target
        old, new = (self.module.denoiser.mean_of(self._context(each, size)) for each in codes)
        return self.process.coefficients(torch.tensor(float(time))).data * (new - old)

    @staticmethod
    def _known(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Conditions that cells come from; where they are not known, where they go."""
        return np.where(source == NULL, target, source)

    def _context(self, codes: np.ndarray, size: Tensor | None) -> Context:
        """What the denoiser is conditioned on, of condition codes (cells, n_keys)."""
        codes = self.conditions.without_dose(codes)[:, : self._n_keys]
        return Context(torch.from_numpy(codes).to(self.device), size, values=self._values())

    @torch.no_grad()
    def _flow(
        self,
        x: Tensor,
        codes: np.ndarray,
        size: Tensor | None,
        weights: GuidanceWeights,
        start: float,
        end: float,
        solver: Solver,
        n_steps: int | None,
        baseline_only: bool = False,
    ) -> Tensor:
        """Carry tokens from one time to another under condition codes (cells, n_keys), with guidance."""
        denoiser = self.module.denoiser
        without = [(self.conditions.without_member(codes, key, member), w) for key, member, w in weights.members]
        context = self._context(codes, size)
        has_label = self.labels_key is not None and self._n_keys == codes.shape[1]
        unlabelled = context.without(self._n_keys - 1) if has_label else context
        if weights.kind == "classifier":  # which alone knows the label
            context = unlabelled
        parts = [(self._context(codes_of_part, size), w) for codes_of_part, w in without]
        f = denoiser.without_network if baseline_only else denoiser
        field = classifier_free(f, context, weights.free, parts)
        if weights.classifier:
            y = torch.from_numpy(codes[:, -1]).to(self.device)

            def log_prob(x: Tensor, t: Tensor) -> Tensor:
                if self._classifier_sees_clean:
                    x, t = self.process.data(x, denoiser(x, t, unlabelled), t), torch.ones_like(t)
                log_p = denoiser.logits(x, t).log_softmax(dim=1).gather(1, y.clamp(min=0)[:, None])[:, 0]
                return log_p * (y != NULL)

            field = classifier(field, log_prob, self.process, weights.classifier)
        return solve(field, x, start, end, solver, n_steps)

    @property
    def _classifier_sees_clean(self) -> bool:
        """Whether the classifier that guides sees what the denoiser predicts, and not the noisy tokens."""
        return False

    # ---- what the denoiser makes of measured cells

    @torch.no_grad()
    def denoise_tokens(self, x: Tensor, noise_level: float, size: Tensor | None = None) -> Tensor:
        """Clean tokens of noisy tokens of the process: one evaluation of the denoiser under null conditions.

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim), standardised as those of training.
        noise_level
            Share of noise in their variance.
        size
            Standardised log library sizes of counts, (cells,); by default the mean.

        Returns
        -------
        Tensor
            Tokens of the shape of ``x``, which the autoencoder decodes.

        Examples
        --------
        >>> import torch
        >>> autoencoder = model.module.autoencoder
        >>> x = torch.randn(2, autoencoder.n_tokens, autoencoder.token_dim, device=model.device)
        >>> model.denoise_tokens(x, noise_level=0.1).shape == x.shape
        True
        """
        t = x.new_full((len(x),), self.process.time(noise_level))
        null = torch.full((len(x), self._n_keys), NULL, device=x.device)
        context = Context(null, x.new_zeros(len(x)) if size is None else size)
        return self.process.data(x, self.module.denoiser(x, t, context), t)

    @torch.no_grad()
    def get_activations(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        noise_level: float = 0.0,
        batch_size: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Activations of the denoiser without any condition, averaged over the tokens (arXiv 2301.13622, section 3).

        Parameters
        ----------
        adata
            Cells; the training data by default.
        indices
            Rows; all by default.
        noise_level
            Share of noise in the variance of what the denoiser sees, from 0 to 1.
        batch_size
            Cells computed together.
        seed
            Seed of the noise.

        Returns
        -------
        np.ndarray
            Activations (cells, n_blocks, width).

        Examples
        --------
        >>> activations = model.get_activations(adata[:5], noise_level=0.1)
        >>> n_cells, n_blocks, width = activations.shape
        >>> n_cells
        5
        """
        self._check_stage("diffusion", "get_activations")
        if not (is_number(noise_level) and 0 <= noise_level <= 1):
            raise ValueError(f"noise_level={noise_level!r} must be between 0 (no noise) and 1 (noise alone).")
        rows = self._rows(adata, indices)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Activations", progress_bar=False):
            batch = rows[cells]
            x, t = self._add_noise(self._latent(batch, seed, cells), noise_level, seed, cells)
            size = self.domain.size(self.module, self.domain.library_of(self.module, batch))
            blocks.append(self.module.denoiser.activations(x, t, size).cpu())
        return torch.cat(blocks).numpy()
