"""Several processes on this machine, joined over loopback.

    python -m attention_jax.launch.local --processes 2 --devices 2 -- COMMAND ...

A rehearsal of several hosts: each process has its own forced CPU devices and joins through `join_processes`. Exit code
0 when all processes end with 0, else that of the first to fail; 2 for a mistake on the command line.
"""

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

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE = 10.0  # seconds that the others have to end after one has failed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb on several processes and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options, verb = _parse(arguments)
    address = f"127.0.0.1:{_free_port()}"
    asked: list[int] = []
    for number in STOPPING:
        signal.signal(number, lambda number, frame: asked.append(number))
    processes = [_start(verb, address, index, options.processes, options.devices) for index in range(options.processes)]
    readers = [
        threading.Thread(target=_prefix, args=(process.stdout, f"[{index}] "), daemon=True)
        for index, process in enumerate(processes)
        if process.stdout
    ]
    for reader in readers:
        reader.start()
    try:
        code = _wait(processes, asked)
    finally:
        _send(processes, signal.SIGKILL)
        for reader in readers:
            reader.join(timeout=5)
    return code


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="local",
        usage="local [--processes P] [--devices D] -- VERB ...",
        description="A verb of attention_jax on several processes of this machine.",
    )
    parser.error = _fail
    parser.add_argument("--processes", type=int, default=1, metavar="P", help="default 1")
    parser.add_argument("--devices", type=int, default=1, metavar="D", help="CPU devices a process; default 1")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, verb = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    if options.processes < 1 or options.devices < 1:
        _fail(f"--processes={options.processes} --devices={options.devices}: both must be at least 1")
    if not verb:
        _fail("what to run is missing: give it after ' -- ', as in -- train --config=FILE --workdir=DIR")
    return options, verb


def _fail(message: str) -> None:
    print(f"error: local: {message}.", file=sys.stderr)
    sys.exit(2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(verb: list[str], address: str, index: int, count: int, devices: int) -> subprocess.Popen:
    """Process 0 writes where we write; what the others write is read and prefixed."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    about = {"AJ_COORDINATOR": address, "AJ_PROCESSES": str(count), "AJ_PROCESS": str(index)}
    return subprocess.Popen(
        [sys.executable, "-m", "attention_jax", *verb],
        env={**os.environ, **about, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if index else None,
        stderr=subprocess.STDOUT if index else None,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches them through us, once
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    """On Linux: a launcher that is killed leaves no process behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _prefix(stream: IO[str], prefix: str) -> None:
    for line in stream:
        sys.stderr.write(prefix + line)
        sys.stderr.flush()


def _wait(processes: list[subprocess.Popen], asked: list[int]) -> int:
    """Until all have ended; passes on a request to stop, and stops the rest when one fails."""
    passed_on, failed, deadline = 0, None, float("inf")
    while any(process.poll() is None for process in processes):
        if len(asked) > passed_on:  # Ctrl-C too becomes SIGTERM, on which training saves; the second time acts at once
            passed_on = len(asked)
            _send(processes, signal.SIGTERM if passed_on == 1 else signal.SIGKILL)
        if failed is None and (failed := _first_failed(processes)) is not None:
            _say(f"{_who(failed, processes)} {_how(processes[failed])}; stopping the others")
            _send(processes, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(0.05)
    if failed is None and (failed := _first_failed(processes)) is not None:
        _say(f"{_who(failed, processes)} {_how(processes[failed])}")
    if failed is None:
        return 0
    code = processes[failed].returncode
    return code if code > 0 else 128 - code


def _first_failed(processes: list[subprocess.Popen]) -> int | None:
    """Which failed; of several the one that was not ended by the runtime, which aborts those that have lost another."""
    failed = [index for index, process in enumerate(processes) if process.poll() not in (None, 0)]
    return min(failed, key=lambda index: (processes[index].returncode == -signal.SIGABRT, index), default=None)


def _who(index: int, processes: list[subprocess.Popen]) -> str:
    return f"process {index} of {len(processes)} on {socket.gethostname()}"


def _how(process: subprocess.Popen) -> str:
    code = process.returncode
    if code > 0:
        return f"ended with exit code {code}"
    hint = {
        signal.SIGKILL: " (by hand, or by the kernel because memory ran out)",
        signal.SIGABRT: " (by the runtime: it lost another process, or its own words are above)",
    }.get(-code, "")
    return f"was ended by {signal.Signals(-code).name}{hint}"


def _say(message: str) -> None:
    print(f"local: {message}.", file=sys.stderr, flush=True)


def _send(processes: list[subprocess.Popen], number: int) -> None:
    """To each process that runs and whatever it has started."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
