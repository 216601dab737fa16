"""Natural arguments work, and others are refused by a message that names them, whatever method takes them."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sclatent import pl, pp, tl
from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")

FEATURE_MODELS = [DAED, JointDiffusion, JointLDM]
MODELS = [SCLDM, *FEATURE_MODELS]
each_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
QUIET = {"accelerator": "cpu", "progress_bar": False}
TINY = {"denoiser_width": 8, "denoiser_blocks": 1, "n_heads": 2}
SMALL = {"n_tokens": 2, "token_dim": 4, "width": 8, "n_blocks": 1, **TINY}
KEYS = ["cell_type", "condition"]
N = 24


def counts() -> AnnData:
    return simulate(N, 12, cell_types=["B", "T"], n_batches=2, library_size=100, seed=0)


def embeddings() -> AnnData:
    adata = AnnData(np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32))
    adata.obs["type"] = np.array(["B", "T", "NK"])[np.arange(N) % 3]
    adata.obs["plate"] = np.array(["one", "two"])[np.arange(N) // 3 % 2]
    adata.obsm["image"] = np.random.default_rng(0).integers(0, 255, (N, 8, 8)).astype(np.uint8)
    return adata


def cells_for(cls: type) -> AnnData:
    return counts() if cls is SCLDM else embeddings()


@pytest.fixture(scope="module")
def trained() -> dict:
    models = {}
    for cls in MODELS:
        adata = cells_for(cls)
        if cls is SCLDM:
            cls.setup_anndata(adata, condition_keys=KEYS, batch_key="batch")
        else:
            cls.setup_anndata(adata, labels_key="type", batch_key="plate")
        models[cls] = cls(adata, **(SMALL if cls is SCLDM else TINY))
        models[cls].train(1, **QUIET)
    return models


# ---- what is natural works


@pytest.mark.parametrize(
    "keys", [KEYS, tuple(KEYS), pd.Index(KEYS), np.array(KEYS), pd.Series(KEYS)], ids=lambda keys: type(keys).__name__
)
def test_names_of_conditions_come_in_any_container_that_has_an_order(keys, tmp_path):
    SCLDM.setup_anndata(adata := counts(), condition_keys=keys)
    model = SCLDM(adata, **SMALL)
    model.save(tmp_path / "m")
    for one in (model, SCLDM.load(tmp_path / "m")):
        assert one.conditions.keys == KEYS
        assert [type(key) for key in one.conditions.keys] == [str, str]


@pytest.mark.parametrize("container", [set, frozenset])
def test_names_without_an_order_are_refused(container):
    with pytest.raises(ValueError, match=r"condition_keys=.* is of type .*: a list of names was expected, whose order"):
        SCLDM.setup_anndata(counts(), condition_keys=container(KEYS))


def test_a_row_of_obs_gives_the_conditions_of_all_cells(trained):
    model, obs = trained[SCLDM], counts().obs
    for row in (obs.iloc[0], obs[["condition"]].iloc[0]):
        cells = model.sample(3, row, progress_bar=False)
        assert set(cells.obs["condition"]) == {obs["condition"].iloc[0]}
    row = obs.iloc[0].copy()
    row["cell_type"] = np.nan  # is left open
    assert model.sample(3, row, progress_bar=False).obs["cell_type"].isna().all()
    for each, row in ((model, obs.iloc[0]), (trained[JointLDM], embeddings().obs.iloc[0])):
        with pytest.raises(ValueError, match="n_samples=None must be a whole number"):  # a row is of one cell or of all
            each.sample(conditions=row, progress_bar=False)


@pytest.mark.parametrize(
    "conditions",
    [
        counts().obs["condition"].iloc[:5], "control", ["control"], ["condition"], np.array(["control"] * 5),
        {"control"}, [{"condition": "control"}], 3, counts(),
    ],
    ids=["series", "str", "list", "key", "array", "set", "dicts", "number", "AnnData"],
)  # fmt: skip
def test_conditions_that_are_neither_dict_nor_table_are_refused(trained, conditions):
    message = "^conditions=.* must be a dict of one level per key, or a DataFrame with one row per cell"
    with pytest.raises(ValueError, match=message):
        trained[SCLDM].sample(5, conditions, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        trained[SCLDM].counterfactual(counts(), conditions, progress_bar=False)


@pytest.mark.parametrize(
    "levels", [["control"] * 5, pd.Series(["control"] * 5), np.array(["control"] * 5), {"control"}]
)
def test_several_levels_of_a_key_are_refused(trained, levels):
    message = "conditions: .*control.* is no level of 'condition', .*one level per key, or a DataFrame with one row per"
    with pytest.raises(ValueError, match=message):
        trained[SCLDM].sample(5, {"condition": levels}, progress_bar=False)


@pytest.mark.parametrize("cls", FEATURE_MODELS)
def test_labels_come_in_any_container_that_has_an_order(trained, cls):
    for labels in (
        ["B", "T"], ("B", "T"), np.array(["B", "T"]), pd.Index(["B", "T"]), pd.Series(["B", "T"]),
        pd.Categorical(["B", "T"], ["T", "B", "A"]),
    ):  # fmt: skip
        assert trained[cls].sample(conditions=labels, progress_bar=False).obs["type"].tolist() == ["B", "T"]
    assert trained[cls].sample(conditions=["B", None], progress_bar=False).obs["type"].isna().tolist() == [False, True]
    for labels in ({"type": "B"}, pd.DataFrame({"type": ["B"]}), embeddings().obs[:1]):
        assert trained[cls].sample(1, labels, progress_bar=False).obs["type"].tolist() == ["B"]
    for labels in ({"B"}, {"type": {"B"}}, {"type": ["B"]}):
        with pytest.raises(ValueError, match=r"conditions: .* is no level of 'type', .*one level per key, or a DataFr"):
            trained[cls].sample(1, labels, progress_bar=False)
    with pytest.raises(ValueError, match=r"conditions=.* has 2 dimensions"):
        trained[cls].sample(2, np.array([["B"], ["T"]]), progress_bar=False)


@pytest.mark.parametrize("genes", ["gene_1", np.str_("gene_1"), ["gene_1"], pd.Index(["gene_1"]), np.array(["gene_1"])])
def test_one_gene_may_be_given_by_its_name(trained, genes):
    table = trained[SCLDM].get_normalized_expression(gene_list=genes)
    assert list(table.columns) == ["gene_1"]
    pd.testing.assert_frame_equal(table, trained[SCLDM].get_normalized_expression()[["gene_1"]])


@pytest.mark.parametrize("genes", ["CD3D", ["gene_1", "CD3D"], [], [1], [True] * 12, 1, pd.DataFrame({"gene_1": [1]})])
def test_other_genes_are_refused(trained, genes):
    with pytest.raises(ValueError, match="gene_list"):
        trained[SCLDM].get_normalized_expression(gene_list=genes)


@pytest.mark.parametrize(
    "indices", [np.array([1, 3]), (1, 3), pd.Series([1, 3]), pd.Index([1, 3]), [-23, -21], np.arange(N) % 21 % 2 == 1]
)
@each_model
def test_rows_come_in_any_container(trained, cls, indices):
    read = trained[cls].get_latent_representation if cls is SCLDM else trained[cls].get_features
    np.testing.assert_allclose(read(indices=indices), read()[list(indices)], atol=1e-5)


@pytest.mark.parametrize("indices", [[N], "a", ["cell_1"], [0.5], True, {0, 1}, [True, False], [[0, 1], [2, 3]], 2.5])
@each_model
def test_rows_that_are_none_are_refused(trained, cls, indices):
    for method in (trained[cls].get_latent_representation, lambda indices: _moved(trained[cls], indices=indices)):
        with pytest.raises(IndexError, match=f"indices=.* must be rows of {N} cells: numbers from 0 to 23, or a mask"):
            method(indices=indices)


def _moved(model, adata: AnnData | None = None, **arguments) -> AnnData:
    where = {"conditions": {"condition": "control"} if isinstance(model, SCLDM) else "B"}
    return model.counterfactual(adata, **{**where, "progress_bar": False, **arguments})


# ---- what holds the cells


class MuData:
    """As the package mudata has it."""

    def __init__(self, **modalities: AnnData) -> None:
        self.mod = modalities
        self.obs, self.n_obs = next(iter(modalities.values())).obs, N


@each_model
def test_one_modality_is_asked_for(trained, cls):
    mdata = MuData(protein=cells_for(cls), rna=cells_for(cls))
    model = trained[cls]
    for use in (
        cls.setup_anndata, cls, model.get_latent_representation, lambda a: _moved(model, a),
        *([tl_probe(model), tl_error(model)] if cls is JointDiffusion else []),
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match=r"adata is of type MuData, .*\['protein', 'rna'\].*such as mdata\[\"rna\"\]"
        ):
            use(mdata)
    with pytest.raises(TypeError, match=r'such as mdata\["protein"\]'):
        cls.setup_anndata(MuData(protein=cells_for(cls)))


def tl_probe(model):
    return lambda adata: tl.probe(model, adata, "type")


def tl_error(model):
    return lambda adata: tl.reconstruction_error(model, adata)


@pytest.mark.parametrize("other", [np.ones((3, 6)), pd.DataFrame({"a": [1]}), "cells.h5ad", counts().obs])
@each_model
def test_what_is_no_anndata_is_refused(trained, cls, other):
    for use in (cls.setup_anndata, cls, trained[cls].get_latent_representation, lambda a: _moved(trained[cls], a)):
        with pytest.raises(TypeError, match=f"adata is of type {type(other).__name__}: an AnnData was expected"):
            use(other)


def twice(adata: AnnData, key: str) -> AnnData:
    adata.obs = pd.concat([adata.obs, adata.obs[[key]]], axis=1)
    return adata


def test_a_column_that_is_there_twice_is_refused(trained):
    message = "{}: adata.obs has 2 columns with the name '{}'.*obs.loc.:, ~adata.obs.columns.duplicated"
    for argument in ("condition_keys", "batch_key"):
        with pytest.raises(ValueError, match=message.format(argument, "condition")):
            SCLDM.setup_anndata(twice(counts(), "condition"), **{argument: "condition"})
    adata = counts()
    adata.obs["depth"] = 1.0
    with pytest.raises(ValueError, match=message.format("size_factor_key", "depth")):
        SCLDM.setup_anndata(twice(adata, "depth"), size_factor_key="depth")
    for cls in FEATURE_MODELS:
        for argument in ("condition_keys", "labels_key", "batch_key"):
            with pytest.raises(ValueError, match=message.format(argument, "type")):
                cls.setup_anndata(twice(embeddings(), "type"), **{argument: "type"})
    with pytest.raises(ValueError, match=r"adata.obs has 2 columns with the name 'condition'"):
        _moved(trained[SCLDM], twice(counts(), "condition"))
    with pytest.raises(ValueError, match="conditions has 2 columns with the name 'condition'"):
        trained[SCLDM].sample(conditions=twice(counts(), "condition").obs, progress_bar=False)


@each_model
def test_columns_that_are_named_by_numbers_are_refused_as_keys_and_left_alone_otherwise(trained, cls):
    adata = cells_for(cls)
    adata.obs[0] = np.array(["a", "b"])[np.arange(N) % 2]
    for argument in ("condition_keys", "batch_key", "size_factor_key" if cls is SCLDM else "labels_key"):
        with pytest.raises(ValueError, match=rf"{argument}: 0 must be a string, .*columns.astype\(str\)"):
            cls.setup_anndata(adata, **{argument: 0})
    if cls is SCLDM:
        with pytest.raises(ValueError, match="condition_keys: 0 must be a string"):
            cls.setup_anndata(adata, condition_keys=["condition", 0])
    assert _moved(trained[cls], adata).obs[0].tolist() == adata.obs[0].tolist()


def test_counts_in_raw_are_pointed_to():
    adata = counts()
    adata.raw = adata.copy()
    here = r"adata.raw, which is not looked at, holds counts: adata = adata.raw.to_adata\(\)"
    for change in (np.log1p, lambda x: x - 1.0):  # normalised, scaled
        adata.X = change(adata.raw.X.toarray())
        with pytest.raises(ValueError, match=f"adata.X has .*raw counts were expected.*{here}"):
            SCLDM.setup_anndata(adata)
    adata.X = None
    with pytest.raises(ValueError, match=f"adata.X is empty.*{here}"):
        SCLDM.setup_anndata(adata)
    adata = adata.raw.to_adata()
    SCLDM.setup_anndata(adata, condition_keys=KEYS)
    adata.X = np.log1p(adata.X.toarray())
    adata.raw = adata.copy()  # no counts there either
    with pytest.raises(ValueError, match=r"adata.X has .*raw counts were expected") as refusal:
        SCLDM.setup_anndata(adata)
    assert "adata.raw" not in str(refusal.value)


@pytest.mark.parametrize("cls", [DAED, JointDiffusion])
def test_masks_are_images(cls):
    adata = embeddings()
    adata.obsm["mask"] = adata.obsm["image"] > 100
    cls.setup_anndata(adata, obsm_key="mask", labels_key="type")
    model = cls(adata, denoiser_width=8, denoiser_blocks=1)
    model.train(1, **QUIET)
    made = [model.sample(3, "B", progress_bar=False), model.counterfactual(conditions="B", progress_bar=False)]
    for cells in [*made, model.denoise(progress_bar=False)]:
        assert cells.obsm["mask"].dtype == bool
        assert cells.obsm["mask"].shape[1:] == (8, 8)
    assert set(np.unique(made[1].obsm["difference"])) <= {-1.0, 0.0, 1.0}


# ---- every argument is named

WRONG = {
    "None": None, "word": "x", "list": ["x", 2], "2.5": 2.5, "-1": -1, "nan": float("nan"), "inf": float("inf"),
    "True": True, "0": 0, "array": np.array([1.0, 2.0]), "Series": pd.Series([1, 2]), "dict": {"a": 1}, "set": {1},
    "float32": np.float32(-1), "object": object(), "table": pd.DataFrame({"a": [1]}),
}  # fmt: skip
FINE = {  # values of these that an argument may have
    "conditions": ["None"], "labels": ["None"], "batch": ["None"], "n_steps": ["None"], "seed": ["0"],
    "guidance": ["None"], "guidance_weight": ["2.5", "-1", "0", "float32"], "noise_level": ["None", "0"],
    "inversion": ["True"],
    "library_size": ["None", "2.5"], "layer": ["None"], "obsm_key": ["None"], "condition_keys": ["None"],
    "labels_key": ["None"], "batch_key": ["None"], "size_factor_key": ["None"], "image_shape": ["None"],
    "is_count_data": ["True"],
    "kl_weight": ["0", "2.5"], "others": ["None"], "key_added": ["word"], "name": ["word"],
    "weights": ["2.5", "-1", "0", "float32", "array", "Series"], "noise_levels": ["None", "0"],
}  # fmt: skip
DEFAULT = {  # arguments with a default that None stands for
    JointLDM: ["n_tokens", "token_dim", "width"],
    DAED: ["patch", "width", "n_blocks", "denoiser_width", "denoiser_blocks"],
    JointDiffusion: ["patch", "denoiser_width", "denoiser_blocks"],
}


def said(method, **arguments) -> str:
    """What a method says of wrong arguments; nothing if it takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            method(**arguments)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            return str(error)
    return ""


def refused(method, arguments: list[str], fine: dict[str, list[str]] = FINE) -> None:
    for argument in arguments:
        for name, value in WRONG.items():
            if name not in fine.get(argument, []):
                assert argument in said(method, **{argument: value}), f"{argument} of {name}"


@each_model
def test_sample_and_counterfactual_name_what_is_wrong(trained, cls):
    model = trained[cls]
    shared = ["guidance_weight", "guidance", "solver", "n_steps", "batch_size", "seed"]
    fine = {**FINE, "guidance_weight": ["None", *FINE["guidance_weight"]]}
    refused(
        lambda **k: model.sample(**{"n_samples": 3, "progress_bar": False, **k}),
        ["n_samples", "conditions", "batch", "library_size", "baseline_only", *shared],
        {**fine, "library_size": FINE["library_size"] if cls is SCLDM else ["None"], "baseline_only": ["True"]},
    )
    refused(
        lambda **k: _moved(model, **{"indices": [0], **k}), ["conditions", "noise_level", "inversion", *shared],
        {**fine, "conditions": []},
    )  # fmt: skip


@each_model
def test_methods_of_measured_cells_name_what_is_wrong(trained, cls):
    model = trained[cls]
    refused(model.get_latent_representation, ["batch_size"])
    refused(model.get_activations, ["noise_level", "batch_size", "seed"], {**FINE, "noise_level": ["0"]})
    if cls is SCLDM:
        refused(model.get_normalized_expression, ["batch_size", "library_size"], {"library_size": ["2.5"]})
        refused(model.get_reconstruction_error, ["batch_size"])
        refused(model.posterior_predictive_sample, ["batch_size", "seed"])
        return
    refused(model.predict, ["batch_size", *(["n_draws", "seed"] if cls is DAED else [])])
    if cls is DAED:
        refused(model.denoise, ["batch_size"])
        refused(lambda **k: model.get_elbo(**{"n_draws": 1, "n_steps": 2, **k}), ["n_draws", "batch_size", "seed"])
        refused(lambda **k: model.get_elbo(**{"n_draws": 1, **k}), ["n_steps"], {})
    if cls is JointDiffusion:
        refused(model.denoise, ["noise_level", "batch_size"], {**FINE, "noise_level": ["0"]})


@each_model
def test_models_name_what_is_wrong(trained, cls):
    adata = trained[cls].adata
    sizes = {
        SCLDM: ["n_tokens", "token_dim", "width", "n_blocks", "denoiser_width", "denoiser_blocks", "gene_likelihood"],
        JointLDM: [*DEFAULT[JointLDM], "denoiser_width", "denoiser_blocks"],
    }.get(cls, DEFAULT.get(cls))
    more = {SCLDM: ["kl_weight"], DAED: ["noise_level"]}.get(cls, [])
    fine = {**FINE, **{key: ["None"] for key in DEFAULT.get(cls, [])}, "noise_level": []}
    refused(
        lambda **k: cls(adata, **{**(SMALL if cls is SCLDM else TINY), **k}), [*sizes, "n_heads", "seed", *more], fine
    )
    for name in ("token_dim", "width", "denoiser_width") if cls is SCLDM else ("denoiser_width",):
        with pytest.raises(ValueError, match=f"{name if cls is SCLDM else 'width'}=10 must be a multiple of n_heads=4"):
            cls(adata, **{**(SMALL if cls is SCLDM else TINY), "n_heads": 4, name: 10})


@pytest.mark.parametrize("cls", [SCLDM, JointLDM])
def test_setting_up_names_what_is_wrong(cls):
    keys = ["layer", "condition_keys", "batch_key", "size_factor_key", "is_count_data"]
    refused(
        lambda **k: cls.setup_anndata(cells_for(cls), **k),
        keys if cls is SCLDM else ["layer", "obsm_key", "condition_keys", "labels_key", "batch_key"],
    )
    if cls is JointLDM:
        refused(lambda **k: cls.setup_anndata(embeddings(), obsm_key="image", **k), ["image_shape"])


def test_analyses_name_what_is_wrong(trained):
    model, adata = trained[JointDiffusion], embeddings()
    refused(
        lambda **k: tl.probe(**{"model": model, "adata": adata, "label_key": "type", "noise_levels": [0.1], **k}),
        ["model", "adata", "label_key", "noise_levels", "n_cells", "seed", "key_added"],
        {**FINE, "noise_levels": ["0"]},
    )
    refused(
        lambda **k: tl.guidance(**{"model": model, "weights": [1], "n": 2, "progress_bar": False, **k}),
        ["model", "labels", "weights", "n", "seed"],
    )
    refused(
        lambda **k: tl.reconstruction_error(**{"model": model, "adata": adata, "noise_levels": [0.1], **k}),
        ["model", "adata", "others", "noise_levels", "n_cells", "name", "seed", "key_added"],
        {**FINE, "noise_levels": ["None"]},
    )
    refused(
        lambda **k: tl.denoising(**{"models": {"one": model}, "adatas": {"cells": adata}, **k}),
        ["models", "adatas", "noise_level", "n_cells", "seed", "key_added"], {**FINE, "noise_level": []},
    )  # fmt: skip


def test_columns_that_guidance_writes_are_not_written_over():
    adata = embeddings()
    adata.obs["noise"] = adata.obs.pop("type")
    JointDiffusion.setup_anndata(adata, labels_key="noise")
    model = JointDiffusion(adata, **TINY)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match="model was set up with the column 'noise', which is written here"):
        tl.guidance(model, progress_bar=False)


@each_model
def test_rows_of_another_order_are_refused(trained, cls):
    """A table goes by position, whereas pandas would go by names."""
    adata = cells_for(cls)
    wanted = adata.obs[["condition"]] if cls is SCLDM else adata.obs["type"]
    with pytest.raises(ValueError, match=r"conditions has the names of the cells in another order .*conditions.loc"):
        _moved(trained[cls], adata, conditions=wanted.iloc[::-1])
    with pytest.raises(ValueError, match="conditions has the names of the cells in another order"):
        _moved(trained[cls], adata, conditions=wanted.iloc[[2, 0, 1]], indices=[0, 1, 2])
    key = wanted.columns[0] if cls is SCLDM else "type"
    for given in (wanted, wanted.reset_index(drop=True), wanted.set_axis(adata.obs_names[::-1] + "-1", axis=0)):
        moved = _moved(trained[cls], adata, conditions=given)
        assert moved.obs[key].tolist() == adata.obs[key].tolist()


def test_columns_that_turning_writes_are_not_written_over():
    adata = embeddings()
    adata.obs["mirrored"] = "yes"
    with pytest.raises(ValueError, match=r"adata.obs has the column 'mirrored', which is written here"):
        pp.turn_images(adata, "image")


def test_a_umap_shows_the_column_that_was_asked_for():
    real, generated = counts(), counts()
    for adata in (real, generated):
        adata.obs["cells"] = adata.obs["shown"] = pd.Categorical(adata.obs["cell_type"])
    for arguments in ({argument: key} for argument in ("color", "groupby") for key in ("cells", "shown")):
        axes = pl.umap(real, generated, **arguments)
        shown = {ax.get_title() for ax in axes} | {
            text.get_text() for ax in axes if ax.get_legend() for text in ax.get_legend().get_texts()
        }
        assert {"B", "T"} <= shown
        plt.close(axes[0].figure)


@each_model
def test_a_batch_of_a_model_without_batches_is_refused(cls):
    adata = cells_for(cls)
    cls.setup_anndata(adata)
    model = cls(adata, **(SMALL if cls is SCLDM else TINY))
    model.train(1, **QUIET)
    for batch in ("one", 0):
        with pytest.raises(ValueError, match=f"batch={batch!r}: this model was trained without batches.*batch_key"):
            model.sample(2, batch=batch, progress_bar=False)


@each_model
def test_numbers_of_numpy_are_numbers(trained, cls, tmp_path):
    adata, eight, two = cells_for(cls), np.int64(8), np.int32(2)
    cls.setup_anndata(adata)
    sizes = {"denoiser_width": eight, "denoiser_blocks": np.uint8(1), "n_heads": two, "seed": np.int64(3)}
    more = {"n_tokens": two, "token_dim": np.int16(4), "width": eight, "n_blocks": np.int8(1)} if cls is SCLDM else {}
    model = cls(adata, **sizes, **more)
    model.save(tmp_path / "m")
    assert cls.load(tmp_path / "m").init_params_ == model.init_params_
    expected = trained[cls].sample(3, seed=2, batch_size=2, n_steps=3, progress_bar=False)
    same = trained[cls].sample(
        np.int64(3), seed=np.uint8(2), batch_size=np.int32(2), n_steps=np.int64(3), guidance_weight=np.float32(1),
        progress_bar=False,
    )  # fmt: skip
    assert (same.X != expected.X).sum() == 0
