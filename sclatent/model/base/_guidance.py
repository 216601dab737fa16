"""What pushes cells towards their conditions, as it was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sclatent.data import is_number, short_repr

Guidance = Literal["classifier-free", "classifier", "both"]
Weight = float | Mapping[str, Any]
TWO_WAYS = ("classifier-free", "classifier")


class MemberWeight(NamedTuple):
    """Weight of a member of the sets of a condition key, by its place among the keys."""

    key: int
    member: str
    weight: float


class GuidanceWeights(NamedTuple):
    """Weights of guidance.

    Attributes
    ----------
    kind
        What guides; None where there is nothing to be guided to.
    free
        Weight of classifier-free guidance, or one per condition key.
    classifier
        Weight of the gradient of the classifier.
    members
        Weights of members of sets in classifier-free guidance.
    """

    kind: Guidance | None
    free: float | list[float]
    classifier: float
    members: tuple[MemberWeight, ...] = ()

    @property
    def is_guided(self) -> bool:
        """Whether there is any guidance, and not plain conditional sampling."""
        free = self.free if isinstance(self.free, list) else [self.free]
        return bool(self.classifier) or any(w != 1 for w in (*free, *(m.weight for m in self.members)))


def guidance_weights(
    guidance: Guidance | None, weight: Weight, ways: Sequence[Guidance], keys: Sequence[str], model: str
) -> GuidanceWeights:
    """Return the weights that were asked for; raise unless a model has such guidance.

    Parameters
    ----------
    guidance
        What guides; None where the model has no conditions.
    weight
        One weight; a dict of one per condition key, or of a dict of one per member; or with ``"both"`` a dict of one of
        these for each.
    ways
        What the model can be guided by.
    keys
        Condition keys that the denoiser is conditioned on.
    model
        What to call the model in a message.
    """
    if guidance is None:
        return GuidanceWeights(None, *_free(weight, keys, 0.0))
    if not isinstance(guidance, str) or guidance not in ways:
        raise ValueError(
            f"guidance={short_repr(guidance)} is not one that this {model} has: use one of {list(ways)}."
            if ways
            else f"guidance={short_repr(guidance)}: this {model} was trained without conditions, so nothing guides it."
        )
    if isinstance(weight, Mapping) and (set(weight) == set(TWO_WAYS)) != (guidance == "both"):
        raise ValueError(
            f"guidance_weight={short_repr(dict(weight))} with guidance={guidance!r}: give one number, or with "
            f"guidance='both' one for each of {list(TWO_WAYS)}."
        )
    if guidance == "both" and isinstance(weight, Mapping):
        free, by_classifier = (weight[way] for way in TWO_WAYS)
    else:
        free = weight if guidance != "classifier" else 1.0
        by_classifier = weight if guidance != "classifier-free" else 0.0
    if not is_number(by_classifier):
        raise ValueError(f"guidance_weight={short_repr(weight)} must be a finite number for the classifier.")
    return GuidanceWeights(guidance, *_free(free, keys, float(by_classifier)))


def _free(
    weight: Any, keys: Sequence[str], by_classifier: float
) -> tuple[float | list[float], float, tuple[MemberWeight, ...]]:
    """Fields of :class:`GuidanceWeights` but the first."""
    of_keys = dict(weight) if isinstance(weight, Mapping) else {}
    of_members = {key: dict(of_keys.pop(key)) for key, w in list(of_keys.items()) if isinstance(w, Mapping)}
    numbers = list(of_keys.values()) if isinstance(weight, Mapping) else [weight]
    if not all(map(is_number, [*numbers, *(w for members in of_members.values() for w in members.values())])):
        raise ValueError(
            f"guidance_weight={short_repr(weight)} must be a finite number, or a dict of one per condition key; of a "
            "set also a dict of one per member."
        )
    if not isinstance(weight, Mapping):
        return float(weight), by_classifier, ()
    for key in weight:
        if key not in keys:
            raise KeyError(f"guidance_weight: {key!r} is no condition of this model, which has {list(keys)}.")
    members = (MemberWeight(keys.index(k), m, float(w)) for k, ws in of_members.items() for m, w in ws.items())
    return [float(of_keys.get(key, 1.0)) for key in keys], by_classifier, tuple(members)
