"""What the models of images and embeddings generate: new cells, counterfactuals and denoised ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sclatent.data import is_number, short_repr
from sclatent.diffusion import DEFAULT_STEPS, classifier, classifier_free, solve
from sclatent.nn import OPEN, Context

from ._random import cell_rng, check_seed
from ._staged_model import check_n_samples, check_order, check_steps

Guidance = Literal["classifier-free", "classifier", "both"]
Solver = Literal["heun", "euler", "adaptive"]
Noise = Literal["drawn", "own"]
LabelsLike = str | Sequence[Any] | pd.Series | pd.Index | None
Weight = float | Mapping[str, float]

DIFFERENCE = "difference"  # entry of obsm with what a counterfactual changes of images
# weight of a classifier alone that sees what is predicted of images: its gradient falls short; chosen on training cells
IMAGE_CLASSIFIER_WEIGHT = 4.0
# noise level and weight of counterfactuals by default, chosen on training cells
COUNTERFACTUAL: dict[str, dict[Guidance, tuple[float, Weight]]] = {
    "embedding": {
        "classifier-free": (0.4, 8.0),
        "classifier": (0.2, 40.0),
        "both": (0.2, {"classifier-free": 2.0, "classifier": 20.0}),
    },
    "image": {
        "classifier-free": (0.95, 5.0),
        "classifier": (0.55, 100.0),
        "both": (0.6, {"classifier-free": 4.0, "classifier": 100.0}),
    },
}


def _range_of(dtype: np.dtype) -> tuple[np.float32, np.float32]:
    """Extremes of a type of whole numbers or booleans, as float32 that do not exceed them; else infinite ones."""
    if dtype.kind == "b":
        return np.float32(0), np.float32(1)
    if not np.issubdtype(dtype, np.integer):
        return np.float32(-np.inf), np.float32(np.inf)
    least, most = np.float32(np.iinfo(dtype).min), np.float32(np.iinfo(dtype).max)
    return least, most if int(most) <= np.iinfo(dtype).max else np.nextafter(most, np.float32(0))


class FeatureGenerationMixin:
    """Sampling, counterfactuals and denoising."""

    GUIDANCE: ClassVar[tuple[Guidance, ...]]  # what a model can be guided by; the first is its default

    def sample(
        self,
        n_samples: int | None = None,
        labels: LabelsLike = None,
        guidance_weight: Weight | None = None,
        guidance: Guidance | None = None,
        batch: str | None = None,
        solver: Solver = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
        baseline_only: bool = False,
    ) -> AnnData:
        r"""Generate cells.

        Parameters
        ----------
        n_samples
            Number of cells; may be left out when ``labels`` has one per cell.
        labels
            Label of all cells, or one per cell. Missing ones are left open.
        guidance_weight
            Weight w of guidance: 1 is plain conditional sampling, 0 is unconditional, above 1 pushes cells towards
            their labels. By default 1, and 4 for images by a classifier alone. With ``guidance="both"`` it is that of
            either, or there is one for each: ``{"classifier-free": 2.0, "classifier": 1.0}``.
        guidance
            What pushes: ``"classifier-free"`` (:func:`sclatent.diffusion.classifier_free`), for a denoiser that is told
            the label; ``"classifier"`` (:func:`sclatent.diffusion.classifier`), the gradient of :math:`\ln p(y | x_t)`;
            or ``"both"``, the two added up. A model without a classifier has the first alone, one whose denoiser is not
            told the label the second; one that has both takes the first by default. Of images the classifier sees the
            clean one that the denoiser predicts, so that the gradient goes along what images look like (Jeanneret et
            al. 2022, arXiv 2203.15636).
        batch
            Level of ``batch_key`` to decode under; by default drawn from the training cells of the same label.
        solver, n_steps
            Solver of the flow and its number of steps: ``"heun"`` (12, two evaluations each), ``"euler"`` (25) or
            ``"adaptive"`` (at most 8, three evaluations each).
        batch_size
            Cells computed together.
        seed
            Seed; every cell has random numbers of its own, so the same seed gives the same cells whatever
            ``batch_size`` is. Cells of the same seed under different labels start from the same noise.
        progress_bar
            Whether to show progress.
        baseline_only
            Whether to leave the network out: cells of the closed form alone (``baseline``), the floor that shows what
            the network adds.

        Returns
        -------
        AnnData
            The features are where they were in training: X, a layer or the entry of obsm. ``obs`` has the
            labels, ``uns["sclatent"]`` what made it.

        Examples
        --------
        >>> cells = model.sample(4, "Metaphase", guidance_weight=2.0)
        >>> cells.obs["phenotype"].tolist()
        ['Metaphase', 'Metaphase', 'Metaphase', 'Metaphase']

        One label per cell; and none, which leaves them open:

        >>> model.sample(labels=["Metaphase", "Interphase"]).n_obs
        2
        >>> int(model.sample(2).obs["phenotype"].isna().sum())
        2
        """
        self._check_stage("diffusion", "sample")
        if n_samples is None and self._is_one_a_cell(labels):
            n_samples = len(labels)
        n_samples = check_n_samples(n_samples)
        check_steps(n_steps)
        codes = self._label_codes(labels, n_samples)
        guidance = self.GUIDANCE[0] if guidance is None else guidance
        if guidance_weight is None:
            guidance_weight = IMAGE_CLASSIFIER_WEIGHT if self._is_image and guidance == "classifier" else 1.0
        guidance, weights = self._guidance(guidance, guidance_weight)
        self._check_baseline_only(baseline_only)
        if baseline_only and weights[1]:
            raise ValueError(f"guidance={guidance!r} needs the network: use 'classifier-free' with baseline_only=True.")
        uniforms = cell_rng(seed, "sizes").random((n_samples, 2))
        batches, batch_rule = self._batches_of(batch, self.labels, codes, uniforms)
        self._warn_of_batches(self.labels, codes, batches)

        blocks = []
        for cells in self._blocks(n_samples, batch_size, "Sampling", progress_bar):
            noise = self._noise(seed, cells)
            tokens = self._flow(noise, codes[cells], 0.0, 1.0, weights, solver, n_steps, baseline_only)
            blocks.append(self._decode(tokens, batches[cells]).cpu().numpy())
            self._check_generated(noise, tokens, blocks[-1], guidance_weight)
        index = pd.Index([f"generated_{i}" for i in range(n_samples)])
        values = self._in_range(np.concatenate(blocks))
        return self._generated(
            values, self._obs(self.labels, codes, batches, index), "sample", seed=seed, solver=solver,
            guidance_weight=guidance_weight, guidance=guidance, n_steps=n_steps or DEFAULT_STEPS[solver], **batch_rule,
            **({"baseline_only": True} if baseline_only else {}),
        )  # fmt: skip

    def counterfactual(
        self,
        adata: AnnData | None = None,
        labels: LabelsLike = None,
        noise_level: float | None = None,
        guidance_weight: Weight | None = None,
        guidance: Guidance | None = None,
        noise: Noise = "own",
        indices: Sequence[int] | None = None,
        solver: Solver = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> AnnData:
        """Show what measured cells would look like under another label: back to noise, flip the label, reconstruct.

        Parameters
        ----------
        adata
            Cells, labelled or not, of the training data or new; the training data by default.
        labels
            Label to reach, one for all cells or one per cell.
        noise_level
            Share of noise in the variance of what the cell is reconstructed from: 0 leaves the cell as it is, 1 goes
            back to noise alone. By default 0.2, without a classifier 0.4; of images 0.55, without a classifier 0.95 and
            both ways 0.6.
        guidance_weight
            As in :meth:`sample`, but there is less way to go, so that weights are higher. By default 40 by a
            classifier, 8 without and 20 and 2 both ways; of images 100, 5, and 100 and 4.
        guidance
            As in :meth:`sample`; by default by the classifier, if the model has one, and of images both ways, if it has
            both.
        noise
            ``"own"`` carries the cell backwards along the flow to the noise that it comes from (DDIM inversion, Song et
            al. 2021, arXiv 2010.02502): without guidance it comes back as it was, so that all of the change is that of
            the label. ``"drawn"`` adds noise that is drawn, as in the paper: ``seed`` matters.
        solver, n_steps, batch_size, seed, progress_bar
            As in :meth:`sample`.
        indices
            Rows of ``adata``; all by default.

        Returns
        -------
        AnnData
            A row a cell of the input, with its index and obs and the new labels. What the
            autoencoder cannot express of a cell is kept. For images, ``obsm["difference"]`` is the new image less the
            old one, float32, of the shape of the image.

        Examples
        --------
        >>> nuclei = adata[:4].copy()
        >>> moved = model.counterfactual(nuclei, "Metaphase")
        >>> moved.obs_names.equals(nuclei.obs_names)
        True
        >>> moved.obs["phenotype"].tolist()
        ['Metaphase', 'Metaphase', 'Metaphase', 'Metaphase']
        """
        self._check_stage("diffusion", "counterfactual")
        if labels is None:
            raise ValueError("labels is missing: say which label to reach.")
        if not isinstance(noise, str) or noise not in ("drawn", "own"):
            raise ValueError(f"noise={short_repr(noise)} is not known: use 'drawn' or 'own'.")
        check_seed(seed)  # a wrong seed is said even where nothing is drawn
        check_steps(n_steps)
        if guidance is None:
            wanted = "both" if self._is_image else "classifier"
            guidance = wanted if wanted in self.GUIDANCE else self.GUIDANCE[0]
        defaults = COUNTERFACTUAL["image" if self._is_image else "embedding"]
        default_level, default_weight = defaults.get(guidance if isinstance(guidance, str) else "", (1.0, 1.0))
        noise_level = default_level if noise_level is None else noise_level
        # guidance that is not known has no defaults, and is refused here
        used_weight = default_weight if guidance_weight is None else guidance_weight
        guidance, weights = self._guidance(guidance, used_weight)
        if not (is_number(noise_level) and 0 <= noise_level <= 1):
            raise ValueError(
                f"noise_level={short_repr(noise_level)} must be between 0 (the cell as it is) and 1 (made anew)."
            )
        origin, rows = self._given(adata), self._rows(adata, indices)
        check_order(labels, origin.obs_names[rows.cells], "labels")
        codes = self._label_codes(labels, len(rows))
        changed = np.where(codes == rows.labels[rows.cells], OPEN, codes)
        asked = self._asked_batches(self.labels, codes, rows.batch[rows.cells])
        self._warn_of_batches(self.labels, changed, asked)
        values, differences = [], []
        for cells in self._blocks(len(rows), batch_size, "Counterfactuals", progress_bar):
            batch = rows[cells]
            batches = batch.batch.numpy()
            z = self._latent(batch, seed, cells)
            start = self.process.time(noise_level)
            if noise == "own":
                x = self._flow(z, np.full_like(codes[cells], OPEN), 1.0, start, (0.0, 0.0), solver, n_steps)
            else:
                x, _ = self._add_noise(z, noise_level, seed, cells)
            moved = self._flow(x, codes[cells], start, 1.0, weights, solver, n_steps)
            old = batch.x.numpy()
            change = (self._decode(moved, asked[cells]) - self._decode(z, batches)).cpu().numpy()
            self._check_generated(z, moved, change, used_weight)
            values.append(self._in_range(old + change, old))
            differences.append(values[-1] - old)
        obs = self._obs_of(origin, rows.cells)
        new_obs = self._obs(self.labels, codes, asked, obs.index)
        obs[new_obs.columns] = new_obs
        result = self._generated(
            np.concatenate(values), obs, "counterfactual", noise=noise, noise_level=noise_level, seed=seed,
            guidance_weight=guidance_weight, guidance=guidance, solver=solver, n_steps=n_steps or DEFAULT_STEPS[solver],
        )  # fmt: skip
        if self._is_image:
            result.obsm[DIFFERENCE] = np.concatenate(differences)
        return result

    # ---- parts of these

    def _denoise(
        self,
        adata: AnnData | None,
        noise_level: float,
        indices: Sequence[int] | None,
        batch_size: int,
        progress_bar: bool,
    ) -> AnnData:
        """Measured cells, taken as noisy ones and scaled to be what the process makes of clean ones, in one step."""
        origin, rows = self._given(adata), self._rows(adata, indices)
        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Denoising", progress_bar):
            batch = rows[cells]
            x = math.sqrt(1 - noise_level) * self._encode_batch(batch)
            clean = self._decode(self.denoise_tokens(x, noise_level), batch.batch.numpy()).cpu().numpy()
            blocks.append(self._in_range(clean, batch.x.numpy()))
        obs = self._obs_of(origin, rows.cells)
        return self._generated(np.concatenate(blocks), obs, "denoise", noise_level=noise_level)

    @torch.no_grad()
    def denoise_tokens(self, x: Tensor, noise_level: float) -> Tensor:
        """Tokens to decode, of noisy tokens of the process: one evaluation of the denoiser, without a label.

        Parameters
        ----------
        x
            Noisy tokens, (cells, n_tokens, token_dim), standardised as those of training.
        noise_level
            Share of noise in their variance.

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
        denoiser = self.module.denoiser
        t = x.new_full((len(x),), self.process.time(noise_level))
        null = Context(torch.full((len(x), len(denoiser.n_levels)), OPEN, device=x.device))
        return self.process.data(x, denoiser(x, t, null), t)

    @torch.no_grad()
    def _flow(
        self,
        x: Tensor,
        codes: np.ndarray,
        start: float,
        end: float,
        weights: tuple[float, float],
        solver: Solver,
        n_steps: int | None,
        baseline_only: bool = False,
    ) -> Tensor:
        """Carry tokens from one time to another under label codes (cells, n_keys), with weights of either guidance.

        The classifier sees the noisy tokens, and of images the clean ones that the denoiser predicts.
        """
        labels, denoiser = torch.from_numpy(codes).to(self.device), self.module.denoiser
        context = Context(labels[:, : len(denoiser.n_levels)])
        free, by_classifier = weights
        field = classifier_free(denoiser.without_network if baseline_only else denoiser, context, free)
        if by_classifier:
            y, null = labels[:, 0], context.without()

            def log_prob(x: Tensor, t: Tensor) -> Tensor:
                if self._is_image:
                    x, t = self.process.data(x, denoiser(x, t, null), t), torch.ones_like(t)
                log_p = denoiser.logits(x, t).log_softmax(dim=1).gather(1, y.clamp(min=0)[:, None])[:, 0]
                return log_p * (y != OPEN)

            field = classifier(field, log_prob, self.process, by_classifier)
        return solve(field, x, start, end, solver, n_steps)

    @torch.no_grad()
    def _decode(self, tokens: Tensor, batches: np.ndarray) -> Tensor:
        """Features ``(cells, *shape)`` of standardised tokens."""
        batch = torch.from_numpy(batches).to(self.device)
        return self.module.autoencoder.decode(self.module.standardize.inverse(tokens), batch)

    def _in_range(self, values: np.ndarray, old: np.ndarray | None = None) -> np.ndarray:
        """Images and whole numbers are between the extremes of training, or of the cell that they were made from."""
        least, most = _range_of(np.dtype(self.registry["setup_args"]["dtype"]))
        is_whole = np.isfinite(most)
        if not self._is_image and not is_whole:
            return values
        low, high = self.value_range
        if old is not None:
            places = tuple(range(1, old.ndim))
            low = np.minimum(low, old.min(axis=places, keepdims=True))
            high = np.maximum(high, old.max(axis=places, keepdims=True))
        values = np.clip(values, np.maximum(low, least), np.minimum(high, most))
        return np.rint(values) if is_whole else values

    @staticmethod
    def _is_one_a_cell(labels: LabelsLike) -> bool:
        """Whether labels are several, not one for all cells."""
        several = isinstance(labels, Sequence | pd.Series | pd.Index | pd.Categorical | np.ndarray)
        return several and not isinstance(labels, str | bytes) and getattr(labels, "ndim", 1) > 0

    def _label_codes(self, labels: LabelsLike, n: int) -> np.ndarray:
        if labels is None:
            return np.full((n, len(self.labels.keys)), OPEN)
        if not self.labels.keys:
            raise ValueError(
                f"labels={short_repr(labels)}: this model was trained without labels. Set up the data with labels_key "
                "to have them."
            )
        (key,) = self.labels.keys
        if not self._is_one_a_cell(labels):
            return self.labels.encode({key: labels}, n)
        if getattr(labels, "ndim", 1) > 1:
            raise ValueError(f"labels={short_repr(labels)} has {labels.ndim} dimensions: give one label per cell.")
        if len(labels) != n:
            raise ValueError(f"labels has {len(labels)} entries, but {n} cells are asked for: give one per cell.")
        column = labels if isinstance(labels, pd.Series) else pd.Series(labels, dtype=getattr(labels, "dtype", object))
        return self.labels.codes_of(key, column, "labels")[:, None]

    def _guidance(self, guidance: Guidance, weight: Weight) -> tuple[Guidance | None, tuple[float, float]]:
        """What guides, and the weights of classifier-free guidance and of the classifier."""
        if not isinstance(guidance, str) or guidance not in self.GUIDANCE:
            raise ValueError(
                f"guidance={short_repr(guidance)} is not one that {type(self).__name__} has: use one of "
                f"{list(self.GUIDANCE)}."
            )
        ways = ("classifier-free", "classifier")
        if isinstance(weight, Mapping):
            if guidance != "both" or set(weight) != set(ways):
                raise ValueError(
                    f"guidance_weight={dict(weight)!r} with guidance={guidance!r}: give one number, or with "
                    f"guidance='both' one for each of {list(ways)}."
                )
            weights = [weight[way] for way in ways]
        else:
            weights = [weight if guidance in (way, "both") else 0.0 for way in ways]
        if not all(map(is_number, weights)):
            raise ValueError(f"guidance_weight={short_repr(weight)} must be a finite number.")
        free, by_classifier = map(float, weights)
        return (guidance, (free, by_classifier)) if self.labels.keys else (None, (0.0, 0.0))

    def _generated(self, values: np.ndarray, obs: pd.DataFrame, method: str, **how: Any) -> AnnData:
        setup = self.registry["setup_args"]
        dtype = np.dtype(setup["dtype"])
        values = values.astype(dtype if np.isfinite(_range_of(dtype)[1]) else np.float32)
        flat = values.reshape(len(values), -1)
        if setup["obsm_key"] is None:
            var = pd.DataFrame(index=pd.Index(self._state("X")["column_names"]).astype(str))
            result = AnnData(flat if setup["layer"] is None else None, obs=obs, var=var)
            if setup["layer"] is not None:
                result.layers[setup["layer"]] = flat
        else:
            result = AnnData(obs=obs, obsm={setup["obsm_key"]: values.reshape(len(values), *setup["stored_shape"])})
        if self._is_image:
            result.uns["image_shape"] = list(self.shape)
        result.uns["sclatent"] = self._provenance(method, **how)
        return result
