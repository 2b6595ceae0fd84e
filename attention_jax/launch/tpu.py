"""`./launch.sh tpu create | run | watch | status | logs | stop NAME --zone=ZONE … [-- COMMAND ...]`, for TPUs v4 to v6e.

A slice is a queued resource of Google Cloud; TPU7x and newer are on Kubernetes Engine alone, for which there is `gke`.
`watch` does everything: it requests the slice if there is none, waits, sends the code, starts it on every worker, prints the
log of worker 0, and requests the slice again when it is preempted. A worker that is lost, ends by a signal or with a runtime
error has the run restarted from its last checkpoint, up to --max-restarts times; an error of the user (exit code 2) ends it.
`watch` is stateless: stop and restart it at any time, from any machine; the run goes on without it.

Each worker gets three files: an archive of the commit, worker.py, and the words of the command with the values of --env.
No value and no word of the command passes through a shell, a log or a process list.
"""

from __future__ import annotations  # for Python 3.9

import argparse
import math
from collections.abc import Callable, Sequence

from attention_jax.errors import UserError
from attention_jax.launch import shared
from attention_jax.launch.data_address import check_addresses
from attention_jax.launch.gcloud import TpuSlice, parse_accelerator, refuse_newer
from attention_jax.launch.tpu_job import KEPT, START, STATUS, STOP, WORKER, Job, SliceClient, describe_status, outgoing_folder
from attention_jax.launch.tpu_watch import MEANWHILE, Watch


def main(arguments: Sequence[str]) -> int:
    """Does one action; returns 0, or 1 if the run failed."""
    own, command = shared.split_arguments(arguments)
    options = _parser().parse_args(own)
    target = TpuSlice(options.name, options.zone, options.project, options.internal_ip)
    if options.action in ("run", "watch") or (options.action == "create" and command):
        shared.check_command(command)
        _check_workdir(command)
    elif command:
        raise UserError(f"{options.action} takes nothing after ' -- ': a command is for create, run and watch.")
    if options.dry_run:
        print("\n".join(_plan(target, options, command)))
        return 0
    if command and options.check:
        check_addresses(shared.check_inputs(command, shared.find_commit(options.commit, command)))
    return _ACTIONS[options.action](SliceClient(target), options, command) or 0


def _parser() -> shared.Parser:
    parser = shared.Parser("tpu", description=__doc__)
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("name", metavar="NAME", help="of the slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default gcloud's")
    parser.add_argument("--internal-ip", action="store_true", help="reach the workers inside their network")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and contact nothing")
    group = parser.add_argument_group("create and watch")
    group.add_argument("--type", metavar="TYPE", help="v5e-16, v4-32, v6e:4x4, …; TPU7x and newer: see gke --help")
    group.add_argument("--spot", action="store_true", help="cheaper, and may be preempted at any time")
    group.add_argument("--runtime-version", metavar="IMAGE", help="default by the type")
    group.add_argument("--create-flag", action="append", default=[], metavar="FLAG", help="for gcloud, e.g. --network=NAME")
    group = parser.add_argument_group("run and watch, and create with the command that is to run")
    shared.add_check_option(group)
    group.add_argument("--commit", metavar="REV", help="default the newest, of a checkout without other changes")
    group.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to send with its value here")
    group.add_argument("--every", type=float, default=30, metavar="SECONDS", help="between two checks of watch; default 30")
    group = parser.add_argument_group("watch")
    group.add_argument(
        "--max-restarts", type=int, default=5, metavar="N", help="after lost workers and runtime errors; default 5"
    )
    group.add_argument("--max-hours", type=float, metavar="H", help="hours of machines, after which the run saves and stops")
    group.add_argument("--delete-at-end", action="store_true", help="delete the slice when the run has ended, however it ended")
    group = parser.add_argument_group("logs and stop")
    group.add_argument("--worker", default="all", metavar="N", help="default all")
    group.add_argument("--lines", type=int, default=40, metavar="K", help="last lines of each; default 40")
    group.add_argument("--keep", action="store_true", help="stop the run and keep the slice")
    return parser


def _check_workdir(command: Sequence[str]) -> None:
    for name in ("workdir", "output"):
        folder = shared.find_option(command, name)
        if folder and "://" not in folder and not folder.startswith("/"):
            raise UserError(
                f"--{name}={folder} would lie on each worker's own disk, which is deleted with the slice: give a URI such as "
                "gs://BUCKET/RUN, or the absolute path of a disk that all workers share."
            )


def _create(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> None:
    client.call(_creation(client.target, options))
    print(f"{client.target.name} is requested: wait for it with status, or let watch do it.")
    print(f"{MEANWHILE}: {shared.quote_words(_preflight(options, command))}")


def _run(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> None:
    job, state = Job(client, options, command), client.read_state()
    if state != "ACTIVE":
        raise UserError(f"{client.target.name} is {state}, not ACTIVE: wait, or use watch, which waits for it.")
    statuses = job.ask_status()
    job.start(len(statuses))
    print(f"{len(statuses)} workers have started; this terminal may close. Follow with logs, status or watch.")


def _status(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> None:
    state = client.read_state()
    print(f"{client.target.name}: {state}")
    if state == "ACTIVE":
        for status in client.ask(STATUS):
            print(f"  {describe_status(status)}")
    if client.node:
        print(client.describe_bill())


def _logs(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> None:
    client.print_log(options.worker, f"-{options.lines}")


def _stop(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> None:
    """Has all workers save the same step; then deletes the slice, unless it is kept."""
    try:
        state = client.read_state()
    except UserError:  # the request has failed, and is removed here
        state = "FAILED"
    if state == "ACTIVE":
        statuses = client.stop_run(options.every)
        if any(status["state"] == "running" for status in statuses):
            raise UserError("the run has not ended within ten minutes; the slice is kept: see logs, and try again.")
        print("\n".join(map(describe_status, statuses)))
    if not options.keep and state != "ABSENT":
        client.call(client.target.delete())
        print(f"{client.target.name} is deleted.")


def _watch(client: SliceClient, options: argparse.Namespace, command: Sequence[str]) -> int:
    client.patience, client.first = math.inf, options.every  # a network that is away for a night ends nothing
    creation = _creation(client.target, options) if options.type else None
    return Watch(client, Job(client, options, command), options, _preflight(options, command)).run(creation)


_ACTIONS: dict[str, Callable[..., int | None]]
_ACTIONS = {"create": _create, "run": _run, "watch": _watch, "status": _status, "logs": _logs, "stop": _stop}


def _creation(target: TpuSlice, options: argparse.Namespace) -> list[str]:
    if not options.type:
        raise UserError(f"there is no slice {target.name} yet: give its --type, such as v5e-16.")
    refuse_newer(options.type)
    kind, image = parse_accelerator(options.type)
    image = options.runtime_version or image
    if not image:
        raise UserError(f"--type={options.type} is of no known family: give its image with --runtime-version.")
    return target.create(kind, image, options.spot, options.create_flag)


def _preflight(options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Returns the preflight, for this machine, of the step of `command` on such a slice."""
    config, fields = shared.find_option(command, "config") or "FILE", [word for word in command if word.startswith("--config.")]
    return ["./launch.sh", "preflight", f"--config={config}", *fields, f"--topology={options.type}"]


def _plan(target: TpuSlice, options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Returns the commands of an action as shell lines, with a comment where they depend on an answer."""
    action, lines = options.action, []

    def add(comment: str, *commands: Sequence[object]) -> None:
        lines.extend([f"# {comment}", *map(shared.quote_words, commands)])

    if action not in ("create", "logs"):
        add("the slice's state", target.describe(), target.describe_node())
    if action == "create" or (action == "watch" and options.type):
        add(f"if there is no slice; {MEANWHILE}", _preflight(options, command), _creation(target, options))
    if action == "watch":
        add("if it was preempted", target.delete())
    if action in ("run", "watch", "status"):
        add("the workers' states", target.remote(STATUS))
    if action in ("run", "watch"):
        job, folder = Job(SliceClient(target), options, command), outgoing_folder(target)
        env = {name: f"(the value of {name} here)" for name in job.env}
        add(f"{folder}/job.json: {job.description([f'{target.name} worker 0', '(and so on)'], env)}")
        pack = shared.archive_command(job.commit, folder / "code.tar.gz"), ["cp", WORKER, folder]
        add("the code, the command and the program that runs it", *pack, target.send(folder), target.remote(START))
    if action == "watch":
        add("while it runs, from byte 0 on", target.remote(f"{KEPT} log 0 BYTES", "0"))
    if action == "logs":
        add("the last lines", target.remote(f"{KEPT} log -{options.lines}", options.worker))
    if action == "stop":
        add("the run saves and ends", target.remote(STOP), target.remote(f"{KEPT} status"))
        if not options.keep:
            add("then", target.delete())
    return lines
