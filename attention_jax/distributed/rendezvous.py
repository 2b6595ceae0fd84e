"""Waits until all processes of a run have started, before JAX connects them, and names the missing ones.

If a process does not start, `jax.distributed.initialize` aborts the others with a stack of machine addresses and without
its name. So process 0 first listens at the same address: each process sends its number and host, and process 0
answers once all have started or some are missing.
"""

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

from attention_jax.distributed.cluster import ProcessInfo
from attention_jax.errors import UserError

_RETRY, _SLACK = 0.2, 10.0  # seconds between attempts to reach process 0, and seconds to wait longer than process 0 does
_KEY = "attention_jax"  # marks our messages: any other connection to the port is ignored


def wait_for_processes(process: ProcessInfo, seconds: float) -> None:
    """Returns in every process once all have started, or after `seconds`; afterwards the coordinator's port is free again.

    Raises:
        UserError: raised in every process that has started, with the missing processes, or two with the same number.
    """
    if process.count > 1 and (problem := (_report if process.index else _gather)(process, seconds)):
        raise UserError(problem)


def _gather(process: ProcessInfo, seconds: float) -> str:
    """Waits, in process 0, for the others, and sends them the result: "" if all have started, else the problem."""
    deadline, port = time.monotonic() + seconds, int(process.coordinator.rpartition(":")[2])
    found: dict[int, tuple[str, int, socket.socket | None]] = {0: (socket.gethostname(), os.getpid(), None)}
    duplicates: list[str] = []
    changed = threading.Condition()

    def receive(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            message = _read_message(connection)
            if message["word"] != _KEY:
                raise ValueError
            number, host, pid = int(message["process"]), str(message["host"]), int(message["pid"])
            with changed:
                if number in found and found[number][:2] != (host, pid):  # the same process may have lost its connection
                    duplicates.append(f"two processes have number {number}, on {found[number][0]} and on {host}")
                found[number] = (host, pid, connection)
                changed.notify()
                return
        connection.close()

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                threading.Thread(target=receive, args=(server.accept()[0],), daemon=True).start()

    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=4096)
    except OSError as error:
        return f"process 0 cannot listen on port {port} ({error.strerror}): give another port or end what has it."
    with server:
        accepting = threading.Thread(target=accept, args=(server,), daemon=True)
        accepting.start()
        with changed:
            changed.wait_for(lambda: len(found) >= process.count or duplicates, max(0.0, deadline - time.monotonic()))
            hosts = {number: host for number, (host, *_) in found.items()}
            problem = f"{duplicates[0]}: give each its own number." if duplicates else _missing(hosts, process, seconds)
        server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would otherwise keep the port
        accepting.join()
    for _, _, connection in found.values():
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"word": _KEY, "answer": problem}).encode() + b"\n")
                connection.close()
    return problem


def _missing(hosts: dict[int, str], process: ProcessInfo, seconds: float) -> str:
    """Returns a sentence about the processes missing in {number: host}; "" if there are none."""
    missing = [number for number in range(process.count) if number not in hosts]
    if not missing:
        return ""
    names = hosts | dict(enumerate(process.names))
    here = ", ".join(f"{number} on {names[number]}" for number in sorted(hosts))
    gone = ", ".join(f"{number} on {names[number]}" if number in names else str(number) for number in missing)
    return (
        f"{len(missing)} of {process.count} processes did not start within {seconds:g} s: {gone} (started: {here}); "
        "check that each was started and can reach this host, then start the same command again."
    )


def _report(process: ProcessInfo, seconds: float) -> str:
    """Reports, in every other process, to process 0 and returns its answer."""
    deadline, index, names = time.monotonic() + seconds, process.index, process.names
    host, _, port = process.coordinator.rpartition(":")
    host, reason = host.strip("[]"), "no answer"
    here = {"word": _KEY, "process": index, "host": socket.gethostname(), "pid": os.getpid()}
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(here).encode() + b"\n")
                connection.settimeout(seconds + _SLACK)  # process 0 may have begun to wait only now
                answer = _read_message(connection)
                if answer["word"] == _KEY:
                    return answer["answer"]
        except (OSError, ValueError, KeyError, TypeError) as error:  # it has not started yet, or another program has the port
            reason = getattr(error, "strerror", None) or reason
        time.sleep(_RETRY)
    named = f" on {names[0]}" if names and names[0] != host else ""
    mine = names[index] if index < len(names) else here["host"]
    return (
        f"process {index} on {mine} did not reach process 0{named} at {host}:{port} within {seconds:g} s "
        f"({reason}): check that it was started and that this port is open, then start the same command again."
    )


def _read_message(connection: socket.socket) -> Any:
    with connection.makefile("rb") as file:
        return json.loads(file.readline(4096))
