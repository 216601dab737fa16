"""The batches of a model: those of measured cells, and those that generated cells are decoded under."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sclatent.data import Conditions, TrainingBatches, check_categorical, short_repr
from sclatent.data._kinds import Number
from sclatent.data._warnings import warn_user
from sclatent.nn import NULL


class Batches:
    """The levels of ``batch_key``, what training cells say of them, and what to decode a cell under.

    Parameters
    ----------
    key
        The column of obs; None for one batch of all cells.
    levels
        Its levels.
    conditions
        Conditions of the model, one of which may be the batch.
    """

    def __init__(self, key: str | None, levels: list[Any], conditions: Conditions) -> None:
        self.key, self.conditions = key, conditions
        self.names = Conditions({"batch": levels}, "batch")
        self.training: TrainingBatches | None = None  # of the training cells

    @property
    def levels(self) -> list[Any]:
        """The levels, in the order of their codes."""
        return self.names.levels["batch"]

    @property
    def is_condition(self) -> bool:
        """Whether the batch is one of the conditions, too."""
        return self.key in self.conditions.keys

    def learn_from(self, codes: np.ndarray, batch: np.ndarray) -> None:
        """Remember condition codes (cells, n_keys) and batch codes (cells,) of the training cells."""
        self.training = TrainingBatches(codes, batch, self.conditions.n_levels, len(self.levels))

    def of(self, obs: pd.DataFrame) -> np.ndarray:
        """Codes of measured cells, (cells,)."""
        if self.key is None:
            return np.zeros(len(obs), dtype=np.int64)
        if self.key not in obs:
            raise KeyError(f"adata.obs has no column {self.key!r}, the batch_key of this model.")
        check_categorical(obs, self.key, "batch_key")
        return self.names.codes_of("batch", obs[self.key], f"adata.obs[{self.key!r}]")

    def given_or_drawn(self, batch: Any, codes: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        """Batches to decode cells under, given or drawn by uniform numbers (cells, 2), and what uns says of them."""
        if batch is None:
            assert self.training is not None  # of a trained model
            batches, rules = self.training.draw(codes, uniforms)
            batches = self.asked(codes, batches)
        elif self.is_condition:
            raise ValueError(
                f"batch={short_repr(batch)}: {self.key!r} is a condition of this model: ask for it as such."
            )
        elif self.key is None:
            raise ValueError(
                f"batch={short_repr(batch)}: this model was trained without batches. Set up the data with batch_key to "
                "have them."
            )
        else:
            batches, rules = self.names.encode({"batch": batch}, len(uniforms))[:, 0], ["given"]
        return batches, {} if self.key is None else {"batch": ", ".join(rules)}

    def asked(self, codes: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Batches to decode under, (cells,): these, unless the batch is a condition that is asked for."""
        if self.key is None or not self.is_condition:
            return batches
        asked = codes[:, self.conditions.keys.index(self.key)]
        of_level = np.array([self.levels.index(level) for level in self.conditions.levels[self.key]])
        return np.where(asked == NULL, batches, of_level[asked])

    def warn_of_levels(self, codes: np.ndarray | None = None, batches: np.ndarray | None = None) -> None:
        """Say which levels no training cell has, of all or of those that are asked for, by codes (cells, n_keys)."""
        assert self.training is not None
        seen, asked, levels = self.training.codes, codes, dict(self.conditions.levels)
        if self.key is not None and not self.is_condition:
            levels[self.key] = self.levels
            seen = np.column_stack([seen, self.training.batch])
            asked = None if codes is None or batches is None else np.column_stack([codes, batches])
        for k, (key, names) in enumerate(levels.items()):
            space = self.conditions.spaces.get(key)
            if space is not None and isinstance(space.kind, Number):
                continue  # what is learned of a number, its neighbours tell
            every = np.arange(len(names)) if space is None else space.distinct
            empty = np.setdiff1d(every if asked is None else asked[:, k], np.append(seen[:, k], NULL))
            if len(empty):
                warn_user(
                    f"No training cell has a level of {key!r} that is one of {short_repr([names[i] for i in empty])}: "
                    "nothing is learned of it, and cells that are made under it say nothing. Its cells were removed "
                    "after setup_anndata, or are all among those that the loss is watched on: set the data up again "
                    "without it, or train with train_size=1."
                )

    def warn_of_unseen(self, codes: np.ndarray, batches: np.ndarray) -> None:
        """Say it where a level was never seen, or a condition is decoded under a batch in which it was never seen."""
        assert self.training is not None
        self.warn_of_levels(codes, batches)
        cells, keys = self.training.apart(codes, batches).nonzero()
        if len(cells):
            key = self.conditions.keys[keys[0]]
            level, batch = self.conditions.levels[key][codes[cells[0], keys[0]]], self.levels[batches[cells[0]]]
            warn_user(
                f"No training cell of {key}={level!r} has {self.key}={batch!r}, under which it is decoded here "
                f"({len(np.unique(cells))} of {len(codes)} cells have such a pair). Condition and batch cannot be told "
                "apart then: what of the effect the decoder has put down to the batch is missing in these cells."
            )

    def obs_of(self, codes: np.ndarray, batches: np.ndarray, index: pd.Index) -> pd.DataFrame:
        """The obs of generated cells: the conditions they were given, and their batches."""
        obs = self.conditions.decode(codes, index)
        if self.key is not None and not self.is_condition:
            obs[self.key] = pd.Categorical.from_codes(batches, categories=self.levels)
        return obs
