"""What is fitted in closed form: on the training cells alone, and said where that is limited."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from sclatent.datasets import simulate
from sclatent.diffusion import LinearFlow
from sclatent.model import DAED, SCLDM, JointLDM
from sclatent.module import DiT, ResidualDenoiser

TINY = {
    "n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, "n_heads": 2, "denoiser_width": 8, "denoiser_blocks": 1,
}  # fmt: skip
QUIET = {"accelerator": "cpu", "progress_bar": False}


def spoil(x, rows: np.ndarray):
    """The same values, but for some rows, which have others."""
    x = x.toarray() if sparse.issparse(x) else x.copy()
    x[rows] = 7 * x[rows][:, ::-1] + 1
    return x


def fitted(model) -> dict[str, torch.Tensor]:
    """All that is computed and not learned by gradients: buffers, which no optimiser moves."""
    return {name: value.clone() for name, value in model.module.named_buffers()}


def counts() -> AnnData:
    return simulate(120, 20, cell_types=["B", "T"], library_size=200, seed=0)


def embeddings() -> AnnData:
    adata = AnnData(np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32))
    adata.obs["type"] = np.array(["B", "T"])[np.arange(120) % 2]
    return adata


@pytest.mark.parametrize("cls", [SCLDM, DAED, JointLDM])
def test_cells_that_the_loss_is_watched_on_teach_nothing(cls):
    found, held_out = [], None
    for is_spoilt in (False, True):
        adata = counts() if cls is SCLDM else embeddings()
        if is_spoilt:
            adata.X = spoil(adata.X, held_out)
        if cls is SCLDM:
            cls.setup_anndata(adata, condition_keys=["cell_type", "condition"])
            model = cls(adata, **TINY)
        else:
            cls.setup_anndata(adata, labels_key="type")
            model = cls(adata, denoiser_width=8, denoiser_blocks=1, n_heads=2)
        model.train(1, train_size=0.75, **QUIET)  # one epoch, so that there is no best one to choose by the others
        held_out = model.validation_indices_
        found.append((fitted(model), model.module.state_dict()))
    (buffers, weights), (others, other_weights) = found
    assert buffers
    pairs = [(buffers, others), (weights, other_weights)]
    for one, other in pairs[:1] if cls is JointLDM else pairs:  # whose classifier learns the labels of all cells
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_totals_of_generated_cells_are_their_library_sizes(likelihood):
    adata = counts()
    SCLDM.setup_anndata(adata, condition_keys="condition")
    model = SCLDM(adata, gene_likelihood=likelihood, **TINY)
    model.train(1, **QUIET)
    with torch.no_grad():
        if likelihood == "zinb":
            model.module.autoencoder.likelihood.dropout_logit.fill_(0.0)  # half of the counts are lost
        model.module.autoencoder.likelihood.log_theta.fill_(3.0)
    cells = model.sample(400, library_size=500.0, progress_bar=False)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    assert abs(totals.mean() - 500) < 5 * totals.std() / np.sqrt(len(totals))  # a z of 5; the old mean was 250


def test_activations_are_those_of_the_forward_pass():
    torch.manual_seed(0)
    trunk = DiT(2, 4, n_levels=[2], width=8, n_blocks=2, n_heads=2, has_size=True)
    denoiser = ResidualDenoiser(trunk, (2, 4), LinearFlow())
    with torch.no_grad():  # blocks of a fresh network do nothing yet
        for weight in denoiser.parameters():
            weight.normal_(0, 0.5)
    x, t, size = torch.randn(5, 2, 4), torch.full((5,), 0.5), torch.randn(5)
    before = denoiser.activations(x, t, size)
    assert before.shape == (5, 2, 8)
    assert not torch.equal(before, denoiser.activations(x, t, size + 1))
    with torch.no_grad():
        denoiser.mean.slope.fill_(1.0)
    assert not torch.equal(before, denoiser.activations(x, t, size))
