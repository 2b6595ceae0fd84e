"""What preflight reads off steps compiled for eight devices; `test_preflight.py` runs this file in a process of its own."""

import jax
import pytest

from attention_jax.preflight.measure import KINDS, measure
from attention_jax.train.program import build
from tests.small import small_config


@pytest.fixture(scope="module")
def measured():
    return measure(small_config(batch_norm__granularity="per_replica"), jax.devices())


def test_a_data_parallel_network_only_reduces(measured):
    assert set(measured.collectives) == {"all-reduce"}
    _, size, sent = measured.collectives["all-reduce"]
    gradients = measured.state["params"]
    assert gradients <= size <= 1.5 * gradients + 4096  # and statistics and sums
    assert sent == pytest.approx(2 * size * 7 / 8)


def test_the_state_is_overwritten_in_place(measured):
    assert measured.donated[0] == measured.donated[1] > 40


def test_bytes_by_kind_are_the_arguments(measured):
    assert set(measured.state) == set(KINDS)  # every kind is in use here
    assert sum(measured.laid_out.values()) == sum(measured.state.values())  # nothing is filled up on CPU
    assert sum(measured.state.values()) <= measured.arguments <= 1.02 * sum(measured.state.values()) + 8  # and the seed
    assert measured.state["ema"] == measured.state["params"] + measured.state["batch_stats"]


def test_traffic_and_operations_are_there(measured):
    assert measured.operations > 0 and measured.traffic > sum(measured.state.values())
    assert measured.needed > measured.arguments + measured.temporaries


def test_a_divided_layer_is_gathered_once_a_pass():
    config = small_config(batch_norm__granularity="per_replica", parallel__fsdp=8)
    divided, whole = measure(config, jax.devices()), measured_bytes(config)
    parts = {kind: divided.state[kind] for kind in ("params", "opt_state", "ema")}
    assert all(size < 0.5 * whole[kind] for kind, size in parts.items())
    count, size, _ = divided.collectives["all-gather"]
    # What a device has of the divided ones is an eighth; forward and backward pass gather each of them once.
    divided_bytes = (whole["params"] - parts["params"]) * 8 / 7
    assert divided_bytes <= size <= 2 * divided_bytes + 2 * whole["batch_stats"]
    assert divided.donated[0] == divided.donated[1]


def measured_bytes(config):
    """Bytes of a whole state by kind."""
    state = build(config).abstract_state
    return {name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for name, tree in vars(state).items()}
