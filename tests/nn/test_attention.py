"""Attention and gates, one by one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax.nn.attention import NonLocal, SelfAttention, attend
from attention_jax.nn.gates import CBAM, ECA, CoordinateAttention, GatherExcite, GlobalContext, SqueezeExcite, maximum
from tests.helpers.blocks import close, drawn, evaluating, numbers, quick


class TestAttend:
    """The key/query/value idea."""

    def test_soft_look_up_becomes_look_up(self) -> None:
        """At temperature -> 0 and with one-hot keys attention is a dictionary: each query gets its key's value."""
        keys, values = np.eye(6, dtype=np.float32), numbers("values", 6, 3)
        order = np.array([4, 0, 5, 5])
        output, weights = attend(keys[order], keys, values, scale=200.0)
        np.testing.assert_allclose(output, values[order], rtol=1e-6)
        np.testing.assert_array_equal(weights, keys[order])

    def test_high_temperature_is_the_mean(self) -> None:
        q, k, v = numbers("q", 4, 5), numbers("k", 6, 5), numbers("v", 6, 3)
        output, weights = attend(q, k, v, scale=0.0)
        close(output, np.broadcast_to(v.mean(0), (4, 3)))
        close(weights, np.full((4, 6), 1 / 6))

    def test_order_of_the_dictionary_does_not_matter(self) -> None:
        q, k, v = numbers("q", 2, 4, 5), numbers("k", 2, 6, 5), numbers("v", 2, 6, 3)
        order = np.array([3, 1, 5, 0, 2, 4])
        close(attend(q, k[:, order], v[:, order])[0], attend(q, k, v)[0])
        assert np.abs(np.asarray(attend(q, k[:, order], v)[0]) - attend(q, k, v)[0]).max() > 1e-2

    def test_weights_are_a_distribution_in_float32(self) -> None:
        q, k, v = (jnp.asarray(numbers(name, 4, 8), jnp.bfloat16) for name in "qkv")
        output, weights = attend(q, k, v, scale=3.0)
        assert (output.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
        close(weights.sum(-1), np.ones(4))


class TestSelfAttention:
    def test_starts_as_the_identity(self) -> None:
        """Gamma is 0 at first (Zhang et al. 2019, equation 4)."""
        x = numbers("x", 2, 4, 6, 16)
        module = SelfAttention()
        variables = module.init(jax.random.key(0), x)
        assert variables["params"]["gamma"] == 0
        close(module.apply(variables, x), x, 0)

    @pytest.mark.parametrize("pool", [1, 2])
    def test_every_place_sees_every_place(self, pool: int) -> None:
        """One output depends on all inputs, unlike a convolution's; its weights add up to one."""
        x = numbers("x", 1, 4, 6, 16)
        module = SelfAttention(pool=pool, value_reduction=2)
        variables = drawn(module, x)
        gradient = quick(jax.grad(lambda x: module.apply(variables, x)[0, 0, 0].sum()))(x)
        seen = np.abs(gradient[0]).max(-1) > 1e-7
        assert seen.all() if pool == 1 else seen.sum() >= 6  # of each 2x2 at least the largest
        _, sown = module.apply(variables, x, mutable=["attention"])
        (weights,) = sown["attention"]["weights"]
        assert weights.shape == (1, 4, 6, 4 // pool, 6 // pool)
        close(weights.sum((-1, -2)), np.ones((1, 4, 6)))

    def test_permuting_places_permutes_the_output(self) -> None:
        x = numbers("x", 1, 2, 6, 16)
        module = SelfAttention()
        variables = drawn(module, x)
        order = np.array([3, 1, 5, 0, 2, 4])
        close(module.apply(variables, x[:, :, order]), np.asarray(module.apply(variables, x))[:, :, order])

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (dict(reduction=17), "SelfAttention.reduction=17 leaves no channel of 16"),
            (dict(value_reduction=0), "SelfAttention.value_reduction=0"),
            (dict(project=False), "give value_reduction=1"),
            (dict(pool=5), "SelfAttention.pool=5 is not right for a 4x6 map"),
        ],
    )
    def test_mistakes(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(aj.UserError, match=message):
            SelfAttention(**fields).init(jax.random.key(0), np.zeros((1, 4, 6, 16), np.float32))


class TestGates:
    def test_global_context_gives_every_place_the_same(self) -> None:
        x = numbers("x", 2, 3, 4, 8)
        module = GlobalContext(reduction=2)
        added = np.asarray(module.apply(drawn(module, x), x)) - x
        close(added, np.broadcast_to(added[:, :1, :1], x.shape), 1e-5)
        assert np.abs(added[0] - added[1]).max() > 1e-3
        close(module.apply(module.init(jax.random.key(0), x), x), x, 0)

    @pytest.mark.parametrize(("channels", "size"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
    def test_eca_kernel_grows_with_the_logarithm(self, channels: int, size: int) -> None:
        x = jax.ShapeDtypeStruct((1, 2, 2, channels), jnp.float32)
        assert jax.eval_shape(ECA().init, jax.random.key(0), x)["params"]["conv"]["kernel"].shape == (size, 1, 1)

    def test_cbam_starts_its_spatial_gate_at_a_half(self) -> None:
        x = numbers("x", 2, 4, 4, 8)
        module = CBAM(reduction=2, norm=evaluating)
        variables = module.init(jax.random.key(0), x)
        _, sown = module.apply(variables, x, mutable=["attention"])
        close(sown["attention"]["spatial"][0], np.full((2, 4, 4), 0.5))
        others = CBAM(reduction=2, norm=evaluating, zero_gamma=False)
        _, sown = others.apply(others.init(jax.random.key(0), x), x, mutable=["attention"])
        assert np.std(sown["attention"]["spatial"][0]) > 1e-3

    def test_maximum(self) -> None:
        """Value and gradient of `jnp.max`; of equal entries the first gets the gradient."""
        x, weights = numbers("x", 3, 5, 4), numbers("weights", 3, 4)
        for f in (maximum, jnp.max):
            close(f(x, 1), np.max(x, 1), 0)
        ours, theirs = (jax.grad(lambda x, f=f: (f(x, 1) * weights).sum())(x) for f in (maximum, jnp.max))
        close(ours, theirs)
        np.testing.assert_array_equal(jax.grad(lambda x: maximum(x, 0))(jnp.ones(3)), [1, 0, 0])

    def test_gather_excite_with_weights_is_squeeze_and_excitation(self) -> None:
        x = numbers("x", 2, 3, 4, 8)
        ours, theirs = GatherExcite(mlp=True, reduction=2), SqueezeExcite(reduction=2)
        variables = drawn(ours, x)
        close(ours.apply(variables, x), theirs.apply(variables, x))

    def test_gather_excite_of_the_entire_map_has_one_place(self) -> None:
        """With weights too, whose depthwise kernel is as large as the map: the sum of products, normalised."""
        x = numbers("x", 2, 3, 5, 4)
        module = GatherExcite(gather="conv", norm=evaluating)
        variables = drawn(module, x)
        _, sown = module.apply(variables, x, mutable=["attention"])
        of_norm, kernel = variables["params"]["gather_norm1"], variables["params"]["gather_conv1"]["kernel"][:, :, 0]
        mean, var = (variables["batch_stats"]["gather_norm1"][name] for name in ("mean", "var"))
        gathered = ((x * kernel).sum((1, 2)) - mean) / np.sqrt(var + 1e-5) * of_norm["scale"] + of_norm["bias"]
        close(sown["attention"]["scale"][0], 1 / (1 + np.exp(-gathered)), 1e-5)

    def test_gather_excite_sees_as_far_as_its_extent(self) -> None:
        """The gate of a place is that of its block of 2x2, and depends on the 3x3 around the block's first pixel."""
        x = numbers("x", 1, 6, 6, 1)
        module = GatherExcite(extent=2)
        y, sown = module.apply({}, x, mutable=["attention"])
        gate = np.asarray(sown["attention"]["map"][0])[0, ..., 0]
        close(y[0, ..., 0], x[0, ..., 0] * gate)
        close(gate[2:4, 2:4], np.full((2, 2), 1 / (1 + np.exp(-x[0, 1:4, 1:4].mean()))))
        close(gate[0, 0], 1 / (1 + np.exp(-x[0, :2, :2].mean())))

    def test_coordinate_attention_is_a_row_times_a_column(self) -> None:
        x = numbers("x", 2, 5, 4, 8)
        module = CoordinateAttention(norm=evaluating)
        y, sown = module.apply(drawn(module, x), x, mutable=["attention"])
        gate = np.asarray(sown["attention"]["map"][0])
        close(y, x * gate)
        close(gate[:, :1, :1] * gate, gate[:, :, :1] * gate[:, :1], 1e-5)
        assert np.ptp(gate, 1).min() > 1e-3 and np.ptp(gate, 2).min() > 1e-3

    def test_non_local_starts_as_the_identity(self) -> None:
        x = numbers("x", 2, 3, 4, 8)
        module = NonLocal(norm=evaluating)
        y, sown = module.apply(module.init(jax.random.key(0), x), x, mutable=["attention"])
        close(y, x, 0)
        weights = sown["attention"]["weights"][0]
        assert weights.shape == (2, 3, 4, 3, 4)
        close(weights.sum((3, 4)), np.ones((2, 3, 4)), 1e-5)

    @pytest.mark.parametrize(
        "module",
        [
            CBAM(reduction=9),
            GlobalContext(reduction=9),
            GlobalContext(reduction=2, fuse="sum"),
            ECA(kernel_size=2),
            GatherExcite(extent=3),
            GatherExcite(extent=-2),
            GatherExcite(gather="max"),
            CoordinateAttention(reduction=0),
            NonLocal(reduction=9),
        ],
    )
    def test_mistakes(self, module: nn.Module) -> None:
        with pytest.raises(aj.UserError, match="give|is not one of"):
            module.init(jax.random.key(0), np.zeros((1, 4, 4, 8), np.float32))
