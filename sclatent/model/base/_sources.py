"""What a model says of where its predictions come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sclatent.baseline import MixedModel, source_names, source_shares, variance_shares
from sclatent.data import short_repr
from sclatent.data._levels import combination_name
from sclatent.data._warnings import warn_user
from sclatent.nn import NULL

from ._asked import AskedMixin

logger = logging.getLogger(__name__)

MOST_COMBINATIONS = 100  # that uns names, and that are looked at for a warning
MOST_ALIKE = 100  # levels that one is compared with
MOST_IN_A_LINE = 3  # combinations of a line of the log
LEAST_SHARE = 0.01  # of a source that is named
MOST_SOURCES = 4  # that repr names
OF_NO_BASELINE = "the network alone"
OF_CONSTANT = "the mean of the others"
ALL_NULL = "null conditions"


class SourcesMixin(AskedMixin):
    """Which combinations of conditions were seen, and what those that were not are predicted from."""

    def get_sources(self, conditions: Any, features: Mapping[str, pd.DataFrame] | None = None) -> pd.DataFrame:
        r"""Say what combinations of conditions are predicted from, without sampling.

        The sources are the effects of the mixed model of the mean tokens (:class:`~sclatent.baseline.MixedModel`):
        fixed and random effects of keys, and their interactions. The share of a source r in the prediction of a
        combination c is :math:`\lVert u_r(c) \rVert^2 / \sum_{r'} \lVert u_{r'}(c) \rVert^2`
        (:func:`~sclatent.baseline.source_shares`). What the network adds to these means is not among them.

        Parameters
        ----------
        conditions
            Combinations, as in :meth:`sample`: of a DataFrame, all that differ. Keys that are not given are null.
        features
            Features of levels, or members of sets, that training has not, by key, as in :meth:`sample`.

        Returns
        -------
        pd.DataFrame
            One row per combination, named as in ``uns["sclatent"]["combinations"]``: ``n_training_cells``, then the
            share of each source. They sum to 1, or are all 0 where no effect is at work, as under null conditions alone
            or at a dose of 0. With ``baseline="none"`` there are no sources.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If it has no conditions.

        Examples
        --------
        >>> conditions = {key: levels[0] for key, levels in model.conditions.levels.items()}
        >>> sources = model.get_sources(conditions)
        >>> bool(sources["n_training_cells"].iloc[0] > 0)
        True
        """
        self._check_stage("diffusion", "get_sources")
        if not self.conditions.keys:
            raise ValueError("This model was trained without conditions, so there is nothing that predictions are of.")
        self._add_features(features)
        codes = self.conditions.encode(conditions)
        first = np.sort(np.unique(codes, axis=0, return_index=True)[1])  # in the order in which they are asked for
        asked = codes[first]
        n_cells = pd.Series(self._n_training_cells(asked), self._names_of(asked), name="n_training_cells")
        return pd.concat([n_cells, self._shares_of(asked)], axis=1).rename_axis("combination")

    @property
    def summary_string(self) -> str:
        """What the model is, whether it is trained, and what its mean tokens vary by."""
        summary, model = super().summary_string, self._mean_tokens
        if "diffusion" not in self.trained_stages or model is None:
            return summary
        names = source_names(model, self.conditions.keys)
        shares = pd.Series(variance_shares(model, self._values()), names)
        return f"{summary}\nSources of variation of mean tokens: {_in_words(shares, MOST_SOURCES)}"

    @property
    def _mean_tokens(self) -> MixedModel | None:
        """The mixed model of the mean tokens, if there is one and it is fitted."""
        model = self.module.denoiser.mean.model
        return model if model is not None and len(model.seen) else None

    @property
    def _model_of_means(self) -> MixedModel | None:
        """The mixed model that says how sure predictions of means are, if there is one."""
        return self._mean_tokens

    def _known_of(self, codes: np.ndarray) -> dict[str, Any]:
        """What uns says of the combinations that are asked for; the log says it, too, and a warning where it is little.

        How many training cells each has, and what those that have none are predicted from.
        """
        if not self.conditions.keys:
            return {}
        every = np.unique(codes, axis=0)
        are_means = self._are_means_of_others(every)
        self._warn_of_means_of_others(every[are_means])
        asked = every[:MOST_COMBINATIONS]
        names, n_cells = self._names_of(asked), self._n_training_cells(asked)
        predicted_from = [""] * len(asked)
        is_unseen = np.array(n_cells) == 0
        for i, (_, shares) in zip(np.flatnonzero(is_unseen), self._shares_of(asked[is_unseen]).iterrows(), strict=True):
            without = OF_NO_BASELINE if self._mean_tokens is None else OF_CONSTANT
            predicted_from[i] = _in_words(shares) or without
        said = [
            f"{name}: " + (f"predicted from {source}" if source else f"seen with {n} training cells")
            for name, n, source in zip(names, n_cells, predicted_from, strict=True)
        ]
        more = [f"and {len(every) - MOST_IN_A_LINE} more"] if len(every) > MOST_IN_A_LINE else []
        logger.info("Combinations that are asked for: %s.", "; ".join([*said[:MOST_IN_A_LINE], *more]))
        return {
            "n_combinations": len(every),
            "combinations": names,
            "n_training_cells": n_cells,
            "predicted_from": predicted_from,
            **({} if self._model_of_means is None else {"is_mean_of_others": are_means[: len(asked)].tolist()}),
        }

    def _are_means_of_others(self, codes: np.ndarray) -> np.ndarray:
        """Which combinations (n, n_keys) have a value that nobody measured, and are only the mean of the others, (n,).

        What is predicted differs from the mean of the levels that are like it by less than its standard error.
        """
        model, codes = self._model_of_means, self.conditions.without_dose(codes)
        are_means = np.zeros(len(codes), dtype=bool)
        rows = np.flatnonzero(self.conditions.are_unseen_names(codes).any(axis=1))[:MOST_COMBINATIONS]
        if model is None or not len(rows):
            return are_means
        values, n_keys, scale = self._values(), self._n_keys, float(model.outcome_scale.mean())
        predicted = model.predict(codes[rows, :n_keys], values)
        variances = model.covariance(codes[rows, :n_keys], values).diagonal() * scale
        for i, mean, variance in zip(rows, predicted, variances, strict=True):
            alike = self.conditions.levels_like(codes[i])[:, :n_keys]
            if len(alike):  # else there are no others of this kind
                some = alike[:: -(-len(alike) // MOST_ALIKE)]
                change = mean - model.predict(some, values).mean(axis=0)
                are_means[i] = np.square(change).mean() < variance
        return are_means

    def _warn_of_means_of_others(self, codes: np.ndarray) -> None:
        if not len(codes):
            return
        unseen = self.conditions.are_unseen_names(self.conditions.without_dose(codes))
        table = self.conditions.decode(codes, pd.RangeIndex(len(codes)).astype(str))
        names = sorted({str(table.iloc[i, k]) for i, k in np.argwhere(unseen)})
        method = "get_sources" if self._model_of_means is self._mean_tokens else "predict_profile"
        warn_user(
            f"What is predicted of {short_repr(names)} differs from the mean of the others by less than its standard "
            f"error: what is known of it says little. {method} says "
            f"{'what it is predicted from' if method == 'get_sources' else 'how sure it is'}."
        )

    def _names_of(self, codes: np.ndarray) -> list[str]:
        table = self.conditions.decode(codes, pd.RangeIndex(len(codes)).astype(str))
        given = [
            {key: row[key] for key, code in zip(self.conditions.keys, one, strict=True) if code != NULL}
            for one, (_, row) in zip(codes, table.iterrows(), strict=True)
        ]
        return [combination_name(of_keys) or ALL_NULL for of_keys in given]

    def _n_training_cells(self, codes: np.ndarray) -> list[int]:
        """How many training cells have the conditions of each combination (n, n_keys) that are not null."""
        assert self.batches.training is not None
        seen, n_cells = self.batches.training.codes, []
        without = self.conditions.without_dose(seen)
        for one, at_no_dose in zip(codes, self.conditions.without_dose(codes), strict=True):
            agree = ((seen == one) | (one == NULL)).all(axis=1)
            n_cells.append(int((agree | ((without == at_no_dose) | (at_no_dose == NULL)).all(axis=1)).sum()))
        return n_cells

    def _shares_of(self, codes: np.ndarray) -> pd.DataFrame:
        """Share of each source in the mean tokens of combinations (n, n_keys); no columns without a baseline."""
        model, names = self._mean_tokens, self._names_of(codes)
        if model is None:
            return pd.DataFrame(index=names)
        asked = self.conditions.without_dose(codes)[:, : self._n_keys]
        shares = source_shares(model, asked, self._values())
        shares[(asked == NULL).all(axis=1)] = 0.0  # the mean of all cells
        return pd.DataFrame(shares, names, source_names(model, self.conditions.keys))


def _in_words(shares: pd.Series, most: int | None = None) -> str:
    """Sources and their shares, the largest first, without those that round to nothing."""
    named = shares[shares >= LEAST_SHARE].sort_values(ascending=False, kind="stable")
    return ", ".join(f"{name} {share:.2f}" for name, share in named.iloc[:most].items())
