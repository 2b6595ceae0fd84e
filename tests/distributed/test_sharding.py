"""Where a state lies on a mesh, from shapes alone."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from attention_jax import tree
from attention_jax.config.config import config_from_json
from attention_jax.distributed.mesh import AXES, divide_batch_rows, make_mesh
from attention_jax.distributed.sharding import count_bytes_per_device, get_sharding_rules, shard_state
from attention_jax.errors import UserError
from attention_jax.models import create_model
from attention_jax.optim.optimizers import make_optimizer
from attention_jax.train.step import create_state
from tests.helpers.small import small_config


def mesh_of(data: int = 1, fsdp: int = 1, model: int = 1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, model), AXES)


def placed(model, inputs, sizes, rules=None, optimizer="adamw"):
    """({path: shape} of a state with averages, {path: spec}, the placement, bytes of the state on a device)."""
    chain = make_optimizer(optimizer, lambda step: 0.1, 0.1, ((".*", True),), clip_norm=1.0)
    shapes = jax.eval_shape(lambda: create_state(model, chain, inputs, 0, with_ema=True))
    weights = {**tree.flatten_by_path(shapes.params), **tree.flatten_by_path(shapes.batch_stats)}
    found = shard_state(shapes, weights, rules or ((".*", "fsdp"),), mesh_of(**sizes))
    specs = {path: s.spec for path, s in tree.flatten_by_path(found.shardings).items()}
    return tree.flatten_by_path(shapes), specs, found, count_bytes_per_device(found.add_to_shapes(shapes))


IMAGE = (jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32),)
SENTENCES = (jax.ShapeDtypeStruct((1, 8), np.int32),) * 2


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_what_follows_a_parameter_lies_where_it_does(optimizer):
    shapes, specs, _, _ = placed(create_model("resnet20", num_classes=10), IMAGE, {"fsdp": 8}, optimizer=optimizer)
    followers = 0
    for path, spec in specs.items():
        for weight in (p for p in shapes if p.startswith(("params/", "batch_stats/"))):
            name = weight.partition("/")[2]
            if path.endswith("/" + name):
                assert spec == specs[weight], (path, weight)
                followers += 1
        if not shapes[path].ndim:
            assert spec == PartitionSpec()
    copies = {"sgd": 3, "rmsprop": 4, "adamw": 4}[optimizer]  # itself, its average, and what the optimizer has of it
    assert followers == copies * sum(p.startswith("params/") for p in shapes) + 2 * sum(
        p.startswith("batch_stats/") for p in shapes
    )


def test_fsdp_takes_the_largest_dimension_that_it_divides():
    rules, mesh = ((".*", "fsdp"),), mesh_of(fsdp=4)
    weights = {"a": (3, 3, 16, 64), "b": (6, 8), "c": (4, 4), "d": (37,), "e": (), "f": (8, 37)}
    weights = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in weights.items()}
    state = {"params": weights, "other": {"a": jax.ShapeDtypeStruct((16, 64), np.float32), "count": weights["e"]}}
    found = shard_state(state, weights, rules, mesh)
    specs = {path: tuple(s.spec) for path, s in tree.flatten_by_path(found.shardings).items()}
    assert specs == {
        "params/a": (None, None, None, "fsdp"),
        "params/b": (None, "fsdp"),
        "params/c": ("fsdp",),
        "params/d": (),
        "params/e": (),
        "params/f": ("fsdp",),
        "other/a": (),  # of another shape
        "other/count": (),
    }
    assert found.undivided == ("d", "e")


def test_the_longest_parameter_path_is_meant():
    shape = jax.ShapeDtypeStruct((8, 8), np.float32)
    weights = {"kernel": shape, "inner/kernel": shape}
    rules = (("^inner/kernel$", (None, "model")), (".*", "replicated"))
    found = shard_state({"mu": weights}, weights, rules, mesh_of(model=2)).shardings["mu"]
    assert found["inner/kernel"].spec == PartitionSpec(None, "model") and found["kernel"].spec == PartitionSpec()


def test_rules_of_the_transformer_divide_heads_hidden_layers_and_vocabulary():
    model = create_model(
        "transformer_base", layers=1, vocab_size=64, embeddings="separate", output_bias=True, attention_bias=True
    )
    rules = get_sharding_rules("transformer_base")
    shapes, specs, found, here = placed(model, SENTENCES, {"fsdp": 2, "model": 4}, rules)
    divided = {path: spec for path, spec in specs.items() if path.startswith("params/") and "model" in spec}
    for side in ("encoder_0/self", "decoder_0/self", "decoder_0/cross"):
        for name in ("query", "key", "value"):
            assert divided.pop(f"params/{side}_attention/{name}/kernel") == PartitionSpec("fsdp", "model")
            assert divided.pop(f"params/{side}_attention/{name}/bias") == PartitionSpec("model")
        assert divided.pop(f"params/{side}_attention/output/kernel") == PartitionSpec("model", "fsdp")
    for side in ("encoder_0", "decoder_0"):
        assert divided.pop(f"params/{side}/mlp/hidden/kernel") == PartitionSpec("fsdp", "model")
        assert divided.pop(f"params/{side}/mlp/hidden/bias") == PartitionSpec("model")
        assert divided.pop(f"params/{side}/mlp/output/kernel") == PartitionSpec("model", "fsdp")
    for table in ("source", "target", "output"):
        assert divided.pop(f"params/{table}_embedding/embedding") == PartitionSpec("model", "fsdp")
    assert divided.pop("params/logits_bias") == PartitionSpec("model")
    assert not divided and not found.undivided
    # A device has an eighth of nearly all: what `model` does not divide is small.
    whole = sum(x.size * x.dtype.itemsize for x in shapes.values())
    assert whole / 8 < here < 1.02 * whole / 8


def test_a_vocabulary_that_cannot_be_divided_is_whole_and_said():
    rules = get_sharding_rules("transformer_base")
    _, specs, found, _ = placed(create_model("transformer_base", layers=1, vocab_size=62), SENTENCES, {"model": 4}, rules)
    assert specs["params/target_embedding/embedding"] == PartitionSpec()
    assert found.undivided == ("target_embedding/embedding",)


def test_rules_of_a_config_come_first():
    own = (("head/kernel", (None, "model")), ("norm", "replicated"))
    rules = get_sharding_rules("resnet20", own)
    _, specs, _, _ = placed(create_model("resnet20", num_classes=10), IMAGE, {"fsdp": 2, "model": 2}, rules)
    assert specs["params/head/kernel"] == PartitionSpec("fsdp", "model")
    assert specs["params/stem_norm/scale"] == specs["ema/batch_stats/stem_norm/mean"] == PartitionSpec()
    assert specs["params/stem_conv/kernel"] == PartitionSpec(None, None, None, "fsdp")


@pytest.mark.parametrize(
    ("sizes", "rules", "said"),
    [
        ({"fsdp": 7}, ((".*", "fsdp"),), r"parallel\.fsdp=7 splits no parameter: give 1"),
        ({"fsdp": 4}, ((".*", "replicated"),), r"parallel\.fsdp=4 splits no parameter: give 1"),
        ({"model": 2}, get_sharding_rules("resnet20"), r"parallel\.model=2 splits no parameter of this network"),
        ({"model": 2}, (("head/kernel", ("model",)), (".*", "fsdp")), "is for 1 dimensions, and 'head/kernel' has 2"),
    ],
)
def test_what_divides_nothing_is_refused(sizes, rules, said):
    with pytest.raises(UserError, match=said):
        placed(create_model("resnet20", num_classes=11, widths=(4, 8), stage_sizes=(1, 1)), IMAGE, sizes, rules)


def test_shares_of_processes():
    """Which rows a process loads, from the processes of the devices that have each part of a batch."""
    share = divide_batch_rows
    assert [share(i, np.array([[0], [0], [1], [1]])) for i in range(2)] == [(0, 2), (1, 2)]
    assert [share(i, np.array([[0, 0], [1, 1]])) for i in range(2)] == [(0, 2), (1, 2)]
    assert [share(i, np.array([[0, 0, 1, 1]])) for i in range(2)] == [(0, 1), (0, 1)]  # `model` spans both
    assert [share(i, np.array([[0, 1], [0, 1], [2, 3], [2, 3]])) for i in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [share(i, np.array([[1], [0]])) for i in range(2)] == [(1, 2), (0, 2)]
    # v5e of 4 x 4, whose ring leaves a host and comes back
    ring = np.array([0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0])[:, None]
    assert share(0, ring) == ((0, 1, 6, 15), 16) and share(1, ring) == ((2, 3, 4, 5), 16)


def devices(slices=(0,), number=8, platform="tpu"):
    return [
        types.SimpleNamespace(platform=platform, slice_index=i, id=n, process_index=0) for i in slices for n in range(number)
    ]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((-1, 3, 1), "data=-1, fsdp=3, model=1: fsdp x model = 3 does not divide the 8 devices that are here"),
        ((2, 4, 2), "data=2, fsdp=4, model=2 takes 16 devices: only 8 devices are here"),
        ((-1, 16, 1), "fsdp x model = 16 does not divide the 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_explained(sizes, said):
    with pytest.raises(UserError) as raised:
        make_mesh(*sizes, devices=devices(platform="cpu"))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"slices": 3}, "parallel.slices=3: these 16 devices are 2 TPU slices; 0 takes that number"),
        ({"fsdp": 16}, "fsdp x model = 16 does not divide the 16 devices that are here, 2 slices, each by itself"),
        ({"data": 8}, "takes 8 devices: with several slices all 16 take part"),
    ],
)
def test_what_does_not_fit_slices_is_explained(sizes, said):
    with pytest.raises(UserError, match=said):
        make_mesh(**sizes, devices=devices(slices=(0, 1)))


def test_version_2_divided_nothing():
    now = small_config()
    old = now.copy_and_resolve_references().to_dict()
    for field in ("fsdp", "model", "rules"):
        del old["parallel"][field]
    old["version"] = 2
    again = config_from_json(json.dumps(old))
    assert again == now
