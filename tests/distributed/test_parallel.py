"""Many devices ≡ one, many processes ≡ one, and every config's step for other platforms."""

import csv
import functools
import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_jax as aj
from attention_jax import tree
from attention_jax.config import load_config, override
from attention_jax.train import remote_runs, restore
from attention_jax.train.program import build_program
from tests.conftest import child_environment
from tests.helpers import small_text
from tests.helpers.gcs import empty_server
from tests.helpers.small import ROOT, as_options
from tests.helpers.small_table import SMALL, write_table

pytestmark = pytest.mark.usefixtures("quickly")
EIGHT = {"JAX_NUM_CPU_DEVICES": "8"}
FOUR = {"JAX_NUM_CPU_DEVICES": "4"}


@pytest.mark.slow
def test_laws_on_eight_devices(run_python):
    done = run_python("-m", "pytest", "-q", "tests/helpers/eight_devices.py", env=EIGHT, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.slow
def test_checkpoint_of_eight_devices_opens_on_one(run_cli, tmp_path):
    assert jax.device_count() == 1
    as_users = {**EIGHT, "JAX_DISABLE_MOST_OPTIMIZATIONS": None}  # one of these laws of the optimised program
    done = run_cli("train", *as_options(total_steps=12, parallel__fsdp=4), f"--workdir={tmp_path}", env=as_users)
    assert done.returncode == 0, done.stderr
    assert "data=2 x fsdp=4 x model=1" in done.stdout and "replicated against its rule: " in done.stdout
    run = aj.load_run(tmp_path)
    logged = run.metrics[-1]["eval_ema/accuracy"]
    assert run.weights == "ema" and run.step == 12
    evaluated = run_cli("evaluate", f"--workdir={tmp_path}")
    assert json.loads(evaluated.stdout.splitlines()[-1])["accuracy"] == pytest.approx(logged, abs=0.004)


def local(*arguments, processes=2, devices=2) -> list[str]:
    return [str(ROOT / "launch.sh"), "local", f"--processes={processes}", f"--devices={devices}", "--", *map(str, arguments)]


ENVIRONMENT = {"ATTENTION_JAX_PYTHON": sys.executable}
# Devices of two processes exchange their sums over loopback, which takes long.
SHORT = dict(total_steps=6, evaluation__every_steps=6, model__widths=(16, 64))


@pytest.fixture(scope="module")
def four_devices_of_one_process(run_cli, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    done = run_cli("train", *as_options(**SHORT), f"--workdir={workdir}", env=FOUR)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_two_processes_are_one(four_devices_of_one_process, tmp_path, monkeypatch):
    """The state in parts that both processes have, the batch in parts of each, the workdir at gs://."""
    monkeypatch.setenv("AJ_STAGING", str(tmp_path / "staging"))
    server = empty_server()
    command = local("train", *as_options(parallel__fsdp=4, **SHORT), "--workdir=gs://bucket/run")
    server.fault = lambda method, name, client: 403 if method == "POST" and "/ocdbt.process_1/d/" in name else None
    done = subprocess.run(command, env=child_environment(ENVIRONMENT), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "a checkpoint could not be written" in done.stdout + done.stderr
    assert not [name for name in server.written if name.endswith(".json") and "/checkpoints/" in name], "one part is missing"
    server.fault = lambda *_: None
    done = subprocess.run(command, env=child_environment(ENVIRONMENT), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 process(es) x 2" in done.stdout
    same_numbers(four_devices_of_one_process, remote_runs.download_run("gs://bucket/run"))
    sizes = [
        sum(len(stored.content) for name, stored in server.objects.items() if f"/state/ocdbt.process_{i}/d/" in name)
        for i in range(2)
    ]
    assert min(sizes) > 0.9 * sum(sizes) / 2, f"each process writes its own part, and the index of the arrays is small: {sizes}"


@pytest.mark.slow
def test_two_processes_are_one_for_translation(run_cli, tmp_path):
    """One network over the devices of both, which then load the same rows, and agree on the translations of the evaluation."""
    changes = dict(total_steps=8, data__bucket_lengths=1, model__dropout=0.1, model__heads=4)
    options = small_text.as_options(small_text.write_pairs(tmp_path), **changes)
    done = run_cli("train", *options, f"--workdir={tmp_path}/one", env=FOUR)
    assert done.returncode == 0, done.stderr
    command = local("train", *options, "--config.parallel.model=4", f"--workdir={tmp_path}/two")
    done = subprocess.run(command, env=child_environment(ENVIRONMENT), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (restore.read_newest(tmp_path / name) for name in ("one", "two"))
    assert one[1]["assets"] == two[1]["assets"]
    for path, array in tree.flatten_by_path(one[0]["params"]).items():
        np.testing.assert_allclose(array, tree.flatten_by_path(two[0]["params"])[path], rtol=5e-3, atol=5e-4, err_msg=path)
    for line, theirs in zip(
        *(map(json.loads, (tmp_path / name / "metrics.jsonl").open()) for name in ("one", "two")), strict=True
    ):
        for name in {"train/loss", "eval_ema/loss"} & line.keys():
            assert theirs[name] == pytest.approx(line[name], rel=1e-3)


@pytest.mark.slow
def test_table_on_two_processes(tmp_path):
    """Also what measures the network when it is trained, which takes the devices of both."""
    short = {**SMALL, "total_steps": 2}
    names = dict(
        measures={"errors": "attention_jax.tables.measures:measure_errors"}, next_commands=[("to see it", "ls {workdir}")]
    )
    file = write_table(tmp_path, '{"label": "a"}', scales={"tiny": {"seeds": 1, "overrides": short}}, **names)
    command = local("table", file, f"--workdir={tmp_path / 'table'}", devices=1)
    done = subprocess.run(command, env=child_environment(ENVIRONMENT), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader((tmp_path / "table" / file.with_suffix(".csv").name).open())
    assert row["status"] == "done" and float(row["training error %"]) > 0
    assert done.stdout.count(f"ls {tmp_path}") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_brings_two_processes_to_one_step(tmp_path):
    workdir = tmp_path / "run"
    command = local("train", *as_options(total_steps=4000), f"--workdir={workdir}")
    with subprocess.Popen(
        command, env=child_environment(ENVIRONMENT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while len(restore.list_steps(workdir)) < 1 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped after step" in said
    assert restore.read_newest(workdir)[1]["step"] == restore.list_steps(workdir)[-1]


def same_numbers(one, other) -> None:
    lines, others = ([json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (one, other))
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, theirs in zip(lines, others, strict=True):
        for name, value in line.items():
            # Evaluation counts right answers of 599, of which a rounding difference may turn one or two.
            slack = {"abs": 0.004} if "accuracy" in name or name == "headline" else {"rel": 2e-3}
            assert theirs[name] == pytest.approx(value, **slack), (line["step"], name)
    arrays, theirs = (tree.flatten_by_path(restore.read_newest(path)[0]["params"]) for path in (one, other))
    for path, array in arrays.items():
        np.testing.assert_allclose(array, theirs[path], rtol=5e-3, atol=5e-4, err_msg=path)


@functools.cache
def traced_step(path):
    """A config's task and its train step, traced once for both platforms; of equal blocks in a row two are kept."""
    config = load_config(str(path))
    if config.task == "classification":
        sizes = config.model.get("stage_sizes") or getattr(aj.create_model(config.model.name), "stage_sizes", ())
        config = override(config, {"model.stage_sizes": tuple(min(2, blocks) for blocks in sizes)} if sizes else {})
    if config.task == "translation":  # what the data would say
        facts = {
            "model.layers": 2,
            "model.vocab_size": 1000,
            "data.bucket_lengths": (16, 32),
            "data.num_examples": 90_000,
            "data.num_batches": 500,
        }
        config = override(config, facts)
    elif config.data.source == "folder":
        config = override(config, {"model.num_classes": 100, "data.num_examples": 10_000})
    program = build_program(config)
    batch = program.task.batch_shapes(program.config)[-1]
    return config.task, program.train_step.trace(program.abstract_state, batch, jax.ShapeDtypeStruct((), jnp.uint32))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_configs_step_lowers_for_accelerators(path, platform):
    task, traced = traced_step(path)
    lowered = traced.lower(lowering_platforms=(platform,))
    assert ("stablehlo.convolution" if task == "classification" else "stablehlo.dot_general") in lowered.as_text()


def test_batches_are_divided_by_rows_and_in_one_order():
    from attention_jax.tasks import classification
    from tests.helpers.small import small_config

    config = classification.resolve(small_config())
    whole = classification.loader(config, "train", (0, 1), training=True)
    halves = [classification.loader(config, "train", (i, 2), training=True) for i in range(2)]
    for step, batch in zip(range(30, 50), whole.training(30, 50), strict=True):  # over the end of an epoch
        parts = [half.training_batch(step) for half in halves]
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, np.concatenate([part[name] for part in parts]))
    several = classification.loader(config, "train", ((0, 3), 4), training=True).training_batch(30)
    for name, rows in whole.training_batch(30).items():
        quarters = np.split(rows, 4)
        np.testing.assert_array_equal(several[name], np.concatenate([quarters[0], quarters[3]]))
    whole, *halves = (classification.loader(config, "test", share, training=False) for share in ((0, 1), (0, 2), (1, 2)))
    for batch, *parts in zip(whole.evaluation(), *(half.evaluation() for half in halves), strict=True):
        np.testing.assert_array_equal(batch["weight"], np.concatenate([part["weight"] for part in parts]))
