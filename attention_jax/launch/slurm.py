"""`./launch.sh slurm [--array[=K]] [--logs=DIR] [--dry-run] [options of sbatch] -- VERB ...`.

One job of one or several nodes, or an array with a job for each row of a table and a last one that writes the table.
Every option that is not the door's goes to sbatch as it is: --nodes, --gpus-per-node, --time, --partition, --account, ….

A node has one process, which drives all its cards; `--ntasks-per-node` asks for more, numbered node by node. They meet
at the job's first host, on a port made from the job's number, and know each other's hosts by name. Two minutes before the
time limit the processes save and stop, and the job queues again and goes on from there; so it does when Slurm preempts it
or a node fails. The checkout and its environment lie on a file system that the nodes share, and run in place.
"""

from __future__ import annotations  # for Python 3.9

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attention_jax.launch.shared import LAUNCH, ROOT, DoorError, Parser, call, check_verb, option, quoted, split

REFUSED = ("--wrap", "--export", "--signal", "--requeue", "--no-requeue", "--open-mode", "--parsable", "--chdir")

SCRIPT = """#!/bin/bash
set -u
cd {cwd} || exit 1
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, {code}, start ${{SLURM_RESTART_COUNT:-0}}"
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
export AJ_COORDINATOR="${{nodes[0]}}:$((61440 + SLURM_JOB_ID % 4096))"
hosts=() node=0  # a name for each process, as 2(x3),1 says: two on each of three nodes, then one
for word in ${{SLURM_TASKS_PER_NODE//,/ }}; do
  IFS='(x)' read -r tasks _ times <<<"$word"
  for ((end = node + ${{times:-1}}; node < end; node++)); do
    for ((task = 0; task < tasks; task++)); do hosts+=("${{nodes[node]}}"); done
  done
done
export AJ_HOSTS="$(IFS=,; echo "${{hosts[*]}}")"
again=
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
{rows}srun --label --kill-on-bad-exit=1 --distribution=block \\
  bash -c 'AJ_PROCESSES="$SLURM_NTASKS" AJ_PROCESS="$SLURM_PROCID" exec "$@"' - {command} &
steps=$!
code=0
while kill -0 "$steps" 2>/dev/null; do
  wait "$steps" && code=0 || code=$?
done
if [[ -n "$again" && "$code" == 0 ]]; then
  echo "saved before the time limit: job $SLURM_JOB_ID queues again and goes on from there"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

LABELS = """
import json, sys
from attention_jax.tables.table import load_table
table = load_table(sys.argv[1])
print(json.dumps([row.label for row in table.rows]))
"""


def main(arguments: Sequence[str]) -> int:
    """Submits what the command line asks for and says how to follow it; returns the exit code."""
    mine, verb = split(arguments)
    parser = Parser(prog="./launch.sh slurm", usage="./launch.sh slurm [options of sbatch] -- VERB ...", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--array", nargs="?", type=int, const=0, metavar="K", help="each row of a table as a job of its own, at most K at once"
    )
    parser.add_argument("--logs", default="runs/slurm", metavar="DIR", help="default runs/slurm; a file for each job")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and submit nothing")
    options, others = parser.parse_known_args(mine)
    check_verb(verb)
    for word in others:
        if word.split("=")[0] in REFUSED:
            raise DoorError(f"{word.split('=')[0]} is set by this door: leave it out.")
    if options.array is not None and verb[0] != "table":
        raise DoorError(f"--array divides the rows of a table, and this is '{verb[0]}': leave it out.")

    logs = Path(options.logs).absolute()
    setup = [LAUNCH, "setup"]
    if options.dry_run:
        print(quoted(setup))
    else:
        call(setup)
        logs.mkdir(parents=True, exist_ok=True)
    if options.array is None:
        job = _submit(sbatch(verb[0], logs / "%j.log", others), script(verb), options.dry_run)
        _say(options.dry_run, f"job {job} is submitted; its log: {logs}/{job}.log", job)
        return 0

    labels = _labels(verb)
    at_once = f"%{options.array}" if options.array else ""
    array = [*others, f"--array=0-{len(labels) - 1}{at_once}"]
    job = _submit(sbatch("row", logs / "%A_%a.log", array), script(verb, labels), options.dry_run)
    # When all have ended, well or not, the whole table: it trains what is missing and writes all rows.
    last = [*others, f"--dependency=afterany:{job}"]
    table = _submit(sbatch("table", logs / "%j.log", last), script(verb), options.dry_run)
    _say(options.dry_run, f"array {job} of {len(labels)} rows is submitted; its logs: {logs}/{job}_*.log", job)
    _say(options.dry_run, f"job {table} writes the table when they have ended; its log: {logs}/{table}.log", table)
    return 0


def sbatch(name: str, log: Path, others: Sequence[str]) -> list[str]:
    """The command that submits a script on its standard input; a later option wins over an earlier one."""
    ours = [f"--job-name={name}", "--nodes=1", "--ntasks-per-node=1", f"--output={log}"]
    fixed = ["--parsable", "--requeue", "--open-mode=append", "--signal=B:USR1@120"]
    return ["sbatch", *ours, *others, *fixed]


def script(verb: Sequence[str], labels: Sequence[str] | None = None) -> str:
    """The job's script: `verb` in every task; with labels, the table row that has the array element's number."""
    command, rows = quoted([LAUNCH, *verb]), ""
    if labels is not None:
        rows = f"rows=({quoted([_pattern(label) for label in labels])})\n"
        folder = option(verb, "output") or option(verb, "workdir") or f"runs/{Path(verb[1]).stem}"
        command += f' --rows="${{rows[SLURM_ARRAY_TASK_ID]}}" --output={quoted([folder])}/array/"$SLURM_ARRAY_TASK_ID"'
    return SCRIPT.format(cwd=quoted([os.getcwd()]), code=_code(), rows=rows, command=command)


def _pattern(label: str) -> str:
    """What --rows takes for this label alone: a list of shell-style patterns that commas divide."""
    return "".join({"*": "[*]", "?": "[?]", "[": "[[]", ",": "?"}.get(letter, letter) for letter in label)


def _labels(verb: Sequence[str]) -> list[str]:
    if option(verb, "rows"):
        raise DoorError("--array takes all rows of the table: leave --rows out.")
    if len(verb) < 2 or verb[1].startswith("-"):
        raise DoorError("the table file comes right after 'table' with --array.")
    labels = json.loads(call([LAUNCH, "python", "-c", LABELS, verb[1]]))
    if not labels:
        raise DoorError(f"{verb[1]}: no row of this table is trained: leave --array out.")
    return labels


def _code() -> str:
    """The commit that runs, for the log."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "commit unknown"
    return f"commit {done.stdout.strip()} when submitted" if done.returncode == 0 else "commit unknown"


def _submit(command: Sequence[str], text: str, dry: bool) -> str:
    """The number of the job, or under --dry-run the words JOB."""
    if dry:
        print(f"{quoted(command)} <<'END'\n{text}END")
        return "JOB"
    return call(command, text).strip().split(";")[0]  # with several clusters: number;cluster


def _say(dry: bool, what: str, job: str) -> None:
    if not dry:
        print(f"{what}\n  squeue --job={job}   scancel --signal=TERM {job} saves and stops, scancel {job} ends", flush=True)
