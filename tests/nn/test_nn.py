"""What every block guarantees."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.models.resnet import ResNet
from attention_jax.nn.bam import BAM, fitting_dilation
from attention_jax.nn.conv import Conv, average_pool
from attention_jax.nn.dropout import drop
from attention_jax.nn.gates import SqueezeExcite
from attention_jax.nn.norm import BatchNorm, GroupNorm, NoNorm
from tests.helpers.blocks import TINY, close, drawn, evaluating, numbers, quick


class TestBatchNorm:
    def run(self, module: nn.Module, variables: dict[str, Any], x: jax.Array) -> dict[str, Any]:
        """Output, statistics, and the gradients of a weighted sum of the output."""
        weights = numbers("weights", *x.shape)

        def loss(params: Any, x: jax.Array) -> tuple:
            y, changed = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y * weights).sum(), (y, changed["batch_stats"])

        gradients, (y, statistics) = quick(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
        return {"y": y, "statistics": statistics, "of_params": gradients[0], "of_x": gradients[1]}

    def test_whole_batch_is_flax_in_two_passes(self) -> None:
        x = numbers("x", 8, 3, 5, 6) * 2 + 1
        variables = drawn(BatchNorm(), x)
        flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
        close(self.run(BatchNorm(), variables, x), self.run(flax, variables, x), 5e-6)

    def test_groups_are_separate_batches(self) -> None:
        """Outputs and gradients of each group alone; the running statistics are the mean of the groups'."""
        x = numbers("x", 8, 3, 5, 6) * 2 + 1
        variables = drawn(BatchNorm(), x)
        grouped = self.run(BatchNorm(group_size=2), variables, x)
        weights = numbers("weights", *x.shape)

        def loss(params: Any, x: jax.Array, weights: jax.Array) -> tuple:
            y, changed = BatchNorm().apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y * weights).sum(), (y, changed["batch_stats"])

        apart = quick(jax.grad(loss, (0, 1), has_aux=True))
        parts = [apart(variables["params"], x[i : i + 2], weights[i : i + 2]) for i in range(0, 8, 2)]
        close(grouped["y"], np.concatenate([y for _, (y, _) in parts]))
        close(grouped["of_x"], np.concatenate([of_x for (_, of_x), _ in parts]), 1e-5)
        close(grouped["of_params"], jax.tree.map(lambda *g: sum(g), *[of_params for (of_params, _), _ in parts]), 1e-5)
        close(grouped["statistics"], jax.tree.map(lambda *s: sum(s) / 4, *[statistics for _, (_, statistics) in parts]))

    def test_a_group_of_the_whole_batch_is_no_group(self) -> None:
        x = numbers("x", 8, 3, 5, 6)
        variables = drawn(BatchNorm(), x)
        close(self.run(BatchNorm(group_size=8), variables, x), self.run(BatchNorm(), variables, x))

    def test_networks_use_the_group_size(self) -> None:
        """The first group's logits do not change with the others' images."""
        images = numbers("images", 4, 8, 8, 3)
        model = ResNet(**TINY, norm_group_size=2, gate="bam", gate_args=dict(reduction=2))
        variables = drawn(model, images)
        apply = quick(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
        changed = images * np.float32([1, 1, 1, 3])[:, None, None, None]
        close(apply(variables, images)[:2], apply(variables, changed)[:2])
        assert np.abs(apply(variables, images) - apply(variables, changed))[2:].max() > 1e-2

    def test_unbiased_running_variance(self) -> None:
        """PyTorch keeps n / (n - 1) of what Flax keeps; n counts the places of a group. The output does not care."""
        x = numbers("x", 4, 2, 3, 5)
        variables = drawn(BatchNorm(), x)
        old = variables["batch_stats"]["var"]
        for group_size, n in ((None, 24), (2, 12)):
            biased = self.run(BatchNorm(group_size=group_size), variables, x)
            unbiased = self.run(BatchNorm(group_size=group_size, running_var="unbiased"), variables, x)
            close(biased["y"], unbiased["y"])
            close(biased["statistics"]["mean"], unbiased["statistics"]["mean"])
            new = [(run["statistics"]["var"] - 0.9 * old) / 0.1 for run in (biased, unbiased)]
            close(new[0] * n / (n - 1), new[1], 1e-5)

    def test_large_mean(self) -> None:
        """At mean 1,000 and deviation 1 the one-pass form of the variance makes the output wrong by 1.9 in float32."""
        x = numbers("x", 64, 4, 4, 2) + 1000
        variables = BatchNorm().init(jax.random.key(0), x)
        y, _ = quick(lambda v, x: BatchNorm().apply(v, x, mutable=["batch_stats"]))(variables, x)
        exact = np.asarray(x, np.float64)
        exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
        assert np.abs(y - exact).max() < 1e-3

    def test_evaluation_uses_what_is_stored(self) -> None:
        x = numbers("x", 4, 3, 3, 5)
        module = BatchNorm(use_running_average=True)
        variables = drawn(module, x)
        y, changed = quick(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))(variables, x)
        scale, bias = variables["params"]["scale"], variables["params"]["bias"]
        mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
        close(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias)
        close(changed["batch_stats"], variables["batch_stats"], 0)
        close(module.apply(variables, x[:1]), y[:1])

    def test_initialisation_touches_nothing(self) -> None:
        """Scale 1, bias 0, mean 0, variance 1 whatever the first batch is."""
        variables = BatchNorm().init(jax.random.key(0), numbers("x", 4, 3, 3, 5) * 7 + 3)
        flat = tree.flatten_by_path(variables)
        assert {path: set(np.unique(leaf).tolist()) for path, leaf in flat.items()} == {
            "params/scale": {1.0},
            "params/bias": {0.0},
            "batch_stats/mean": {0.0},
            "batch_stats/var": {1.0},
        }


class TestBAM:
    @pytest.mark.parametrize("combine", ["sum", "product", "max"])
    @pytest.mark.parametrize("batch_norm", ["paper", "code"])
    def test_output_is_input_times_one_plus_map(self, combine: str, batch_norm: str) -> None:
        """F' = F · (1 + M), 0 < M < 1, M the sigmoid of the two branches' combination."""
        x = numbers("x", 2, 8, 6, 8)
        module = BAM(reduction=2, combine=combine, batch_norm=batch_norm, norm=evaluating)
        variables = drawn(module, x)
        y, sown = quick(lambda v, x: module.apply(v, x, mutable=["attention"]))(variables, x)
        seen = {name: np.asarray(value[0]) for name, value in sown["attention"].items()}
        assert seen["map"].shape == x.shape
        assert 0 < seen["map"].min() < seen["map"].max() < 1
        close(y, x * (1 + seen["map"]))
        close(seen["output"], y)
        close(seen["input"], x)
        channel, spatial = (np.log(m) - np.log1p(-m) for m in (seen["channel"], seen["spatial"]))  # before the sigmoid
        how = {"sum": np.add, "product": np.multiply, "max": np.maximum}[combine]
        close(1 / (1 + np.exp(-how(channel[:, None, None, :], spatial[..., None]))), seen["map"], 1e-4)

    def test_without_the_skip(self) -> None:
        x = numbers("x", 2, 8, 6, 8)
        module = BAM(reduction=2, norm=evaluating, skip=False)
        variables = drawn(module, x)
        close(quick(module.apply)(variables, x), quick(BAM(reduction=2, norm=evaluating).apply)(variables, x) - x)

    def test_one_branch(self) -> None:
        """The channel branch alone is the same everywhere, the spatial branch alone for every channel."""
        x = numbers("x", 2, 8, 6, 8)
        for off, axis in (("spatial", (1, 2)), ("channel", (3,))):
            module = BAM(reduction=2, norm=evaluating, **{off: False})
            _, sown = quick(lambda v, x, module=module: module.apply(v, x, mutable=["attention"]))(drawn(module, x), x)
            (attention,) = sown["attention"]["map"]
            assert off not in sown["attention"]
            assert np.ptp(attention, axis=axis).max() < 1e-6
            assert np.ptp(attention) > 1e-2

    def test_maps_cost_nothing_unless_recorded(self) -> None:
        x = numbers("x", 2, 8, 8, 8)
        module = BAM(reduction=2, norm=evaluating)
        variables = drawn(module, x)
        _, changed = jax.eval_shape(lambda x: module.apply(variables, x, mutable=["batch_stats"]), x)
        assert "attention" not in changed
        recorded, unrecorded = (
            str(jax.make_jaxpr(lambda x, mutable=mutable: module.apply(variables, x, mutable=mutable)[0])(x))
            for mutable in (["attention"], ["batch_stats"])
        )
        assert recorded.count("logistic") > unrecorded.count("logistic") == 1

    def test_dilation_fits(self) -> None:
        """A tap besides the centre is in view from somewhere on every map of 2 or more, and a dilation that fits stays."""
        for side in range(1, 33):
            for wanted in range(1, 9):
                got = fitting_dilation(wanted, side, side)
                assert 1 <= got <= wanted
                if side >= 2:
                    assert got < side
                if 2 * wanted <= side:
                    assert got == wanted
                # The shorter side decides.
                assert fitting_dilation(wanted, side, 32) == fitting_dilation(wanted, 32, side) == got
        assert [fitting_dilation(4, side, side) for side in (1, 2, 4, 6, 7, 8, 14, 28, 56)] == [1, 1, 2, 3, 3, 4, 4, 4, 4]

    @pytest.mark.parametrize("side", [2, 4, 7])
    def test_spatial_branch_sees_neighbours(self, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The map in a corner depends on other places; with a dilation of the map's side it would not."""
        x = numbers("x", 8, side, side, 4)
        module = BAM(reduction=1, channel=False, dilation=side, norm=evaluating)
        variables = drawn(module, x)

        def corners(x: jax.Array) -> jax.Array:
            _, sown = module.apply(variables, x, mutable=["attention"])
            return sown["attention"]["spatial"][0][:, 0, 0].sum()

        def from_elsewhere() -> float:
            gradient = np.array(quick(jax.grad(lambda x: corners(x)))(x))
            assert np.abs(gradient[:, 0, 0]).max() > 1e-4
            gradient[:, 0, 0] = 0
            return np.abs(gradient).max()

        assert from_elsewhere() > 1e-4
        monkeypatch.setattr("attention_jax.nn.bam.fitting_dilation", lambda dilation, height, width: dilation)
        assert from_elsewhere() == 0

    def test_dilation_of_the_released_code(self, caplog: pytest.LogCaptureFixture) -> None:
        """On a map of four pixels a dilation of four is kept, as if the 3x3 had one tap; a fitted one is printed once."""
        x = numbers("x", 2, 4, 4, 4)
        kept, fitted = (BAM(reduction=1, fit_dilation=fit, norm=evaluating) for fit in (False, True))
        variables = drawn(kept, x)
        centre = tree.map_with_path(
            lambda path, leaf: (
                leaf * np.float32(np.arange(9) == 4).reshape(3, 3, 1, 1) if leaf.ndim == 4 and len(leaf) == 3 else leaf
            ),
            variables["params"],
        )
        y = kept.apply(variables, x)
        close(y, kept.apply({**variables, "params": centre}, x))
        assert np.abs(np.asarray(y) - fitted.apply(variables, x)).max() > 1e-3
        assert aj.create_model("bam_resnet18.code").gate_args["fit_dilation"] is False

        said = "stage1_gate: BAM's dilation is 2 on its 5x4 map, where 4 would leave most taps in the padding"
        for fit, times in ((False, 0), (True, 1)):
            with caplog.at_level("INFO", "attention_jax"):
                aj.summary(ResNet(**TINY, gate="bam", gate_args=dict(reduction=2, fit_dilation=fit)), (1, 5, 4, 3))
            assert caplog.text.count(said) == caplog.text.count("dilation is") == times

    def test_attention_in_a_network(self) -> None:
        """A module between stages, none after the last; each names what it saw."""
        images = numbers("images", 2, 8, 8, 3)
        model = ResNet(**{**TINY, "widths": (4, 8, 8), "stage_sizes": (1, 1, 1)}, gate="bam", gate_args=dict(reduction=2))
        maps = aj.attention_maps(model, drawn(model, images), images)
        kinds = ("channel", "input", "map", "output", "spatial")
        assert sorted(maps) == [f"stage{stage}_gate/{kind}" for stage in (1, 2) for kind in kinds]
        assert maps["stage1_gate/map"].shape == (2, 8, 8, 4)
        assert maps["stage2_gate/channel"].shape == (2, 8)
        assert maps["stage2_gate/spatial"].shape == (2, 4, 4)


class TestSqueezeExcite:
    def test_starts_at_a_half(self) -> None:
        """With the second layer zero every scale is sigmoid(0)."""
        x = numbers("x", 2, 3, 4, 32)
        variables = drawn(SqueezeExcite(), x)
        variables["params"]["expand"] = jax.tree.map(np.zeros_like, variables["params"]["expand"])
        close(SqueezeExcite().apply(variables, x), x / 2)

    def test_scales_channels(self) -> None:
        """One number for a channel of an example, between 0 and 1, from the mean over places alone."""
        x = numbers("x", 2, 4, 6, 32)
        module = SqueezeExcite(reduction=4)
        variables = drawn(module, x)
        y, sown = module.apply(variables, x, mutable=["attention"])
        (scale,) = sown["attention"]["scale"]
        assert 0 < scale.min() < scale.max() < 1
        close(y, x * scale[:, None, None, :])
        turned = x[:, ::-1, ::-1]
        close(module.apply(variables, turned), y[:, ::-1, ::-1])

    @pytest.mark.parametrize(("channels", "divisor", "width"), [(64, 1, 4), (8, 1, 1), (64, 8, 8), (192, 8, 16), (512, 8, 32)])
    def test_hidden_width(self, channels: int, divisor: int, width: int) -> None:
        variables = drawn(SqueezeExcite(divisor=divisor), jnp.zeros((1, 2, 2, channels)))
        assert variables["params"]["reduce"]["kernel"].shape == (channels, width)


class TestConv:
    @pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (7, 2, 1), (1, 2, 1), (3, 1, 4)])
    def test_padding_is_symmetric(self, kernel: int, stride: int, dilation: int) -> None:
        """The centre tap of output i is input i · stride, as in the papers; Flax's "SAME" is one off on even sizes."""
        x = numbers("x", 1, 16, 16, 1)
        for module, symmetric in ((Conv, True), (nn.Conv, stride == 1 or kernel == 1)):
            conv = module(1, (kernel, kernel), stride, use_bias=False, kernel_dilation=dilation)
            weight = jnp.zeros((kernel, kernel, 1, 1)).at[kernel // 2, kernel // 2].set(1.0)
            y = conv.apply({"params": {"kernel": weight}}, x)
            assert y.shape == (1, 16 // stride, 16 // stride, 1)
            assert bool(jnp.array_equal(y, x[:, ::stride, ::stride])) == symmetric

    @pytest.mark.parametrize(("side", "stride", "dilation"), [(1, 1, 1), (2, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 1), (5, 1, 2)])
    def test_small_maps_are_no_exception(self, side: int, stride: int, dilation: int) -> None:
        """Outputs and gradients are those of XLA's convolution whatever the size of the map, and so are the counts."""
        x, kernel = numbers("x", 2, side, side, 3), numbers("kernel", 3, 3, 3, 4)
        conv = Conv(4, (3, 3), stride, kernel_dilation=dilation)
        weights = numbers("weights", *jax.eval_shape(conv.apply, {"params": {"kernel": kernel}}, x).shape)

        def by_xla(kernel: jax.Array, x: jax.Array) -> jax.Array:
            padding = ((dilation, dilation),) * 2
            numbering = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation), dimension_numbers=numbering
            )

        def everything(forward: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
            return quick(jax.value_and_grad(lambda *inputs: (forward(*inputs) * weights).sum(), (0, 1)))(kernel, x)

        close(everything(lambda kernel, x: conv.apply({"params": {"kernel": kernel}}, x)), everything(by_xla), 1e-5)
        assert aj.summary(conv, x.shape).macs == weights.size * 9 * 3

    def test_stated_padding_stays(self) -> None:
        conv = Conv(1, (3, 3), padding="VALID")
        assert conv.apply(conv.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), jnp.zeros((1, 8, 8, 1))).shape == (1, 6, 6, 1)

    def test_initialisation(self) -> None:
        """Deviation sqrt(2 / (k·k·outputs)), no bias."""
        variables = Conv(256, (3, 3)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))
        assert list(variables["params"]) == ["kernel"]
        np.testing.assert_allclose(variables["params"]["kernel"].std(), np.sqrt(2 / (9 * 256)), rtol=0.01)


class TestOtherNorms:
    def test_group_norm_is_flax_where_32_groups_fit(self) -> None:
        x = numbers("x", 2, 3, 4, 64) * 2 + 1
        variables = drawn(GroupNorm(), x)
        close(GroupNorm().apply(variables, x), nn.GroupNorm(32, epsilon=1e-5).apply(variables, x), 5e-6)

    @pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (3, 1), (6, 1), (8, 4), (16, 8), (48, 8), (128, 32)])
    def test_groups_have_at_least_two_channels(self, channels: int, groups: int) -> None:
        """Changing one channel changes its group alone."""
        x = numbers("x", 1, 3, 3, channels)
        variables = drawn(GroupNorm(), x)
        changed = x.copy()
        changed[..., 0] = numbers("other", 1, 3, 3)
        difference = np.abs(np.asarray(GroupNorm().apply(variables, changed)) - GroupNorm().apply(variables, x)).max((0, 1, 2))
        np.testing.assert_array_equal(difference > 1e-6, np.arange(channels) < channels // groups)

    def test_no_norm_is_a_bias(self) -> None:
        x = numbers("x", 2, 3, 3, 4)
        variables = drawn(NoNorm(), x)
        close(NoNorm().apply(variables, x), x + variables["params"]["bias"])


class TestAveragePool:
    @pytest.mark.parametrize("shape", [(4, 6), (5, 6), (5, 7), (1, 1)])
    def test_is_the_mean_of_what_is_there(self, shape: tuple[int, int]) -> None:
        x = numbers("x", 2, *shape, 3)
        h, w = shape
        expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in range(0, w, 2)] for i in range(0, h, 2)]
        close(average_pool(x), np.moveaxis(np.array(expected), 2, 0))


def test_dropout_keeps_its_share_and_the_mean():
    x = jnp.ones((300, 7, 33))  # an odd number of features
    for rate in (0.1, 0.3):
        y = np.asarray(drop(x, rate, jax.random.key(0)))
        kept = y > 0
        deviation = np.sqrt(rate * (1 - rate) / kept.size)
        assert abs(kept.mean() - (1 - rate)) < 4 * deviation
        assert abs(kept.mean((0, 1)) - (1 - rate)).max() < 4 * np.sqrt(33) * deviation
        np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=2e-5)
        halves = kept[..., :17], np.roll(kept, -17, -1)[..., :17]  # entries that share their random bits
        assert abs((halves[0] & halves[1]).mean() - (1 - rate) ** 2) < 6 * deviation
        other = np.asarray(drop(x, rate, jax.random.key(1))) > 0
        assert abs((kept & other).mean() - (1 - rate) ** 2) < 4 * deviation
    assert not np.asarray(drop(x, 1.0, jax.random.key(0))).any()
    assert drop(x, 0.3, None) is x and drop(x, 0.0, jax.random.key(0)) is x
    assert drop(x.astype(jnp.bfloat16), 0.3, jax.random.key(0)).dtype == jnp.bfloat16
