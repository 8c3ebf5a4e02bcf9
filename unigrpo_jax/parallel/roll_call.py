"""The meeting of several processes before JAX starts: who is missing, and do all mean the same run?

Process 0 listens at the coordinator's address, the others call it and say who they are and what they are about to do.  JAX
itself waits in silence and then aborts the process; here the wait is told, and ends in a sentence.  The messages are lines
of JSON; once all are there and agree, process 0 frees the port, and JAX's own service takes it.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from unigrpo_jax.config import ConfigError

LONGEST = 2**20  # bytes of a message
SPEAK = 10.0  # seconds that a caller has to say its line


class PeersMissing(RuntimeError):
    """Other processes of the run did not come; the message names them, without a full stop."""


def roll_call(
    address: str,
    count: int,
    index: int,
    facts: Mapping[str, Any],
    wait: float,
    tell: Callable[[str], None],
    every: float = 30,
) -> None:
    """Returns when all processes are there and agree.

    Args:
      address: host:port of process 0.
      count: number of processes.
      index: which of them this is, from 0.
      facts: {name: JSON value} that must be the same in all.
      wait: seconds after which it gives up.
      tell: is called with a sentence while others are missing.
      every: seconds between those sentences.

    Raises:
      PeersMissing: not all came in time.
      ConfigError: they disagree on a fact, or two claim one index; all raise it.
    """
    host, _, port = address.rpartition(":")
    meet = _receive_all if index == 0 else _report
    meet(host, int(port), count, index, json.loads(json.dumps(facts)), time.monotonic() + wait, wait, tell, every)


def _receive_all(host, port, count, index, facts, deadline, wait, tell, every) -> None:
    """Process 0: waits for the others, compares, and answers them all."""
    try:
        listener = socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise ConfigError(f"process 0 cannot listen at port {port} ({error.strerror}); choose another processes.coordinator "
                          "or JAX_COORDINATOR_PORT.") from None  # fmt: skip
    lines: list[socket.socket] = []  # to all who said something that we understood
    known: dict[int, dict] = {}
    missing = lambda: [i for i in range(1, count) if i not in known]
    fault, begin, told = None, time.monotonic(), 0
    with listener, contextlib.ExitStack() as stack:
        while missing() and fault is None and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(min(left, every))
            with contextlib.suppress(TimeoutError):
                caller, (name, *_) = listener.accept()
                said = _hear(caller)
                if said is None:  # something else knocks at an open port
                    caller.close()
                    continue
                lines.append(stack.enter_context(caller))
                if said.get("count") != count:
                    fault = f"process {said['index']} at {name} expects {said.get('count')} processes, process 0 {count}"
                elif said["index"] not in missing():
                    fault = f"two processes say that they are number {said['index']} of {count}, one of them at {name}"
                else:
                    known[said["index"]] = said["facts"]
            if missing() and time.monotonic() - begin >= every * (told + 1):
                told += 1
                tell(f"Waiting for {_named(missing())} of {count} processes at port {port} "
                     f"({time.monotonic() - begin:.0f} of {wait:.0f} s).")  # fmt: skip
        kind = ConfigError
        if fault is None and missing():
            kind, fault = PeersMissing, f"{_named(missing())} of {count} processes did not come within {wait:.0f} s"
        fault = fault or next(filter(None, (_difference(facts, theirs, i) for i, theirs in sorted(known.items()))), None)
        for caller in lines:
            with contextlib.suppress(OSError):
                caller.sendall((json.dumps({"fault": fault, "missing": kind is PeersMissing}) + "\n").encode())
        # A caller that closes first leaves the port free for JAX at once.
        for caller in lines:
            with contextlib.suppress(OSError):
                caller.settimeout(SPEAK)
                caller.recv(1)
    if fault:
        raise kind(f"{fault}." if kind is ConfigError else fault)


def _report(host, port, count, index, facts, deadline, wait, tell, every) -> None:
    """The others: call process 0 until it answers, and wait for its verdict."""
    begin, told = time.monotonic(), 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise PeersMissing(f"process 0 of {count} did not answer at {host}:{port} within {wait:.0f} s")
        try:
            with socket.create_connection((host, port), timeout=min(left, every)) as caller:
                caller.sendall((json.dumps({"index": index, "count": count, "facts": facts}) + "\n").encode())
                caller.settimeout(max(deadline - time.monotonic(), 0) + SPEAK)
                verdict = _line(caller)
        except OSError:
            verdict = None
        if verdict is not None:
            if verdict.get("fault"):
                fault = str(verdict["fault"])
                raise PeersMissing(fault) if verdict.get("missing") else ConfigError(f"{fault}.")
            return
        if time.monotonic() - begin >= every * (told + 1):
            told += 1
            tell(f"Process {index} waits for process 0 at {host}:{port} ({time.monotonic() - begin:.0f} of {wait:.0f} s).")
        time.sleep(min(0.2, max(left, 0)))


def _hear(caller: socket.socket) -> dict | None:
    """What a caller says, or None where it is no process of a run."""
    caller.settimeout(SPEAK)
    with contextlib.suppress(OSError):
        said = _line(caller)
        if said is not None and isinstance(said.get("index"), int) and isinstance(said.get("facts"), dict):
            return said
    return None


def _line(caller: socket.socket) -> dict | None:
    """One JSON object, or None where the line is none or too long."""
    data = b""
    while not data.endswith(b"\n"):
        piece = caller.recv(2**16)
        if not piece or len(data) + len(piece) > LONGEST:
            return None
        data += piece
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], index: int) -> str | None:
    """A sentence about the first facts that differ; None where all are equal."""
    names = [name for name in [*ours, *(n for n in theirs if n not in ours)] if ours.get(name) != theirs.get(name)]
    if not names:
        return None
    shown = ", ".join(f"{name} = {theirs.get(name)!r} (process 0: {ours.get(name)!r})" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"process {index} has {shown}{more}; start all processes with the same code, versions and settings"


def _named(indices: list[int]) -> str:
    """[1, 2, 5] as "1, 2, 5", the first ten of many."""
    return ", ".join(map(str, indices[:10])) + (f" and {len(indices) - 10} more" if len(indices) > 10 else "")
