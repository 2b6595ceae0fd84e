"""Several processes on this machine, joined over loopback: `./launch.sh local --processes P --devices D -- COMMAND ...`.

A rehearsal of several hosts: each process has its own forced CPU devices. The exit code is 0 if all processes end with 0,
else the code of the first process that failed.
"""

from __future__ import annotations  # for Python 3.9

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from attention_jax.errors import UserError
from attention_jax.launch.shared import Parser, check_command, split_arguments

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE = 10.0  # seconds for the others to end after one has failed


def main(arguments: Sequence[str]) -> int:
    """Runs a command on several processes and returns the exit code."""
    options, command = _parse(arguments)
    address = f"127.0.0.1:{_free_port()}"
    received: list[int] = []
    for number in STOPPING:
        signal.signal(number, lambda number, frame: received.append(number))
    processes = [_start(command, address, index, options.processes, options.devices) for index in range(options.processes)]
    streams = [(f"[{index}] ", process.stdout) for index, process in enumerate(processes) if process.stdout]
    readers = [threading.Thread(target=_prefix, args=stream, daemon=True) for stream in streams]
    for reader in readers:
        reader.start()
    try:
        return _wait(processes, received)
    finally:
        _send(processes, signal.SIGKILL)
        for reader in readers:
            reader.join(timeout=5)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, command = split_arguments(arguments)
    parser = Parser(
        "local",
        usage="./launch.sh local [--processes P] [--devices D] -- COMMAND ...",
        description="Runs a command of attention_jax on several processes of this machine.",
    )
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="default 1")
    parser.add_argument("--devices", type=int, default=1, metavar="D", help="CPU devices per process; default 1")
    options = parser.parse_args(own)
    if options.processes < 1 or options.devices < 1:
        raise UserError(f"--processes={options.processes} --devices={options.devices}: both must be at least 1.")
    check_command(command, known=())
    return options, command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(command: list[str], address: str, index: int, count: int, devices: int) -> subprocess.Popen:
    """Starts one process. Process 0 inherits standard output and error; the others write into a pipe."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    joined = {"AJ_COORDINATOR": address, "AJ_PROCESSES": str(count), "AJ_PROCESS": str(index)}
    return subprocess.Popen(
        [sys.executable, "-m", "attention_jax", *command],
        env={**os.environ, **joined, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if index else None,
        stderr=subprocess.STDOUT if index else None,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the processes through this one, once
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    """Makes Linux kill this process when the launcher is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _prefix(prefix: str, stream: IO[str]) -> None:
    for line in stream:
        sys.stderr.write(prefix + line)
        sys.stderr.flush()


def _wait(processes: list[subprocess.Popen], received: list[int]) -> int:
    """Waits until all have ended; passes signals on, and stops the rest when one fails. Returns the exit code."""
    passed_on, failed, deadline = 0, None, float("inf")
    while True:
        running = any(process.poll() is None for process in processes)
        if failed is None and (failed := _first_failed(processes)) is not None:
            process = f"process {failed} of {len(processes)} on {socket.gethostname()}"
            ending = "; stopping the others" if running else ""
            print(f"local: {process} {_describe_end(processes[failed])}{ending}.", file=sys.stderr, flush=True)
            _send(processes, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE
        if not running:
            break
        if len(received) > passed_on:  # Ctrl-C too becomes SIGTERM, on which training saves; the second time kills
            passed_on = len(received)
            _send(processes, signal.SIGTERM if passed_on == 1 else signal.SIGKILL)
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(0.05)
    code = 0 if failed is None else processes[failed].returncode
    return code if code >= 0 else 128 - code


def _first_failed(processes: list[subprocess.Popen]) -> int | None:
    """Returns the index of a failed process, preferably not one that the runtime aborted because it lost another."""
    failed = [index for index, process in enumerate(processes) if process.poll() not in (None, 0)]
    return min(failed, key=lambda index: (processes[index].returncode == -signal.SIGABRT, index), default=None)


def _describe_end(process: subprocess.Popen) -> str:
    code = process.returncode
    if code > 0:
        return f"ended with exit code {code}"
    hints = {
        signal.SIGKILL: " (by hand, or by the kernel because memory ran out)",
        signal.SIGABRT: " (by the runtime: it lost another process, or its message is above)",
    }
    number = signal.Signals(-code)
    return f"was ended by {number.name}{hints.get(number, '')}"


def _send(processes: list[subprocess.Popen], number: int) -> None:
    """Sends a signal to each running process and to its children."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
