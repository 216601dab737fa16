"""What SCLDM generates: new cells, and counterfactuals of measured ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from sclatent.data import CellRows, check_library_size, is_number, short_repr
from sclatent.diffusion import DEFAULT_STEPS, classifier_free, solve
from sclatent.nn import OPEN, Context

from .base import cell_rng, check_n_samples, check_order, check_seed, check_steps

ConditionsLike = Mapping[str, Any] | pd.DataFrame
Solver = Literal["heun", "euler", "adaptive"]
AMPLE = 20  # counts of a cell that is hardly ever empty by chance
EXACT = 2**24  # from here on float32, as which minibatches have counts, leaves out whole numbers


class GenerationMixin:
    """Sampling and counterfactuals."""

    def sample(
        self,
        n_samples: int | None = None,
        conditions: ConditionsLike | None = None,
        guidance_weight: float | Mapping[str, float] = 1.0,
        library_size: float | Sequence[float] | None = None,
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
            Number of cells; may be left out when ``conditions`` is a DataFrame.
        conditions
            Levels by key for all cells, such as ``{"cell_type": "B cells", "condition": "stimulated"}``, or a
            DataFrame with one row per cell, in the order of its rows (``adata.obs`` works as it is). Keys that are not
            given are left open.
        guidance_weight
            Weight w of classifier-free guidance, :math:`v = v(\varnothing) + w (v(c) - v(\varnothing))`: 1 is plain
            conditional sampling at one evaluation a step, 0 is unconditional, above 1 pushes cells towards their
            conditions. With a dict, ``{"condition": 2.0}``, each key is pushed on its own: :math:`v = v(c) + \sum_k
            (w_k - 1) (v(c) - v(c \setminus c_k))`.
        library_size
            Total counts of each cell, a number up to 1e12 or one per cell. By default drawn from the training cells of
            the same combination of conditions; for a combination never seen, from an additive model of its logarithm
            over the keys, with residuals drawn from the training cells.
        batch
            Level of ``batch_key`` to decode under. By default drawn from the training cells of the same combination,
            together with the library size; for a combination never seen, from the batches in which its levels were
            seen (:class:`~sclatent.data.TrainingBatches`).
        solver, n_steps
            Solver of the flow and its number of steps: ``"heun"`` (12, two evaluations each), ``"euler"`` (25) or
            ``"adaptive"`` (at most 8, three evaluations each).
        batch_size
            Cells computed together.
        seed
            Seed; every cell has random numbers of its own, so the same seed gives the same cells whatever
            ``batch_size`` is. Cells of the same seed under different conditions start from the same noise.
        progress_bar
            Whether to show progress.
        baseline_only
            Whether to leave the network out: cells of the closed form alone (``baseline``), the floor that shows what
            the network adds.

        Returns
        -------
        AnnData
            Integer counts (CSR; int32, or int64 where one of them needs it) over the genes of training. ``obs`` has the
            conditions, ``uns["sclatent"]`` what made it.

        Examples
        --------
        Conditions that are not given are left open, and any of them can be pushed harder:

        >>> cells = model.sample(10, {"condition": "stimulated"}, guidance_weight={"condition": 2.0})
        >>> cells.shape
        (10, 100)

        As many cells of every combination as were measured, row by row:

        >>> measured = adata[:20]
        >>> like_measured = model.sample(conditions=measured.obs)
        >>> like_measured.obs["cell_type"].tolist() == measured.obs["cell_type"].tolist()
        True

        What made them is kept with them:

        >>> cells.uns["sclatent"]["guidance_weight"]
        {'condition': 2.0}
        """
        self._check_stage("diffusion", "sample")
        if n_samples is None and isinstance(conditions, pd.DataFrame):
            n_samples = len(conditions)
        n_samples = check_n_samples(n_samples)
        check_steps(n_steps)
        codes = self.conditions.encode(conditions, n_samples)
        if isinstance(conditions, pd.DataFrame):
            check_order(library_size, conditions.index, "library_size", of="conditions", index="conditions.index")
        weight = self._guidance(guidance_weight)
        self._check_baseline_only(baseline_only)
        uniforms = cell_rng(seed, "sizes").random((n_samples, 2))
        library, library_rule = self._library(library_size, codes, uniforms[:, 0])
        batches, batch_rule = self._batches_of(batch, self.conditions, codes, uniforms)
        self._warn_of_batches(self.conditions, codes, batches)

        blocks = []
        for cells in self._blocks(n_samples, batch_size, "Sampling", progress_bar):
            code, size = torch.from_numpy(codes[cells]).to(self.device), self._size(library[cells])
            noise = self._noise(seed, cells)
            tokens = self._flow(noise, Context(code, size), weight, 0.0, 1.0, solver, n_steps, baseline_only)
            mean = self._mean(tokens, batches[cells], library[cells])
            self._check_generated(noise, tokens, mean, guidance_weight)
            blocks.append(self._draw(mean, seed, cells))

        index = pd.Index([f"generated_{i}" for i in range(n_samples)])
        return self._generated(
            blocks, self._obs(self.conditions, codes, batches, index).assign(library_size=library), "sample",
            lambda empty: library[empty],
            seed=seed, guidance_weight=guidance_weight, solver=solver, n_steps=n_steps, library_size=library_rule,
            **batch_rule, **({"baseline_only": True} if baseline_only else {}),
        )  # fmt: skip

    def counterfactual(
        self,
        adata: AnnData | None = None,
        conditions: ConditionsLike | None = None,
        keep: float = 1.0,
        guidance_weight: float | Mapping[str, float] = 1.0,
        indices: Sequence[int] | None = None,
        solver: Solver = "heun",
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        progress_bar: bool = True,
    ) -> AnnData:
        r"""Move measured cells to other conditions, row by row.

        The cell is encoded and carried backwards along the flow of its own conditions to time ``keep``, and forwards
        again along the flow of the new ones. The counts follow by abduction: whatever of the measured counts the
        decoder's mean does not explain is kept (:meth:`~sclatent.module.GeneLikelihood.transport`), so a cell that is
        moved to where it is comes back as it was.

        Parameters
        ----------
        adata
            Cells to move, with their conditions in ``obs``; the training data by default. A condition that is missing
            there is left open.
        conditions
            Where to: levels by key for all cells, or a DataFrame with one row per cell. Other keys stay as they are.
        keep
            How much of the cell is kept: the time in [0, 1] to which it is carried back. At 1 it is not carried back
            at all: it moves by the effect of the conditions alone; at 0 nothing but its noise is kept, and the
            denoiser makes the cell anew under the new conditions.
        guidance_weight, solver, n_steps, batch_size, seed, progress_bar
            As in :meth:`sample`. Guidance acts on the flow forwards; at ``keep=1`` there is none, and a weight gives a
            warning.
        indices
            Rows of ``adata`` to move; all by default.

        Returns
        -------
        AnnData
            A row a cell of the input, with the index and the obs of the input and the new conditions.

        Examples
        --------
        >>> control = adata[adata.obs["condition"] == "control"].copy()
        >>> moved = model.counterfactual(control, {"condition": "stimulated"})
        >>> moved.obs_names.equals(control.obs_names)
        True

        A cell that is moved to where it is comes back as it was:

        >>> same = model.counterfactual(control, {"condition": "control"})
        >>> (same.X != control.X).nnz
        0
        """
        self._check_stage("diffusion", "counterfactual")
        if conditions is None:
            raise ValueError("conditions is missing: say where to move the cells, such as {'condition': 'stimulated'}.")
        check_seed(seed)
        check_steps(n_steps)
        if not (is_number(keep) and 0 <= keep <= 1):
            raise ValueError(
                f"keep={short_repr(keep)} must be between 0 (made anew) and 1 (kept, but for the effect of the "
                "conditions)."
            )
        weight = self._guidance(guidance_weight)
        if keep == 1 and not self.module.denoiser.has_baseline:
            warnings.warn(
                "keep=1 moves cells by the effect that conditions have in the baseline, and this model has none "
                "(baseline='none'): they stay as they are. Use a smaller keep, such as 0.5.",
                stacklevel=2,
            )
        if keep == 1 and np.not_equal(weight, 1).any():
            warnings.warn(
                f"guidance_weight={guidance_weight!r} does nothing at keep=1, where cells move by the difference of "
                "two means and no flow is followed: give keep below 1, such as keep=0, or leave guidance_weight out.",
                stacklevel=2,
            )
        rows = self._rows(adata, indices, conditions=True)
        check_order(conditions, self._given(adata).obs_names[rows.cells], "conditions")
        source = rows.conditions[rows.cells]
        target = self.conditions.encode(conditions, len(rows))
        target = np.where(target == OPEN, source, target)
        batches = self._asked_batches(self.conditions, target, rows.batch[rows.cells])
        self._warn_of_batches(self.conditions, np.where(target == source, OPEN, target), batches)

        blocks = []
        for cells in self._blocks(len(rows), batch_size, "Counterfactuals", progress_bar):
            blocks.append(self._move(rows, cells, target[cells], keep, weight, solver, n_steps, seed))

        obs = self._obs_of(self.adata if adata is None else adata, rows.cells)
        new_obs = self._obs(self.conditions, target, batches, obs.index)
        obs[new_obs.columns] = new_obs
        return self._generated(
            blocks, obs, "counterfactual", lambda empty: rows.subset(empty).totals(),
            keep=keep, library_size="of the cell",
            seed=seed, guidance_weight=guidance_weight, solver=solver, n_steps=n_steps,
        )  # fmt: skip

    def _guidance(self, weight: float | Mapping[str, float]) -> float | list[float]:
        if not all(map(is_number, weight.values() if isinstance(weight, Mapping) else [weight])):
            raise ValueError(
                f"guidance_weight={short_repr(weight)} must be a finite number, or a dict of one per condition key."
            )
        if not isinstance(weight, Mapping):
            return float(weight)
        for key in weight:
            if key not in self.conditions.keys:
                raise KeyError(
                    f"guidance_weight: {key!r} is no condition of this model, which has {self.conditions.keys}."
                )
        return [float(weight.get(key, 1.0)) for key in self.conditions.keys]

    def _library(
        self, library_size: float | Sequence[float] | None, codes: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray, str]:
        if library_size is not None:
            return np.broadcast_to(check_library_size(library_size, len(codes)), len(codes)), "given"
        library, seen = self.library_sizes.draw(codes, uniforms)
        rules = {True: "training cells of the combination", False: "additive model over the conditions"}
        return library, ", ".join(rules[s] for s in (True, False) if s in seen)

    @torch.inference_mode()
    def _flow(
        self,
        x: Tensor,
        context: Context,
        weight: float | list[float],
        start: float,
        end: float,
        solver: str,
        n_steps: int | None,
        baseline_only: bool = False,
    ) -> Tensor:
        denoiser = self.module.denoiser
        field = classifier_free(denoiser.without_network if baseline_only else denoiser, context, weight)
        return solve(field, x, start, end, solver, n_steps)

    def _size(self, library: np.ndarray) -> Tensor:
        return self.module.size(torch.tensor(library, dtype=torch.float32, device=self.device))

    @torch.inference_mode()
    def _mean(self, tokens: Tensor, batch: np.ndarray, library: np.ndarray) -> np.ndarray:
        """Mean expression (cells, genes) of standardised tokens, in double precision for the draws."""
        every_gene = torch.arange(len(self.genes), device=self.device)
        logits = self.module.decode(tokens, every_gene, torch.from_numpy(batch).to(self.device))
        size = torch.from_numpy(library).float().to(self.device)
        return self.module.autoencoder.likelihood.mean(logits, size).cpu().numpy().astype(np.float64)

    def _move(
        self,
        rows: CellRows,
        cells: np.ndarray,
        target: np.ndarray,
        keep: float = 1.0,
        weight: float | list[float] = 1.0,
        solver: Solver = "heun",
        n_steps: int | None = None,
        seed: int = 0,
    ) -> sparse.csr_matrix:
        """Counts of measured cells, by position among the rows, under other conditions (cells, n_keys)."""
        batch, panel = rows[cells], rows.panel.numpy()
        x = batch.sets.dense().numpy().astype(np.float64)
        if x.max(initial=0) >= EXACT:
            x = rows.rows(cells).toarray().astype(np.float64)
        old, new = (codes.to(self.device) for codes in (batch.conditions, torch.from_numpy(target)))
        tokens = self.module.standardize(self._encode_batch(batch))
        codes = batch.batch.numpy()
        share = self._mean(tokens, codes, np.ones(len(cells)))
        library = self._whole_library(batch, share)
        size = self._size(library)

        of_old, of_new = Context(old, size), Context(new, size)
        moved = self._flow(tokens, of_old, 1.0, 1.0, keep, solver, n_steps)
        with torch.inference_mode():  # same place around the new mean
            kept = self.process.coefficients(torch.tensor(float(keep))).data
            moved = moved + kept * (self.module.denoiser.mean(of_new) - self.module.denoiser.mean(of_old))
        moved = self._flow(moved, of_new, weight, keep, 1.0, solver, n_steps)

        # the same arithmetic for both, so that they agree to the last bit where a cell moves nowhere
        mean = library[:, None] * share
        codes = self._asked_batches(self.conditions, target, codes)
        new_mean = library[:, None] * self._mean(moved, codes, np.ones(len(cells)))
        self._check_generated(tokens, moved, new_mean, weight)
        whole = len(panel) == len(self.genes)
        drawn = np.empty_like(new_mean) if whole else self._draw(new_mean, seed, cells).toarray()
        likelihood = self.module.autoencoder.likelihood
        for row, i in enumerate(cells):
            rng = cell_rng(seed, "transport", i)
            drawn[row, panel] = likelihood.transport(x[row], mean[row, panel], new_mean[row, panel], panel, rng)
        return sparse.csr_matrix(drawn)

    def _draw(self, mean: np.ndarray, seed: int, cells: np.ndarray) -> sparse.csr_matrix:
        """Draw the counts of cells from their means, each with a generator of its own."""
        likelihood, genes = self.module.autoencoder.likelihood, np.arange(len(self.genes))
        rows = [likelihood.draw(mean[r], genes, cell_rng(seed, "counts", i)) for r, i in enumerate(cells)]
        return sparse.csr_matrix(np.stack(rows))

    def _generated(
        self,
        blocks: list[sparse.csr_matrix],
        obs: pd.DataFrame,
        method: str,
        sizes: Callable[[np.ndarray], np.ndarray],
        **how: Any,
    ) -> AnnData:
        """Cells that were made; ``sizes`` tells the library sizes of those that turned out to have no counts."""
        x = sparse.vstack(blocks, format="csr")
        if self.module.autoencoder.likelihood.is_count:
            x = x.astype(np.int32 if x.max() <= np.iinfo(np.int32).max else np.int64)
            empty = np.flatnonzero(x.getnnz(axis=1) == 0)
            n_empty = int((sizes(empty) >= AMPLE).sum()) if len(empty) else 0
            if n_empty:
                warnings.warn(
                    f"{n_empty} of the {len(obs)} cells have no counts, where {AMPLE} or more were expected: the "
                    "autoencoder has learned nothing of them, as with too high a learning rate. Look at "
                    "sclatent.pl.history(model.history), and train it anew with a lower one.",
                    stacklevel=3,
                )
        else:
            x = x.astype(np.float32)
        result = AnnData(x, obs=obs, var=pd.DataFrame(index=self.genes.copy()))
        how["n_steps"] = how["n_steps"] or DEFAULT_STEPS[how["solver"]]
        result.uns["sclatent"] = self._provenance(method, **how)
        return result
