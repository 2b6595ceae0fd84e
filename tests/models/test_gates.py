"""The contract of gates: what a user may bring, and one sentence for each mistake."""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.gate import GATES
from attention_jax.models.registry import refuse_unread_reduction
from attention_jax.models.resnet import ResNet
from attention_jax.nn.gates import SqueezeExcite
from attention_jax.train.program import Program, build_program
from tests.helpers.blocks import TINY, close, drawn, numbers, quick
from tests.helpers.small import small_config

IMAGES = jnp.zeros((2, 8, 8, 3))

TWINS = """
import jax
from flax import linen as nn, nnx


class Channels(nnx.Module):
    def __init__(self, channels, rate=0.0, *, rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.dense = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x):
        return x * nnx.sigmoid(self.dense(self.dropout(self.norm(self.conv(x)))))


class LinenTwin(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(x.shape[-1], (3, 3), name="conv")(x)
        y = nn.BatchNorm(not train, momentum=0.9, name="norm")(y)
        return x * nn.sigmoid(nn.Dense(x.shape[-1], name="dense")(y))


class Cached(nnx.Module):
    def __init__(self, num_features, rngs):
        self.seen = nnx.Cache(jax.numpy.zeros(num_features))

    def __call__(self, x):
        return x
"""


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "twins.py"
    path.write_text(TWINS)
    return path


class Gate(nn.Module):
    """A gate that applies a function, which may make layers."""

    body: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return self.body(x)


def gate(body: Any) -> Any:
    return lambda: Gate(body)


class NoModule:
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def use(model: nn.Module, at_start: bool = False) -> None:
    """Initialises a network, and unless `at_start` applies it in training and in evaluation."""

    def apply(images: jax.Array) -> None:
        variables = model.init(jax.random.key(0), images)
        if at_start:
            return
        model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
        model.apply(variables, images)

    jax.eval_shape(apply, IMAGES)


TWO_MODES = "has a layer with a training mode.* let its __call__ take train"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(gate=gate(lambda x: nn.BatchNorm()(x))), TWO_MODES),
        (dict(gate=gate(lambda x: nn.Dropout(0.5)(x))), TWO_MODES),
        (dict(gate=gate(lambda x: nn.BatchNorm(False)(x))), TWO_MODES),
        (dict(gate=gate(lambda x: nn.Dropout(0.5, deterministic=False)(x))), TWO_MODES),
        (dict(gate=gate(lambda x: nn.BatchNorm(True)(x))), "its batch statistics stay as they are in training"),
        (dict(gate=NoModule), "made NoModule: give a Linen or NNX module class, or a function that returns a Linen module"),
        (dict(gate=lambda x: x), "missing 1 required .*'x'.*: give a Linen or NNX module class, or a function that"),
        (dict(gate=3), "3 is not a callable object.*: give a Linen or NNX module class"),
        (dict(gate=gate(lambda x: x.astype(jnp.bfloat16))), "turns float32 .* into bfloat16 .* return y.astype"),
        (dict(gate=gate(lambda x: nn.Dense(x.shape[-1])(x)), dtype="bfloat16"), "turns bfloat16 .* into float32"),
        (dict(gate=gate(lambda x: (x, x))), "turns .* into tuple"),
        (dict(gate="se", gate_stages=9), "model.gate_stages=9 is not right: give a tuple of whole numbers"),
        (dict(widths=4), "model.widths=4 is not right"),
        (dict(gate="se", gate_args=dict(reductions=4)), r"'se' does not take these arguments \(.*reductions.*that it has"),
    ],
)
def test_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(aj.UserError, match=message) as raised:
        use(ResNet(**{**TINY, **fields}))
    said = str(raised.value)
    assert said.startswith("model.") and said.endswith(".") and "\n" not in said and "http" not in said


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm(False), lambda: nn.Dropout(0.5, deterministic=False)])
def test_what_evaluation_would_refuse_is_found_at_the_start(layer: Any) -> None:
    with pytest.raises(aj.UserError, match=TWO_MODES):
        use(ResNet(**TINY, gate=gate(lambda x: layer()(x))), at_start=True)


def test_another_error_of_the_gate_stays_as_it_is() -> None:
    with pytest.raises(ValueError, match="not enough values to unpack"):
        use(ResNet(**TINY, gate=gate(lambda x: [n for n, _ in [(1,)]])))


@pytest.mark.parametrize("name", sorted(GATES))
def test_built_in_gates_keep_bfloat16(name: str) -> None:
    args = {"eca": {}, "ese": {}, "self_attention": dict(reduction=2, value_reduction=2)}.get(name, dict(reduction=2))
    use(ResNet(**TINY, gate=name, gate_args=args, dtype="bfloat16"))


@pytest.mark.parametrize("made", ["function", "partial", "instance", "function of one instance"])
def test_forms_of_a_gate(made: str) -> None:
    one = SqueezeExcite(reduction=2)
    forms = {
        "function": lambda reduction: SqueezeExcite(reduction),
        "partial": functools.partial(SqueezeExcite, reduction=2, dtype=jnp.float32),
        "instance": one,
        "function of one instance": lambda: one,
    }
    model = ResNet(**TINY, gate=forms[made], gate_at="block", gate_args=dict(reduction=2) if made == "function" else {})
    shapes = tree.flatten_by_path(jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"])
    assert [shapes[f"stage{i}_block1/gate/reduce/kernel"].shape for i in (1, 2)] == [(4, 2), (8, 4)]
    use(model)


def test_a_function_gets_what_it_names() -> None:
    given = {}

    def make(norm: Any, dtype: Any) -> nn.Module:
        given.update(norm=norm, dtype=dtype)
        return SqueezeExcite(2, dtype=dtype)

    use(ResNet(**TINY, gate=make, dtype="bfloat16"))
    assert given["dtype"] == jnp.bfloat16 and given["norm"](name="norm").name == "norm"


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def _train(program: Program, state: Any, steps: int = 2) -> Any:
    loader = program.task.loader(program.config, "train", (0, 1), training=True)
    for batch in loader.training(0, steps):
        state, _ = program.train_step(state, batch, np.uint32(0))
    return jax.device_get(state)


@pytest.mark.slow
def test_an_nnx_gate_trains_as_its_linen_twin(twins: Path) -> None:
    """The same variables under the same names, and after two steps the same numbers."""
    one = dict(model__stage_sizes=(1,), model__widths=(4,), model__gate_stages=(1,), ema__decay=0.0)
    ours, theirs = (build_program(small_config(**one, model__gate=f"{twins}:{name}")) for name in ("Channels", "LinenTwin"))
    shapes = tree.flatten_by_path(ours.abstract_state.params)
    assert jax.tree.map(jnp.shape, ours.abstract_state) == jax.tree.map(jnp.shape, theirs.abstract_state)
    assert shapes["stage1_gate/conv/kernel"].shape == (3, 3, 4, 4) and shapes["stage1_gate/dense/kernel"].shape == (4, 4)
    assert set(ours.abstract_state.batch_stats["stage1_gate"]["norm"]) == {"mean", "var"}

    start = jax.device_get(ours.init(np.uint32(0)))
    after = _train(ours, start)
    close(after, _train(theirs, start), 1e-4)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), *(s.variables()["batch_stats"] for s in (start, after)))
    assert all(jax.tree.leaves(changed))
    batch = next(ours.task.loader(ours.config, "test", (0, 1), training=False).evaluation())
    outputs = [program.outputs(after.variables(), batch)["loss"] for program in (ours, theirs)]
    close(*outputs, 1e-4)


def test_an_nnx_gate_draws_in_training_alone(twins: Path) -> None:
    one = {**TINY, "widths": (4,), "stage_sizes": (1,), "gate": f"{twins}:Channels", "gate_stages": (1,)}
    images = numbers("images", *IMAGES.shape)
    model = ResNet(**one, gate_args=dict(rate=0.5))
    variables = drawn(model, images)
    train = quick(lambda v, key: model.apply(v, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0])
    first, again, other = (train(variables, jax.random.key(i)) for i in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    close(*(quick(ResNet(**one, gate_args=dict(rate=rate)).apply)(variables, images) for rate in (0.5, 0.0)))
    before = jax.tree.map(np.copy, variables)
    model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    assert same(before, variables), "loaded variables are numpy arrays, and stay as they are"


def test_mistakes_of_an_nnx_gate(twins: Path) -> None:
    with pytest.raises(aj.UserError, match="variables that are neither nnx.Param nor nnx.BatchStat"):
        use(ResNet(**TINY, gate=f"{twins}:Cached"))
    with pytest.raises(aj.UserError, match=r"does not take these arguments \(.*'rates'.*give those that it has"):
        use(ResNet(**TINY, gate=f"{twins}:Channels", gate_args=dict(rates=0.5)))


@pytest.mark.parametrize(("reduction", "right"), [(16, False), (999, False), (8, True), (None, True)])
def test_a_reduction_that_changes_nothing(reduction, right):
    args = {"reduction": reduction} if reduction else {}
    model = {"name": "resnet20", "gate": "se", "gate_at": "stage", "gate_args": args, "stage_sizes": (1, 1), "widths": (8, 32)}
    network = aj.create_model(**model, num_classes=2)
    params = jax.eval_shape(network.init, jax.random.key(0), IMAGES)["params"]
    if right:
        return refuse_unread_reduction(model, lambda: params)
    with pytest.raises(
        aj.UserError, match=rf"reduction={reduction} is more than the 8 channels of stage1_gate, .*give 1 to 8\."
    ):
        refuse_unread_reduction(model, lambda: params)
