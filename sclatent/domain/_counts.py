"""Cells as counts of genes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data.fields import AnnDataField, NumericalObsField
from torch import Tensor, nn

from sclatent.data import (
    CellBatch,
    CellRows,
    Conditions,
    align_genes,
    by_rows,
    cell_rng,
    check_counts,
    check_library_size,
    check_size_factors,
    gene_loadings,
    get_matrix,
    log_normalize_counts,
    make_loader,
)
from sclatent.data._schema import FLAG, NAME, NAMES, POSITIVE, check, optional
from sclatent.data._warnings import warn_user
from sclatent.module import CellDiffusion, Standardize
from sclatent.nn import Context, Values

from ._domain import CHANGED, Domain
from ._fields import KnownLayerField
from ._library import LibrarySizes

AMPLE = 20  # counts of a cell that is hardly ever empty by chance
EXACT = 2**24  # from here on float32, as which minibatches have counts, leaves out whole numbers
BLOCK = 4096  # cells that are read together


class CountDomain(Domain):
    """Cells as sets of genes and their counts, or log-normalised values.

    Attributes
    ----------
    genes
        Names of the genes.
    size_factor_scale
        What the size factors are multiplied by to be library sizes.
    library_sizes
        Library sizes of the training cells; None before training.
    """

    STATE: ClassVar = {"size_factor_scale": POSITIVE}
    SETUP: ClassVar = {"layer": optional(NAME), "size_factor_key": optional(NAME), "is_count_data": FLAG}
    WRITTEN = ("library_size",)
    encodes_batch = False
    common_scale = False

    def __init__(self, registry: Mapping[str, Any]) -> None:
        super().__init__(registry)
        self.genes = pd.Index(self.names).astype(str)
        self.is_count: bool = self.setup["is_count_data"]
        self.size_factor_scale = 1.0
        self.library_sizes: LibrarySizes | None = None

    @property
    def summary(self) -> str:
        """What the cells are, in words."""
        return f"{len(self.genes)} genes"

    # ---- the AnnData

    @staticmethod
    def fields(setup: Mapping[str, Any]) -> list[AnnDataField]:
        """Return the fields of scvi-tools: the matrix, and size factors if there are any."""
        how = {"is_count_data": False, "correct_data_format": False}
        fields: list[AnnDataField] = [KnownLayerField(REGISTRY_KEYS.X_KEY, setup["layer"], **how)]
        if setup["size_factor_key"] is not None:
            fields.append(NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, setup["size_factor_key"]))
        return fields

    def rows(
        self,
        adata: AnnData,
        codes: np.ndarray,
        batch: np.ndarray,
        indices: Sequence[int] | None,
        is_training: bool,
    ) -> CellRows:
        """Read cells by position, with genes aligned by name."""
        matrix = by_rows(
            get_matrix(adata, self.setup["layer"]), "The AnnData of training" if is_training else "The query"
        )
        panel = align_genes(adata.var_names, self.genes)
        if not is_training:  # cells of training were checked at setup, and are again when they are read
            known_genes = None if (panel >= 0).all() else np.flatnonzero(panel >= 0)
            check_counts(matrix, "The query", is_count_data=self.is_count, columns=known_genes)
        library, key = None, self.setup["size_factor_key"]
        if not self.is_count:
            library = np.ones(adata.n_obs)  # log-normalised values have no library size
        elif key is not None:
            check_size_factors(adata.obs, key)
            library = self.size_factor_scale * adata.obs[key].to_numpy(float)
        return CellRows(matrix, panel, library, codes, batch, indices, CHANGED if is_training else None, self.is_count)

    def fit_size_factors(self, rows: CellRows) -> None:
        """Find the unit of the size factors; it is no finding, so that all cells count."""
        if self.is_count and rows.library is not None:
            self.size_factor_scale = rows.totals().sum() / rows.library.sum()

    def check_values(self, rows: CellRows) -> None:
        """Raise unless all values are counts, or numbers."""
        check_counts(rows.matrix, CHANGED, is_count_data=self.is_count)

    def contents(self, rows: CellRows) -> Iterator[Any]:
        """Genes, library sizes and counts, as training sees them, whatever they are stored as."""
        yield from (list(self.genes), rows.panel.numpy(), rows.library)
        for block in self._blocks(rows):
            yield np.diff(block.indptr).astype(np.int32)
            yield block.indices.astype(np.int32)
            yield block.data.astype(np.float32)

    def values(self, rows: CellRows) -> np.ndarray:
        """The logarithm of 1 + counts per 10,000, (cells, n_measured); log-normalised values as they are."""
        x = rows.rows(np.arange(len(rows)))
        values: Any = log_normalize_counts(x) if self.is_count else x
        return values.toarray().astype(np.float32)

    @staticmethod
    def _blocks(rows: CellRows) -> Iterator[sparse.csr_matrix]:
        for start in range(0, len(rows), BLOCK):
            yield rows.rows(np.arange(start, min(start + BLOCK, len(rows))))

    # ---- networks

    def new_module(self, autoencoder: Any, standardize: Standardize) -> CellDiffusion:
        """Put an autoencoder and the standardisations of tokens and library sizes together."""
        return CellDiffusion(autoencoder, standardize, nn.Identity())

    def look_at(self, module: CellDiffusion, rows: CellRows, seed: int, progress_bar: bool) -> None:
        """Set what the autoencoder starts from: mean expression, and embeddings of genes."""
        total, panel = np.zeros(len(self.genes)), rows.panel.numpy()
        for block in self._blocks(rows):
            total[panel] += np.asarray(block.sum(axis=0), dtype=np.float64).ravel()
        autoencoder = module.autoencoder
        mean = np.log((total + 1) / (total + 1).sum()) if self.is_count else total / len(rows)
        autoencoder.gene_bias.data.copy_(torch.from_numpy(mean))
        dim = autoencoder.genes_in.shape[1]
        loadings = gene_loadings(rows, len(self.genes), dim, self.is_count, seed=seed, progress_bar=progress_bar)
        for genes in (autoencoder.genes_in, autoencoder.genes_out):
            genes.data.copy_(torch.from_numpy(loadings))

    def learn_from(self, module: CellDiffusion, rows: CellRows, conditions: Conditions) -> None:
        """Remember the library sizes of the training cells."""
        self.library_sizes = LibrarySizes(conditions, rows.conditions[rows.cells], self._library_of_all(module, rows))

    def fit_means(
        self, module: CellDiffusion, rows: CellRows, codes: np.ndarray, values: Sequence[Values] | None
    ) -> None:
        """Fit a mixed model of the mean expression of conditions, if the model has one."""
        if module.gene_means is None:
            return
        seen, group, n = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        total, square, start = np.zeros((len(seen), len(self.genes))), np.zeros((len(seen), len(self.genes))), 0
        panel = rows.panel.numpy()
        for block in self._blocks(rows):
            places = group.ravel()[start : start + block.shape[0]], np.arange(block.shape[0])
            member = sparse.csr_matrix((np.ones(block.shape[0]), places), (len(seen), block.shape[0]))
            block = block.astype(np.float64)  # whatever counts are stored as
            rate = _per_10_000(block) if self.is_count else block
            total[:, panel] += (member @ rate).toarray()
            square[:, panel] += (member @ rate.power(2)).toarray()
            start += block.shape[0]
        mean = total / n[:, None]
        variance = square / n[:, None] - mean**2
        if self.is_count:
            mean, variance = np.log1p(mean), variance / (1 + mean) ** 2  # by the delta method
        module.gene_means.cpu().fit(seen, n, mean, float(np.average(variance.mean(axis=1), weights=n)), values)

    def moved(
        self,
        module: CellDiffusion,
        expected: np.ndarray,
        source: np.ndarray,
        target: np.ndarray,
        values: Sequence[Values] | None,
    ) -> np.ndarray:
        r"""Mean expression of cells that were moved: the mean of two predictions of how conditions change a gene.

        One is what the decoder makes of the mean tokens of conditions, the other a mixed model of the genes themselves,
        both of the logarithm of 1 + expression per 10,000. Cells keep their total.
        """
        if module.gene_means is None or not module.denoiser.has_baseline:
            return expected
        pairs, pair = np.unique(np.hstack([source, target]), axis=0, return_inverse=True)
        old, new = np.split(pairs, 2, axis=1)
        of_old, of_new = (self._decoded_mean(module, codes, values) for codes in (old, new))
        predicted = module.gene_means.predict(new, values) - module.gene_means.predict(old, values)
        change = (predicted - (of_new - of_old)) / 2
        if not self.is_count:
            return expected + change[pair.ravel()]
        ratio = np.expm1(np.maximum(of_new + change, 0)) / np.expm1(of_new)
        moved = expected * ratio[pair.ravel()]
        return moved * (expected.sum(axis=1) / moved.sum(axis=1))[:, None]

    def _decoded_mean(self, module: CellDiffusion, codes: np.ndarray, values: Sequence[Values] | None) -> np.ndarray:
        """What the decoder makes of the mean tokens of conditions, (n, genes), as of :meth:`fit_means`."""
        device = _device(module)
        size = torch.zeros(len(codes), device=device)
        with torch.no_grad():
            known = None if values is None else tuple(v.to(device) for v in values)
            tokens = module.denoiser.mean_of(Context(torch.from_numpy(codes).to(device), size, values=known))
        share = self.decode(module, tokens, np.zeros(len(codes), dtype=np.int64), None)
        return np.log1p(1e4 * share) if self.is_count else share

    @torch.no_grad()
    def encode(self, module: CellDiffusion, batch: CellBatch) -> Tensor:
        """Tokens of a minibatch, not standardised."""
        return module.autoencoder.encode(batch.to(_device(module)).sets)

    @torch.no_grad()
    def decode(
        self, module: CellDiffusion, tokens: Tensor, batches: np.ndarray, library: np.ndarray | None
    ) -> np.ndarray:
        """Mean expression (cells, genes), in double precision for the draws; shares of the genes without a library."""
        device = _device(module)
        every_gene = torch.arange(len(self.genes), device=device)
        logits = module.decode(tokens, every_gene, torch.from_numpy(batches).to(device))
        ones = torch.ones(len(tokens), device=device)
        share = module.autoencoder.likelihood.mean(logits, ones).cpu().numpy().astype(np.float64)
        return share if library is None or not self.is_count else library[:, None] * share

    def share(self, module: CellDiffusion, batch: CellBatch) -> np.ndarray:
        """Share that every gene has of measured cells by their own tokens, (cells, genes)."""
        tokens = module.standardize(self.encode(module, batch))
        return self.decode(module, tokens, batch.batch.numpy(), None)

    # ---- library sizes

    def given_or_drawn_library(
        self, library_size: float | Sequence[float] | None, codes: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray, dict[str, str]]:
        """Library sizes of cells to make, (cells,), and what uns says of them."""
        if library_size is not None:
            given = check_library_size(library_size, len(codes))
            return np.broadcast_to(given, len(codes)), {"library_size": "given"}
        assert self.library_sizes is not None  # of a trained model
        library, seen = self.library_sizes.draw(codes, uniforms)
        rules = {True: "training cells of the combination", False: "mixed model of the conditions"}
        return library, {"library_size": ", ".join(rules[s] for s in (True, False) if s in seen)}

    def library_of(self, module: CellDiffusion, batch: CellBatch) -> np.ndarray:
        """Library sizes of whole cells, (cells,): a total over a part of the genes leaves out the counts of others."""
        library, panel = batch.library.numpy().astype(np.float64), batch.sets.panel.numpy()
        if batch.is_whole or len(panel) == len(self.genes):
            return library
        return library / self.share(module, batch)[:, panel].sum(axis=1)

    def _library_of_all(self, module: CellDiffusion, rows: CellRows) -> np.ndarray:
        if rows.library is not None or len(rows.panel) == len(self.genes):
            return rows.library_sizes()
        return np.concatenate([self.library_of(module, batch) for batch in make_loader(rows, 1024)])

    def size(self, module: CellDiffusion, library: np.ndarray | None) -> Tensor:
        """Standardised log library sizes, (cells,)."""
        return module.size(torch.tensor(library, dtype=torch.float32, device=_device(module)))

    def fit_size(self, module: CellDiffusion, rows: CellRows) -> None:
        """Standardise log library sizes by those of the training cells."""
        module.standardize_size.cpu().fit(torch.from_numpy(self._library_of_all(module, rows)).log())

    def sizes(self, module: CellDiffusion, rows: CellRows) -> Tensor:
        """Standardised log library sizes of all cells, (cells,)."""
        library = torch.from_numpy(self._library_of_all(module, rows)).float()
        module.standardize_size.cpu()
        return module.size(library)

    # ---- cells that were made

    def draw(self, module: CellDiffusion, expected: np.ndarray, seed: int, cells: np.ndarray) -> sparse.csr_matrix:
        """Draw the counts of cells from their means, each with a generator of its own."""
        likelihood, genes = module.autoencoder.likelihood, np.arange(len(self.genes))
        rows = [likelihood.draw(expected[r], genes, cell_rng(seed, "counts", i)) for r, i in enumerate(cells)]
        return sparse.csr_matrix(np.stack(rows))

    def transport(
        self, module: CellDiffusion, rows: CellRows, cells: np.ndarray, old: np.ndarray, new: np.ndarray, seed: int
    ) -> sparse.csr_matrix:
        """Move counts as their means have moved (:meth:`~sclatent.module.GeneLikelihood.transport`).

        Genes that were not measured are drawn.
        """
        panel, block = rows.panel.numpy(), rows.rows(cells)
        x = block.toarray().astype(np.float64 if block.max() >= EXACT else np.float32).astype(np.float64)
        whole = len(panel) == len(self.genes)
        drawn = np.empty_like(new) if whole else self.draw(module, new, seed, cells).toarray()
        likelihood = module.autoencoder.likelihood
        for row, i in enumerate(cells):
            rng = cell_rng(seed, "transport", i)
            drawn[row, panel] = likelihood.transport(x[row], old[row, panel], new[row, panel], panel, rng)
        return sparse.csr_matrix(drawn)

    def collect(self, blocks: list[sparse.csr_matrix], obs: pd.DataFrame, library: np.ndarray | None) -> AnnData:
        """Put cells that were made into X; with library sizes that were asked for, say which have no counts."""
        x = sparse.vstack(blocks, format="csr")
        if self.is_count and library is not None:
            x = x.astype(np.int32 if x.max() <= np.iinfo(np.int32).max else np.int64)
            n_empty = int(((x.getnnz(axis=1) == 0) & (library >= AMPLE)).sum())
            if n_empty:
                warn_user(
                    f"{n_empty} of the {len(obs)} cells have no counts, where {AMPLE} or more were expected: the "
                    "autoencoder has learned nothing of them, as with too high a learning rate. Look at "
                    "sclatent.pl.history(model.history), and train it anew with a lower one."
                )
        else:
            x = x.astype(np.float32)
        return AnnData(x, obs=obs, var=pd.DataFrame(index=self.genes.copy()))

    # ---- saved models

    def describe(self) -> dict[str, Any]:
        """Return the unit of the size factors."""
        return {"size_factor_scale": self.size_factor_scale}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the library sizes of the training cells."""
        return {} if self.library_sizes is None else {"library_sizes": self.library_sizes.sizes}

    def restore(
        self,
        description: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        codes: np.ndarray | None,
        conditions: Conditions,
    ) -> None:
        """Take back the unit of the size factors and the library sizes."""
        self.size_factor_scale = float(description["size_factor_scale"])
        if codes is None:
            return
        sizes = arrays["library_sizes"]
        if sizes.shape != (len(codes),) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError("library_sizes must be positive numbers, one for each row of condition_codes")
        self.library_sizes = LibrarySizes(conditions, codes, sizes)

    @classmethod
    def check_description(cls, description: Mapping[str, Any]) -> None:
        """Raise unless the genes have names."""
        field = description["registry"]["field_registries"][REGISTRY_KEYS.X_KEY]
        check(field, {"state_registry": {"column_names": NAMES}}, "model.json.registry.field_registries.X")


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _per_10_000(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.asarray(counts.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e4 / np.where(total > 0, total, 1.0)) @ counts)
