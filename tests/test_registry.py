"""What models inherit from scvi-tools about the AnnData they were set up for works after loading as before."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from sclatent.datasets import simulate
from sclatent.model import DAED, SCLDM, JointDiffusion, JointLDM

pytestmark = pytest.mark.usefixtures("few_steps")


def counts() -> AnnData:
    return simulate(60, 12, cell_types=["B", "T"], n_batches=2, library_size=200, seed=1)


def features() -> AnnData:
    rng = np.random.default_rng(0)
    adata = AnnData(rng.standard_normal((60, 16)).astype(np.float32))
    adata.obsm["image"] = rng.integers(0, 256, (60, 32, 32), dtype=np.uint8)
    adata.obs["label"] = np.array(["a", "b", "unknown"], dtype=object)[np.arange(60) % 3]
    adata.obs["batch"] = np.array(["one", "two"], dtype=object)[np.arange(60) % 2]
    return adata


OF_COUNTS = {"condition_keys": ["cell_type", "condition"], "batch_key": "batch"}
LABELLED = {"labels_key": "label", "batch_key": "batch"}
SMALL = {"denoiser_width": 32, "denoiser_blocks": 1}
CASES = {
    "SCLDM": (SCLDM, counts, OF_COUNTS, {"n_tokens": 4, "token_dim": 8, "width": 32, "n_blocks": 1}),
    "JointLDM": (JointLDM, features, LABELLED, {"n_tokens": 2, "token_dim": 8, "width": 16}),
    "JointDiffusion": (JointDiffusion, features, {"obsm_key": "image", **LABELLED}, {}),
    "DAED": (DAED, features, {"obsm_key": "image", "labels_key": "label"}, {"width": 16, "n_blocks": 1}),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def saved(request, tmp_path_factory):
    """A model, where it is saved, and how cells for it are made."""
    cls, make, setup, size = request.param
    adata = make()
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **SMALL, **size)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    return model, path, make


def same(*data) -> bool:
    return np.array_equal(*(d.toarray() if sparse.issparse(d) else np.asarray(d) for d in data))


def test_a_loaded_model_knows_its_cells_as_it_did_before(saved, capsys):
    model, path, make = saved
    adata = make()
    again = type(model).load(path, adata)
    assert again.adata is adata
    assert again.adata_manager.adata is adata
    assert again.get_anndata_manager(adata, required=True) is again.adata_manager
    for key in model.adata_manager.data_registry:
        expected = model.get_from_registry(model.adata, key)
        assert same(again.get_from_registry(adata, key), expected), key
        assert same(again.data_registry(key), expected), key
    assert again.registry["setup_args"] == model.registry["setup_args"]
    assert dict(again.summary_stats) == dict(model.summary_stats)
    assert same(again.get_var_names(), model.get_var_names())
    assert again.get_setup_arg("batch_key") == model.get_setup_arg("batch_key")
    assert list(again.get_state_registry("batch").categorical_mapping) == model.batches.levels
    assert again.summary_string == model.summary_string
    capsys.readouterr()
    for view in ("view_anndata_setup", "view_registry", "view_setup_method_args"):
        printed = []
        for each in (model, again):
            getattr(each, view)()
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != "", view


def test_cells_are_forgotten_and_copies_are_known(saved):
    model, path, make = saved
    again = type(model).load(path, make())
    part = again.adata[:10].copy()  # has the identity that scvi-tools gave the whole
    assert again.get_from_registry(part, "X").shape[0] == 10
    assert isinstance(again.transfer_fields(make()), AnnDataManager)
    again.deregister_manager(part)
    with pytest.raises(ValueError, match=r"adata is not known to this model: .* model\.adata = adata"):
        again.get_from_registry(part, "X")
    again.deregister_manager()
    assert again.get_from_registry(again.adata, "X").shape[0] == 60


def test_without_cells_it_says_what_to_do(saved, capsys):
    model, path, make = saved
    again = type(model).load(path)
    assert again.adata is None
    assert again.adata_manager is None
    for method in (again.view_anndata_setup, again.view_registry, again.deregister_manager):
        with pytest.raises(ValueError, match="adata is missing: this model was loaded without data"):
            method()
    for call in (again.get_from_registry, again.view_anndata_setup, again.deregister_manager):
        with pytest.raises(ValueError, match=r"adata is not known to this model: .* model\.adata = adata"):
            call(make(), *["X"] * (call == again.get_from_registry))
    for call in (lambda: again.data_registry("X"), lambda: again.transfer_fields(make())):
        with pytest.raises(ValueError, match="AnnData"):
            call()
    assert same(again.get_var_names(), model.registry["field_registries"]["X"]["state_registry"]["column_names"])
    again.view_setup_method_args()
    assert f"Setup via `{type(model).__name__}.setup_anndata`" in capsys.readouterr().out


def test_the_registry_of_a_saved_model_can_be_read(saved, capsys):
    model, path, _ = saved
    registry = type(model).load_registry(path)
    assert registry["setup_args"] == model.registry["setup_args"]
    assert registry["model_name"] == type(model).__name__
    type(model).view_setup_args(path)
    assert f"Setup via `{type(model).__name__}.setup_anndata`" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="holds no saved model"):
        type(model).load_registry(path.parent)


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("convert_legacy_save", ("old", "new"), "There are no legacy saved models of"),
        ("setup_annbatch", (), "setup_anndata, which takes backed AnnData"),
        ("update_setup_method_args", ({"layer": "counts"},), "is made for the data as they were set up"),
        ("differential_abundance", (), "not implemented"),
    ],
)
def test_what_does_not_apply_says_so(saved, method, args, message):
    with pytest.raises(NotImplementedError, match=message):
        getattr(saved[0], method)(*args)


def test_every_public_member_of_scvi_tools_is_accounted_for():
    """A new release may bring one that does not work for models of this package."""
    tested = {
        "adata", "adata_manager", "convert_legacy_save", "data_registry", "deregister_manager", "device",
        "differential_abundance", "get_anndata_manager", "get_from_registry", "get_normalized_expression",
        "get_normalized_function_name", "get_setup_arg", "get_state_registry", "get_var_names", "history", "is_trained",
        "load", "load_registry", "register_manager", "registry", "run_id", "run_name", "save", "setup_anndata",
        "setup_annbatch", "summary_string", "test_indices", "to_device", "train", "train_indices", "transfer_fields",
        "update_setup_method_args", "validation_indices", "view_anndata_setup", "view_registry", "view_setup_args",
        "view_setup_method_args",
    }  # fmt: skip
    assert {name for name in vars(BaseModelClass) if not name.startswith("_")} <= tested


def test_other_members_work_after_loading(saved):
    model, path, _ = saved
    again = type(model).load(path)
    again.to_device("cpu")
    assert again.device.type == "cpu"
    assert again.is_trained is model.is_trained is False
    assert again.train_indices is again.validation_indices is again.test_indices is None
    assert list(again.history) == list(model.history)
    assert repr(again) == ""  # it prints


# ---- other cells


def test_a_model_takes_other_cells_that_fit(saved):
    model, path, make = saved
    again, few = type(model).load(path, make()), make()[:25].copy()
    again.adata = few
    assert again.adata is few
    assert again.adata_manager.adata is few
    assert again.summary_stats.get("n_cells", 25) == 25
    assert again.get_from_registry(few, "X").shape[0] == 25


def test_a_model_refuses_cells_that_do_not_fit(saved):
    model, path, make = saved
    again = type(model).load(path, make())
    before = again.adata
    misfit = AnnData(np.ones((5, 3), dtype=np.float32), obsm={"image": np.ones((5, 7, 7), dtype=np.uint8)})
    misfit.obs["batch"] = misfit.obs["label"] = model.batches.levels[0]
    with pytest.raises(ValueError, match=r"None of the 3 genes|has features of shape"):
        again.adata = misfit
    with pytest.raises(ValueError, match="adata=None"):
        again.adata = None
    assert again.adata is before
    assert again.adata_manager.adata is before
    assert "_scvi_uuid" not in misfit.uns


def test_genes_and_levels_stay_those_of_the_model(tmp_path):
    cls, make, setup, size = CASES["SCLDM"]
    adata = make()
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **SMALL, **size)
    query = adata[:30, ["gene_3", "gene_0"]].copy()
    del query.obs["cell_type"]
    query.obs["condition"] = query.obs["condition"].astype(object)
    query.obs.iloc[0, query.obs.columns.get_loc("condition")] = np.nan
    model.adata = query
    codes = model.get_from_registry(query, "conditions")
    assert (codes["cell_type"] == -1).all()
    assert codes["condition"].tolist() == [
        -1,
        *(["control", "stimulated"].index(c) for c in query.obs["condition"][1:]),
    ]
    model.save(tmp_path / "m")
    again = cls.load(tmp_path / "m")
    assert list(again.genes) == list(adata.var_names)
    assert again.conditions.levels == model.conditions.levels


def test_loading_copies_no_counts(tmp_path):
    cls, make, setup, size = CASES["SCLDM"]
    adata = make()
    cls.setup_anndata(adata, **setup)
    cls(adata, **SMALL, **size).save(tmp_path / "m")
    query = make()
    matrix, obs = query.X, query.obs[["cell_type", "condition"]].copy()
    cls.load(tmp_path / "m", query)
    assert query.X is matrix
    assert query.obs[["cell_type", "condition"]].equals(obs)
