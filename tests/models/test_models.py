"""Complete networks: shortcuts, gates from outside, names, and mistakes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.registry import register_model
from attention_jax.models.resnet import Block, ResNet
from attention_jax.nn.conv import StochasticDepth
from attention_jax.nn.gates import SqueezeExcite
from tests.helpers.blocks import TINY, close, drawn, evaluating, numbers, quick


class TestShortcuts:
    def block(self, **fields: Any) -> Block:
        fixed = dict(kind="basic", width=4, stride=1, stride_at="3x3", shortcut="A", residual=True, gate=None)
        return Block(**{**fixed, **fields}, norm=evaluating)

    @pytest.mark.parametrize("kind", ["basic", "bottleneck"])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_silent_convolutions(self, kind: str, stride: int) -> None:
        """With every convolution and shift at zero a plain block outputs zero, a residual one its (subsampled) input."""
        x = np.abs(numbers("x", 2, 6, 6, 4))
        for residual in (True, False):
            block = self.block(kind=kind, stride=stride, residual=residual)
            shapes = jax.eval_shape(block.init, jax.random.key(0), x)
            silent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(shapes))
            y = np.asarray(quick(block.apply)(silent, x))
            assert y.shape == (2, 6 // stride, 6 // stride, 4 if kind == "basic" else 16)
            if residual:
                close(y[..., :4], x[:, ::stride, ::stride])
                assert not y[..., 4:].any()
            else:
                assert not y.any()

    def test_projection_only_where_shapes_change(self) -> None:
        x = numbers("x", 1, 4, 4, 4)
        names = {
            (width, stride): set(drawn(self.block(shortcut="B", width=width, stride=stride), x)["params"])
            for width, stride in ((4, 1), (4, 2), (8, 1))
        }
        assert "shortcut_conv" not in names[4, 1]
        assert {"shortcut_conv", "shortcut_norm"} <= names[4, 2] & names[8, 1]

    def test_plain_network_has_the_parameters_of_the_residual_one(self) -> None:
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        shapes = [
            jax.eval_shape(aj.create_model(name).init, jax.random.key(0), images)["params"]
            for name in ("resnet20", "resnet20.plain")
        ]
        assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])

    def test_signal_passes_a_silent_block_only_by_a_shortcut(self) -> None:
        """A network whose blocks' convolutions are zero still tells images apart, unless it is plain."""
        images = numbers("images", 2, 8, 8, 3)
        for residual in (True, False):
            model = ResNet(**TINY, shortcut="A", residual=residual)
            variables = drawn(model, images)
            variables["params"] = tree.map_with_path(
                lambda path, leaf: np.zeros_like(leaf) if "_block" in path and "conv" in path else leaf, variables["params"]
            )
            logits = np.asarray(quick(model.apply)(variables, images))
            assert bool(np.abs(logits[0] - logits[1]).max() > 1e-3) == residual


GATES = '''
import flax.linen as nn
import jax.numpy as jnp


class Pixel(nn.Module):
    """x · sigmoid(w·x + b)."""

    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        scale = nn.sigmoid(self.gain * nn.Dense(1, name="dense")(x))
        self.sow("attention", "scale", scale[..., 0])
        return x * scale


class Normed(nn.Module):
    """Uses what the network gives it."""

    norm: object

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("attention", "train", jnp.asarray(train))
        return self.norm(name="norm")(x)


class Halved(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x[:, ::2]
'''


class TestGateFromOutside:
    @pytest.fixture(scope="class")
    @classmethod
    def gates(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("gates") / "gates.py"
        path.write_text(GATES)
        return path

    @pytest.mark.parametrize(
        ("at", "places"),
        [("stage", ["stage1_gate"]), ("block", ["stage1_block1/gate", "stage2_block1/gate"])],
    )
    def test_trains_is_counted_and_shows_its_maps(self, gates: Path, at: str, places: list[str]) -> None:
        images = numbers("images", 2, 8, 8, 3)
        model = aj.create_model("resnet20", **{**TINY, "gate": f"{gates}:Pixel", "gate_at": at, "gate_args": dict(gain=2.0)})
        variables = drawn(model, images)

        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.square(logits).sum()

        gradients = tree.flatten_by_path(quick(jax.grad(loss))(variables["params"]))
        of_gates = {path: gradient for path, gradient in gradients.items() if "gate" in path}
        assert sorted(of_gates) == sorted(f"{place}/dense/{leaf}" for place in places for leaf in ("kernel", "bias"))
        assert all(np.abs(gradient).max() > 1e-6 for gradient in of_gates.values())

        without = aj.summary(aj.create_model("resnet20", **TINY), images.shape)
        with_gate = aj.summary(model, images.shape)
        sizes = [4, 8][: len(places)]  # channels where the gates are
        assert with_gate.params - without.params == sum(channels + 1 for channels in sizes)
        pixels = [2 * 8 * 8, 2 * 4 * 4][: len(places)]
        assert with_gate.macs - without.macs == sum(channels * n for channels, n in zip(sizes, pixels, strict=True))

        maps = aj.attention_maps(model, variables, images)
        assert sorted(maps) == sorted(f"{place}/scale" for place in places)
        assert maps[f"{places[0]}/scale"].shape == (2, 8, 8)

    def test_gets_norm_and_train(self, gates: Path) -> None:
        """The network's own normalisation, group size and mode included."""
        images = numbers("images", 4, 8, 8, 3)
        model = ResNet(**TINY, gate=f"{gates}:Normed", norm_group_size=2)
        variables = drawn(model, images)
        assert "stage1_gate/norm/mean" in tree.flatten_by_path(variables["batch_stats"])
        for train in (False, True):
            apply = quick(lambda v, x, train=train: model.apply(v, x, train=train, mutable=["attention", "batch_stats"]))
            logits, changed = apply(variables, images)
            assert bool(changed["attention"]["stage1_gate"]["train"][0]) == train
            before, after = variables["batch_stats"]["stage1_gate"]["norm"], changed["batch_stats"]["stage1_gate"]["norm"]
            assert np.array_equal(before["mean"], after["mean"]) == (not train)
        others_changed, _ = apply(variables, images * np.float32([1, 1, 1, 3])[:, None, None, None])
        close(logits[:2], others_changed[:2])

    def test_a_class_will_do(self) -> None:
        images = numbers("images", 1, 8, 8, 3)
        model = ResNet(**TINY, gate=SqueezeExcite)
        assert list(aj.attention_maps(model, drawn(model, images), images)) == ["stage1_gate/scale"]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (dict(gate="{gates}:Halved"), "a gate keeps the shape"),
            (dict(gate="{gates}:Pixle"), "did you mean 'Pixel'"),
            (dict(gate="{gates}.gone.py:Pixel"), "there is no such file"),
            (dict(gate="bamm"), "did you mean 'bam'"),
            (dict(gate="{gates}:Pixel", gate_args=dict(gian=1.0)), "model.gate_args"),
        ],
    )
    def test_mistakes(self, gates: Path, fields: dict[str, Any], message: str) -> None:
        fields = {**fields, "gate": fields["gate"].format(gates=gates)}
        with pytest.raises(aj.UserError, match=message):
            jax.eval_shape(ResNet(**TINY, **fields).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


class TestGatePlaces:
    """Where a named gate ends up."""

    DEEP: ClassVar = {**TINY, "widths": (4, 4, 4), "stage_sizes": (2, 1, 1), "gate": "se"}

    @pytest.mark.parametrize(
        ("fields", "places"),
        [
            (dict(gate_at="stage"), ["stage1_gate", "stage2_gate"]),
            (dict(gate_at="stage", gate_stages=(3,)), ["stage3_gate"]),
            (dict(gate_at="block", gate_stages=(1,)), ["stage1_block1/gate", "stage1_block2/gate"]),
            (
                dict(gate_at="block"),
                ["stage1_block1/gate", "stage1_block2/gate", "stage2_block1/gate", "stage3_block1/gate"],
            ),
        ],
    )
    def test_places(self, fields: dict[str, Any], places: list[str]) -> None:
        model = ResNet(**{**self.DEEP, **fields})
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        assert (
            sorted({path.partition("/reduce")[0] for path in tree.flatten_by_path(shapes) if "reduce/kernel" in path}) == places
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("gate", ["se", "bam", "cbam", "eca", "gc", "self_attention"])
    def test_every_named_gate_sows_and_trains(self, gate: str) -> None:
        images = numbers("images", 2, 8, 8, 3)
        args = {"eca": {}, "self_attention": dict(reduction=2, value_reduction=2)}.get(gate, dict(reduction=2))
        model = ResNet(**TINY, gate=gate, gate_args=args)
        variables = drawn(model, images)
        maps = aj.attention_maps(model, variables, images)
        assert maps and all(path.startswith("stage1_gate/") for path in maps)

        def loss(params: Any) -> jax.Array:
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return (logits * numbers("weights", 2, 3)).sum()

        gradients = tree.flatten_by_path(quick(jax.grad(loss))(variables["params"]))
        norms = {path: float(np.abs(leaf).max()) for path, leaf in gradients.items() if path.startswith("stage1_gate")}
        assert norms and max(norms.values()) > 1e-6
        assert all(np.isfinite(norm) for norm in norms.values())


class TestRandomBranches:
    """Stochastic depth and dropout."""

    def test_rates(self) -> None:
        """timm grows them block by block, the released ResNet-RS stage by stage: 0.04, 0.06, 0.08, 0.1."""
        by_block = ResNet(stage_sizes=(1, 2, 1, 1), drop_path_rate=0.2)
        assert by_block.drop_rates() == [[0.0], [0.05, 0.1], [pytest.approx(0.15)], [0.2]]
        by_stage = aj.create_model("resnetrs200", drop_path_rate=0.1).drop_rates()
        assert [len(rates) for rates in by_stage] == [3, 24, 36, 3]
        for rates, rate in zip(by_stage, (0.04, 0.06, 0.08, 0.1), strict=True):
            assert rates == [pytest.approx(rate)] * len(rates)

    def test_a_branch_is_dropped_whole_and_kept_in_the_mean(self) -> None:
        x = np.ones((4000, 3, 2), np.float32)
        rate = 0.25
        apply = quick(lambda key: StochasticDepth(rate, deterministic=False).apply({}, x, rngs={"dropout": key}))
        y = np.asarray(apply(jax.random.key(1)))
        kept = y[:, 0, 0] > 0
        np.testing.assert_allclose(y, np.where(kept, 1 / (1 - rate), 0)[:, None, None] * x)
        assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / len(x))
        assert StochasticDepth(rate, deterministic=True).apply({}, x) is x

    def test_only_training_draws(self) -> None:
        """Evaluation needs no key; training differs from key to key, and without rates it does not."""
        images = numbers("images", 4, 8, 8, 3)
        for fields, differs in ((dict(drop_path_rate=0.5), True), (dict(dropout_rate=0.5), True), ({}, False)):
            model = ResNet(**TINY, **fields)
            variables = drawn(model, images)
            model.apply(variables, images)

            @quick
            def train(key: jax.Array, model: ResNet = model, variables: Any = variables) -> jax.Array:
                logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
                return logits

            a, b = train(jax.random.key(0)), train(jax.random.key(1))
            assert bool(np.abs(np.asarray(a) - b).max() > 1e-3) == differs

    @pytest.mark.slow
    def test_zero_gamma_starts_as_the_shortcuts(self) -> None:
        """At initialisation a block returns what its shortcut gives, after the ReLU."""
        images = numbers("images", 2, 8, 8, 3)
        model = ResNet(**{**TINY, "widths": (4, 4)}, shortcut="A", zero_gamma=True)
        variables = model.init(jax.random.key(0), images)
        without = ResNet(**{**TINY, "widths": (4, 4)}, shortcut="A")
        silent = tree.map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if "_block" in path and "conv" in path else leaf, variables["params"]
        )
        close(model.apply(variables, images), without.apply({**variables, "params": silent}, images))
        scales = {path: leaf for path, leaf in tree.flatten_by_path(variables["params"]).items() if "norm2/scale" in path}
        assert scales and not any(np.any(leaf) for leaf in scales.values())


class TestPrecision:
    """bfloat16 is for activations and products; everything that is kept or summed stays float32."""

    @pytest.mark.parametrize("gate", [None, "se", "bam", "cbam", "eca", "gc", "self_attention"])
    def test_products_are_in_bfloat16_and_what_is_kept_in_float32(self, gate: str | None) -> None:
        images = numbers("images", 4, 8, 8, 3)
        args = {"eca": {}, None: {}, "self_attention": dict(reduction=2, value_reduction=2)}.get(gate, dict(reduction=2))
        model = ResNet(**TINY, gate=gate, gate_args=args, dtype="bfloat16", dropout_rate=0.1, drop_path_rate=0.1)
        variables = drawn(model, images)

        def apply(variables: Any, images: Any) -> Any:
            key = jax.random.key(0)
            return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})

        logits, changed = jax.eval_shape(apply, variables, images)
        assert logits.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves((changed, variables))} == {jnp.dtype("float32")}
        products = [
            [operand.aval.dtype.name for operand in equation.invars]
            for equation in _equations(jax.make_jaxpr(apply)(variables, images).jaxpr)
            if equation.primitive.name in ("conv_general_dilated", "dot_general")
        ]
        assert products.pop() == ["float32", "float32"]  # the classifier
        assert products and all(dtypes == ["bfloat16", "bfloat16"] for dtypes in products)

    def test_is_near_float32(self) -> None:
        images = numbers("images", 4, 8, 8, 3)
        variables = drawn(ResNet(**TINY), images)
        exact, rounded = (quick(ResNet(**TINY, dtype=dtype).apply)(variables, images) for dtype in ("float32", "bfloat16"))
        off = np.abs(np.asarray(exact) - rounded).max() / np.abs(exact).max()
        assert 1e-5 < off < 3e-2


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner functions in their places."""
    for equation in jaxpr.eqns:
        inner = [leaf for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(leaf)]
        for one in inner:
            yield from _equations(getattr(one, "jaxpr", one))
        if not inner:
            yield equation


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


class TestRegistry:
    def test_names(self) -> None:
        assert aj.list_models() == sorted(aj.list_models())
        assert aj.list_models("bam_resnet5*") == ["bam_resnet50", "bam_resnet50.code", "bam_resnet56"]
        assert aj.list_models("nothing*") == []

    def test_overrides(self) -> None:
        model = aj.create_model("resnet50", num_classes=7, stride_at="1x1")
        assert (model.num_classes, model.stride_at, model.stage_sizes) == (7, "1x1", (3, 4, 6, 3))

    def test_unknown_name(self) -> None:
        with pytest.raises(aj.UserError, match="did you mean 'bam_resnet50.code'"):
            aj.create_model("bam_resnet50.cod")

    def test_unknown_field(self) -> None:
        with pytest.raises(aj.UserError, match=r"no field 'num_clases' \(did you mean 'num_classes'"):
            aj.create_model("resnet50", num_clases=10)

    def test_a_name_is_taken_once(self) -> None:
        with pytest.raises(aj.UserError, match="'resnet50' is taken by attention_jax.models.resnet.ResNet"):
            register_model("resnet50", ResNet)
        with pytest.raises(aj.UserError, match="'resnet50' is taken by attention_jax.models.resnet.ResNet"):
            register_model("resnet50", type("ResNet", (ResNet,), {"__module__": "another"}))


class TestMistakes:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (dict(block="bottelneck"), "model.block: 'bottelneck' is not one of 'basic', 'bottleneck'"),
            (dict(stem="imagnet"), "model.stem"),
            (dict(stride_at="2x2"), "model.stride_at"),
            (dict(shortcut="C"), "model.shortcut: 'C' is not one of 'A', 'A-centred', 'B', 'B-3x3', 'D'"),
            (dict(gate_at="stem"), "model.gate_at"),
            (dict(norm_running_var="exact"), "model.norm_running_var"),
            (dict(norm="layer"), "model.norm: 'layer' is not one of 'batch', 'group', 'none'"),
            (dict(kernel_init="xavier"), "model.kernel_init"),
            (dict(dtype="float8"), "model.dtype: 'float8' is not one of"),
            (dict(drop_path_by="layer"), "model.drop_path_by"),
            (dict(drop_path_rate=1.0), "model.drop_path_rate=1.0"),
            (dict(dropout_rate=-0.1), "model.dropout_rate=-0.1"),
            (dict(drop_path_rate=0.1, residual=False), "needs shortcuts"),
            (dict(zero_gamma=True, norm="none"), "model.zero_gamma needs a normalisation"),
            (dict(cardinality=2), "give model.block='bottleneck'"),
            (dict(cardinality=0, block="bottleneck"), "model.cardinality=0"),
            (dict(first_divisor=2), "first_divisor=2 are for bottlenecks"),
            (dict(first_divisor=0, block="bottleneck"), "first_divisor=0: give whole numbers from 1"),
            (dict(width_per_group=4, block="bottleneck"), "leaves no filter in a stage of 4"),
            (dict(gate_stages=(3,)), "model.gate_stages=.* the stages are 1 to 2"),
            (dict(widths=(4, 8, 16)), "model.widths"),
        ],
    )
    def test_field(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(aj.UserError, match=message):
            ResNet(**{**TINY, **fields}).check()

    @pytest.mark.parametrize(("name", "side"), [("resnet50", 31), ("resnet20", 3)])
    def test_image_too_small(self, name: str, side: int) -> None:
        """One sentence that says what would do; the next size is accepted."""
        model = aj.create_model(name)
        with pytest.raises(aj.UserError, match=f"images of {side}x64 pixels are too small") as raised:
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, 64, 3)))
        assert str(raised.value).endswith(".")
        assert "\n" not in str(raised.value)
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side + 1, 64, 3)))
