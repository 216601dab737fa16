"""Whatever is in a model folder: loading it gives a model, or says that it is damaged before anything is built."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from anndata import AnnData
from torch import Tensor

from sclatent.conditions import Set
from sclatent.datasets import simulate
from sclatent.model import SCLDM, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

QUIET = {"max_epochs": 1, "accelerator": "cpu", "progress_bar": False}
ABSENT = object()
OTHERS = (ABSENT, None, "x", -1, 10**30, math.nan, [], {}, True)


def cells_of(model: type) -> tuple[AnnData, dict[str, Any], dict[str, Any]]:
    """Cells, how they are set up, and the arguments of a small model."""
    size = {"n_tokens": 4, "token_dim": 8, "width": 32, "denoiser_width": 32, "denoiser_blocks": 1}
    if model is SCLDM:
        adata = simulate(60, 12, cell_types=["B", "T"], n_batches=2, library_size=200, seed=1)
        return adata, {"condition_keys": ["cell_type", "condition"], "batch_key": "batch"}, {**size, "n_blocks": 1}
    adata = AnnData(np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32))
    adata.obs["label"] = np.array(["a", "b", "unknown"], dtype=object)[np.arange(60) % 3]
    return adata, {"labels_key": "label"}, size


@pytest.fixture(scope="module", params=[SCLDM, JointLDM], ids=lambda model: model.__name__)
def saved(request, tmp_path_factory) -> tuple[type, dict[str, Any], dict[str, Tensor]]:
    """A class, and the description and the tensors of a saved model of it."""
    adata, setup, size = cells_of(request.param)
    request.param.setup_anndata(adata, **setup)
    model = request.param(adata, **size)
    model.train(**QUIET)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    description = json.loads((path / "model.json").read_text())
    (file,) = path.glob("*.safetensors")
    return request.param, description, safetensors.torch.load_file(file)


def forge(path: Path, description: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    """Write a model folder whose checksums are right."""
    path.mkdir(exist_ok=True)
    described = {key: value for key, value in description.items() if key != "sha256"}
    if tensors is not None:
        content = safetensors.torch.save(tensors)
        digest = hashlib.sha256(content).hexdigest()
        described["tensors"] = {"file": f"tensors-{digest[:16]}.safetensors", "sha256": digest}
        (path / described["tensors"]["file"]).write_bytes(content)
    described["sha256"] = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    (path / "model.json").write_text(json.dumps(described))
    return path


def entries(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Places of all that a description holds; of a list its first entry."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in inner:
        yield from entries(entry, (*place, key))


def changed(description: dict[str, Any], place: tuple, other: Any) -> dict[str, Any]:
    """A description with something else in a place."""
    result = copy.deepcopy(description)
    *outer, last = place
    parent = result
    for key in outer:
        parent = parent[key]
    if other is ABSENT:
        del parent[last]
    else:
        parent[last] = other
    return result


def load_or_error(cls: type, path: Path) -> Any:
    """The model of a folder, or the ValueError that says why there is none; other errors are raised."""
    try:
        return cls.load(path)
    except ValueError as error:
        return error


@pytest.mark.parametrize("part", ["init_params", "setup_args", "field_registries", ""])
def test_a_description_that_is_changed_anywhere_is_refused_or_harmless(saved, tmp_path, part):
    cls, description, tensors = saved
    path = forge(tmp_path / "model", description, tensors)
    places = [place for place in entries(description) if place[0] not in ("sha256", "versions")]
    of_parts = [p for p in places if {"init_params", "setup_args", "field_registries"} & set(p[:2])]
    places = [p for p in places if (part in p[:2] if part else p not in of_parts)]
    n_refused = 0
    for i, place in enumerate(places):
        forge(path, changed(description, place, OTHERS[i % len(OTHERS)]))  # by turns, to be quick
        outcome = load_or_error(cls, path)
        if isinstance(outcome, ValueError):
            assert f"dir_path='{path}' is damaged" in str(outcome) or "had other networks" in str(outcome), place
            n_refused += 1
        elif "diffusion" in outcome.trained_stages:
            assert outcome.sample(1, progress_bar=False, n_steps=2).n_obs == 1
    assert n_refused >= len(places) / 2


@pytest.mark.parametrize(
    ("place", "other", "message"),
    [
        (
            ("init_params", "n_tokens"),
            -3,
            r"model\.json\.init_params\.n_tokens=-3 must be a whole number of at least 1",
        ),
        (("init_params", "width"), "wide", r"init_params\.width='wide' must be a whole number"),
        (
            ("init_params", "denoiser_blocks"),
            10**6,
            r"init_params\.denoiser_blocks=1000000 is more than the tensors hold",
        ),
        (("init_params", "width"), 2**40, r"init_params\.width=1099511627776 is more than the tensors hold"),
        (("init_params", "seed"), ABSENT, r"model\.json\.init_params has no 'seed'"),
        (("init_params", "depth"), 3, "depth"),
        (("registry",), ABSENT, r"model\.json has no 'registry'"),
        (
            ("registry", "setup_args", "batch_key"),
            ["batch"],
            r"setup_args\.batch_key=\['batch'\] must be a name, or null",
        ),
        (
            ("registry", "field_registries", "batch", "state_registry", "categorical_mapping"),
            ["one", "one"],
            r"categorical_mapping=\['one', 'one'\] must be a list of different levels",
        ),
        (("trained_stages",), ["autoencoder", "beyond"], "trained_stages=.* must be a list, each one of"),
        (("history",), {"loss": [[0, "low"]]}, "history=.* must be a dict, each value a list"),
        (("format",), "1", r"model\.json\.format='1' must be a whole number"),
        (("tensors", "file"), 5, r"model\.json\.tensors\.file=5 must be a string"),
    ],
)
def test_what_is_wrong_is_said(saved, tmp_path, place, other, message):
    cls, description, tensors = saved
    path = forge(tmp_path / "model", description, tensors)
    forge(path, changed(description, place, other))
    with pytest.raises(ValueError, match=rf"dir_path='{path}' is damaged .*{message}.* Restore it from a copy"):
        cls.load(path)


def test_networks_that_the_tensors_do_not_hold_are_never_built(saved, tmp_path, monkeypatch):
    """Sizes that the file could hold, but does not."""
    cls, description, tensors = saved
    path = forge(tmp_path / "model", description, tensors)
    forge(path, changed(description, ("init_params", "denoiser_width"), 4096))
    built = []
    monkeypatch.setattr(torch.nn.Linear, "__init__", spy(torch.nn.Linear.__init__, built))
    with pytest.raises(ValueError, match="had other networks than that of this version"):
        cls.load(path)
    assert built
    assert all(layer.weight.is_meta for layer in built)


def spy(method: Callable, seen: list) -> Callable:
    """A method that notes its objects."""

    def noted(self, *args, **kwargs):
        method(self, *args, **kwargs)
        seen.append(self)

    return noted


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_without_end_is_refused(saved, tmp_path, opening):
    cls, description, tensors = saved
    path = forge(tmp_path / "model", description, tensors)
    (path / "model.json").write_text(opening * 200_000)
    with pytest.raises(ValueError, match=rf"dir_path='{path}' is damaged"):
        cls.load(path)


def spoil(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    """A change of the tensors whose names end with a name."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        names = [key for key in tensors if key.endswith(name)]
        assert names
        for key in names:
            tensors[key] = change(tensors[key].clone()).contiguous()

    return spoil


def first(value: float) -> Callable[[Tensor], Tensor]:
    """A change of the first number of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil("denoiser.trunk.out.weight", first(math.nan)), "has numbers that are not finite"),
        (spoil("denoiser.trunk.out.weight", first(math.inf)), "has numbers that are not finite"),
        (spoil("standardize.sd", first(-math.inf)), "has numbers that are not finite"),
        (spoil("denoiser.trunk.out.bias", lambda t: t.long()), "is torch.int64, not torch.float32"),
        (spoil("denoiser.trunk.out.weight", lambda t: t.T), "had other networks"),
        (spoil("marginal.interactions", lambda t: torch.cat([t, t])), "had other networks"),
        (spoil("marginal.combinations", lambda t: t.flip(0)), "combinations must rise up to the number of none"),
        (spoil("mean.model.weights", lambda t: torch.cat([t, t])), "had other networks"),
        (spoil("mean.model.variances", lambda t: t[:0]), "had other networks"),
        (spoil("mean.model.seen", first(-1)), "seen must be codes of the levels"),
        (spoil("mean.model.seen", first(7)), "seen must be codes of the levels"),
        (spoil("residuals.axes", lambda t: t[:, :1]), "had other networks"),
        (spoil("residuals.axes", lambda t: torch.cat([t, t])), "had other networks"),
        (spoil("residuals.entry.interactions", first(99)), "entries must be covariances that there are"),
        (spoil("batch_codes", first(-1)), "batch_codes must be codes from 0 on"),
        (spoil("batch_codes", first(2)), "batch_codes must be codes from 0 on"),
        (spoil("batch_codes", lambda t: t.float()), "batch_codes must be codes from 0 on"),
        (spoil("batch_codes", lambda t: t[:0]), "batch_codes must be codes from 0 on"),
        (spoil("condition_codes", first(7)), "condition_codes must be codes from -1 on"),
        (spoil("condition_codes", lambda t: t[:, :1]), "condition_codes must be codes from -1 on"),
        (spoil("library_sizes", lambda t: t[:-1]), "library_sizes must be positive numbers, one for each row"),
        (spoil("library_sizes", first(0)), "library_sizes must be positive numbers"),
        (lambda tensors: tensors.pop("batch_codes"), "batch_codes"),
        (lambda tensors: tensors.pop("condition_codes"), "condition_codes"),
        (lambda tensors: tensors.pop("library_sizes"), "library_sizes"),
        (lambda tensors: tensors.pop("module.denoiser.trunk.out.weight"), "had other networks"),
        (lambda tensors: tensors.update({"module.more": torch.zeros(3)}), "had other networks"),
    ],
)
@pytest.mark.parametrize("saved", [SCLDM], indirect=True, ids=["SCLDM"])
def test_tensors_that_are_changed_are_refused(saved, tmp_path, spoil, message):
    cls, description, tensors = saved
    tensors = dict(tensors)
    spoil(tensors)
    path = forge(tmp_path / "model", description, tensors)
    with pytest.raises(ValueError, match=rf"dir_path='{path}' .*{message}"):
        cls.load(path)


def test_tensors_that_are_none_are_refused(saved, tmp_path):
    cls, description, tensors = saved
    path = forge(tmp_path / "model", description, tensors)
    (file,) = path.glob("*.safetensors")
    for content in (b"", b"no tensors", (2**62).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        forge(path, changed(description, ("tensors", "sha256"), hashlib.sha256(content).hexdigest()))
        with pytest.raises(ValueError, match=rf"dir_path='{path}' is damaged"):
            cls.load(path)


FEATURES = ("registry", "setup_args", "condition_kinds", "perturbation", "features")


@pytest.fixture(scope="module")
def with_features(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a saved model that has features of measured genes and of others."""
    genes = [f"G{i}" for i in range(5)]
    features = pd.DataFrame(np.random.default_rng(0).standard_normal((8, 3)), [*genes, "N0", "N1", "N2"])
    adata = AnnData(np.ones((60, 12), dtype=np.float32))
    adata.obs["perturbation"] = np.resize(["control", *genes], 60)
    SCLDM.setup_anndata(adata, condition_keys={"perturbation": Set("+", control="control", features=features)})
    model = SCLDM(adata, n_tokens=4, token_dim=8, width=32, n_blocks=1, denoiser_width=32, denoiser_blocks=1)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    (file,) = path.glob("*.safetensors")
    return json.loads((path / "model.json").read_text()), safetensors.torch.load_file(file)


def test_features_are_numbers_of_the_file_of_tensors_and_all_are_kept(with_features, tmp_path):
    description, tensors = with_features
    assert tensors["features.0"].shape == (8, 3)
    assert tensors["features.0"].dtype == torch.float32
    model = SCLDM.load(forge(tmp_path / "model", description, tensors))
    assert (model.conditions.encode("N2+G0") >= model.conditions.n_levels).all()
    assert "features.0" not in model.module.state_dict()
    table = SCLDM.load_registry(tmp_path / "model")["setup_args"]["condition_kinds"]["perturbation"]["features"]
    np.testing.assert_array_equal(table.values, tensors["features.0"].numpy())
    model.save(tmp_path / "again")
    assert SCLDM.load(tmp_path / "again").conditions.spaces["perturbation"].features.names == table.names


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil("features.0", first(math.nan)), r"float32 of the shape \(8, 3\), finite, or NaN in all of a row"),
        (spoil("features.0", first(math.inf)), r"float32 of the shape \(8, 3\)"),
        (spoil("features.0", lambda t: t[:-1]), r"float32 of the shape \(8, 3\)"),
        (spoil("features.0", lambda t: t.double()), r"float32 of the shape \(8, 3\)"),
        (lambda tensors: tensors.pop("features.0"), "KeyError: 'features.0'"),
    ],
)
def test_features_that_are_changed_are_refused(with_features, tmp_path, spoil, message):
    description, tensors = with_features
    tensors = dict(tensors)
    spoil(tensors)
    with pytest.raises(ValueError, match=rf"dir_path='{tmp_path}/model' is damaged .*{message}"):
        SCLDM.load(forge(tmp_path / "model", description, tensors))


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ((*FEATURES, "names", 0), "G1"),
        ((*FEATURES, "names", 0), "another"),
        ((*FEATURES, "scale"), -1.0),
        ((*FEATURES, "columns"), ["0"]),
        ((*FEATURES, "__features__"), "module.x"),
        (FEATURES, ["features"]),
    ],
)
def test_a_description_of_features_that_is_changed_is_refused(with_features, tmp_path, place, other):
    description, tensors = with_features
    with pytest.raises(ValueError, match=rf"dir_path='{tmp_path}/model' is damaged"):
        SCLDM.load(forge(tmp_path / "model", changed(description, place, other), tensors))
