"""Kinds of conditions, for ``condition_keys`` of ``setup_anndata``: a list of names is categories."""

from sclatent.data._kinds import Category, Number, Set

__all__ = ["Category", "Number", "Set"]
