"""What preflight reads off steps compiled for eight devices; `test_preflight.py` runs this file in a process of its own."""

import jax
import pytest

from attention_jax.models.summary import summary
from attention_jax.preflight.measure import KINDS, measure_step
from attention_jax.train.program import build_program
from tests.helpers.small import small_config
from tests.preflight.test_preflight import steps_operations


@pytest.fixture(scope="module")
def measured():
    return measure_step(small_config(batch_norm__granularity="per_replica"), jax.devices())


def test_a_data_parallel_network_only_reduces(measured):
    assert set(measured.collectives) == {"all-reduce"}
    _, size, sent = measured.collectives["all-reduce"]
    gradients = measured.state["params"]
    assert gradients <= size <= 1.5 * gradients + 4096  # and statistics and sums
    assert sent == pytest.approx(2 * size * 7 / 8)


def test_gradients_are_reduced_once_a_step(measured):
    """Gradients are summed once, not once for each of four micro-batches: a replica adds those up by itself."""
    config = small_config(batch_norm__granularity="per_replica", accumulation=4)
    assert measure_step(config, jax.devices()).collectives == measured.collectives


def test_the_state_is_overwritten_in_place(measured):
    assert measured.donated[0] == measured.donated[1] > 40


def test_bytes_by_kind_are_the_arguments(measured):
    assert set(measured.state) == set(KINDS)  # every kind is in use here
    assert sum(measured.laid_out.values()) == sum(measured.state.values())  # nothing is filled up on CPU
    assert sum(measured.state.values()) <= measured.arguments <= 1.02 * sum(measured.state.values()) + 8  # and the seed
    assert measured.state["ema"] == measured.state["params"] + measured.state["batch_stats"]


def test_operations_are_those_of_the_passes(measured):
    config = small_config(batch_norm__granularity="per_replica")
    _, forward, program = steps_operations(config)
    (first,) = (macs for path, macs in forward.items() if "stem_conv" in path and macs)
    assert measured.operations == 2 * (3 * sum(forward.values()) - first)  # nobody needs the gradient of the images
    padded = summary(program.model, program.task.example_inputs(program.config)).macs
    assert measured.model_operations == 6 * padded * config.batch_size


def test_traffic_is_at_least_the_state_and_memory_more(measured):
    assert measured.traffic > sum(measured.state.values())
    assert measured.needed > measured.arguments + measured.temporaries


def test_a_divided_layer_is_gathered_once_a_pass_of_a_micro_batch():
    config = small_config(batch_norm__granularity="per_replica", parallel__fsdp=8, accumulation=2, precision="bfloat16")
    divided, state = measure_step(config, jax.devices()), build_program(config).abstract_state
    for kind in ("params", "opt_state", "ema"):
        assert divided.state[kind] < 0.5 * sum(map(nbytes, jax.tree.leaves(getattr(state, kind)))), kind
    in_parts = [x for x in jax.tree.leaves((state.params, state.batch_stats)) if "fsdp" in x.sharding.spec]
    kernels = sum(nbytes(x) for x in in_parts if x.ndim > 1)
    vectors = sum(nbytes(x) for x in in_parts if x.ndim == 1)
    _, size, _ = divided.collectives["all-gather"]
    assert 4 * kernels < size <= 4 * (kernels + vectors)  # two passes over two micro-batches
    largest = {purpose: size for kind, purpose, size in divided.largest if kind == "all-gather"}
    conv = state.params["stage2_block1"]["conv2"]["kernel"]
    assert largest["stage2_block1/conv2/kernel f32[3,3,8,8]"] == 4 * nbytes(conv)
    assert set(divided.collectives) == {"all-gather", "all-reduce"}  # no example goes to another device
    assert divided.donated[0] == divided.donated[1]


def nbytes(x):
    return x.size * x.dtype.itemsize
