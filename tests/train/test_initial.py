"""Runs that begin with the weights of a run or a file: what is taken, what the log says, and resuming without the source."""

import json
import logging
import os
import shutil
import signal

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.config import override
from attention_jax.config.config import config_from_json, config_to_json, list_differences
from attention_jax.errors import UserError
from attention_jax.interop.layout import name_tensors
from attention_jax.interop.layouts_resnet import AKAMASTER
from attention_jax.train import report, restore
from attention_jax.train.initial import INIT, _refuse_other_tokens, read_initial_weights
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers import small_text
from tests.helpers.gcs import empty_server
from tests.helpers.small import small_config

pytestmark = pytest.mark.usefixtures("quickly")

DATA = {"image_shape": (8, 8, 1), "mean": (0.3,), "std": (0.38,)}
DIGITS = [str(i) for i in range(10)]
NETWORK = dict(model__stage_sizes=(1,), model__widths=(4,))
VIT = {"layers": 1, "width": 8, "heads": 2, "patch_size": 2, "image_size": 8}
OWN = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(nn.BatchNorm(not train)(x).mean((1, 2)))
"""
PROBE = dict(optimizer__rate_rules=(("^head/", 1.0), (".*", 0.0)), batch_norm__granularity="stored")


def fill(model, inputs, seed=3):
    """Variables of a network, all of them other than its initial values."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(inputs))
    rng = np.random.default_rng(seed)
    kept = {kind: shapes[kind] for kind in ("params", "batch_stats") if kind in shapes}
    return jax.tree.map(lambda x: 0.2 + 0.1 * rng.random(x.shape, np.float32), kept)


@pytest.fixture(scope="module")
def network():
    model = aj.create_model("resnet32", num_classes=10, stage_sizes=(1,), widths=(4,))
    return model, fill(model, (1, 8, 8, 1))


@pytest.fixture(scope="module")
def source(network, tmp_path_factory):
    return aj.save_run(*network, tmp_path_factory.mktemp("source") / "run", DATA, DIGITS)


def read(config):
    """(flat arrays that a run of this config begins with, its record)."""
    program = build_program(config)
    given, record = read_initial_weights(program.config, program.task, program.model, program.abstract_state)
    return {path: np.asarray(array) for path, array in given.items()}, json.loads(record[INIT])


def read_state(workdir, step=None):
    state, about, _ = restore.read_newest(workdir / f"checkpoints/{step}" if step is not None else workdir)
    return tree.flatten_by_path(state), about


def stop_after(step):
    def progress(done):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def crash_after(step):
    def progress(done):
        if done == step:
            raise MemoryError("as if the machine had died")

    return progress


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """(config, program, workdir) of an uninterrupted run whose source goes afterwards."""
    moved = shutil.copytree(source, tmp_path_factory.mktemp("moved") / "run")
    config = small_config(init_from=str(moved), total_steps=18, checkpoint__keep_last=9, **NETWORK)
    program, workdir = build_program(config), tmp_path_factory.mktemp("alone")
    train_model(config, workdir, program)
    again = tmp_path_factory.mktemp("again")
    train_model(config, again, program)
    begun = tmp_path_factory.mktemp("begun")
    with pytest.raises(MemoryError):
        train_model(config, begun, program, crash_after(2))
    shutil.rmtree(moved)
    return config, program, workdir, again, begun


def assert_same_end(one, other):
    states = read_state(one)[0], read_state(other)[0]
    assert states[0].keys() == states[1].keys()
    for path, array in states[0].items():
        assert array.tobytes() == states[1][path].tobytes(), path
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_two_runs_from_one_source_are_equal(tuned, network):
    _, _, alone, again, _ = tuned
    assert_same_end(alone, again)
    begun, about = read_state(alone, 0)
    for path, array in tree.flatten_by_path(network[1]).items():
        assert begun[path].tobytes() == array.tobytes() == begun[f"ema/{path}"].tobytes(), path
    record = json.loads(about["assets"][INIT])
    assert record == json.loads((alone / INIT).read_text()) == json.loads(aj.load_run(alone).assets[INIT])
    assert (record["layout"], record["new"], record["left_out"], record["step"]) == ("native", [], [], 0)
    assert len(record["sha256"]) == 64 and record["path"].endswith("moved0/run/checkpoints/0")


def test_it_resumes_bitwise_without_its_source(tuned, tmp_path):
    config, program, alone, _, begun = tuned
    assert restore.list_steps(begun) == [0]
    assert train_model(config, begun, program, stop_after(7)).stopped
    assert not train_model(config, begun, program).stopped
    assert_same_end(begun, alone)
    with pytest.raises(UserError, match=r"init_from=\S+: there is no such file or folder"):
        train_model(config, tmp_path / "new", program)


def test_frozen_parameters_and_stored_statistics_do_not_move(source, network, tmp_path):
    config = small_config(init_from=str(source), total_steps=6, ema__warmup=False, **NETWORK, **PROBE)
    program = build_program(config)
    said = report.describe_run(program, {})
    assert "348 of 398 parameters, whose rate is 0; batch norm's statistics are the stored ones" in said
    train_model(config, tmp_path, program)
    state, _ = read_state(tmp_path)
    for path, array in tree.flatten_by_path(network[1]).items():
        assert (state[path].tobytes() == array.tobytes()) == ("head/" not in path), path
    assert not [path for path in state if path.startswith("opt_state/") and "stage1" in path]


def test_statistics_that_will_move_under_frozen_layers_are_said(source):
    config = small_config(init_from=str(source), **NETWORK, optimizer__rate_rules=PROBE["optimizer__rate_rules"])
    assert "which batch_norm.granularity='stored' changes" in report.describe_run(build_program(config), {})


def test_other_classes_get_a_new_classifier(source, network, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "attention_jax"):
        given, record = read(small_config(init_from=str(source), model__num_classes=12, **NETWORK))
    heads = ["params/head/bias", "params/head/kernel"]
    assert record["new"] == heads and not set(heads) & given.keys()
    assert "15 of 17 arrays are from" in caplog.text
    assert "new: params/head/bias, params/head/kernel (other classes); left out: " in caplog.text
    # The same number of other classes.
    other = aj.save_run(*network, tmp_path / "run", DATA, [f"not {name}" for name in DIGITS])
    assert read(small_config(init_from=str(other), **NETWORK))[1]["new"] == heads


def test_a_gate_is_new_and_what_is_not_in_the_network_is_left_out(source, tmp_path):
    model = aj.create_model("resnet32", num_classes=10, stage_sizes=(1,), widths=(4,), gate="se", gate_at="block")
    gated = aj.save_run(model, fill(model, (1, 8, 8, 1)), tmp_path / "run", DATA, DIGITS)
    _, record = read(small_config(init_from=str(source), **NETWORK, model__gate="se", model__gate_at="block"))
    assert len(record["new"]) == 4 and all("/gate/" in path for path in record["new"])
    _, back = read(small_config(init_from=str(gated), **NETWORK))
    assert back["left_out"] == record["new"] and back["new"] == []


def test_files_of_other_layouts(tmp_path):
    """A network of akamaster's for colour images, on grey ones: the first kernel is summed."""
    fields = dict(model__name="resnet20", model__stage_sizes=(1, 1, 1), model__widths=(4, 8, 16))
    model = aj.create_model("resnet20", stage_sizes=(1, 1, 1), widths=(4, 8, 16), shortcut="A-centred", num_classes=10)
    variables = fill(model, (1, 8, 8, 3))
    file = tmp_path / "model.npz"
    np.savez(file, **{f"module.{name}": array for name, array in name_tensors(AKAMASTER, model, variables).items()})
    given, record = read(small_config(init_from=str(file), **fields, model__shortcut="A-centred"))
    assert record["layout"] == "akamaster" and record["new"] == record["left_out"] == [] and record["wrappers"]
    assert np.array_equal(given["params/stage2_block1/conv1/kernel"], variables["params"]["stage2_block1"]["conv1"]["kernel"])
    assert given["params/stem_conv/kernel"].shape == (3, 3, 1, 4) and "resized" in record["notes"][0]
    with pytest.raises(UserError, match=r"networks with shortcut='A-centred'.*give --config.model.shortcut=A-centred"):
        read(small_config(init_from=str(file), **fields))
    # At a URI, and with its seed.
    with fsspec.open("memory://weights/5.npz", "wb") as remote:
        remote.write(file.read_bytes())
    uri = "memory://weights/{seed}.npz"
    _, same = read(small_config(init_from=uri, seed=5, **fields, model__shortcut="A-centred"))
    assert same["path"] == "memory://weights/5.npz" and same["sha256"] == record["sha256"]


def test_positions_of_another_image_size_are_interpolated(tmp_path):
    model = aj.create_model("vit_tiny_patch16_224", num_classes=10, **{**VIT, "image_size": 16})
    variables = fill(model, (1, 16, 16, 1))
    source = aj.save_run(model, variables, tmp_path / "run", {**DATA, "image_shape": (16, 16, 1)}, DIGITS)
    given, record = read(override(small_config(init_from=str(source)), {"model": {"name": "vit_tiny_patch16_224", **VIT}}))
    assert given["params/positions"].shape == (17, 8) and record["notes"] == [
        "params/positions was (65, 8) and is resized to (17, 8)"
    ]
    assert np.array_equal(given["params/positions"][0], variables["params"]["positions"][0])


def test_what_is_of_another_network_is_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"has 0 of this network's \d+ arrays, and lacks for example"):
        read(override(small_config(init_from=str(source)), {"model": {"name": "vit_tiny_patch16_224", **VIT}}))
    with pytest.raises(UserError, match=r"of another shape: .*params/stage1_block1/conv1/kernel \(3, 3, 4, 4\) where"):
        read(small_config(init_from=str(source), model__stage_sizes=(1,), model__widths=(8,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"init_from=\S+empty: .*no checkpoint here"):
        read(small_config(init_from=str(tmp_path / "empty"), **NETWORK))
    (tmp_path / "no.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"no.pth: it begins with"):
        read(small_config(init_from=str(tmp_path / "no.pth"), **NETWORK))


def test_stored_statistics_need_a_source_and_a_network_that_uses_them(tmp_path):
    with pytest.raises(UserError, match="from scratch has no statistics yet: give init_from"):
        train_model(small_config(batch_norm__granularity="stored", **NETWORK), tmp_path)
    (tmp_path / "net.py").write_text(OWN)
    config = override(small_config(batch_norm__granularity="stored"), {"model": {"name": f"{tmp_path}/net.py:Net"}})
    with pytest.raises(UserError, match="net.py:Net' has no field norm_group_size, which is 0 then: give it one"):
        build_program(config)


def test_runs_of_version_8_resume(tuned):
    config, *_ = tuned
    saved = json.loads(config_to_json(override(config, {"init_from": None})))
    del saved["init_from"]
    old = config_from_json(json.dumps({**saved, "version": 8}))
    assert old.init_from is None and list_differences(old, override(config, {"init_from": None})) == []
    assert list_differences(old, config) == [f"init_from: saved None, given {config.init_from!r}"]


def test_a_remote_run_resumes_without_its_source(source, tmp_path, monkeypatch):
    empty_server()
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    moved = shutil.copytree(source, tmp_path / "run")
    config = small_config(init_from=str(moved), total_steps=6, **NETWORK)
    program, ends = build_program(config), []
    for name in ("alone", "begun"):
        if name == "begun":
            with pytest.raises(MemoryError):
                train_model(config, f"gs://bucket/{name}", program, crash_after(2))
            shutil.rmtree(moved)
        train_model(config, f"gs://bucket/{name}", program)
        run = aj.load_run(f"gs://bucket/{name}")
        ends.append((tree.flatten_by_path(run.variables), run.assets[INIT]))
    assert ends[0][1] == ends[1][1]
    assert all(np.asarray(array).tobytes() == np.asarray(ends[1][0][path]).tobytes() for path, array in ends[0][0].items())


def test_networks_of_other_tasks_take_files_in_our_own_names(tmp_path):
    folder = small_text.write_pairs(tmp_path)
    program = build_program(small_text.small_config(folder))
    flat = tree.flatten_by_path({"params": program.abstract_state.params})
    np.savez(tmp_path / "w.npz", **{path: np.full(leaf.shape, 0.25, leaf.dtype) for path, leaf in flat.items()})
    given, record = read(small_text.small_config(folder, init_from=str(tmp_path / "w.npz")))
    assert given.keys() == flat.keys() and (record["layout"], record["new"]) == ("native", [])


def test_another_tokenizer_is_refused():
    ours = {"words.json": b"[1]", "labels.json": b"1"}
    _refuse_other_tokens("init_from=x", ours, {"words.json": b"[1]", "labels.json": b"2", "data.json": b"3"})
    with pytest.raises(UserError, match=r"init_from=x: its words.json is not this run's: give data.tokenizer that file"):
        _refuse_other_tokens("init_from=x", ours, {"words.json": b"[2]"})
