"""Every example in the docstrings runs, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import matplotlib
import pytest

# what a user calls, then the building blocks
OF_USERS = ["model", "conditions", "metrics", "metrics.split", "datasets", "pl", "tl", "pp"]
SUBPACKAGES = [*OF_USERS, "module", "diffusion", "baseline", "nn", "train", "data"]
NOT_RUN = {
    "datasets.kang": "downloads",
    "pp.efficientnet_lite0": "needs the extra images",
}


def public(subpackage: str) -> dict[str, Any]:
    """Classes and functions of a subpackage by name; constants have no docstring."""
    module = importlib.import_module(f"sclatent.{subpackage}")
    return {f"{subpackage}.{name}": obj for name in module.__all__ if callable(obj := getattr(module, name))}


def documented(obj: Any) -> Any:
    """The function behind a class method or a property."""
    return obj.fget if isinstance(obj, property) else getattr(obj, "__func__", obj)


def methods(cls: type) -> dict[str, Any]:
    """Public methods of a class and of its bases in this package; of those that override, the one with a docstring."""
    kinds = FunctionType | classmethod | staticmethod | property
    found: dict[str, Any] = {}
    for base in filter(lambda base: base.__module__.startswith("sclatent."), cls.__mro__):
        for name, method in vars(base).items():
            overridden = name in found and documented(found[name]).__doc__
            if isinstance(method, kinds) and not name.startswith("_") and not overridden:
                found[name] = method
    return found


PUBLIC = {name: obj for subpackage in SUBPACKAGES for name, obj in public(subpackage).items()}
METHODS = {
    f"{name}.{method}": obj
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for method, obj in methods(cls).items()
}


def parse(name: str, names: dict[str, Any]) -> doctest.DocTest | None:
    """Examples of a public name, which see some names; None if there are none."""
    obj = documented(PUBLIC.get(name, METHODS.get(name)))
    found = doctest.DocTestFinder(recurse=False).find(obj, name, globs=names)
    return next((test for test in found if test.examples), None)


def run(test: doctest.DocTest) -> str:
    """Run the examples of a docstring; returns what was wrong. The names that they make are left in ``test.globs``."""
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False)
    return "".join(report)


@cache
def names_of_class(name: str) -> tuple[dict[str, Any], str]:
    """Names after the example of a class, and what was wrong with it."""
    test = parse(name, {})
    return ({}, "") if test is None else (test.globs, run(test))


def is_run(test: doctest.DocTest | None) -> bool:
    """Whether more of an example is run than what it imports."""
    ran = [] if test is None else [e.source for e in test.examples if not e.options.get(doctest.SKIP)]
    return any(not source.startswith(("import ", "from ")) for source in ran)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples save models and draw figures."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("name", [name for name in [*PUBLIC, *METHODS] if parse(name, {})])
def test_the_example_runs(name: str, request: pytest.FixtureRequest):
    """The example of a method goes on from a copy of the names that the example of its class has left."""
    if not name.startswith("diffusion."):  # solvers, whose examples show what the default number of steps gives
        request.getfixturevalue("few_steps")
    if inspect.isclass(PUBLIC.get(name)):
        _, wrong = names_of_class(name)
    else:
        names, wrong = names_of_class(name.rpartition(".")[0]) if name in METHODS else ({}, "")
        wrong = wrong or run(parse(name, dict(names)))
    assert not wrong, wrong


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_every_public_name_has_an_example(subpackage: str):
    names = list(public(subpackage))
    if subpackage in OF_USERS:
        names += [
            name for name, m in METHODS.items() if name.startswith(f"{subpackage}.") and not isinstance(m, property)
        ]
    without = [name for name in names if not is_run(parse(name, {}))]
    assert without == [name for name in names if name in NOT_RUN]


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_the_reference_lists_every_public_name_once_and_nothing_else(subpackage: str):
    page = (Path(__file__).parents[1] / "docs" / "api" / f"{subpackage}.md").read_text()
    lines = [
        line.strip().removeprefix(".. py:data:: ") for block in page.split("```")[1::2] for line in block.splitlines()
    ]
    listed = [line for line in lines if line.isidentifier()]
    assert sorted(listed) == sorted(importlib.import_module(f"sclatent.{subpackage}").__all__)


def test_the_page_of_a_model_has_a_place_for_every_method():
    template = (Path(__file__).parents[1] / "docs" / "_templates" / "autosummary" / "class.rst").read_text()
    of_models = {
        name.split(".")[2] for name, m in METHODS.items() if name.startswith("model.") and not isinstance(m, property)
    }
    assert sorted(name for name in of_models if f'"{name}"' not in template) == []
