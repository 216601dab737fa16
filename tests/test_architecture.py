"""The architecture is as docs/developer/architecture.md says: subpackages and which way imports go; versions agree."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sclatent"

# What each subpackage may import of the others. The page and the picture say the same, which is tested below.
MAY_IMPORT = {
    "nn": set(),
    "diffusion": {"nn"},
    "data": {"nn"},
    "baseline": {"nn", "diffusion"},
    "module": {"nn", "diffusion", "baseline"},
    "train": {"nn", "diffusion", "data", "module"},
    "domain": {"nn", "data", "baseline", "module"},
    "model.base": {"nn", "diffusion", "data", "baseline", "module", "train", "domain"},
    "model": {"diffusion", "data", "baseline", "module", "train", "model.base"},
    "tl": {"data", "module", "model", "model.base"},
    "metrics": {"data"},
    "pl": {"data", "metrics"},
    "datasets": set(),
    "pp": {"data"},
}


def subpackage_of(parts: tuple[str, ...]) -> str | None:
    """Subpackage of a module by its name without the package, such as ("model", "base", "_folder")."""
    return "model.base" if parts[:2] == ("model", "base") else parts[0] if parts and parts[0] in MAY_IMPORT else None


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Names of all that a module imports, wherever in it, absolute; ``package`` is where the module lies."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*start, *module, alias.name) for alias in node.names)


def arrows(source: str, package: tuple[str, ...]) -> set[str]:
    """Other subpackages that a module imports."""
    found = {subpackage_of(name[1:]) for name in imported(source, package) if name[0] == "sclatent"}
    return found - {subpackage_of(package[1:]), None}


def sources() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Modules of all subpackages, and the package of each."""
    for file in sorted(PACKAGE.rglob("*.py")):
        package = ("sclatent", *file.parent.relative_to(PACKAGE).parts)
        if len(package) > 1:  # not the top level
            yield file, package


def reduced() -> set[tuple[str, str]]:
    """Arrows of the picture: those that are no shortcut of others."""
    arrows = {(name, other) for name, others in MAY_IMPORT.items() for other in others}
    return {(a, c) for a, c in arrows if not any((a, b) in arrows and (b, c) in arrows for b in MAY_IMPORT)}


# ---- imports


def test_every_subpackage_imports_only_what_it_may():
    wrong = [
        f"{file.relative_to(ROOT)} imports {other}"
        for file, package in sources()
        for other in arrows(file.read_text(), package) - MAY_IMPORT[subpackage_of(package[1:])]
    ]
    assert not wrong, wrong


def test_what_is_allowed_is_needed():
    used = {
        (subpackage_of(package[1:]), other)
        for file, package in sources()
        for other in arrows(file.read_text(), package)
    }
    assert used == {(name, other) for name, others in MAY_IMPORT.items() for other in others}


def test_every_folder_is_a_subpackage_and_there_are_no_circles():
    assert {subpackage_of(package[1:]) for _, package in sources()} == set(MAY_IMPORT)
    TopologicalSorter(MAY_IMPORT).prepare()


@pytest.mark.parametrize("name", ["metrics", "datasets", "pp"])
def test_what_sees_arrays_only_never_reaches_a_model(name):
    reached, new = set(), {name}
    while new:
        reached |= new
        new = set().union(*(MAY_IMPORT[other] for other in new)) - reached
    assert not reached & {"model", "model.base", "module", "train", "diffusion"}


def test_diffusion_is_handed_its_networks():
    for file in (PACKAGE / "diffusion").glob("*.py"):
        names = [".".join(name) for name in imported(file.read_text(), ("sclatent", "diffusion"))]
        assert not [name for name in names if name.startswith("torch.nn")], file
        assert "nn.Module" not in file.read_text(), file


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("sclatent.metrics", "from sclatent.model import SCLDM", {"model"}),
        ("sclatent.metrics", "from ..model.base import StagedModel", {"model.base"}),
        ("sclatent.metrics", "from .. import tl", {"tl"}),
        ("sclatent.metrics", "import sclatent.train._plans as plans", {"train"}),
        ("sclatent.diffusion", "def f():\n    from sclatent.data import NULL", {"data"}),
        ("sclatent.model.base", "from .._scldm import SCLDM", {"model"}),
        ("sclatent.model", "from .base import FeatureModel", {"model.base"}),
        ("sclatent.model", "from ._scldm import SCLDM\nimport torch.nn", set()),
    ],
)
def test_an_import_is_seen_however_it_is_written(package, source, found):
    assert arrows(source, tuple(package.split("."))) == found


# ---- what is written about them


def test_the_page_says_the_same():
    page = (ROOT / "docs" / "developer" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| ([^|]*) \|$", page, flags=re.MULTILINE)
    assert {name: set(re.findall(r"`([\w.]+)`", others)) for name, others in rows} == MAY_IMPORT


def test_the_picture_says_the_same():
    picture = ElementTree.parse(ROOT / "docs" / "_static" / "architecture.svg")
    ids = {element.attrib["id"] for element in picture.iter() if "id" in element.attrib}
    assert {id for id in ids if ":" not in id} - {"head"} == set(MAY_IMPORT)
    assert {tuple(id.split(":")) for id in ids if ":" in id} == reduced()


def test_no_version_that_is_allowed_runs_code_of_a_checkpoint():
    """torch reads weights alone safely from 2.6 on; Lightning lets it from 2.6 on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"torch>=2.6", "lightning>=2.6"} <= set(project["dependencies"])


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    for reference in citation["references"]:
        assert reference["title"]
        assert all(author["family-names"] and author["given-names"] for author in reference["authors"])
