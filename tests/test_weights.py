"""Models and training states on disk."""

import os
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from micrographia.errors import UserError
from micrographia.nets import weights
from micrographia.nets.weights import load_model, load_tree, save_model, save_tree


def small_model():
    torch.manual_seed(0)
    return {"a": nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), "b": nn.Linear(4, 2).bfloat16()}


CONFIG = {"width": 16, "rates": (1e-3, 0.1), "kinds": ["vacancy-1Se"], "nested": {"x": None}, "name": "Å"}


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, small_model(), CONFIG, "fcn")
    return path


def test_a_model_comes_back_bit_for_bit(model_file):
    states, config = load_model(model_file, "fcn")
    assert config == CONFIG
    for name, network in small_model().items():
        expected = network.state_dict()
        assert states[name].keys() == expected.keys()
        for key, tensor in expected.items():
            assert states[name][key].dtype == tensor.dtype
            assert torch.equal(states[name][key], tensor)
        network.load_state_dict(states[name])


def test_others_may_read_the_file(model_file):
    umask = os.umask(0)
    os.umask(umask)
    assert model_file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_tied_weights_are_saved(tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_model(tmp_path / "m", {"net": network}, {}, "tied")
    state = load_model(tmp_path / "m", "tied")[0]["net"]
    assert torch.equal(state["1.weight"], network[0].weight)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(model_file, fraction):
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors.*truncated"):
        load_model(model_file, "fcn")


def test_files_that_are_not_ours_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a model\n" * 100)
    with pytest.raises(UserError, match="is no model file"):
        load_model(text, "fcn")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(3)}, foreign)
    with pytest.raises(UserError, match="not written by Micrographia"):
        load_model(foreign, "fcn")
    damaged = tmp_path / "damaged.safetensors"
    save_file({"x": torch.zeros(3)}, damaged, metadata={"micrographia": "[1"})
    with pytest.raises(UserError, match="header is damaged"):
        load_model(damaged, "fcn")
    for missing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no such model file"):
            load_model(missing, "fcn")


def test_another_kind_is_refused(model_file):
    with pytest.raises(UserError, match="holds a 'fcn', but a 'cyclegan' is needed"):
        load_model(model_file, "cyclegan")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FORMAT_VERSION", weights.FORMAT_VERSION + 1)
    save_model(tmp_path / "m", small_model(), CONFIG, "fcn")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"written in format 2 .* update micrographia"):
        load_model(tmp_path / "m", "fcn")


def test_a_failed_write_leaves_the_earlier_file(model_file, monkeypatch):
    before = model_file.read_bytes()

    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written"):
        save_model(model_file, small_model(), {}, "fcn")
    assert model_file.read_bytes() == before
    assert os.listdir(model_file.parent) == [model_file.name]


def test_a_full_disk_leaves_the_earlier_file(model_file):
    before = model_file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # writing byte 501 fails as on a full disk
    try:
        with pytest.raises(UserError, match="free space"):
            save_model(model_file, small_model(), {}, "fcn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert model_file.read_bytes() == before
    assert os.listdir(model_file.parent) == [model_file.name]


def test_a_missing_folder_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tmp_path / "no" / "m", small_model(), {}, "fcn")


def test_names_with_dots_do_not_collide(tmp_path):
    tree = {"a": {"b.c": torch.zeros(2)}, "a.b": {"c": torch.ones(2)}}
    save_tree(tmp_path / "t", tree, "tree")
    back = load_tree(tmp_path / "t", "tree")
    assert back["a"]["b.c"].sum() == 0
    assert back["a.b"]["c"].sum() == 2


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
keys = st.sampled_from(["lr", "$tensor", "$items", ""]) | st.text(max_size=3)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=trees)
def test_plain_values_of_any_nesting_come_back_equal(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "t"
    save_tree(path, {"value": value}, "tree")
    back = load_tree(path, "tree")["value"]
    assert back == value
    assert repr(back) == repr(value)  # tuples stay tuples, 1 is not 1.0
