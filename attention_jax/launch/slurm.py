"""`./launch.sh slurm [--array[=K]] [--logs=DIR] [--dry-run] [--no-check] [options of sbatch] -- COMMAND ...`.

Submits one job of one or several nodes, or an array with one job per row of a table and a last one that writes the table.
All other options go to sbatch unchanged: --nodes, --gpus-per-node, --time, --partition, --account, ….

Each node runs one process, which uses all its cards; `--ntasks-per-node` asks for more. The processes join at the job's
first host, on a port made from the job's number. Two minutes before the time limit they save and stop, and the job queues
again and goes on from there; it does the same when Slurm preempts it or a node fails. The nodes share the file system of the
checkout and its environment, which run in place.
"""

from __future__ import annotations  # for Python 3.9

import json
import os
from collections.abc import Sequence
from pathlib import Path

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.data_address import check_addresses

REFUSED = ("--wrap", "--export", "--signal", "--requeue", "--no-requeue", "--open-mode", "--parsable", "--chdir")

SCRIPT = """#!/bin/bash
set -u
cd {cwd} || exit 1
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, {code}, start ${{SLURM_RESTART_COUNT:-0}}"
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
export AJ_COORDINATOR="${{nodes[0]}}:$((61440 + SLURM_JOB_ID % 4096))"
hosts=() node=0  # one name per process; 2(x3),1 means two on each of three nodes, then one
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
print(json.dumps([row.label for row in load_table(sys.argv[1]).rows]))
"""


def main(arguments: Sequence[str]) -> int:
    """Submits the jobs and prints how to follow them; returns the exit code."""
    own, command = shared.split_arguments(arguments)
    parser = shared.Parser("slurm", usage="./launch.sh slurm [options of sbatch] -- COMMAND ...", description=__doc__)
    parser.add_argument(
        "--array", nargs="?", type=int, const=0, metavar="K", help="one job per row of a table, at most K at once"
    )
    parser.add_argument("--logs", default="runs/slurm", metavar="DIR", help="one file per job; default runs/slurm")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and submit nothing")
    shared.add_check_option(parser)
    options, others = parser.parse_known_args(own)
    shared.check_command(command)
    for word in others:
        if word.split("=")[0] in REFUSED:
            raise UserError(f"{word.split('=')[0]} is set by this launcher: leave it out.")
    if options.array is not None and command[0] != "table":
        raise UserError(f"--array divides the rows of a table, not '{command[0]}': leave it out.")

    logs = Path(options.logs).absolute()
    if options.dry_run:
        print(shared.quote_words([shared.LAUNCH, "setup"]))
    else:
        shared.run_program([shared.LAUNCH, "setup"])
        if options.check:
            check_addresses(shared.check_inputs(command))
        logs.mkdir(parents=True, exist_ok=True)

    def submit(text: str, name: str, log: str, script: str, *more: str) -> str:
        """Prints how to follow the submitted job, and returns its number, or "JOB" under --dry-run."""
        words = sbatch_command(name, logs / log, [*others, *more])
        if options.dry_run:
            print(f"{shared.quote_words(words)} <<'END'\n{script}END")
            return "JOB"
        job = shared.run_program(words, script).strip().split(";")[0]  # with several clusters: number;cluster
        print(text.format(job=job, logs=logs))
        print(f"  squeue --job={job}   scancel --signal=TERM {job} saves and stops, scancel {job} ends", flush=True)
        return job

    if options.array is None:
        submit("job {job} is submitted; its log: {logs}/{job}.log", command[0], "%j.log", job_script(command))
        return 0
    labels = _read_labels(command)
    array = f"--array=0-{len(labels) - 1}" + (f"%{options.array}" if options.array else "")
    text = f"array {{job}} of {len(labels)} rows is submitted; its logs: {{logs}}/{{job}}_*.log"
    job = submit(text, "row", "%A_%a.log", job_script(command, labels), array)
    # When all have ended, with success or not, the complete table: it trains the missing rows and writes all.
    text = "job {job} writes the table when they have ended; its log: {logs}/{job}.log"
    submit(text, "table", "%j.log", job_script(command), f"--dependency=afterany:{job}")
    return 0


def sbatch_command(name: str, log: Path, others: Sequence[str]) -> list[str]:
    """Returns the command that submits a script on its standard input; later options win over earlier ones."""
    defaults = [f"--job-name={name}", "--nodes=1", "--ntasks-per-node=1", f"--output={log}"]
    fixed = ["--parsable", "--requeue", "--open-mode=append", "--signal=B:USR1@120"]
    return ["sbatch", *defaults, *others, *fixed]


def job_script(command: Sequence[str], labels: Sequence[str] | None = None) -> str:
    """Returns the script that runs `command` in every task; with labels, each array element runs one table row."""
    line, rows = shared.quote_words([shared.LAUNCH, *command]), ""
    if labels is not None:
        rows = f"rows=({shared.quote_words([_escape_label(label) for label in labels])})\n"
        folder = (
            shared.find_option(command, "output") or shared.find_option(command, "workdir") or f"runs/{Path(command[1]).stem}"
        )
        line += f' --rows="${{rows[SLURM_ARRAY_TASK_ID]}}" --output={shared.quote_words([folder])}/array/"$SLURM_ARRAY_TASK_ID"'
    return SCRIPT.format(cwd=shared.quote_words([os.getcwd()]), code=shared.describe_checkout(), rows=rows, command=line)


def _escape_label(label: str) -> str:
    """Returns the pattern of --rows, a comma-separated list of shell patterns, that matches this label alone."""
    return "".join({"*": "[*]", "?": "[?]", "[": "[[]", ",": "?"}.get(letter, letter) for letter in label)


def _read_labels(command: Sequence[str]) -> list[str]:
    if shared.find_option(command, "rows"):
        raise UserError("--array takes all rows of the table: leave --rows out.")
    if len(command) < 2 or command[1].startswith("-"):
        raise UserError("with --array, the table file comes right after 'table'.")
    labels = json.loads(shared.run_program([shared.LAUNCH, "python", "-c", LABELS, command[1]]))
    if not labels:
        raise UserError(f"{command[1]}: no row of this table is trained: leave --array out.")
    return labels
