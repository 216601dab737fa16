"""A cell is a set of (gene, count): what the encoder may see, what it must see, and the likelihoods of counts."""

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Normal, Poisson
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sclatent.model import SCLDM
from sclatent.module import LIKELIHOODS, POOLINGS, SetAutoencoder
from sclatent.nn import CellSets, CrossAttentionPooling, CrossAttentionReadout, SetPooling, SetReadout

N_GENES, N_CELLS = 60, 12


def as_sets(counts: Tensor, panel: Tensor | None = None) -> CellSets:
    """Cells x measured genes as sets."""
    cell, column = counts.nonzero(as_tuple=True)
    panel = torch.arange(counts.shape[1]) if panel is None else panel
    return CellSets(panel, cell, column, counts[cell, column], len(counts))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def encode_counts(model: SetAutoencoder, counts: Tensor, panel: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.encode(as_sets(counts, panel))


@pytest.fixture(scope="module", params=POOLINGS)
def model(request) -> SetAutoencoder:
    sizes = {"n_tokens": 6, "token_dim": 8, "width": 32, "n_blocks": 1, "gene_dim": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SetAutoencoder(N_GENES, n_batches=2, **sizes, pooling=request.param)
        torch.nn.init.normal_(model.gene_bias)
        torch.nn.init.normal_(model.batches.weight)
    return model.eval()


@pytest.fixture(scope="module")
def counts() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.negative_binomial(0.5, 0.1, (N_CELLS, N_GENES)).astype(np.float32))


@pytest.fixture(scope="module")
def glio_attention(glio, small, quiet) -> SCLDM:
    model = SCLDM(glio, **small, pooling="attention")
    model.train({"autoencoder": 5, "diffusion": 1}, **quiet)
    return model


# ---- what the encoder may not see


def test_tokens_do_not_depend_on_the_order_of_genes(model, counts):
    order = torch.randperm(N_GENES, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(counts[:, order], counts)
    torch.testing.assert_close(
        encode_counts(model, counts[:, order], order), encode_counts(model, counts), atol=1e-4, rtol=0
    )


def test_tokens_do_not_depend_on_the_order_of_elements(model, counts):
    sets = as_sets(counts)
    order = torch.randperm(len(sets.count), generator=torch.Generator().manual_seed(1))
    shuffled = CellSets(sets.panel, sets.cell[order], sets.column[order], sets.count[order], sets.n_cells)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(shuffled), model.encode(sets), atol=1e-5, rtol=0)


def test_exchanging_the_counts_of_two_genes_is_seen(model, counts):
    """The identity of a gene matters: an encoder that only sees the multiset of counts fails."""
    assert rms(encode_counts(model, counts.flip(1)) - encode_counts(model, counts)) > 0.1


def test_other_cells_and_padding_do_not_change_a_cell(model, counts):
    together = encode_counts(model, counts)
    alone = torch.cat([encode_counts(model, counts[i : i + 1]) for i in range(N_CELLS)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)
    beside_giants = encode_counts(model, torch.cat([counts[:1], 1_000 * counts[1:] + 5]))
    torch.testing.assert_close(beside_giants[:1], together[:1], atol=1e-4, rtol=0)
    every = torch.ones_like(counts).nonzero(as_tuple=True)  # zeros spelt out
    padded = CellSets(torch.arange(N_GENES), *every, counts[every], N_CELLS)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(padded), together, atol=1e-5, rtol=0)


# ---- what it must see


@pytest.mark.parametrize("which", ["fresh", "trained"])
def test_tokens_see_how_strongly_genes_are_expressed(model, counts, glio_model, glio_attention, glio, which):
    if which == "trained":
        is_linear = isinstance(model.pooling, SetPooling)
        model = (glio_model if is_linear else glio_attention).module.autoencoder
        counts = torch.from_numpy(glio.X[:50].toarray().astype(np.float32))
    tokens = encode_counts(model, counts)
    assert rms(encode_counts(model, 10 * counts) - tokens) > 0.1

    strongest = counts.argmax(dim=1)
    doubled = counts.clone()
    doubled[torch.arange(len(counts)), strongest] *= 4
    assert rms(encode_counts(model, doubled) - tokens) > 0.01

    on = (counts > 0).float()
    magnitudes = on * torch.randint(1, 40, counts.shape, generator=torch.Generator().manual_seed(2))
    assert rms(encode_counts(model, magnitudes) - encode_counts(model, on)) > 0.1


def test_a_gene_not_measured_is_not_a_gene_measured_as_zero(model, counts):
    panel = torch.arange(N_GENES // 2)
    measured_as_zero = counts.clone()
    measured_as_zero[:, N_GENES // 2 :] = 0
    absent = encode_counts(model, counts[:, panel], panel)
    assert rms(absent - encode_counts(model, measured_as_zero)) > 0.05
    assert rms(absent - encode_counts(model, counts)) > 0.05


def test_every_token_has_mean_zero_and_variance_one(model, counts):
    tokens = encode_counts(model, counts)
    assert tokens.shape == (N_CELLS, 6, 8)
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(N_CELLS, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(dim=-1, correction=0), torch.ones(N_CELLS, 6), atol=1e-2, rtol=0)


# ---- cells without counts, and weights that depend on the cell


def test_cells_without_any_counts_have_tokens_and_gradients(model, counts):
    empty = counts.clone()
    empty[::2] = 0
    for x in (empty, torch.zeros_like(counts)):
        with torch.enable_grad():
            nll, _ = model(as_sets(x), x.sum(dim=1) + 1, torch.zeros(N_CELLS, dtype=torch.long))
            gradients = torch.autograd.grad(nll.sum(), list(model.parameters()), allow_unused=True)
        assert nll.isfinite().all()
        assert all(g.isfinite().all() for g in gradients if g is not None)
    torch.testing.assert_close(encode_counts(model, empty)[1::2], encode_counts(model, counts)[1::2], atol=1e-4, rtol=0)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_linear_pooling_of_two_parts_of_a_cell_adds_up_and_attention_does_not(counts):
    """What it says of the weights: those of attention depend on the other genes of the cell."""
    genes, first = draw(1, N_GENES, 24), counts.clone()
    first[:, N_GENES // 2 :] = 0
    linear, attention = SetPooling(24, 6, 4, 2, N_GENES), CrossAttentionPooling(24, 6, 4, 2, N_GENES)
    whole = linear(genes, counts)
    torch.testing.assert_close(linear(genes, first) + linear(genes, counts - first), whole, atol=1e-4, rtol=1e-4)
    parts = attention(genes, first), attention(genes, counts - first)
    whole, at_rest = attention(genes, counts), attention(genes, torch.zeros_like(counts))
    for sum_of_parts in (parts[0] + parts[1], parts[0] + parts[1] - at_rest, (parts[0] + parts[1]) / 2):
        assert rms(whole - sum_of_parts) > 0.05 * rms(whole - whole.mean(dim=0))


@torch.no_grad()
def test_the_weight_of_a_gene_is_that_of_a_softmax_over_the_expressed_genes():
    """A cell computed by hand, gene by gene."""
    pooling, genes = CrossAttentionPooling(gene_dim=5, n_tokens=3, n_heads=2, head_dim=4, n_genes=9), draw(2, 10, 5)
    counts = torch.zeros(2, 10)
    counts[0, [1, 4, 7]], counts[1] = torch.tensor([2.0, 5.0, 1.0]), 3.0
    elements = torch.stack([genes.mean(dim=0), *genes[[1, 4, 7]]])
    c = torch.tensor([0.0, 2.0, 5.0, 1.0])
    features = torch.stack([torch.ones(4), torch.log1p(c), torch.log1p(c / 0.8)], dim=1)  # 8 counts over 10 genes
    parts = pooling.to_keys_values(elements).view(4, 3, 2, 2, 4)  # (elements, features, key or value, heads, head_dim)
    k, v = torch.einsum("li,liphd->plhd", features, parts)
    a = (torch.einsum("hmd,lhd->hml", pooling.queries, k) / 2).softmax(dim=-1)
    expected = 3 * torch.einsum("hml,lhd->mhd", a, v).flatten(1)
    torch.testing.assert_close(pooling(genes, counts)[0], expected, atol=1e-5, rtol=1e-5)


# ---- decoder


@torch.no_grad()
def test_linear_readout_of_two_cells_adds_up_and_attention_does_not():
    genes, one, other = draw(1, N_GENES, 24), draw(2, 5, 6, 8), draw(3, 5, 6, 8)
    for kind, is_linear in ((SetReadout, True), (CrossAttentionReadout, False)):
        readout = kind(24, 6, 4, 2)
        error = rms(readout(genes, one) + readout(genes, other) - readout(genes, one + other))
        assert (error < 1e-5) == is_linear
        assert is_linear or error > 0.05 * rms(readout(genes, one))


def test_reading_genes_in_blocks_changes_neither_logits_nor_gradients(monkeypatch):
    readout, genes, tokens = CrossAttentionReadout(24, 6, 4, 2), draw(1, N_GENES, 24), draw(2, 5, 6, 8)
    results = []
    for n_genes in (N_GENES, 7):
        monkeypatch.setattr(CrossAttentionReadout, "max_elements", 5 * 4 * 6 * n_genes)
        at = [genes.requires_grad_(), tokens.requires_grad_(), *readout.parameters()]
        logits = readout(genes, tokens)
        results.append((logits, *torch.autograd.grad(logits.square().sum(), at)))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_the_decoder_is_equivariant_and_decodes_any_panel(model, counts):
    tokens, batch = encode_counts(model, counts), torch.zeros(N_CELLS, dtype=torch.long)
    library = counts.sum(dim=1)
    with torch.no_grad():
        every = model.decode(tokens, torch.arange(N_GENES), batch)
        assert rms(every - every.mean(dim=0)) > 1e-3  # the cell is heard
        panel = torch.randperm(N_GENES, generator=torch.Generator().manual_seed(3))[:17]
        some = model.decode(tokens, panel, batch)
        torch.testing.assert_close(some, every[:, panel], atol=1e-4, rtol=1e-4)
        mean = model.likelihood.mean(some, library)
    share = every.softmax(dim=1)[:, panel]
    torch.testing.assert_close(mean, library[:, None] * share / share.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mean.sum(dim=1), library)


def test_the_decoder_is_told_the_batch_and_the_encoder_is_not(model, counts):
    tokens, genes = encode_counts(model, counts), torch.arange(N_GENES)
    with torch.no_grad():
        one, other = (model.decode(tokens, genes, torch.full((N_CELLS,), b)) for b in (0, 1))
    assert rms(one - other) > 1e-3


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize("gene_likelihood", LIKELIHOODS)
def test_no_tensor_of_cells_by_genes_by_width(gene_likelihood):
    """Forward and backward: nothing larger than cells x genes (the widths are 8 and more)."""
    n_cells, n_genes = 128, 2_000
    model = SetAutoencoder(n_genes, n_tokens=8, token_dim=8, gene_likelihood=gene_likelihood)
    counts = torch.poisson(torch.full((n_cells, n_genes), 0.3), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest:
        nll, _ = model(as_sets(counts), counts.sum(dim=1), torch.zeros(n_cells, dtype=torch.long))
        nll.sum().backward()
    assert n_cells * n_genes <= largest.numel <= 2 * n_cells * n_genes


@pytest.mark.parametrize("density", [0.02, 0.1])
def test_attention_is_bounded_by_expressed_genes_and_blocks(density, monkeypatch):
    """Nothing larger than cells x expressed genes x keys and values, a block of genes, or twice cells x genes."""
    n_cells, n_genes, token_dim = 64, 2_000, 8
    monkeypatch.setattr(CrossAttentionReadout, "max_elements", n_cells * n_genes)
    model = SetAutoencoder(n_genes, n_tokens=8, token_dim=token_dim, pooling="attention")
    rate = torch.full((n_cells, n_genes), density)
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    most = 1 + int((counts > 0).sum(dim=1).max())
    with LargestTensor() as largest:
        nll, _ = model(as_sets(counts), counts.sum(dim=1), torch.zeros(n_cells, dtype=torch.long))
        nll.sum().backward()
    assert largest.numel <= n_cells * max(2 * n_genes, most * 2 * token_dim)


def test_attention_learns_from_cells_and_comes_back_from_a_folder(glio_attention, glio, tmp_path):
    """Cells explain themselves better by their own tokens than by those of other cells."""
    assert glio_attention.init_params_["pooling"] == "attention"
    glio_attention.save(tmp_path / "model")
    loaded = SCLDM.load(tmp_path / "model", device="cpu")
    tokens = glio_attention.get_latent_representation(glio)
    np.testing.assert_array_equal(loaded.get_latent_representation(glio), tokens)
    counts = torch.from_numpy(glio.X[:200].toarray().astype(np.float32))
    autoencoder, batch = loaded.module.autoencoder, torch.zeros(200, dtype=torch.long)
    with torch.no_grad():
        own = autoencoder.encode(as_sets(counts))
        nll = [
            -autoencoder.likelihood.log_prob(
                autoencoder.decode(t, torch.arange(glio.n_vars), batch), counts.sum(dim=1), as_sets(counts)
            ).mean()
            for t in (own, own.roll(1, dims=0))
        ]
    assert nll[0] < nll[1] - 5


@pytest.mark.parametrize("pooling", ["Attention", "mean", None])
def test_a_pooling_that_is_not_known_is_refused(pooling):
    with pytest.raises(ValueError, match=f"pooling={pooling!r} is not known: use one of .*'linear', 'attention'"):
        SetAutoencoder(N_GENES, pooling=pooling)


# ---- likelihoods


def likelihood_of(name: str, n_genes: int):
    """A likelihood whose genes differ."""
    likelihood = LIKELIHOODS[name](n_genes).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in likelihood.parameters():
        parameter.data = 0.5 * torch.randn(n_genes, generator=generator, dtype=torch.float64)
    return likelihood


def dense(name: str, likelihood, logits: Tensor, library: Tensor, panel: Tensor):
    """The same distribution over all entries, from scvi-tools or torch."""
    mean = library[:, None] * logits.softmax(dim=1)
    if name == "poisson":
        return Poisson(mean)
    if name == "normal":
        return Normal(logits, likelihood.log_sd[panel].exp())
    theta = likelihood.log_theta[panel].exp()
    if name == "nb":
        return NegativeBinomial(mu=mean, theta=theta)
    lost = likelihood.dropout_logit[panel]
    return ZeroInflatedNegativeBinomial(mu=mean / (1 - lost.sigmoid()), theta=theta, zi_logits=lost)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_and_gradients_are_those_of_the_dense_distribution(name, counts):
    panel = torch.randperm(N_GENES, generator=torch.Generator().manual_seed(6))[:40]
    x = counts[:, panel].double()
    library = x.sum(dim=1) * 1.3 + 1
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(N_CELLS, 40, generator=generator, dtype=torch.float64).requires_grad_()
    likelihood = likelihood_of(name, N_GENES)
    ours = likelihood.log_prob(logits, library, as_sets(x, panel))
    reference = dense(name, likelihood, logits, library, panel).log_prob(x).sum(dim=1)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-4)
    at = [logits, *likelihood.parameters()]
    for mine, theirs in zip(torch.autograd.grad(ours.sum(), at), torch.autograd.grad(reference.sum(), at), strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


MEANS, NEW_MEANS = np.array([0.2, 1.0, 6.0, 30.0, 3.0]), np.array([0.6, 0.3, 9.0, 12.0, 3.0])
N_DRAWS = 40_000


@pytest.fixture(params=LIKELIHOODS)
def drawing(request):
    """A likelihood, and mean and variance of what it draws at a mean."""
    name = request.param
    likelihood = likelihood_of(name, len(MEANS))
    values = {key: p.detach().numpy() for key, p in likelihood.named_parameters()}
    if name == "normal":
        shift = 20.0  # far from zero, where values are cut
        return likelihood, shift, lambda mean: (mean, np.exp(2 * values["log_sd"]))
    lost = 1 / (1 + np.exp(-values["dropout_logit"])) if name == "zinb" else 0.0
    over = 0.0 if name == "poisson" else np.exp(-values["log_theta"])
    return likelihood, 0.0, lambda mean: (mean, mean * (1 + mean / (1 - lost) * (lost + over)))  # lost ones included


def many(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, N_DRAWS)


def assert_moments(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    x = x.reshape(len(mean), N_DRAWS)
    np.testing.assert_array_less(np.abs(x.mean(axis=1) - mean), 5 * np.sqrt(variance / N_DRAWS))
    np.testing.assert_allclose(x.var(axis=1), variance, rtol=0.12)


def test_draws_have_the_mean_and_variance(drawing):
    likelihood, shift, moments = drawing
    genes = many(np.arange(len(MEANS)))
    x = likelihood.draw(many(MEANS) + shift, genes, np.random.default_rng(0))
    assert_moments(x, *moments(MEANS + shift))
    if likelihood.is_count:
        np.testing.assert_array_equal(x, np.floor(x))
    assert x.min() >= 0


def test_transport_carries_the_distribution_and_keeps_the_cell(drawing):
    likelihood, shift, moments = drawing
    genes, mean, new_mean = many(np.arange(len(MEANS))), many(MEANS) + shift, many(NEW_MEANS) + shift
    x = likelihood.draw(mean, genes, np.random.default_rng(0))
    moved = likelihood.transport(x, mean, new_mean, genes, np.random.default_rng(1))
    assert_moments(moved, *moments(NEW_MEANS + shift))
    assert moved.min() >= 0
    for before, after in zip(x.reshape(-1, N_DRAWS), moved.reshape(-1, N_DRAWS), strict=True):
        assert np.corrcoef(before, after)[0, 1] > 0.4  # what the mean leaves unexplained is kept
    np.testing.assert_array_equal(likelihood.transport(x, mean, mean, genes, np.random.default_rng(1)), x)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_genes_of_vanishing_share_can_be_drawn_and_transported(name):
    """A softmax in single precision reaches zero; that a mean vanishes is no reason to divide by it."""
    likelihood, genes = LIKELIHOODS[name](3), np.arange(3)
    logits, library = torch.tensor([[-200.0, -200.0, 0.0], [-200.0, 0.0, -200.0]]), torch.tensor([4.0, 4.0])
    mean, new_mean = likelihood.mean(logits, library).numpy().astype(float)
    x = np.array([0.0, 0.0, 4.0])
    assert likelihood.draw(mean, genes, np.random.default_rng(0))[0] == 0
    moved = likelihood.transport(x, mean, new_mean, genes, np.random.default_rng(0))
    assert np.isfinite(moved).all()
    assert moved[0] == 0
    assert moved[2] == 0
    np.testing.assert_array_equal(likelihood.transport(x, mean, mean, genes, np.random.default_rng(0)), x)
