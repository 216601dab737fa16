"""The parts of the models of images and embeddings: tokens and back, scales, denoisers, what the stages minimise."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor
from torch.distributions import Normal

from sclatent.baseline import GaussianVelocity, shrink_covariances
from sclatent.data import FeatureBatch, TokenRows
from sclatent.diffusion import LinearFlow, VariancePreserving, classifier_free, solve
from sclatent.module import (
    DenoisingAutoencoder,
    DiT,
    FeatureScale,
    ImageAutoencoder,
    JointDenoiser,
    Patches,
    ResidualDenoiser,
    UNet,
    VectorAutoencoder,
)
from sclatent.nn import Context
from sclatent.train import DenoisingPlan, JointPlan, PriorPlan, ReconstructionPlan

OF_ONE_BATCH = torch.zeros(5, dtype=torch.int64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shake(module: torch.nn.Module) -> None:
    """Give every parameter a value, also those that start at 0."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * draws(*parameter.shape, seed=i))


# ---- patches


@pytest.mark.parametrize("patch", [None, 1, 3, 4, 100])
@pytest.mark.parametrize(
    "shape", [(1,), (2,), (7,), (64,), (1280,), (1, 1, 1), (5, 5, 1), (8, 8, 3), (28, 28, 1), (31, 31, 4)]
)
def test_patches_lose_nothing(shape, patch):
    patches, x = Patches(shape, patch), draws(5, *shape)
    tokens = patches.encode(x, OF_ONE_BATCH)
    assert tokens.shape == (5, patches.n_tokens, patches.token_dim)
    assert torch.equal(patches.decode(tokens, OF_ONE_BATCH), x)
    assert tokens.square().sum() == pytest.approx(float(x.square().sum()), rel=1e-5)  # the padding is 0


@pytest.mark.parametrize(
    ("shape", "n_tokens", "token_dim"),
    [((64, 64, 3), 32 * 32, 12), ((7, 7, 1), 16, 4), ((1280,), 16, 80), ((10,), 3, 4)],
)
def test_patches_have_a_sensible_size_by_default(shape, n_tokens, token_dim):
    patches = Patches(shape)
    assert (patches.n_tokens, patches.token_dim) == (n_tokens, token_dim)


def test_a_token_is_a_square_of_the_image():
    image = torch.arange(64.0).view(1, 8, 8, 1)
    tokens = Patches((8, 8, 1), 4).to_tokens(image)
    expected = [image[0, i : i + 4, j : j + 4, 0] for i in (0, 4) for j in (0, 4)]
    torch.testing.assert_close(tokens[0].view(4, 4, 4), torch.stack(expected))


def test_a_patch_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match="patch=0 must be at least 1"):
        Patches((8, 8, 1), 0)


# ---- scales


@pytest.mark.parametrize("shape", [(6,), (4, 4, 3)])
def test_a_scale_is_undone_by_its_inverse_and_centres_every_batch_on_its_own_mean(shape):
    scale, batch = FeatureScale(shape, 3), torch.tensor([2, 0, 1, 2, 0])
    scale.mean.copy_(draws(*scale.mean.shape))
    scale.sd.copy_(draws(*scale.sd.shape, seed=1).abs() + 0.5)
    x = draws(5, *shape, seed=2)
    torch.testing.assert_close(scale.inverse(scale(x, batch), batch), x)
    at_its_mean = scale(scale.mean[batch].expand(5, *shape), batch)
    torch.testing.assert_close(at_its_mean, torch.zeros(5, *shape))
    one_more = scale(scale.mean[batch] + scale.sd.expand(5, *shape), batch)
    torch.testing.assert_close(one_more, torch.ones(5, *shape))
    assert scale.sd.shape == ((1,) if len(shape) == 1 else (1, 1, 3))  # coordinates keep their proportions


# ---- autoencoders


@pytest.mark.parametrize(("n_tokens", "token_dim"), [(1, 4), (2, 3), (4, 8)])
def test_the_autoencoder_of_embeddings_starts_at_the_principal_components(n_tokens, token_dim):
    x = draws(300, 12) @ draws(12, 12, seed=1)
    x = x - x.mean(dim=0)
    k = min(n_tokens * token_dim, 12)
    pca = PCA(k).fit(x.numpy())
    autoencoder, batch = VectorAutoencoder(12, n_tokens, token_dim), torch.zeros(300, dtype=torch.int64)
    autoencoder.start_from(torch.from_numpy(pca.components_).float(), 2.0)
    with torch.no_grad():
        tokens = autoencoder.encode(x, batch)
        error = (autoencoder.decode(tokens, batch) - x).square().mean()
    assert tokens.shape == (300, n_tokens, token_dim)
    scores = pca.transform(x.numpy())
    of_pca = np.square(pca.inverse_transform(scores) - x.numpy()).mean()
    assert float(error) == pytest.approx(of_pca, rel=1e-3, abs=1e-8)
    # the tokens hold the scores, divided by the scale, and nothing else; the largest are not all in one token
    sd = tokens.std(dim=0).flatten().sort(descending=True).values.numpy()
    np.testing.assert_allclose(sd[:k], scores.std(axis=0, ddof=1) / 2, rtol=1e-3)
    assert not sd[k:].any()
    first = tokens.std(dim=0).amax(dim=1).numpy()
    np.testing.assert_allclose(np.sort(first)[::-1], scores.std(axis=0, ddof=1)[:n_tokens] / 2, rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 45, 64, 100])
def test_the_autoencoder_of_images_takes_images_of_any_size(size, channels):
    autoencoder = ImageAutoencoder((size, size, channels), token_dim=4, width=16)
    shake(autoencoder)
    x = draws(5, size, size, channels)
    tokens = autoencoder.encode(x, OF_ONE_BATCH)
    assert tokens.shape == (5, autoencoder.n_tokens, 4)
    assert 9 <= autoencoder.n_tokens <= 16  # 3 x 3 or 4 x 4 places
    torch.testing.assert_close(tokens.mean(dim=2), torch.zeros(5, autoencoder.n_tokens), atol=1e-5, rtol=0)
    decoded = autoencoder.decode(tokens, OF_ONE_BATCH)
    assert decoded.shape == x.shape
    assert decoded.std(dim=0).min() > 0  # every pixel depends on the image
    # and a token on the pixels of its place: those of the lower right corner are in the last tokens, not in the first
    x[:, -4:, -4:] += 1
    change = (autoencoder.encode(x, OF_ONE_BATCH) - tokens).abs().amax(dim=(0, 2))
    assert change[-1] > 0


@pytest.mark.parametrize("size", [27, 257])
def test_the_autoencoder_of_images_names_the_sizes_that_it_takes(size):
    with pytest.raises(ValueError, match=rf"Images of {size} x {size} pixels: 28 to 256 .*resize.*embed_images"):
        ImageAutoencoder((size, size, 1))


def test_the_width_of_the_convolutions_is_checked():
    with pytest.raises(ValueError, match="width=24 must be a multiple of 16"):
        ImageAutoencoder((28, 28, 1), width=24)


# ---- the denoising autoencoder


@pytest.fixture
def denoising() -> DenoisingAutoencoder:
    """Of vectors of 7 coordinates in 2 tokens of 4, one coordinate of which is padding."""
    return DenoisingAutoencoder((7,), 0.2, 4, width=16, n_blocks=1, n_heads=2)


def test_x1_has_its_share_of_noise(denoising):
    x0, noise = draws(20_000, 2, 4), draws(20_000, 2, 4, seed=1)
    x1 = denoising.add_noise(x0, noise)
    assert x1.var() == pytest.approx(1, abs=0.02)
    assert (x1 - math.sqrt(0.8) * x0).var() == pytest.approx(0.2, abs=0.01)


def test_the_denoising_autoencoder_starts_as_the_best_guess_for_noise(denoising):
    x0 = draws(5, 7)
    x1 = denoising.add_noise(denoising.to_tokens(x0), draws(5, 2, 4, seed=1))
    torch.testing.assert_close(denoising.denoise(x1), math.sqrt(0.8) * x1)
    torch.testing.assert_close(denoising.decode(x1, OF_ONE_BATCH), Patches((7,), 4).from_tokens(math.sqrt(0.8) * x1))


@pytest.mark.parametrize("shape", [(7,), (5, 5, 3)])
def test_the_likelihood_of_the_denoising_autoencoder_is_that_of_a_gaussian_without_the_padding(shape):
    denoising = DenoisingAutoencoder(shape, 0.2, 4, width=16, n_blocks=1, n_heads=2)
    shake(denoising)
    with torch.no_grad():
        denoising.log_sd.fill_(-0.3)
        x0 = draws(5, *shape)
        tokens, x1 = denoising.to_tokens(x0), draws(5, denoising.n_tokens, denoising.token_dim, seed=1)
        expected = Normal(denoising.decode(x1, OF_ONE_BATCH), math.exp(-0.3)).log_prob(x0).flatten(1).sum(dim=1)
        torch.testing.assert_close(denoising.log_prob(tokens, x1), expected, rtol=1e-4, atol=1e-3)


# ---- denoisers


@pytest.mark.parametrize("n_side", [1, 3, 4, 7])
def test_the_u_net_takes_a_grid_of_any_size(n_side):
    net = UNet(n_side**2, 12, (3,), width=16, n_resolutions=3)
    shake(net)
    x, t, codes = draws(4, n_side**2, 12), torch.linspace(0, 1, 4), torch.tensor([[0], [1], [2], [-1]])
    v = net(x, t, Context(codes))
    assert v.shape == x.shape
    assert net.activations(x, t).shape == (4, 6, 16)
    torch.testing.assert_close(net(x[1:2], t[1:2], Context(codes[1:2])), v[1:2], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(net(x, t, Context(torch.roll(codes, 1, 0))), v)
    assert not torch.allclose(net(x, t.flip(0), Context(codes)), v)


def test_the_u_net_sees_patches_where_they_are_in_the_image():
    """What changes at a place of the image changes the prediction there most."""
    patches, net = Patches((16, 16, 1), 2), UNet(64, 4, (), width=16, n_resolutions=2)
    shake(net)
    nothing = Context(torch.empty(1, 0, dtype=torch.int64))

    def predict(image: Tensor) -> Tensor:
        with torch.no_grad():
            return patches.from_tokens(net(patches.to_tokens(image), torch.tensor([0.5]), nothing))[0, :, :, 0]

    empty = torch.zeros(1, 16, 16, 1)
    for row, column in ((3, 3), (11, 3), (5, 13)):
        spot = empty.clone()
        spot[:, row - 1 : row + 1, column - 1 : column + 1] = 3
        most = divmod(int((predict(spot) - predict(empty)).abs().argmax()), 16)
        assert abs(most[0] - row) < 5
        assert abs(most[1] - column) < 5


@pytest.mark.parametrize("width", [12, 30])
def test_the_width_of_a_u_net_is_checked(width):
    with pytest.raises(ValueError, match=f"denoiser_width={width} must be a multiple of 8"):
        UNet(16, 4, width=width)


@pytest.fixture(params=["transformer", "u-net"])
def joint(request) -> JointDenoiser:
    """Of five labels, which the denoiser is told; dropout is off."""
    net = DiT(4, 3, (5,), 16, 2, 2) if request.param == "transformer" else UNet(4, 3, (5,), 16, 1)
    denoiser = JointDenoiser(net, (4, 3), n_labels=5, process=LinearFlow()).eval()
    shake(denoiser)
    return denoiser


def test_logits_do_not_depend_on_the_label_that_is_told(joint):
    x, t, told = draws(6, 4, 3), torch.linspace(0, 1, 6), Context(torch.full((6, 1), 2))
    before, velocity = joint.logits(x, t), joint(x, t, told)
    assert before.shape == (6, 5)
    with torch.no_grad():
        joint.trunk.conditions.tables[0][:-1] += 1.0  # all labels; the last row is for none
    assert torch.equal(joint.logits(x, t), before)
    assert not torch.allclose(joint(x, t, told), velocity)
    with torch.no_grad():
        joint.trunk.conditions.tables[0][-1] += 1.0
    assert not torch.allclose(joint.logits(x, t), before)


def test_the_classifier_sees_what_the_noise_has_left(joint):
    """A coordinate of the clean cell as it is, of noise nothing, of both the share that is not noise."""
    with torch.no_grad():
        for layer in (joint.perceptron[-1], joint.head[-1], joint.linear):
            layer.weight.zero_()
        joint.linear.weight[0, 0] = joint.linear.weight[1, 1] = 1.0
        joint.variance.flatten()[:2] = torch.tensor([100.0, 0.01])  # a large coordinate, and a small one
    x, t = torch.ones(3, 4, 3), torch.tensor([0.0, 0.5, 1.0])
    seen = (joint.logits(x, t) - joint.logits(0 * x, t))[:, :2]
    expected = torch.tensor([[0.0, 0.0], [50 / 25.25, 0.005 / 0.2525], [1.0, 1.0]])  # at t = 1/2, x_t / a_t would be 2
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def test_coordinates_that_vary_together_have_the_variance_of_their_direction(joint):
    alone, together = 0.5 * draws(4_000, 6, seed=1), draws(4_000, 1, seed=2).expand(-1, 5)
    constant = torch.zeros(4_000, 1)
    joint._fit_variance(torch.cat([alone, together, constant], dim=1).view(-1, 4, 3))
    variance = joint.variance.flatten()
    torch.testing.assert_close(variance[:6], torch.full((6,), 0.25), rtol=0.1, atol=0)
    torch.testing.assert_close(variance[6:11], torch.full((5,), 5.0), rtol=0.1, atol=0)
    assert 0 < variance[11] < 1e-3
    joint._fit_variance(draws(30, 12, seed=3).view(-1, 4, 3))  # few cells, in which everything seems to go together
    assert joint.variance.mean() < 1.5


def test_a_few_large_images_are_looked_at_without_a_matrix_of_all_their_pixels():
    z = draws(6, 20, seed=4) @ draws(20, 20, seed=5)
    joint = JointDenoiser(DiT(5, 4, (), width=16, n_blocks=1), (5, 4), n_labels=2, process=LinearFlow())
    joint._fit_variance(z.view(-1, 5, 4))
    variance = z.square().mean(dim=0)
    expected = (z.T @ z / 6).square().sum(dim=1) / variance - variance.sum() / 6
    torch.testing.assert_close(joint.variance.flatten(), expected.maximum(variance), rtol=1e-4, atol=1e-4)


def test_the_mean_of_a_label_moves_the_label_alone(joint):
    """A denoiser that is conditioned on a label works around its mean: where x is, and where it goes."""
    x, t, label = draws(6, 4, 3), torch.full((6,), 0.5), Context(torch.full((6, 1), 1))
    logits, free, told = joint.logits(x, t), joint(x, t, label.without()), joint(x, t, label)
    m = draws(4, 3, seed=9)
    joint.mean.model.weights = torch.zeros(1, 4, 3, dtype=torch.float64)  # as of one combination that was seen
    joint.mean.model.seen = torch.ones(1, 1, dtype=torch.int64)
    joint.mean.model.variances = torch.zeros(1, dtype=torch.float64)
    joint.mean.model.constant.copy_(m)
    torch.testing.assert_close(joint.logits(x, t), logits)
    torch.testing.assert_close(joint(x, t, label.without()), free)
    torch.testing.assert_close(joint(x + 0.5 * m, t, label), told + m, rtol=1e-4, atol=1e-4)


def covariances(gaussian: GaussianVelocity, labels: list[int]) -> Tensor:
    """Covariance (n_labels, dim, dim) of what noise becomes: the flow is linear, a basis tells its matrix."""
    dim = 6
    basis = torch.eye(dim).repeat(len(labels), 1).view(-1, 2, dim // 2)
    codes = torch.tensor(labels).repeat_interleave(dim)[:, None]
    moved = solve(lambda x, t: gaussian(x, t, Context(codes)), basis, 0.0, 1.0, "heun", 400).view(len(labels), dim, dim)
    return moved.mT @ moved


@pytest.mark.parametrize("process", [LinearFlow(), VariancePreserving()], ids=["linear", "variance preserving"])
def test_gaussian_cells_have_the_covariance_of_their_label(process):
    """A label without cells has that which all labels share, and the null condition that of all cells."""
    mixed = draws(3, 6, 6, seed=1) / 2
    labels = torch.tensor([0] * 9000 + [1] * 6000 + [-1] * 5000)
    z = torch.einsum("nij,nj->ni", mixed[labels], draws(20_000, 6, seed=2)) + 2 * F.one_hot(labels + 1, 6)
    z = z - z.mean(dim=0)
    means = torch.stack([*(z[labels == k].mean(dim=0) for k in range(2)), torch.zeros(6)])
    gaussian = GaussianVelocity((3,), (2, 3), process)
    for noise_level in (0.0, 0.5):
        tokens, around = z.view(-1, 2, 3), means[labels].view(-1, 2, 3)
        gaussian.fit(tokens, Context(labels[:, None]), around, torch.zeros_like(tokens), noise_level)
        own = [z[labels == k].T.cov(correction=0) for k in (0, 1)]
        expected = torch.stack([own[1], own[0], (9 * own[0] + 6 * own[1]) / 15, z.T.cov(correction=0)])
        expected = expected + noise_level * torch.eye(6)
        torch.testing.assert_close(covariances(gaussian, [1, 0, 2, -1]), expected, rtol=0.02, atol=0.02)


def test_covariances_of_few_cells_are_shrunk_as_much_as_they_are_alike():
    """To what all share where groups differ by chance alone, and hardly where they differ."""
    n, d = 30, 6
    z, prior = draws(40, n, d, seed=1).double(), torch.eye(d).double()
    sizes = torch.full((40,), float(n))
    alike = shrink_covariances(z.mT @ z, sizes, prior)
    assert (alike - prior).square().mean() < 0.1 * (z.mT @ z / n - prior).square().mean()
    scales = torch.exp(1.5 * draws(40, 1, d, seed=2)).double()
    z = scales * z
    other = shrink_covariances(z.mT @ z, sizes, prior)
    relative = (other.diagonal(dim1=1, dim2=2) / scales[:, 0].square()).log().abs().median()
    assert relative < 0.5


def test_of_many_coordinates_the_covariances_are_those_of_principal_components():
    """And one variance of the others: of four components and of all six coordinates the same cells come out."""
    mixed, weak = draws(2, 6, 4, seed=1), 0.3 * draws(2000, 6, seed=3)
    labels = torch.tensor([0] * 1000 + [1] * 1000)
    axes = torch.linalg.qr(draws(6, 6, seed=4))[0]
    strong = torch.einsum("nij,nj->ni", mixed[:, :4][labels], draws(2000, 4, seed=2)) @ axes[:4]
    z = (strong + weak).view(-1, 2, 3)
    few, all_of_them = (GaussianVelocity((2,), (2, 3), VariancePreserving(), rank) for rank in (4, 6))
    for gaussian in (few, all_of_them):
        gaussian.fit(z, Context(labels[:, None]), torch.zeros_like(z), torch.zeros_like(z))
    same = [covariances(gaussian, [0, 1, -1]) for gaussian in (few, all_of_them)]
    torch.testing.assert_close(*same, rtol=0.02, atol=0.05)
    # fewer cells than components: nothing is known of the others but that they hardly vary
    few.fit(z[:3], Context(labels[:3, None]), torch.zeros(3, 2, 3), torch.zeros(3, 2, 3))
    assert torch.linalg.eigvalsh(covariances(few, [0])[0])[:3].max() < 0.01


def test_covariances_of_many_pixels_or_labels_stay_small():
    for n_labels, dim in ((2, 48 * 48 * 3), (300, 256)):
        labels = torch.arange(300) % n_labels
        gaussian = GaussianVelocity((n_labels,), (1, dim), LinearFlow())
        zero = torch.zeros(300, 1, dim)
        gaussian.fit(draws(300, 1, dim), Context(labels[:, None]), zero, zero)
        assert max(buffer.nbytes for buffer in gaussian.buffers()) <= 2**26
        x, codes = draws(2, 1, dim), torch.tensor([[-1], [1]])
        assert gaussian(x, torch.tensor([0.2, 0.8]), Context(codes)).isfinite().all()


def residual(z: Tensor, labels: Tensor) -> ResidualDenoiser:
    """A denoiser that has learned nothing yet."""
    denoiser = ResidualDenoiser(DiT(2, 3, (2,), 16, 1, 2), (2, 3), LinearFlow())
    denoiser.fit(z - z.mean(dim=0), labels[:, None])
    return denoiser


def test_a_denoiser_that_has_learned_nothing_yet_generates_gaussian_cells():
    z, labels = draws(500, 2, 3, seed=3), torch.tensor([0, 1]).repeat(250)
    z[labels == 1, 0] *= 3
    z[labels == 0] += 1
    denoiser, context, noise = residual(z, labels), Context(labels[:, None]), draws(500, 2, 3, seed=4)
    with torch.no_grad():
        cells = solve(lambda x, t: denoiser(x, t, context), noise, 0.0, 1.0, "heun", 30)
        same = solve(lambda x, t: denoiser.without_network(x, t, context), noise, 0.0, 1.0, "heun", 30)
    torch.testing.assert_close(cells, same)
    for k in (0, 1):
        made, real = cells[labels == k], (z - z.mean(dim=0))[labels == k]
        torch.testing.assert_close(made.mean(dim=0), real.mean(dim=0), rtol=0, atol=0.5)
        torch.testing.assert_close(made.std(dim=0), real.std(dim=0), rtol=0.25, atol=0)


def test_guidance_holds_what_varies_more_under_a_label_than_in_all_cells():
    """Pushed harder, cells vary less: also where their label is the wider one, and nothing would hold them."""
    z, labels = draws(500, 2, 3, seed=3), torch.tensor([0] * 400 + [1] * 100)
    z[labels == 1, 0] *= 4
    z[labels == 1, 1] /= 4
    denoiser, context = residual(z, labels), Context(torch.ones(300, 1, dtype=torch.int64))
    spread = {}
    for weight in (1.0, 2.0, 8.0):
        field = classifier_free(denoiser, context, weight)
        with torch.no_grad():
            spread[weight] = solve(field, draws(300, 2, 3, seed=4), 0.0, 1.0, "heun", 30).std(dim=0)
    torch.testing.assert_close(spread[1.0], z[labels == 1].std(dim=0), rtol=0.25, atol=0)
    assert (spread[8.0] < 1.01 * spread[2.0]).all()
    assert (spread[2.0] < 1.01 * spread[1.0]).all()
    torch.testing.assert_close(spread[8.0][0], spread[1.0][0], rtol=0.1, atol=0)  # wide ones stay, narrow ones narrow
    assert (spread[8.0][1] < 0.8 * spread[1.0][1]).all()


def test_without_a_baseline_it_is_the_network_alone():
    trunk = DiT(2, 3, (2,), 16, 1, 2)
    shake(trunk)
    denoiser = ResidualDenoiser(trunk, (2, 3), LinearFlow(), "none")
    denoiser.fit(draws(10, 2, 3), torch.arange(10)[:, None] % 2)
    x, t, context = draws(6, 2, 3), torch.rand(6), Context(torch.ones(6, 1, dtype=torch.int64))
    assert denoiser(x, t, context).equal(trunk(x, t, context))
    assert not denoiser.without_network(x, t, context).any()


def test_logits_depend_on_the_cell_and_on_the_time(joint):
    x, t = draws(6, 4, 3), torch.full((6,), 0.5)
    logits = joint.logits(x, t)
    assert not torch.allclose(joint.logits(x, t / 2), logits)
    torch.testing.assert_close(joint.logits(x[2:3], t[2:3]), logits[2:3])
    assert logits.std(dim=0).min() > 0
    assert joint.activations(x, t).shape == (6, 2, 16)


def test_logits_have_a_gradient_to_every_token(joint):
    x = draws(6, 4, 3).requires_grad_()
    joint.logits(x, torch.full((6,), 0.5))[:, 1].sum().backward()
    assert x.grad.abs().amax(dim=(0, 2)).min() > 0


# ---- what the stages minimise


def test_the_reconstruction_loss_is_the_error_of_standardised_features():
    autoencoder = VectorAutoencoder(6, 2, 2, n_batches=2)
    shake(autoencoder)
    autoencoder.scale.mean.copy_(draws(2, 6))
    autoencoder.scale.sd.copy_(torch.tensor([3.0]))
    x, batch = draws(5, 6), torch.tensor([0, 1, 1, 0, 1])
    decoded = autoencoder.decode(autoencoder.encode(x, batch), batch)
    expected = ((decoded - x) / autoencoder.scale.sd).square().mean(dim=1)

    minibatch = FeatureBatch(x, torch.empty(5, 0), batch)
    plan = ReconstructionPlan(autoencoder, token_noise=0.5)
    torch.testing.assert_close(plan.validation_losses(minibatch, generator()), expected)
    assert not torch.allclose(plan.losses(minibatch, generator()), expected)  # the decoder learns to bear noise
    torch.testing.assert_close(
        ReconstructionPlan(autoencoder, token_noise=0.0).losses(minibatch, generator()), expected
    )


def test_the_denoising_loss_is_lowest_at_the_best_denoiser():
    """For standard normal data that is the network at its start, with the variance that is left."""
    denoising = DenoisingAutoencoder((8,), 0.2, 4, width=16, n_blocks=1, n_heads=2)
    plan, x0 = DenoisingPlan(denoising), draws(4_000, 2, 4, seed=1)
    with torch.no_grad():
        denoising.log_sd.fill_(0.5 * math.log(0.2))  # Var(x0 | x1) = beta
        best = plan.losses((x0,), generator()).mean()
        assert float(best) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.2), abs=0.02)
        for log_sd in (-1.5, 0.0):
            denoising.log_sd.fill_(log_sd)
            assert plan.losses((x0,), generator()).mean() > best + 0.05


def test_the_prior_of_daed_learns_the_noisy_cells(denoising):
    seen = []

    class Prior(DiT):
        def forward(self, x, t, codes):
            seen.append((x, t))
            return super().forward(x, t, codes)

    plan = PriorPlan(Prior(2, 4, (), 16, 1, 2), denoising, VariancePreserving())
    plan.losses((torch.full((8_000, 2, 4), 3.0), torch.empty(8_000, 0, dtype=torch.int64)), generator())
    x, t = seen[0]
    late = t > 0.99  # next to no noise of the process: x1 as it is, of mean 3 sqrt(0.8) and variance 0.2
    assert x[late].mean() == pytest.approx(3 * math.sqrt(0.8), abs=0.06)
    assert x[late].var() == pytest.approx(0.2, abs=0.05)


def joint_plan(tokens: Tensor, codes: list[int], told: bool = False, step: int = 0, **kwargs) -> tuple:
    """A plan as it is at a step of ten, and a minibatch of all cells."""
    denoiser = JointDenoiser(DiT(3, 4, (2,) if told else (), 16, 1, 2), (3, 4), 2, LinearFlow(), dropout=0.0)
    shake(denoiser)
    plan = JointPlan(denoiser, LinearFlow(), dropout_all=0.0, **kwargs)
    plan.trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=10)
    plan.look_at(TokenRows(tokens, torch.tensor(codes)[:, None]))
    plan.log = lambda *args, **kwargs: None
    plan.on_train_start()
    return plan, (tokens, torch.tensor(codes)[:, None])


@pytest.mark.parametrize("told", [False, True])
def test_only_labelled_cells_teach_the_classifier_also_those_of_the_validation_split(told):
    tokens, codes = draws(6, 3, 4), [-1, -1, 0, 1, -1, 1]

    def classification_loss(tokens: Tensor, codes: list[int]) -> Tensor:
        with_it, minibatch = joint_plan(tokens, codes, told, classifier_weight=1.0)
        without, _ = joint_plan(tokens, codes, told, classifier_weight=0.0)
        difference = with_it.losses(minibatch, generator()) - without.losses(minibatch, generator())
        torch.testing.assert_close(difference, difference[:1].expand(6), rtol=1e-4, atol=1e-4)
        return difference[0].detach()

    loss = classification_loss(tokens, codes)
    assert loss > 0
    other = tokens.clone()
    other[[0, 1, 4]] += 1
    torch.testing.assert_close(classification_loss(other, codes), loss)
    other = tokens.clone()
    other[3] += 1
    assert abs(classification_loss(other, codes) - loss) > 1e-3
    assert abs(classification_loss(tokens, [-1, -1, 1, 0, -1, 0]) - loss) > 1e-3
    assert abs(classification_loss(tokens, [-1] * 6)) < 1e-5  # and nobody has to be labelled


@pytest.mark.parametrize("told", [False, True])
def test_all_cells_teach_the_denoiser_and_it_is_told_labels_only_if_asked_to(told):
    tokens, codes = draws(6, 3, 4), [-1, -1, 0, 1, -1, 1]
    plan, minibatch = joint_plan(tokens, codes, told, classifier_weight=0.0)
    relabelled = (tokens, torch.tensor([[-1], [-1], [1], [0], [-1], [0]]))
    for losses in (plan.losses, plan.validation_losses):
        one, other = losses(minibatch, generator()), losses(relabelled, generator())
        assert one.shape == (6,)
        assert torch.equal(one[[0, 1, 4]], other[[0, 1, 4]])
        assert (one[[2, 3, 5]] != other[[2, 3, 5]]).all() == told


def test_consistency_is_for_unlabelled_cells_late_in_training_and_asks_for_confidence():
    tokens, codes = draws(6, 3, 4), [-1, -1, 0, 1, -1, 1]

    def loss(codes: list[int] = codes, **kwargs) -> float:
        plan, minibatch = joint_plan(tokens, codes, **{"classifier_weight": 0.0, "step": 9, "threshold": 0.0, **kwargs})
        return float(plan.losses(minibatch, generator()).detach().mean())

    without = loss(consistency_weight=0.0)
    assert loss() > without + 0.01
    assert loss(step=0) == pytest.approx(without, rel=1e-6)
    assert loss(threshold=1.0) == pytest.approx(without, rel=1e-6)  # nobody is that sure
    assert loss([0, 1, 0, 1, 0, 1]) == pytest.approx(loss([0, 1, 0, 1, 0, 1], consistency_weight=0.0), rel=1e-6)


def test_mixing_keeps_to_labelled_cells_and_draws_from_the_generator_alone():
    plan, _ = joint_plan(draws(6, 3, 4), [-1, -1, 0, 1, -1, 1], mixup=0.5)
    shares = plan._beta(2_000, generator())
    assert 0 <= shares.min() <= shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / 8, abs=0.01)  # of Beta(0.5, 0.5)
    assert torch.equal(plan._beta(2_000, generator()), shares)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5 must be between 0 and 1"),
        ({"strong_noise": 2}, "strong_noise=2 must be between 0 and 1"),
        ({"n_labelled": 0}, "n_labelled=0 must be at least 1"),
    ],
)
def test_a_joint_plan_names_the_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        joint_plan(draws(6, 3, 4), [0, 1, -1, 0, 1, 0], **arguments)


def test_a_plan_of_reconstruction_names_the_bad_argument():
    with pytest.raises(ValueError, match=r"token_noise=-0.1 must be at least 0"):
        ReconstructionPlan(VectorAutoencoder(6, 2, 2), token_noise=-0.1)
