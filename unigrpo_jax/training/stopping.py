"""How a run ends before its time: told to by a signal, or by what was raised in it."""

import contextlib
import signal
import threading
from collections.abc import Callable

from unigrpo_jax.foreign_text import said


class RunStopped(RuntimeError):
    """The run cannot go on; the message says why and what is saved, and what was raised is its cause."""


class Preempted(RunStopped):
    """The run was told to end (SIGTERM, SIGHUP); a checkpoint was written, and `resume` continues."""


class JudgeAway(RunStopped):
    """A server that judges went away and did not come back; a checkpoint was written, and `resume` continues."""


class StorageFailed(RunStopped):
    """The run folder cannot be written; the newest whole checkpoint is as it was, and `resume` continues from it."""


def clause(error: BaseException) -> str:
    """What was raised, as a clause on one line: its own words, and its kind where they need not be meant for a person.

    What JAX says of a callback that failed is a whole traceback, whose last line counts.
    """
    lines = [line for line in said(error).splitlines() if line.strip()] or [""]
    if any("Traceback (most recent call last)" in line for line in lines):
        lines = [line for line in reversed(lines) if not line.startswith(" ")] or lines
    words = lines[0].strip()[:500].rstrip(".")
    own = type(error).__module__.startswith("unigrpo_jax.")
    return words if own and words else f"{type(error).__name__}: {words}" if words else type(error).__name__


class Signals:
    """While its context is open, Ctrl-C, SIGTERM and SIGHUP let the iteration end; a second Ctrl-C stops at once.

    But for Ctrl-C they do not let rewards end that take long (`rewards.judging.LEFT_AFTER`).

    A SIGHUP that is ignored, as under `nohup`, stays so.  In another thread than the main one no signal is heard.

    Attributes:
      told: the name of the one that came last, or None.
    """

    def __init__(self, say: Callable[[str], None]):
        """`say` tells a person that the signal was heard."""
        self.told: str | None = None
        self._say, self._before = say, {}

    def _hear(self, number: int, _) -> None:
        if self.told == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.told = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        with contextlib.suppress(RuntimeError):  # the signal came while something was being printed
            self._say(f"Finishing this iteration, then saving{again}.")

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            kinds = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                kinds.append(signal.SIGHUP)
            self._before = {kind: signal.signal(kind, self._hear) for kind in kinds}
        return self

    def __exit__(self, *exception) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
