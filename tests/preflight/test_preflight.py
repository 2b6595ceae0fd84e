"""Preflight: names of slices, what a compiled program's text says, counts of operations, reports and tables."""

import dataclasses
import importlib.util
import json
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_jax.cli import main as cli
from attention_jax.config.plugins import load_file
from attention_jax.errors import UserError
from attention_jax.models.summary import count_multiply_adds, summary
from attention_jax.preflight import chips, measure, table
from attention_jax.preflight.report import Report
from attention_jax.train.program import build_program
from tests.helpers import small_text
from tests.helpers.small import as_options, small_config


# --- slices ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "topology", "counts"),
    [
        ("v5e-16", "v5e:4x4", (16, 16, 4)),
        ("v5litepod-16", "v5e:4x4", (16, 16, 4)),
        ("V5E:4x4", "v5e:4x4", (16, 16, 4)),
        ("v5e-8", "v5e:2x4", (8, 8, 1)),
        ("v4-8", "v4:2x2x1", (4, 4, 1)),
        ("v4:2x2", "v4:2x2x1", (4, 4, 1)),
        ("v4-32", "v4:2x2x4", (16, 16, 4)),
        ("v5p-128", "v5p:4x4x4", (64, 64, 16)),
        ("v6e-1", "v6e:1x1", (1, 1, 1)),
        ("trillium-256", "v6e:16x16", (256, 256, 64)),
        ("v3-8", "v3:2x2", (4, 8, 1)),
        ("2xv5e-16", "2xv5e:4x4", (32, 32, 8)),
        ("4xv4:2x2", "4xv4:2x2x1", (16, 16, 4)),
    ],
)
def test_usual_names_of_slices(text, topology, counts):
    found = chips.find_slice(text)
    assert found.topology == topology
    assert (found.chips, found.devices, found.hosts) == counts
    assert chips.find_slice(found.name) == found == chips.find_slice(found.topology)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e-12", "v5e-8, v5e-16"),
        ("v5e:3x3", "v5e:2x4, v5e:4x4"),
        ("v4-4", "two a chip"),
        ("v9-8", "such as v5e-16"),
        ("v5a-8", "did you mean"),
        ("v4", "not a slice"),
        ("2xv5e-12", "v5e-8, v5e-16"),
        ("2xv3-8", "slices of v3 are not joined"),
        ("0xv5e-16", "1 to 256 slices"),
        ("", "not a slice"),
    ],
)
def test_other_names_are_explained(text, says):
    with pytest.raises(UserError, match=says) as caught:
        chips.find_slice(text)
    assert "\n" not in str(caught.value)


def test_neighbours_of_a_chip():
    for text, links in {
        "v5e-1": 0,
        "v5e-4": 2,
        "v5e-16": 2,
        "v5e-128": 3,
        "v5e-256": 4,
        "v4-8": 2,
        "v4-32": 3,
        "v4-128": 6,
    }.items():
        found = chips.find_slice(text)
        assert found.egress == links * found.chip.link, text


# --- operations --------------------------------------------------------------------------------------------------------
def steps_operations(config) -> tuple[float, dict[str, int], object]:
    """Multiply-adds of a traced step without padding, those of one forward pass, the program."""
    program = build_program(config)
    batch = program.task.batch_shapes(program.config)[-1]
    traced = program.train_step.trace(program.abstract_state, batch, jax.ShapeDtypeStruct((), "uint32"))
    variables = program.abstract_state.variables()
    rngs = {"dropout": jax.random.key(0)}
    inputs = [batch["image"]] if "image" in batch else [batch["source"], batch["target"]]
    forward = jax.make_jaxpr(lambda v, *x: program.model.apply(v, *x, train=True, mutable=["batch_stats"], rngs=rngs))
    step = sum(count_multiply_adds(measure._live(traced.jaxpr.jaxpr), padding=False).values())
    return step, count_multiply_adds(forward(variables, *inputs).jaxpr, padding=False), program


def test_a_step_multiplies_three_times_as_much_as_a_forward_pass():
    step, forward, program = steps_operations(small_config())
    (first,) = (macs for path, macs in forward.items() if "stem_conv" in path and macs)
    assert step == 3 * sum(forward.values()) - first  # nobody needs the gradient of the images
    padded = summary(program.model, program.task.example_inputs(program.config)).macs * program.config.batch_size
    assert sum(forward.values()) < padded


def test_a_step_over_sentences_multiplies_three_times_as_much(tmp_path):
    step, forward, _ = steps_operations(small_text.small_config(small_text.write_pairs(tmp_path)))
    assert step == pytest.approx(3 * sum(forward.values()), rel=0.03)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_and_holes_are_not_counted_when_they_are_not_wanted(stride):
    x, kernel = jnp.ones((2, 7, 6, 4)), jnp.ones((3, 3, 2, 6))

    def conv(x, kernel):
        how = dict(window_strides=(stride, stride), padding=((1, 2), (0, 1)), rhs_dilation=(2, 1), feature_group_count=2)
        return jax.lax.conv_general_dilated(x, kernel, **how, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    y, back = jax.vjp(conv, x, kernel)
    count = round(float(y.sum()))  # of ones, each product of two of them adds one
    assert sum(count_multiply_adds(jax.make_jaxpr(conv)(x, kernel).jaxpr, padding=False).values()) == count
    of_x, of_kernel = (jax.make_jaxpr(lambda y, i=i: back(y)[i])(y).jaxpr for i in (0, 1))
    for jaxpr in (of_x, of_kernel):
        assert sum(count_multiply_adds(measure._live(jaxpr), padding=False).values()) == count
    assert sum(count_multiply_adds(jax.make_jaxpr(conv)(x, kernel).jaxpr).values()) > count


# --- a compiled step, on this machine's devices ------------------------------------------------------------------------
@pytest.mark.slow
def test_laws_of_compiled_steps(run_python):
    eight = {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # which leaves the collectives as they are
    done = run_python("-m", "pytest", "-q", "tests/helpers/eight_devices_preflight.py", env=eight, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="the compiler for TPUs is not installed (extra 'tpu')")
def test_a_small_step_compiles_for_a_tpu(run_cli):
    done = run_cli("preflight", *as_options(total_steps=8), "--topology=v5e-4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["donated"][0] == found["donated"][1]
    assert found["fits"] and found["arguments"] < found["needed"] < found["capacity"]
    assert 0 <= found["arguments"] / sum(found["laid_out"].values()) - 1 < 0.02


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="the compiler for TPUs is not installed (extra 'tpu')")
def test_the_compiler_knows_the_slices_and_says_when_one_is_too_small(run_python):
    code = """
import jax
from attention_jax.distributed.mesh import make_mesh
from attention_jax.preflight import chips, measure
two = make_mesh(fsdp=2, devices=measure.describe_devices(chips.find_slice("2xv5e-4")))
assert dict(two.shape) == {"data": 4, "fsdp": 2, "model": 1}
assert [{device.slice_index for device in row.flat} for row in two.devices] == [{0}, {0}, {1}, {1}]
for name in ("v3-8", "v4-8", "v4-32", "v5e-1", "v5e-8", "v5e-16", "v5p-8", "v6e-8", "tpu7x-8"):
    assert len(measure.describe_devices(chips.find_slice(name))) == chips.find_slice(name).devices, name
device = measure.describe_devices(chips.find_slice("v5e-1"))[0]
x = jax.ShapeDtypeStruct((60_000, 90_000), "float32", sharding=jax.sharding.SingleDeviceSharding(device))
try:
    jax.jit(lambda x: x.sum()).lower(x).compile()
except Exception as error:
    print(measure._too_large(error))
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    needed, there = json.loads(done.stdout.replace("(", "[").replace(")", "]"))
    assert needed > 60_000 * 90_000 * 4 > there


# --- reports -----------------------------------------------------------------------------------------------------------
def made_up(**changes) -> measure.StepCost:
    """Numbers of a step that was never compiled."""
    gib = 2**30
    return dataclasses.replace(
        measure.StepCost(
            versions={"jax": "0"},
            devices=16,
            mesh={"data": 16},
            network="net",
            precision="float32",
            parameters=10**8,
            shape="1024 x 224 x 224 x 3",
            shapes=1,
            examples=1024,
            unit="images",
            steps=1000,
            steps_per_epoch=100,
            accumulation=1,
            state={"params": gib, "opt_state": gib, "batch": gib},
            laid_out={},
            arguments=3 * gib,
            temporaries=8 * gib,
            results=0,
            code=0,
            donated=(10, 10),
            model_operations=197e12 * 16,
            operations=197e12 * 16,
            xla_operations=0,
            traffic=819 * 10**8,
            xla_bytes=0,
            collectives={"all-reduce": (3, gib, 100e9 / 4)},
            largest=[("all-reduce", "layer f32[2]", gib)],
            seconds={"trace": 1.0},
        ),
        **changes,
    )


SLICE = chips.find_slice("v5e-16")


def report(**changes) -> Report:
    return Report(SLICE, made_up(**changes), input_rate=64.0)


def test_the_slowest_of_three_bounds_the_step():
    assert report().bounds == pytest.approx({"compute": 1.0, "memory": 0.1, "interconnect": 0.25})
    assert (report().step, report().bound) == (report().bounds["compute"], "compute")
    numbers, text = report().numbers(), report().text()
    assert numbers["mfu_bound"] == pytest.approx(1.0) and numbers["hours"] == pytest.approx(1000 / 3600)
    assert numbers["chip_hours"] == pytest.approx(16 * numbers["hours"])
    assert numbers["examples_per_second_per_host"] == pytest.approx(256)
    assert "fits" in text and "4.0 cores" in text and json.dumps(numbers)
    assert report().expected == pytest.approx((0.9 * 1.35, 1.5 * 1.35)) and "1.22e+03 to 2.03e+03 ms" in text
    slow = report(traffic=819 * 10**10)
    assert slow.expected == pytest.approx((0.9 * 11.25, 1.5 * 11.25))
    assert (slow.bound, slow.step) == ("memory", pytest.approx(10.0))
    assert report(traffic=1, collectives={}).expected == pytest.approx((1.0, 1.5)), "no step is faster than at best"


def test_the_network_between_slices_is_a_bound_of_its_own():
    exchanges = {"all-reduce": (3, 2**30, 100e9 / 4), "all-reduce between slices": (3, 2**26, 3.125e9 / 2)}
    two = Report(chips.find_slice("2xv5e-16"), made_up(devices=32, collectives=exchanges), None)
    assert two.bounds == pytest.approx({"compute": 0.5, "memory": 0.1, "interconnect": 0.25, "network": 0.5})
    assert "all-reduce between slices  3 a step, 64.00 MiB a device" in two.text() and "network 500" in two.text()
    assert "network" not in report().bounds


def test_the_peak_of_devices_by_their_kind():
    of_kind = lambda kind, number: chips.find_peak([types.SimpleNamespace(device_kind=kind)] * number)  # noqa: E731
    assert of_kind("TPU v5 lite", 16) == 16 * chips.CHIPS["v5e"].flops
    assert of_kind("TPU v3", 8) == 4 * chips.CHIPS["v3"].flops  # two devices a chip
    assert of_kind("cpu", 1) is None


def test_what_to_change_when_it_does_not_fit():
    assert report().fits and report().advice() == []
    temporaries = "\n".join(report(temporaries=40 * 2**30).advice())
    for word in ("accumulation=4", "bfloat16", "remat", "batch of 1/4", "slice of 4 times"):
        assert word in temporaries
    state = report(state={"params": 20 * 2**30}, arguments=20 * 2**30)
    assert any("fsdp=4" in line for line in state.advice())
    refused = report(too_large=(20.0 * 2**30, 15.75 * 2**30))
    assert not refused.fits and "DOES NOT FIT: needs 20.00 GiB of 15.75 GiB" in refused.text()
    assert "roofline" not in refused.numbers()


@pytest.mark.parametrize(
    "says",
    [
        "Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm. Exceeded hbm capacity by 4.76G.",
        "Ran out of memory on HBM, the total memory required for HLO temporaries (20.51G) exceeds available HBM (15.75G).",
    ],
)
def test_the_compilers_refusal_is_read(says):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: {says}")
    assert measure._too_large(error) == pytest.approx((20.51 * 2**30, 15.75 * 2**30))
    with pytest.raises(ValueError, match="something else"):
        measure._too_large(ValueError("something else"))


# --- the command -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["preflight"], "give --config=FILE.py and --topology=SLICE"),
        (["preflight", *as_options(), "--topology=v5e-12"], "there is no such slice"),
        (["preflight", "rows.py", "--topology=v4-8"], "leave the other options out"),
        (
            ["preflight", "--config=configs/wmt14_transformer.py", "--topology=v5e-4", "--config.data.args.data_dir=nowhere"],
            "without the data, state config.model.vocab_size, data.bucket_lengths, data.num_examples, data.num_batches",
        ),
    ],
)
def test_mistakes_are_said_in_one_sentence(arguments, says, capsys, monkeypatch, root):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(root)
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("error: ") and said.count("\n") == 1


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"attention_jax\[tpu\]"):
        measure.describe_devices(SLICE)


# --- tables ------------------------------------------------------------------------------------------------------------
ROWS = """
title, command, notes, calibration_notes = "Title", "./launch.sh preflight rows.py", "A note.", "Another."
rows = [{"label": "A", "config": "a.py", "fields": {"batch_size": 8}, "slices": ("v5e-16", "v4-8")}]
calibration = [{"label": "B", "config": "b.py", "slices": ("v3-8",), "published": 70.0, "source": "a paper"}]
"""


def test_a_table_resumes_row_by_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.py").write_text(ROWS)
    compiled = []

    def stand_in(row, beside):
        compiled.append(row.key)
        return {"measured": json.loads(json.dumps(dataclasses.asdict(made_up()))), "images_a_second": 100.0}

    monkeypatch.setattr(table, "measure_row", stand_in)
    monkeypatch.setattr(table, "_counted", lambda row, beside: 1e13)
    call = lambda *patterns: table.run_preflight_table(str(tmp_path / "rows.py"), patterns, str(tmp_path / "out"))  # noqa: E731
    assert call("A @ v5e*") == 1 and compiled == ["A @ v5e-16"]
    written = (tmp_path / "out/rows.md").read_text()
    assert written.count("not run") == 3 and "| A | v5e:4x4 (v5litepod-16) |" in written
    assert call("*") == 0 and compiled == ["A @ v5e-16", "A @ v4-8", "B @ v3-8"]
    written = (tmp_path / "out/rows.md").read_text()
    assert "not run" not in written and "a paper" in written and written in capsys.readouterr().out
    assert call("*") == 0 and len(compiled) == 3
    (tmp_path / "rows2.py").write_text(ROWS.replace('"batch_size": 8', '"batch_size": 16'))
    os.rename(tmp_path / "out/rows.json", tmp_path / "out/rows2.json")
    table.run_preflight_table(str(tmp_path / "rows2.py"), ["*"], str(tmp_path / "out"))
    assert compiled[3:] == ["A @ v5e-16", "A @ v4-8"]  # a row that says something else is compiled anew
    with pytest.raises(UserError, match="no row matches"):
        call("C*")


def test_the_committed_table_is_that_of_its_numbers(root):
    module = table.load_file(root / "experiments/preflight.py")
    rows = [*table.list_preflight_rows(module, "rows"), *table.list_preflight_rows(module, "calibration")]
    found = table.read_kept_rows(root / "experiments/results/preflight.json", rows)
    assert (root / "experiments/results/preflight.md").read_text() == table.render_preflight(module, rows, found)
    # Small images have more additions to a product; the other needs 88 % of its memory, and part of it may be computed twice.
    known = {"ResNet-RS-50 at 160 @ v3-8": 0.0302, "ResNet-RS-200 at 256 @ v3-8": 0.0685}
    for row in rows:
        key, kept = row.key, found.get(row.key, {})
        if "measured" not in kept or kept["measured"]["too_large"]:
            continue
        measured = table.restore_report(row, kept).cost
        # XLA counts the body of a loop once, and additions too.
        more = measured.xla_operations * measured.devices / measured.operations - 1
        assert more == pytest.approx(known[key], abs=1e-4) if key in known else abs(more) < 0.03, (key, more)
        assert 0 <= measured.arguments / sum(measured.laid_out.values()) - 1 < 0.02, key
        assert measured.donated[0] == measured.donated[1], key
        if measured.mesh.get("fsdp", 1) * measured.mesh.get("model", 1) == 1:
            assert set(measured.collectives) <= {"all-reduce"}, key
    assert np.isfinite([kept.get("images_a_second") or 0 for kept in found.values()]).all()


# --- the day a card is lent ---------------------------------------------------------------------------------------------
def test_a_question_that_fails_keeps_none_of_the_others(root, monkeypatch):
    asked = load_file(root / "experiments/benchmarks/on_device.py")

    def broken(quick):
        yield asked.Answer("before", "1", "")
        raise RuntimeError("no such card\nand more")

    monkeypatch.setattr(asked, "losses", broken)
    monkeypatch.setattr(asked, "steps", lambda quick: iter([asked.Answer("a step", "2 ms", "")]))
    answers = list(asked.ask(minutes=5, quick=True))
    assert [answer.question.partition(" [")[0] for answer in answers] == ["before", "broken", "attention", "a step"]
    assert answers[1].answer == "failed: RuntimeError: no such card"
    assert float(answers[2].answer.split("at most ")[1].split()[0]) < 1e-5  # fused and plain attention agree
    assert [answer.answer for answer in asked.ask(minutes=-1, quick=True)] == ["not run"] * 3
    assert asked.slice_here() is None
