r"""Distributions of counts around the mean that the decoder gives, one class each.

All take logits :math:`s_{bg}` of the decoder, and of the cells what is above zero, and know four things: the mean, the
log-likelihood, how to draw, and how to carry a measured cell from one mean to another. Log-likelihoods are summed
over the elements above zero and over one dense term, because the expensive functions (lgamma) vanish where the count
is zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sclatent.nn import CellSets


class GeneLikelihood(nn.Module, ABC):
    """Base of the likelihoods.

    Parameters
    ----------
    n_genes
        Number of genes of the model.

    Examples
    --------
    What all of them do, shown by the Poisson distribution; the mean is the library size times a softmax:

    >>> import numpy as np
    >>> import torch
    >>> from sclatent.module import Poisson
    >>> likelihood = Poisson(n_genes=4)
    >>> logits, library = torch.zeros(1, 4), torch.tensor([100.0])
    >>> likelihood.mean(logits, library).tolist()
    [[25.0, 25.0, 25.0, 25.0]]
    >>> genes, rng = np.arange(4), np.random.default_rng(0)
    >>> mean = np.full(4, 25.0)
    >>> x = likelihood.draw(mean, genes, rng)
    >>> same = likelihood.transport(x, mean, mean, genes, rng)  # to where it is
    >>> (same == x).all().item()
    True
    """

    is_count = True

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_genes = n_genes

    def mean(self, logits: Tensor, library: Tensor) -> Tensor:
        """Mean of every gene, (cells, genes): library size times the softmax of the logits over the genes given."""
        return library[:, None] * logits.softmax(dim=-1).clamp(min=1e-12)  # never 0: counterfactuals divide by it

    @abstractmethod
    def log_prob(self, logits: Tensor, library: Tensor, sets: CellSets) -> Tensor:
        """Log-likelihood of cells, (cells,), under logits (cells, n_measured) and library sizes (cells,)."""

    @abstractmethod
    def draw(self, mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw values of one cell from its mean (genes,).

        Parameters
        ----------
        mean
            Mean of every gene, (genes,).
        genes
            Which genes these are, as positions among those of the model, (genes,).
        rng
            Source of the draw.

        Returns
        -------
        np.ndarray
            Values, (genes,).
        """

    @abstractmethod
    def transport(
        self, x: np.ndarray, mean: np.ndarray, new_mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Carry the values ``x`` (genes,) of one measured cell from its mean to a new mean.

        Abduction, action, prediction (Pearl 2009, section 7.1): what the mean leaves unexplained in the cell is kept.
        If ``x`` follows the distribution at ``mean``, the result follows it at ``new_mean``; where the two means
        agree, the cell stays as it is.

        Parameters
        ----------
        x
            Measured values, (genes,).
        mean, new_mean
            Where the cell is and where it is to be, (genes,) each.
        genes
            Which genes these are, as positions among those of the model, (genes,).
        rng
            Source of what is drawn.

        Returns
        -------
        np.ndarray
            New values, (genes,).
        """

    def _carry_poisson(
        self, x: np.ndarray, ratio: np.ndarray, rate: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Carry Poisson counts of rate ``rate`` to rate ``ratio * rate``: thin them, or add what is missing."""
        thinned = rng.binomial(x.astype(np.int64), np.minimum(ratio, 1.0))
        return thinned + rng.poisson(np.maximum(ratio - 1.0, 0.0) * rate)


class Poisson(GeneLikelihood):
    """Poisson counts.

    Parameters
    ----------
    n_genes
        Number of genes of the model.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import Poisson
    >>> from sclatent.nn import CellSets
    >>> sets = CellSets(  # one cell with the counts 4, 0 and 1
    ...     panel=torch.arange(3),
    ...     cell=torch.tensor([0, 0]),
    ...     column=torch.tensor([0, 2]),
    ...     count=torch.tensor([4.0, 1.0]),
    ...     n_cells=1,
    ... )
    >>> logits, library = torch.zeros(1, 3), torch.tensor([6.0])  # a mean of 2 for each gene
    >>> log_p = torch.distributions.Poisson(2.0).log_prob(torch.tensor([4.0, 0.0, 1.0])).sum()
    >>> torch.allclose(Poisson(n_genes=3).log_prob(logits, library, sets), log_p)
    True
    """

    def log_prob(self, logits: Tensor, library: Tensor, sets: CellSets) -> Tensor:
        log_rho = sets.at(logits.log_softmax(dim=-1))
        element = sets.count * (log_rho + library.log().index_select(0, sets.cell)) - torch.lgamma(sets.count + 1)
        return (-library).index_add(0, sets.cell, element)  # the means of a cell add up to its library size

    def draw(self, mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(mean)

    def transport(
        self, x: np.ndarray, mean: np.ndarray, new_mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return self._carry_poisson(x, new_mean / mean, mean, rng)


class NegativeBinomial(GeneLikelihood):
    r"""Negative binomial counts of variance :math:`\mu + \mu^2 / \theta_g`, one inverse dispersion a gene.

    Parameters
    ----------
    n_genes
        Number of genes of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.module import NegativeBinomial
    >>> likelihood = NegativeBinomial(n_genes=1)  # an inverse dispersion of 1, as it starts
    >>> rng = np.random.default_rng(0)
    >>> x = np.array([likelihood.draw(np.array([10.0]), np.array([0]), rng).item() for _ in range(5000)])
    >>> bool(9 < x.mean() < 11), bool(90 < x.var() < 130)  # mu + mu^2 is 110
    (True, True)
    """

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self.log_theta = nn.Parameter(torch.zeros(n_genes))

    def _split_log_prob(self, log_mean: Tensor, sets: CellSets) -> tuple[Tensor, Tensor, Tensor]:
        """Return softplus(r) (cells, genes), theta (genes,) and what elements above zero add (n_elements,).

        With r = ln mu - ln theta the log-likelihood is -theta softplus(r) + x (r - softplus(r)) + lgamma terms.
        """
        log_theta = self.log_theta.index_select(0, sets.panel)
        theta = log_theta.exp()
        r = log_mean - log_theta
        softplus = F.softplus(r)
        r_above, theta_above = sets.at(r), theta.index_select(0, sets.column)
        element = (
            sets.count * F.logsigmoid(r_above)
            + torch.lgamma(sets.count + theta_above)
            - torch.lgamma(theta_above)
            - torch.lgamma(sets.count + 1)
        )
        return softplus, theta, element

    def log_prob(self, logits: Tensor, library: Tensor, sets: CellSets) -> Tensor:
        log_mean = logits.log_softmax(dim=-1) + library.log()[:, None]
        softplus, theta, element = self._split_log_prob(log_mean, sets)
        return (-(softplus @ theta)).index_add(0, sets.cell, element)

    def _theta(self, genes: np.ndarray) -> np.ndarray:
        return self.log_theta.detach().exp().cpu().numpy().astype(np.float64)[genes]

    def draw(self, mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        theta = self._theta(genes)
        return rng.poisson(rng.gamma(theta, mean / theta))

    def transport(
        self, x: np.ndarray, mean: np.ndarray, new_mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        theta = self._theta(genes)
        rate = rng.gamma(theta + x, 1 / (theta / mean + 1))  # posterior of the Poisson rate behind x
        return self._carry_poisson(x, new_mean / mean, rate, rng)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Negative binomial counts that are lost with a probability :math:`\pi_g` of the gene.

    The mean is that of all counts, the lost ones included: those that are kept have :math:`\mu / (1 - \pi_g)`, so that
    the counts of a cell add up to its library size here as well.

    Parameters
    ----------
    n_genes
        Number of genes of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from sclatent.module import ZeroInflatedNegativeBinomial
    >>> likelihood = ZeroInflatedNegativeBinomial(n_genes=2)
    >>> [name for name, _ in likelihood.named_parameters()]
    ['log_theta', 'dropout_logit']
    >>> likelihood.dropout_logit.data.fill_(0.0)  # one in two is lost
    tensor([0., 0.])
    >>> rng = np.random.default_rng(0)
    >>> x = np.stack([likelihood.draw(np.array([10.0, 1.0]), np.array([0, 1]), rng) for _ in range(5000)])
    >>> x.mean(axis=0).round().tolist()
    [10.0, 1.0]
    """

    max_lost = 5.0  # logit: of a gene without counts all would be lost, and its mean say nothing

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self.dropout_logit = nn.Parameter(torch.full((n_genes,), -3.0))

    def log_prob(self, logits: Tensor, library: Tensor, sets: CellSets) -> Tensor:
        lost = self.dropout_logit.index_select(0, sets.panel).clamp(max=self.max_lost)
        log_mean = logits.log_softmax(dim=-1) + library.log()[:, None] - F.logsigmoid(-lost)
        softplus, theta, element = self._split_log_prob(log_mean, sets)
        log_zero = torch.logaddexp(lost, -theta * softplus) - F.softplus(lost)  # ln(pi + (1 - pi) NB(0))
        log_kept = F.logsigmoid(-lost).index_select(0, sets.column)
        above = log_kept + element - sets.at(theta * softplus + log_zero)
        return log_zero.sum(dim=-1).index_add(0, sets.cell, above)

    def _lost(self, genes: np.ndarray) -> np.ndarray:
        lost = self.dropout_logit.detach().clamp(max=self.max_lost).cpu().double().sigmoid()
        return lost.numpy()[genes]

    def draw(self, mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        lost = self._lost(genes)
        kept = rng.random(len(genes)) >= lost
        return kept * super().draw(mean / (1 - lost), genes, rng)

    def transport(
        self, x: np.ndarray, mean: np.ndarray, new_mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        theta, lost = self._theta(genes), self._lost(genes)
        mean, new_mean = mean / (1 - lost), new_mean / (1 - lost)  # of counts that are not lost
        zero = (1 - lost) * np.exp(-theta * np.log1p(mean / theta))
        kept = (x > 0) | (rng.random(len(genes)) >= lost / (lost + zero))  # a count that was lost stays lost
        return kept * super().transport(x, mean, new_mean, genes, rng)


class Normal(GeneLikelihood):
    """Normal values around the logits, one standard deviation a gene: for log-normalised input.

    Parameters
    ----------
    n_genes
        Number of genes of the model.

    Examples
    --------
    >>> import torch
    >>> from sclatent.module import Normal
    >>> likelihood = Normal(n_genes=2)
    >>> likelihood.is_count, likelihood.mean(torch.tensor([[0.5, 2.0]]), torch.ones(1)).tolist()
    (False, [[0.5, 2.0]])
    """

    is_count = False

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self.log_sd = nn.Parameter(torch.zeros(n_genes))

    def mean(self, logits: Tensor, library: Tensor) -> Tensor:
        """Mean of every gene, (cells, genes): the logits themselves."""
        return logits

    def log_prob(self, logits: Tensor, library: Tensor, sets: CellSets) -> Tensor:
        log_sd = self.log_sd[sets.panel]
        standardised = (sets.dense() - logits) * torch.exp(-log_sd)
        constant = log_sd.sum() + 0.5 * math.log(2 * math.pi) * len(sets.panel)
        return -0.5 * standardised.square().sum(dim=-1) - constant

    def draw(self, mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw values of one cell; values below zero, which log-normalised data cannot have, become zero."""
        sd = self.log_sd.detach().exp().cpu().numpy()[genes]
        return np.maximum(rng.normal(mean, sd), 0.0)

    def transport(
        self, x: np.ndarray, mean: np.ndarray, new_mean: np.ndarray, genes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return np.maximum(x + (new_mean - mean), 0.0)


LIKELIHOODS: dict[str, type[GeneLikelihood]] = {
    "nb": NegativeBinomial,
    "zinb": ZeroInflatedNegativeBinomial,
    "poisson": Poisson,
    "normal": Normal,
}
