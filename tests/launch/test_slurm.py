"""`./launch.sh slurm`: with substitutes for Slurm's programs, with their own help, and on a Slurm of one node."""

import fnmatch
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_jax.launch import slurm
from tests.conftest import child_environment
from tests.helpers import private_slurm
from tests.helpers.small import as_options

# In place of the environment's Python: prints what it got for the library's commands, and runs everything else.
PYTHON = f"""#!/usr/bin/env bash
if [[ "$1 $2" == "-m attention_jax" ]]; then
  exec {sys.executable} -c 'import json, os, sys
about = (os.environ.get("AJ_" + name) for name in ("COORDINATOR", "PROCESSES", "PROCESS", "HOSTS"))
print(json.dumps([sys.argv[1:], os.getcwd(), *about]))' "${{@:3}}"
fi
exec {sys.executable} "$@"
"""
# Runs the script at once, in each element of an array, and appends its output to $FOLDER/output.
SBATCH = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$FOLDER/sbatch.calls"; echo >> "$FOLDER/sbatch.calls"
elements=0
for word in "$@"; do
  case "$word" in --array=*) elements="${word##*-}"; elements="${elements%\\%*}" ;; esac
done
cat > "$FOLDER/script"
for element in $(seq 0 "$elements"); do
  SLURM_JOB_ID=$((4097 + element)) SLURM_JOB_NODELIST='n[1-3]' SLURM_TASKS_PER_NODE='2(x2),1' SLURM_ARRAY_TASK_ID="$element" \\
    bash "$FOLDER/script" >> "$FOLDER/output"
done
echo '77;cluster'
"""
SRUN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >> "$FOLDER/srun.calls"; echo >> "$FOLDER/srun.calls"
while [[ "$1" == --* ]]; do shift; done
for task in $(seq 0 "${LAST_TASK:-4}"); do SLURM_NTASKS=5 SLURM_PROCID="$task" "$@" || exit; done
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$*" == 'show hostnames n[1-3]' ]] && printf 'n1\\nn2\\nn3\\n'
"""

NASTY = [
    "--config=my configs/x.py",
    "--config.schedule.boundaries=(0.5, 'a b')",
    '--config.data.source="quoted"',
    "--config.name=it's $HOME `id` \\ * [x] {y} ; & | # !",
    "--config.empty=",
    "",
    "--config.lines=one\ntwo",
    "--workdir=Überlauf/x",
]


class Launcher:
    """The launcher in its own folder, on a machine where the programs above come first in PATH."""

    def __init__(self, folder: Path):
        self.folder, self.cwd = folder, folder / "some where"
        (folder / "bin").mkdir()
        self.cwd.mkdir()
        for name, text in {"python": PYTHON, "sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.env = child_environment({"FOLDER": str(folder), "ATTENTION_JAX_PYTHON": str(folder / "bin" / "python")})
        self.env["PATH"] = f"{folder}/bin:{self.env['PATH']}"

    def __call__(self, root: Path, *arguments: str) -> subprocess.CompletedProcess:
        """Runs the launcher, without the check of configs: test_check.py has that."""
        words = [root / "launch.sh", "slurm", "--no-check", *arguments]
        return subprocess.run(words, cwd=self.cwd, env=self.env, capture_output=True, text=True, check=False)

    def arrived(self) -> list[list]:
        """[arguments, folder, coordinator, processes, process, hosts] of every process that ran."""
        return [json.loads(line) for line in (self.folder / "output").read_text().splitlines() if line.startswith("[")]

    def calls(self, program: str) -> list[list[str]]:
        """The words of every call."""
        return [call.split("\0") for call in (self.folder / f"{program}.calls").read_text().split("\0\n")[:-1]]


@pytest.fixture
def launcher(tmp_path) -> Launcher:
    return Launcher(tmp_path)


def test_every_word_arrives_unchanged_in_every_process(launcher, root):
    done = launcher(root, "--nodes=3", "--time=1-0", "--", "train", *NASTY)
    assert done.returncode == 0, done.stderr
    common = [["train", *NASTY], str(launcher.cwd), f"n1:{61440 + 1}", "5"]
    assert launcher.arrived() == [[*common, str(process), "n1,n1,n2,n2,n3"] for process in range(5)]
    assert done.stdout.startswith(f"job 77 is submitted; its log: {launcher.cwd}/runs/slurm/77.log\n")


def test_a_dry_run_shows_what_would_run_and_runs_nothing(launcher, root):
    shown = launcher(root, "--nodes=2", "--dry-run", "--", "train", *NASTY)
    assert shown.returncode == 0, shown.stderr
    assert not (launcher.folder / "sbatch.calls").exists() and not (launcher.cwd / "runs").exists()
    # What it prints is itself a program for a shell, and does the same.
    by_hand = subprocess.run(
        ["bash", "-c", shown.stdout], cwd=launcher.cwd, env=launcher.env, capture_output=True, text=True, check=False
    )
    assert by_hand.returncode == 0, by_hand.stderr
    first, script = launcher.calls("sbatch"), (launcher.folder / "script").read_text()
    launcher(root, "--nodes=2", "--", "train", *NASTY)
    assert launcher.calls("sbatch") == first * 2
    assert (launcher.folder / "script").read_text() == script


def test_an_array_has_a_row_in_each_element_and_the_table_after_them(launcher, root):
    launcher.env["LAST_TASK"] = "0"
    file = str(root / "experiments" / "shortcuts.py")
    done = launcher(root, "--array=2", "--partition=x", "--", "table", file, "--workdir=my runs")
    assert done.returncode == 0, done.stderr
    labels = ["plain", "residual", "residual + SE", "residual + BAM", "residual + recipe"]
    elements = launcher.arrived()[:-1]
    expected = [["table", file, "--workdir=my runs", f"--rows={label}"] for label in labels]
    assert [words[:-1] for words, *_ in elements] == expected
    assert [words[-1] for words, *_ in elements] == [f"--output=my runs/array/{number}" for number in range(5)]
    assert launcher.arrived()[-1][0] == ["table", file, "--workdir=my runs"]
    first, last = launcher.calls("sbatch")
    assert "--array=0-4%2" in first and "--partition=x" in first
    assert "--dependency=afterany:77" in last and "--partition=x" in last


@pytest.mark.parametrize("label", ["plain", "a, b", "a*", "[x]", "what?", "N = 2 M = [3]"])
def test_a_label_selects_its_own_row(label):
    others = ["plain", "a, b", "ab", "x", "[x]", "whatx", "N = 2 M = 3", "N = 2 M = [3]", "a*", "what?"]
    pattern = slurm._escape_label(label)
    assert "," not in pattern
    assert [other for other in others if fnmatch.fnmatchcase(other, pattern)] == [label]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes=2"], "the command is missing"),
        (["--", "trian"], "'trian' cannot run elsewhere: give one of train,"),
        (["--array", "--", "train"], "--array divides the rows of a table"),
        (["--array", "--", "table", "x.py", "--rows=a"], "--array takes all rows of the table: leave --rows out"),
        (["--wrap=ls", "--", "train"], "--wrap is set by this launcher"),
    ],
)
def test_mistakes(launcher, root, arguments, message):
    done = launcher(root, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: slurm: {message}") and done.stderr.count("\n") == 1
    assert not (launcher.folder / "sbatch.calls").exists()


def test_sbatch_failing_or_missing_is_said(launcher, root):
    (launcher.folder / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    done = launcher(root, "--", "train")
    assert done.returncode == 2
    assert done.stderr.startswith("sbatch: error: invalid partition\nerror: slurm: sbatch --job-name=train ")
    assert done.stderr.endswith("ended with exit code 1; see its messages above.\n")


# --- on a Slurm of one node -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if absent := private_slurm.missing():
        pytest.skip(f"Slurm is not installed here (no {', '.join(absent)}): Debian has it as slurm-wlm and munge")
    with private_slurm.Slurm(tmp_path_factory.mktemp("slurm") / "private") as running:
        yield running


def test_slurm_takes_the_options(cluster):
    """Also those of an array and of the job after it, which the test below does not submit."""
    first = slurm.sbatch_command("row", Path("x.log"), ["--array=0-1%1"])
    for command in (first, slurm.sbatch_command("table", Path("x.log"), ["--dependency=afterany:1"])):
        words = [command[0], "--test-only", *command[1:]]
        env = child_environment(cluster.env)
        done = subprocess.run(words, input="#!/bin/sh\n", env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_process_is_told_where_all_are(cluster, root, tmp_path):
    env = child_environment({**cluster.env, "ATTENTION_JAX_PYTHON": sys.executable})
    say = "import os; print(*(os.environ['AJ_' + name] for name in ('PROCESS', 'PROCESSES', 'HOSTS')))"
    words = [root / "launch.sh", "slurm", "--ntasks-per-node=3", "--", "python", "-c", say]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    job = re.match(r"job (\d+) is submitted", done.stdout).group(1)
    assert cluster.wait_for_end(job) == "COMPLETED"
    lines = (tmp_path / "runs" / "slurm" / f"{job}.log").read_text().splitlines()
    assert sorted(lines[1:]) == [f"{process}: {process} 3 localhost,localhost,localhost" for process in range(3)]


def test_two_processes_train_are_stopped_before_the_time_limit_and_go_on(cluster, root, tmp_path):
    env = child_environment({**cluster.env, "ATTENTION_JAX_PYTHON": sys.executable})
    options = as_options(total_steps=24, evaluation__every_steps=24, checkpoint__every_steps=3, logging__every_steps=3)

    def submit() -> tuple[str, Path]:
        words = [root / "launch.sh", "slurm", "--ntasks-per-node=2", "--", "train", *options, "--workdir=run"]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        job = re.match(r"job (\d+) is submitted", done.stdout).group(1)
        return job, tmp_path / "runs" / "slurm" / f"{job}.log"

    (job, log), metrics = submit(), tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), log)
    cluster.ask("scancel", "--batch", "--signal=USR1", job)  # what Slurm sends before the time limit
    wait_for(lambda: "queues again" in log.read_text(), log)
    assert "0: stopped after step" in log.read_text() and "0: done" not in log.read_text()
    wait_for(lambda: "JobState=PENDING" in cluster.ask("scontrol", "show", "job", job), log)
    assert "Restarts=1" in cluster.ask("scontrol", "show", "job", job)

    # Slurm starts it again after two minutes; a test does not wait for that, and gives the same command again.
    cluster.ask("scancel", job)
    job, log = submit()
    assert cluster.wait_for_end(job) == "COMPLETED", log.read_text()
    assert "2 process(es) x" in log.read_text() and "0: done after step 24" in log.read_text()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"epoch"' in line]
    assert steps == list(range(3, 25, 3))


def wait_for(condition, log: Path, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
