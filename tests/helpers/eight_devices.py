"""Laws over devices; `test_parallel.py` runs this file in a process of its own with eight forced CPU devices."""

import dataclasses
import os
import re
import signal

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import attention_jax as aj
from attention_jax import tree
from attention_jax.config import override
from attention_jax.distributed.mesh import make_batch_sharding, make_mesh, prefetch_batches
from attention_jax.errors import UserError
from attention_jax.optim.mixing import mix_images
from attention_jax.preflight.hlo import HloProgram
from attention_jax.train import checkpoint, restore
from attention_jax.train.initial import read_initial_weights
from attention_jax.train.loop import train_model
from attention_jax.train.program import build_program
from tests.helpers import small_text
from tests.helpers.small import small_config

STEPS = 3
ONE_STAGE = dict(model__stage_sizes=(1,), model__widths=(8,))  # what takes the time is compiling for eight devices


def three_steps(config=None, **fields):
    """(state as numpy, metrics of each step) after three steps of a program, which keeps its state where it was."""
    program = build_program(config or small_config(**ONE_STAGE, **fields))
    loader = program.task.loader(program.config, "train", (0, 1), training=True)
    state, seen = program.init(0), []
    for batch in prefetch_batches(loader.training(0, STEPS), program.mesh):
        state, metrics = program.train_step(state, batch, np.uint32(0))
        seen.append(jax.device_get(metrics))
    for path, leaf in tree.flatten_by_path(program.abstract_state).items():
        assert tree.flatten_by_path(state)[path].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
    return tree.flatten_by_path(jax.device_get(state)), seen


@pytest.fixture(scope="module")
def one_device():
    return three_steps(parallel__data=1)


@pytest.fixture(scope="module")
def groups_of_four():
    """One device whose batch norm sees what each of eight devices sees of a batch of 32."""
    return three_steps(parallel__data=1, batch_norm__granularity=4)


def assert_close(a, b, collections=("params", "batch_stats", "ema", "opt_state")):
    for path, array in a[0].items():
        if path.startswith(collections):
            np.testing.assert_allclose(array, b[0][path], rtol=2e-4, atol=2e-5, err_msg=path)
    for ours, theirs in zip(a[1], b[1], strict=True):
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, err_msg=name)


def test_there_are_eight():
    assert jax.device_count() == 8


def test_eight_devices_are_one_device(one_device):
    assert_close(three_steps(parallel__data=8), one_device)


def test_two_slices_of_four_are_one_device(one_device):
    """`data` between and within slices, `fsdp` within; two halves of the devices stand for the slices."""
    sizes = dict(parallel__slices=2, parallel__fsdp=2)
    mesh = build_program(small_config(**ONE_STAGE, **sizes)).mesh
    halves = [{device.id // 4 for device in pair.flat} for pair in mesh.devices]
    assert halves == [{0}, {0}, {1}, {1}]  # no pair that shares weights is in both
    assert_close(three_steps(**sizes), one_device)
    with pytest.raises(UserError, match="fsdp x model = 8 does not divide the 8 devices that are here, 2 slices"):
        build_program(small_config(parallel__slices=2, parallel__fsdp=8))


def test_per_replica_statistics_are_groups_of_a_replicas_examples(groups_of_four, one_device):
    per_replica = three_steps(batch_norm__granularity="per_replica")
    assert_close(per_replica, groups_of_four)
    with pytest.raises(AssertionError):  # and differ from statistics over the whole batch
        assert_close(per_replica, one_device)


def test_pmap_is_jit_with_per_replica_statistics(groups_of_four):
    assert_close(three_steps(parallel__mode="pmap", batch_norm__granularity="per_replica"), groups_of_four)


def test_pmap_takes_smaller_groups():
    by_two = three_steps(parallel__data=1, batch_norm__granularity=2)
    assert_close(three_steps(parallel__mode="pmap", batch_norm__granularity=2), by_two)


def test_accumulation_over_devices_is_one_batch():
    # With statistics of single examples it does not matter which examples share a micro-batch.
    one = three_steps(parallel__data=1, batch_norm__granularity=1)
    for mode in ("jit", "pmap"):
        two_times_eight = three_steps(parallel__mode=mode, batch_norm__granularity=1, accumulation=2)
        assert_close(two_times_eight, one, collections=("params", "opt_state"))


def test_mixing_is_of_the_global_batch():
    both = dict(mix__mixup_alpha=0.8, mix__cutmix_alpha=1.0)
    one = three_steps(parallel__data=1, batch_norm__granularity=1, **both)
    assert_close(three_steps(batch_norm__granularity=1, **both), one, collections=("params", "opt_state"))
    # An image travels to one other device and nowhere else.
    rows, shapes = make_batch_sharding(make_mesh()), {"image": (32, 8, 8, 1), "label": (32,)}
    arrays = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=rows) for name, shape in shapes.items()}
    mixed = jax.jit(lambda batch: mix_images(jax.random.key(0), batch, 0.8, 1.0, 1.0, 0.5), out_shardings=rows)
    text = mixed.lower(arrays).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text
    # A replica of mode "pmap" mixes its own part: what replicas exchange is said in its program, and is sums alone.
    program = build_program(small_config(**ONE_STAGE, parallel__mode="pmap", batch_norm__granularity=1, **both))
    batch = program.task.batch_shapes(program.config)[0]
    text = program.train_step.lower(program.abstract_state, batch, np.uint32(0)).as_text()
    assert "all_reduce" in text and not re.search("collective_permute|all_gather|all_to_all", text)


# With accumulation and the averages; a head and convolutions can be divided as well, by rules of the config.
OF_CONVOLUTIONS = ((r"conv\d/kernel$", (None, None, None, "model")), (r"head/kernel$", ("model", None)))
MESHES = {
    "fsdp": dict(parallel__fsdp=8),
    "all three": dict(parallel__fsdp=2, parallel__model=2, parallel__rules=OF_CONVOLUTIONS),
}


@pytest.fixture(scope="module")
def accumulated():
    return three_steps(parallel__data=1, accumulation=2)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_classification_on_every_mesh_is_that_on_one_device(accumulated, sizes):
    assert_close(three_steps(accumulation=2, **sizes), accumulated)


# With dropout, accumulation, recomputed layers and the average of the weights; a loop over layers compiles sooner.
SENTENCES = dict(
    data__rows_multiple=16,
    data__bucket_lengths=1,
    batch_size=400,
    accumulation=2,
    model__dropout=0.1,
    model__remat=True,
    model__layers=2,
    model__scan_layers=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_text.write_pairs(tmp_path_factory.mktemp("pairs"))


def test_translation_on_a_mesh_of_all_axes_is_that_on_one_device(folder):
    """The axis `model` alone is what the two processes of `test_parallel.py` train on."""
    one = three_steps(small_text.small_config(folder, parallel__data=1, **SENTENCES))
    eight = three_steps(small_text.small_config(folder, parallel__fsdp=2, parallel__model=2, **SENTENCES))
    assert_close(eight, one, collections=("params", "ema"))


def test_translations_of_eight_devices_are_those_of_one(folder, tmp_path):
    """Each device searches for rows of its own; the scores of given targets are divided as well."""
    workdir = small_text.untrained_run(small_text.small_config(folder, parallel__data=1), tmp_path)
    many = aj.load_run(workdir).predictor
    one = dataclasses.replace(many)
    vars(one)["_devices"] = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    lines = [" ".join(small_text.LETTERS[i : i + 3]) for i in range(6)] * 2
    found, expected = many.predict(lines), one.predict(lines)
    assert [each.text for each in found] == [each.text for each in expected]
    np.testing.assert_allclose([each.scores[0] for each in found], [each.scores[0] for each in expected], atol=1e-5)
    scored = many.score(lines, [each.target_ids for each in found])
    np.testing.assert_allclose([each.score for each in scored], [each.scores[0] for each in found], atol=1e-5)


def test_contradictions_are_refused(folder):
    with pytest.raises(UserError, match=r"contradicts parallel\.mode='pmap'"):
        build_program(small_config(parallel__mode="pmap"))
    with pytest.raises(UserError, match="does not divide the 4 examples"):
        build_program(small_config(batch_norm__granularity=3))
    with pytest.raises(UserError, match="only 8 devices"):
        build_program(small_config(parallel__data=16))
    with pytest.raises(UserError, match=r"parallel\.mode='pmap' is one program a replica, so that parallel\.fsdp=2"):
        build_program(small_config(parallel__mode="pmap", parallel__fsdp=2, batch_norm__granularity="per_replica"))
    with pytest.raises(UserError, match=r"parallel\.model=2 splits no parameter of this network"):
        build_program(small_config(parallel__model=2))
    with pytest.raises(UserError, match="parallel.model=4 does not divide the network's 2 heads"):
        build_program(small_text.small_config(folder, parallel__model=4))
    swin = {"name": "swin_tiny_patch4_window7_224", "patch_size": 1, "width": 8, "heads": (2, 4), "stage_sizes": (1, 1)}
    with pytest.raises(UserError, match=r"parallel.model=4 does not divide the network's \(2, 4\) heads"):
        build_program(override(small_config(parallel__model=4), {"model": swin}))
    with pytest.raises(UserError, match=r"evaluation.batch_size=100 cannot be divided by 8 devices: 96 could"):
        build_program(small_config(evaluation__batch_size=100))


RUN = dict(**ONE_STAGE, total_steps=18, evaluation__every_steps=18)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(config, program, workdir) of a run with data = 8."""
    config, workdir = small_config(**RUN), tmp_path_factory.mktemp("alone")
    program = build_program(config)
    train_model(config, workdir, program)
    return config, program, workdir


def test_given_weights_are_divided_as_initial_ones(uninterrupted):
    """A run begins with the weights of another on any mesh: the same arrays, each device with its part."""
    _, _, source = uninterrupted
    found = []
    for sizes in (dict(parallel__data=1), dict(parallel__data=8), dict(parallel__fsdp=4)):
        program = build_program(small_config(init_from=str(source), **RUN, **sizes))
        given, _ = read_initial_weights(program.config, program.task, program.model, program.abstract_state)
        state = tree.flatten_by_path(program.init(np.uint32(0), given))
        for path, leaf in tree.flatten_by_path(program.abstract_state).items():
            assert state[path].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
        found.append(jax.device_get(state))
    ema = tree.flatten_by_path(restore.read_newest(source)[0]["ema"])
    for path, array in found[0].items():
        assert array.tobytes() == found[1][path].tobytes() == found[2][path].tobytes(), path
        assert path not in ema or array.tobytes() == ema[path].tobytes(), path


def stop_at_step_9(step):
    if step == 9:
        os.kill(os.getpid(), signal.SIGTERM)


def test_resumed_is_uninterrupted_bitwise_on_eight_devices(uninterrupted, tmp_path):
    config, program, alone = uninterrupted
    assert train_model(config, tmp_path, program, stop_at_step_9).stopped
    assert restore.list_steps(tmp_path)[-1] in (9, 10)
    assert not train_model(config, tmp_path, program).stopped
    state, resumed = (tree.flatten_by_path(restore.read_newest(path)[0]) for path in (alone, tmp_path))
    for path, array in state.items():
        assert array.tobytes() == resumed[path].tobytes(), path
    assert (alone / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()


def test_a_run_goes_on_on_another_mesh(uninterrupted, tmp_path):
    """Begun in parts over fsdp, ended whole: the same state, and its arrays are checked by checksums either way."""
    config, program, alone = uninterrupted
    in_parts = build_program(small_config(parallel__fsdp=4, **RUN))
    assert train_model(in_parts.config, tmp_path, in_parts, stop_at_step_9).stopped
    assert not train_model(config, tmp_path, program).stopped
    again, _ = checkpoint.Checkpoints(tmp_path, 2, 1, lambda step: None).restore(in_parts.abstract_state)
    for path, leaf in tree.flatten_by_path(in_parts.abstract_state).items():
        assert tree.flatten_by_path(again)[path].sharding == leaf.sharding, path
    assert not (tmp_path / checkpoint.ASIDE).exists()
    state, resumed = (tree.flatten_by_path(restore.read_newest(path)[0]) for path in (alone, tmp_path))
    for path, array in state.items():
        np.testing.assert_allclose(array, resumed[path], rtol=5e-3, atol=5e-4, err_msg=path)


def test_step_is_compiled_once_and_its_state_donated():
    program = build_program(small_config(**ONE_STAGE))
    loader = program.task.loader(program.config, "train", (0, 1), training=True)
    state = program.init(0)
    for seed in (0, 1):  # another seed runs through the same program
        for batch in prefetch_batches(loader.training(0, 2), program.mesh):
            before = state
            state, _ = program.train_step(state, batch, np.uint32(seed))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert program.train_step._cache_size() == 1


def test_a_weight_is_put_together_once_a_pass():
    """Once forward and once backward, from parts that each device keeps; nothing else moves but sums."""
    program = build_program(small_config(parallel__fsdp=4))
    rows, shapes = make_batch_sharding(program.mesh), program.task.batch_shapes(program.config)[0]
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in shapes.items()}
    text = program.train_step.lower(program.abstract_state, batch, np.uint32(0)).compile().as_text()
    gathers = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(.*op_name=\"([^\"]*)\"", text)
    kernels = {path: leaf for path, leaf in tree.flatten_by_path(program.abstract_state.params).items() if leaf.ndim > 1}
    assert len(kernels) == 6 and not set(program.sharding.undivided) & kernels.keys()
    for path, leaf in kernels.items():
        shape, module = ",".join(map(str, leaf.shape)), path.removesuffix("/kernel")
        passes = ["backward" if "transpose" in name else "forward" for s, name in gathers if s == shape and module in name]
        # The stem's input needs no gradient, for which alone the backward pass would ask its kernel.
        assert sorted(passes) == (["forward"] if path.startswith("stem") else ["backward", "forward"]), path
    state = tree.flatten_by_path({"params": program.abstract_state.params, "batch_stats": program.abstract_state.batch_stats})
    arrays = {f"{path.split('/', 1)[1]} f32[{','.join(map(str, leaf.shape))}]" for path, leaf in state.items()}
    gathered = {purpose for one in HloProgram(text).collectives() if one.kind == "all-gather" for purpose, _ in one.arrays}
    assert gathered <= arrays  # weights and statistics, no activations
    assert "all-to-all" not in text and "collective-permute" not in text
