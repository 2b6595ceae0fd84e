"""A user's mistake gets one sentence and exit code 2, never a traceback."""

import shutil
import subprocess
import sys

import pytest

from attention_jax.cli import main as cli
from tests.conftest import child_environment
from tests.helpers.small import CONFIG, as_options

pytestmark = pytest.mark.usefixtures("quickly")


def sentence(capsys, *arguments: object) -> str:
    """What the command line says on stderr when it ends with exit code 2."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2, said
    assert len(errors) == 1 and "Traceback" not in said
    return errors[0]


def test_unknown_field(capsys, tmp_path):
    said = sentence(capsys, "train", f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.optimizer.momentun=0.5")
    assert "unknown config field 'optimizer.momentun'" in said and "did you mean 'optimizer.momentum'?" in said


def test_unknown_model_and_model_field(capsys, tmp_path):
    start = ("train", f"--config={CONFIG}", f"--workdir={tmp_path}")
    assert "did you mean 'resnet20'?" in sentence(capsys, *start, "--config.model.name=resnet-20")
    assert "did you mean 'stage_sizes'?" in sentence(capsys, *start, "--config.model.stage_size=(1,1,1)")


def test_wrong_type_and_wrong_value(capsys, tmp_path):
    start = ("train", f"--config={CONFIG}", f"--workdir={tmp_path}")
    said = sentence(capsys, *start, "--config.batch_size=many")
    assert "config.batch_size='many' is not right: give a whole number of examples" in said
    assert "give one of 'constant', 'step', 'cosine'" in sentence(capsys, *start, "--config.schedule.name=cosin")
    assert "give True or False" in sentence(capsys, *start, "--config.data.flip=1")
    assert "schedule.warmup is 5000 steps" in sentence(capsys, *start, "--config.schedule.warmup_steps=5000")


def test_missing_field(capsys, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.read_text().replace("    config.total_epochs =", "    # "))
    said = sentence(capsys, "train", f"--config={path}", f"--workdir={tmp_path}/run")
    assert "give exactly one of total_steps or total_epochs or total_examples" in said


def test_config_file_that_does_not_run(capsys, tmp_path):
    path = tmp_path / "config.py"
    path.write_text("import nothing_of_this_name\n")
    assert "No module named 'nothing_of_this_name'" in sentence(capsys, "train", f"--config={path}", "--workdir=x")
    assert "there is no such file" in sentence(capsys, "train", f"--config={tmp_path}/none.py", "--workdir=x")


def test_data_that_cannot_be_read(capsys, tmp_path):
    start = ("train", f"--config={CONFIG}", f"--workdir={tmp_path}/run")
    said = sentence(
        capsys,
        *start,
        "--config.data.source=tfds",
        "--config.data.args.name=cifar10",
        f"--config.data.args.data_dir={tmp_path}",
    )
    assert "'cifar10' split 'train' cannot be read" in said and "data.args.data_dir" in said
    assert "there is no split 'trian'" in sentence(capsys, *start, "--config.data.train_split=trian")
    assert "unknown data source 'digit' (did you mean 'digits'?)" in sentence(capsys, *start, "--config.data.source=digit")
    source = tmp_path / "mine.py"
    source.write_text("def make(split):\n    return open('/nowhere/at/all')\n")
    said = sentence(capsys, *start, f"--config.data.source={source}:make")
    assert "cannot be read (FileNotFoundError" in said


def test_image_too_small(capsys, tmp_path):
    network = ("--config.model.name=resnet18", "--config.model.widths=(64, 128, 256, 512)")
    said = sentence(capsys, "train", f"--config={CONFIG}", f"--workdir={tmp_path}", *network)
    assert "images of 8x8 pixels are too small for this network, which reduces them 32-fold" in said


@pytest.mark.slow
def test_batch_that_the_devices_cannot_share(run_cli, tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = run_cli("train", f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.batch_size=30", env=env)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: batch_size=30 cannot be divided by 8 devices: 32 could."


def test_batch_larger_than_the_data(capsys, tmp_path):
    said = sentence(capsys, "train", f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.batch_size=4096")
    assert "batch_size=4096 is more than the 1198 training examples" in said


def test_workdir_that_is_a_file_or_not_writable(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert f"workdir={file} is a file: give a folder" in sentence(capsys, "train", *as_options(), f"--workdir={file}")
    # Not even root can make a folder there.
    assert "workdir=/sys/run cannot be written to" in sentence(capsys, "train", *as_options(), "--workdir=/sys/run")


@pytest.mark.slow
def test_workdir_of_another_config(capsys, tmp_path):
    options = as_options(total_steps=2, evaluation__every_steps=2, checkpoint__every_steps=2, schedule__warmup_steps=0)
    assert cli.main(["train", *options, f"--workdir={tmp_path}"]) == 0
    said = sentence(capsys, "train", *options, f"--workdir={tmp_path}", "--config.schedule.learning_rate=0.25")
    assert "belongs to another config (schedule.learning_rate: saved 0.05, given 0.25)" in said
    # What does not change the numbers may differ.
    assert cli.main(["train", *options, f"--workdir={tmp_path}", "--config.data.threads=1"]) == 0


def test_evaluating_what_is_not_a_run(capsys, tmp_path):
    assert "no checkpoint here" in sentence(capsys, "evaluate", f"--workdir={tmp_path}")


def test_command_line_itself(capsys):
    assert "invalid choice: 'trian'" in sentence(capsys, "trian")
    assert "did you mean '--workdir'?" in sentence(capsys, "train", "--config=x", "--workdir=y", "--workdri=z")
    assert "required: --workdir" in sentence(capsys, "train", "--config=x")


def test_missing_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    said = sentence(
        capsys,
        *("train", f"--config={CONFIG}", f"--workdir={tmp_path}/run", "--config.data.source=tfds"),
        *("--config.data.args.name=cifar10", "--config.data.args.data_dir=gs://bucket/data"),
    )
    assert "install it with pip install 'attention_jax[gcs]'" in said


def test_missing_platform(run_cli, tmp_path):
    done = run_cli("train", *as_options(), f"--workdir={tmp_path}", env={"JAX_PLATFORMS": "tpu"})
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: JAX_PLATFORMS=tpu") and "pip install 'attention_jax[tpu]'" in last


@pytest.mark.slow
def test_loss_that_is_not_finite(capsys, tmp_path):
    options = as_options(schedule__learning_rate=1e30, schedule__warmup_steps=0, checkpoint__every_steps=1)
    said = sentence(capsys, "train", *options, f"--workdir={tmp_path}")
    assert "not finite" in said and "learning_rate" in said
    # Training stopped before it could save what is not finite.
    from attention_jax.train import restore

    for step in restore.list_steps(tmp_path):
        assert restore.read_newest(tmp_path / "checkpoints" / str(step))


def test_log_on_a_full_device(capsys, tmp_path):
    (tmp_path / "timing.jsonl").symlink_to("/dev/full")
    said = sentence(capsys, "train", *as_options(total_steps=12), f"--workdir={tmp_path}")
    assert "No space left on device" in said and "start the same command again" in said


SMALL_DISK = """
mount -t tmpfs -o size=2m tmpfs "$1" && shift && cd "$0" || exit 77
mkdir run; head -c "$1" /dev/zero > ballast; shift
"$@"; echo "first: $?"
ls run/checkpoints | grep -x '[0-9]*' | sort -n | tail -1 | sed 's/^/kept: /'
rm ballast; "$@"; echo "second: $?"
"""


@pytest.mark.slow
def test_full_disk_during_a_save_and_the_same_command_afterwards(tmp_path):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this account may not mount a small file system to fill it up")
    options = as_options(total_steps=24, checkpoint__keep_last=4, checkpoint__every_steps=2)
    train = [sys.executable, "-m", "attention_jax", "train", *options, "--workdir=run"]
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", SMALL_DISK, tmp_path, tmp_path, "1800000", *train],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "first: 2" in done.stdout and "second: 0" in done.stdout, done.stdout + done.stderr
    assert "no space is left on the device" in done.stderr and "Traceback" not in done.stderr
    assert int(done.stdout.split("kept: ")[1].split()[0]) >= 2  # a good checkpoint stayed


@pytest.mark.slow
def test_readers_of_the_output_may_go_away(tmp_path):
    """`train … | head -1` trains to its end."""
    command = [sys.executable, "-m", "attention_jax", "train", *as_options(), f"--workdir={tmp_path / 'run'}"]
    quoted = " ".join(f"'{word}'" for word in command)
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {quoted} 2>&1 | head -1"],
        env=child_environment({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1 and (tmp_path / "run" / "checkpoints" / "36").is_dir()
