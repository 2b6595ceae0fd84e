"""Who has come: the processes of a run find each other before JAX joins them, for at most so many seconds.

`jax.distributed.initialize` ends a process by abort, with a stack of machine addresses, when another one does not come, and
does not say which. So process 0 first calls the roll at the same address: each process says its number and host, and
all are told to go on, or who is missing.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from attention_jax.errors import UserError

_RETRY, _SLACK = 0.2, 10.0  # seconds between attempts to reach process 0, and beyond its own waiting
_WORD = "attention_jax"  # what talks to the port otherwise is not counted


def call(address: str, index: int, count: int, seconds: float, hosts: Sequence[str] = ()) -> None:
    """Returns in every process when all have come.

    Args:
        address: "host:port" of process 0; the port is free again afterwards.
        index, count: of this process, and how many there are.
        seconds: to wait for the others.
        hosts: names of the processes' hosts, in order, where they are known: so that a missing one can be named.

    Raises:
        UserError: some process has not come; says which, and in every process that has. Two have the same number.
    """
    host, _, port = address.rpartition(":")
    if count == 1:
        return
    deadline = time.monotonic() + seconds
    if index == 0:
        answer = _listen(int(port), count, deadline, seconds, hosts)
    else:
        answer = _ask(host.strip("[]"), int(port), index, deadline, seconds, hosts)
    if answer:
        raise UserError(answer)


def _listen(port: int, count: int, deadline: float, seconds: float, hosts: Sequence[str]) -> str:
    """What process 0 tells the others: nothing when all have come, else what is wrong."""
    come: dict[int, tuple[str, int, socket.socket | None]] = {0: (socket.gethostname(), os.getpid(), None)}
    twice: list[str] = []
    changed = threading.Condition()

    def hear(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            said = _read(connection)
            if said["word"] != _WORD:
                raise ValueError
            number, host, pid = int(said["process"]), str(said["host"]), int(said["pid"])
            with changed:
                if number in come and come[number][:2] != (host, pid):  # the same one may have lost its connection
                    twice.append(f"two processes have number {number}, on {come[number][0]} and on {host}")
                come[number] = (host, pid, connection)
                changed.notify()
                return
        connection.close()

    try:
        server = _server(port)
    except OSError as error:
        return f"process 0 cannot listen on port {port} ({error.strerror}): give another port or end what has it."
    with server:
        accepting = threading.Thread(target=_accept, args=(server, hear), daemon=True)
        accepting.start()
        with changed:
            changed.wait_for(lambda: len(come) >= count or twice, max(0.0, deadline - time.monotonic()))
            answer = twice[0] + ": give each its own number." if twice else ""
            missing = sorted(set(range(count)) - come.keys())
            if not answer and missing:
                there = ", ".join(f"{number} on {_name(number, hosts, come[number][0])}" for number in sorted(come))
                names = ", ".join(f"{number} on {hosts[number]}" if number < len(hosts) else str(number) for number in missing)
                answer = (
                    f"of {count} processes {len(missing)} did not come within {seconds:g} s: {names} (here: {there}); "
                    "see that it was started there and can reach this host, then start the same command again."
                )
        server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would otherwise keep the port
        accepting.join()
    for _, _, connection in come.values():
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"word": _WORD, "answer": answer}).encode() + b"\n")
                connection.close()
    return answer


def _server(port: int) -> socket.socket:
    """On every address of this host, of both versions of the protocol where it has them."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=4096
    )


def _accept(server: socket.socket, hear: Any) -> None:
    with contextlib.suppress(OSError):  # closed: the roll is done
        while True:
            threading.Thread(target=hear, args=(server.accept()[0],), daemon=True).start()


def _name(number: int, hosts: Sequence[str], otherwise: str) -> str:
    return hosts[number] if number < len(hosts) else otherwise


def _ask(host: str, port: int, index: int, deadline: float, seconds: float, hosts: Sequence[str]) -> str:
    """What process 0 answers."""
    here, reason = socket.gethostname(), "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(
                    json.dumps({"word": _WORD, "process": index, "host": here, "pid": os.getpid()}).encode() + b"\n"
                )
                connection.settimeout(seconds + _SLACK)  # process 0 may have begun to wait just now
                said = _read(connection)
                if said["word"] == _WORD:
                    return said["answer"]
        except (OSError, ValueError, KeyError, TypeError) as error:  # not there yet, or something else has the port
            reason = getattr(error, "strerror", None) or reason
        time.sleep(_RETRY)
    named = f" on {hosts[0]}" if hosts and hosts[0] != host else ""
    return (
        f"process {index} on {_name(index, hosts, here)} did not reach process 0{named} at {host}:{port} within {seconds:g} s "
        f"({reason}): see that it was started there and that this port is open, then start the same command again."
    )


def _read(connection: socket.socket) -> Any:
    with connection.makefile("rb") as file:
        return json.loads(file.readline(4096))
