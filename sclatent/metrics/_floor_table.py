"""What every floor is: its definition, what it takes to make it, and what it cannot know."""

from __future__ import annotations

import pandas as pd

from . import _generation, _reconstruction
from . import _perturbation_floors as _perturbation

COLUMNS = ["floor", "definition", "cost", "blind to"]
GENERATION = [
    (
        _generation.OTHERS,
        "real cells of all the other conditions, as many",
        "nothing; two conditions",
        "the condition",
    ),
    (
        _generation.CELL_MEAN,
        "the mean profile of the training cells of the condition in place of every cell",
        "one mean",
        "all that varies within a condition",
    ),
    (
        _generation.INDEPENDENT,
        "a negative binomial for every gene and condition, by the method of moments; library sizes of training cells",
        "two moments of every gene",
        "what is between genes: correlations, states within a condition",
    ),
    (
        _generation.COPULA,
        "the same negative binomials, joined by a Gaussian copula of up to 32 factors",
        "a factor analysis",
        "what is between genes beyond correlations: states within a condition",
    ),
]
PERTURBATION = [
    (_perturbation.CONTROL, "the control cells of the group: nothing changes", "nothing", "the perturbation"),
    (
        _perturbation.CELL_MEAN,
        "the perturbed cells of the other groups as they are, every group with the same weight",
        "one mean; another group",
        "the group itself: its control cells, its response",
    ),
    (
        _perturbation.MEAN_SHIFT,
        "control cells of the group, moved by the mean change of the other groups",
        "one mean; another group with control cells",
        "how this group responds otherwise than the others; all cells move alike",
    ),
    (
        _perturbation.LINEAR_SHIFT,
        "the same, with the change by ridge regression on the mean of the control cells",
        "a regression over groups; the perturbation in three other contexts, else it is the mean shift",
        "what of the response does not follow from the mean of the control cells; all cells move alike",
    ),
    (
        _perturbation.NEAREST_GROUP,
        "the perturbed cells of the context whose mean control profile is nearest (squared distance)",
        "distances of means; the perturbation in another context",
        "the group itself, beyond which context is nearest",
    ),
    (
        _perturbation.NEAREST_SHIFT,
        "control cells of the group, moved by the change of that context",
        "the same",
        "how this group responds otherwise than that one; all cells move alike",
    ),
    (
        _perturbation.CONTEXT_MEAN,
        "the perturbed cells of the other perturbations of the same context, every one with the same weight",
        "one mean; another perturbation of the context, and the perturbation in another context",
        "which perturbation it is",
    ),
]
RECONSTRUCTION = [
    (
        _reconstruction.FLOOR,
        "the mean profile of the condition as the reconstruction of every cell",
        "one mean, of the very cells that are reconstructed",
        "all that varies within a condition",
    )
]


def floors() -> pd.DataFrame:
    """Describe every floor of the evaluations.

    Returns
    -------
    pd.DataFrame
        A row for every floor, with the index ("generation", "perturbation" or "reconstruction"), its name in the tables
        (``floor``), its ``definition``, its ``cost`` (what is computed, and what cells have to be there; without these
        an evaluation does not have it) and what it is ``blind to``. Whatever a model has learned of that, and not by
        chance, is what puts it above the floor.

    Examples
    --------
    >>> from sclatent.metrics import floors
    >>> table = floors()
    >>> table.loc["generation", "floor"].tolist()
    ['other conditions', 'cell mean', 'independent genes', 'gene copula']
    >>> table.set_index("floor").loc["context mean", "blind to"]
    'which perturbation it is'
    """
    of_evaluations = {"generation": GENERATION, "perturbation": PERTURBATION, "reconstruction": RECONSTRUCTION}
    index = pd.Index([name for name, rows in of_evaluations.items() for _ in rows], name="evaluation")
    return pd.DataFrame([row for rows in of_evaluations.values() for row in rows], index, COLUMNS)
