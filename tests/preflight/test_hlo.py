"""Preflight reads the text of a compiled program: arrays and layouts, exchanges, traffic."""

import pytest

from attention_jax.preflight import measure
from attention_jax.preflight.hlo import HloProgram

TEXT = """HloModule jit_train_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, must-alias) }, \
entry_computation_layout={(f32[10,20]{1,0:T(8,128)})->f32[]}, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (x: bf16[64,128]) -> bf16[8,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %whole = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %part = bf16[8,128]{1,0:T(8,128)(2,1)} dynamic-slice(%whole, %zero, %zero), dynamic_slice_sizes={8,128}
}

%look (table: f32[1024,128], at: s32[]) -> f32[1,128] {
  %table = f32[1024,128]{1,0:T(8,128)} parameter(0)
  %at = s32[]{:T(128)} parameter(1)
  ROOT %row = f32[1,128]{1,0:T(1,128)} dynamic-slice(%table, %at, %at), dynamic_slice_sizes={1,128}
}

%body (carry: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %carry = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %w = f32[64,128]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %gathered = (f32[64,128]{1,0:T(8,128)}, f32[512,128]{1,0:T(8,128)}) all-gather-start(%w), \
replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(train_step)/jvp(Net)/while/body/layer_1/dense/dot_general"}
  %done = f32[512,128]{1,0:T(8,128)} all-gather-done(%gathered)
  ROOT %next = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%i, %w)
}

%more (carry: (s32[], f32[64,128])) -> pred[] {
  %carry = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  ROOT %yes = pred[]{:T(512)} constant(true)
}

ENTRY %main (p0: f32[10,20], p1: f32[1024,128], p2: bf16[64,128]) -> f32[] {
  %p0 = f32[10,20]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params[\\'stem\\'][\\'kernel\\']"}
  %p1 = f32[1024,128]{1,0:T(8,128)} parameter(1), metadata={op_name="state.ema[\\'params\\'][\\'stem\\'][\\'kernel\\']"}
  %p2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(2), metadata={op_name="batch[\\'image\\']"}
  %near = f32[10,20]{1,0:T(8,128)S(1)} negate(%p0), metadata={op_name="jit(train_step)/transpose(jvp(Net))/stem_conv/mul"}
  %all-reduce.7 = f32[10,20]{1,0:T(8,128)S(1)} all-reduce(%near), channel_id=2, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, to_apply=%add
  %scattered = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%p2), kind=kCustom, calls=%all-reduce-scatter.1
  %n = s32[]{:T(128)} constant(0)
  %row = f32[1,128]{1,0:T(1,128)} fusion(%p1, %n), kind=kLoop, calls=%look
  %start = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%n, %row)
  %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%start), condition=%more, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
  ROOT %zero = f32[]{:T(128)} constant(0)
}
"""


@pytest.fixture(scope="module")
def text() -> HloProgram:
    return HloProgram(TEXT)


def test_arrays_have_the_bytes_of_their_layout(text):
    stem, kept, batch = text.parameters()
    assert [stem.arrays[0].bytes, stem.arrays[0].padded] == [800, 16 * 128 * 4]
    assert [batch.arrays[0].bytes, batch.arrays[0].padded] == [64 * 128 * 2] * 2
    assert stem.scope == "state.params['stem']['kernel']" and kept.scope.startswith("state.ema")
    assert text.aliased() == 2


def test_many_arguments_are_one_tuple_in_the_order_of_the_leaves():
    """As XLA hands over more than 2,000 to a TPU: nameless, and without what the step does not use."""
    arrays = (
        "f32[]{:T(128)}, f32[10,20]{1,0:T(8,128)}, f32[20]{0:T(128)}, f32[10,20]{1,0:T(8,128)}, bf16[16,128]{1,0:T(8,128)(2,1)}"
    )
    entry = f"HloModule jit_step\n\nENTRY %main (all: (f32[])) -> f32[] {{\n  %all.1 = ({arrays}) parameter(0)\n}}\n"
    leaves = [("step", ()), ("params", (10, 20)), ("params", (20,)), ("batch_stats", (3,)), ("opt_state", (10, 20))]
    leaves += [("batch", (16, 128))]
    found = measure._laid_out(HloProgram(entry), leaves)
    assert found == {"params": 16 * 128 * 4 + 512, "opt_state": 16 * 128 * 4, "step": 512, "batch": 16 * 128 * 2}


def test_exchanges_by_kind_group_and_purpose(text):
    found = {one.kind: one for one in text.collectives()}
    assert set(found) == {"all-reduce", "reduce-scatter", "all-gather"}
    reduced, scattered, gathered = (found[kind] for kind in ("all-reduce", "reduce-scatter", "all-gather"))
    assert (reduced.group, reduced.times, reduced.bytes) == (8, 1, 800)
    assert reduced.sent == 2 * 800 * 7 / 8
    assert reduced.arrays[0][0] == "stem_conv f32[10,20]"
    assert (scattered.group, scattered.bytes) == (4, 64 * 128 * 2)
    assert (gathered.group, gathered.times, gathered.bytes) == (8, 6, 6 * 512 * 128 * 4)  # a loop's body runs six times
    assert gathered.arrays[0][0] == "layer_1/dense f32[512,128]"


def test_an_exchange_beside_several_fusions_counts_once(text):
    line = next(line for line in TEXT.splitlines() if "%scattered" in line)
    one = TEXT.replace("all-reduce(%x), ", "all-reduce(%x), channel_id=9, ")
    several = HloProgram(one.replace(line, line + "\n" + line.replace("%scattered", "%scattered.2")))
    assert several.collectives() == text.collectives()


def test_a_gathered_copy_is_named_after_the_parameter():
    """As newer compilers write it, which keep the barrier before a rematerialised pass."""
    entry = """HloModule jit_train_step, num_partitions=8

%copied (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %copy = f32[8,128]{0,1} copy(%x)
}

ENTRY %main (p: f32[8,128]) -> f32[64,128] {
  %p = f32[8,128]{1,0} parameter(0), metadata={op_name="state.params[\\'head\\'][\\'kernel\\']"}
  %wrapped_copy = f32[8,128]{0,1} fusion(%p), kind=kLoop, calls=%copied, metadata={op_name="jit(train_step)/eval_jaxpr/remat2"}
  ROOT %whole = f32[64,128]{0,1} all-gather(%wrapped_copy), replica_groups=[1,8]<=[8], dimensions={0}, \
metadata={op_name="jit(train_step)/eval_jaxpr/checkpoint/rematted_computation/Net/head/sharding_constraint"}
}
"""
    (gathered,) = HloProgram(entry).collectives()
    assert gathered.arrays == (("head/kernel f32[64,128]", 64 * 128 * 4),)


def test_traffic_is_that_of_the_main_memory(text):
    row = 128 * 4
    expected = {
        "near": 16 * 128 * 4,  # read; written on the chip
        "scattered": 64 * 128 * 2 + 8 * 128 * 2,
        "row": row + 128 * 4 + row,  # of a table only what is looked at; the index; the result
        "gathered": 6 * (64 + 512) * 128 * 4,
    }
    assert text.traffic() == sum(expected.values())


BETWEEN_SLICES = """HloModule jit_step, num_partitions=8

%body (carry: (s32[], f32[64])) -> (s32[], f32[64]) {
  %carry = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %w = f32[64]{0} get-tuple-element(%carry), index=1
  %sum = f32[64]{0} all-reduce(%w), replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %next = (s32[], f32[64]{0}) tuple(%i, %sum)
}

%more (carry: (s32[], f32[64])) -> pred[] {
  %limit = s32[] constant(5)
  %carry = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[512]) -> f32[128] {
  %p = f32[512]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[64]{0}) tuple(%zero, %p)
  %loop = (s32[], f32[64]{0}) while(%start), condition=%more, body=%body
  %begin = token[] after-all()
  %part = f32[128]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  %send = (f32[128]{0}, u32[], token[]) send(%part, %begin), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[128]{0}, u32[], token[]) recv(%begin), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %sum = f32[128]{0} negate(%part)
}
"""


def test_an_exchange_between_slices_is_one_of_its_own():
    """As the TPU compiler writes it: a slice sums by itself, and each of its devices sends a part to the other slices."""
    found = {one.kind: one for one in HloProgram(BETWEEN_SLICES).collectives()}
    assert set(found) == {"all-reduce", "reduce-scatter", "all-reduce between slices"}
    between = found["all-reduce between slices"]
    assert (between.group, between.times, between.bytes) == (4, 1, 512)
    assert between.sent == 2 * 512 * 3 / 4


def test_a_loop_runs_as_often_as_its_condition_says():
    """Where the compiler does not write its count down."""
    (looped,) = (one for one in HloProgram(BETWEEN_SLICES).collectives() if one.kind == "all-reduce")
    assert (looped.times, looped.bytes) == (5, 5 * 256)


def test_a_slice_that_is_fetched_ahead_reads_its_part_alone():
    entry = """HloModule jit_step

ENTRY %main (p: bf16[64,128]) -> bf16[16,128] {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %slice-start = (bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%p), \
slice={[0:16], [0:128]}
  %part = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %copy-start = (bf16[16,128]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%part)
  ROOT %out = bf16[16,128]{1,0:T(8,128)(2,1)} copy-done(%copy-start)
}
"""
    assert HloProgram(entry).traffic() == 2 * 16 * 128 * 2  # into the chip's own memory, and out of it
