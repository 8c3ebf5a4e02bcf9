"""An end for steps that hang: a peer that is gone, a collective that nobody joins, a reward that never answers."""

import faulthandler
import os
import sys
import threading

RESTART = 75  # EX_TEMPFAIL: what launchers start again


class Watchdog:
    """While its context is open, a pause of more than `seconds` after a call of `step` ends the process.

    The stacks of all threads are printed first, by a thread that needs no interpreter lock.  The exit code is RESTART, since
    what hangs is mended by a restart if by anything; checkpoints are whole.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def step(self, more: float = 0.0) -> None:
        """Starts the time anew, and allows what comes `more` seconds, as long as something else ends it then."""
        if not self._seconds:
            return
        self._cancel()
        faulthandler.dump_traceback_later(self._seconds + more, file=sys.__stderr__)
        self._timer = threading.Timer(self._seconds + more + 1, self._end, (more,))
        self._timer.daemon = True
        self._timer.start()

    def _end(self, more: float) -> None:
        judging = f", and {more:g} s that judging allows rewards" if more else ""
        print(f"No step was finished within {self._seconds + more:g} s (processes.hang_seconds{judging}); the stacks are "
              "above.", file=sys.__stderr__, flush=True)  # fmt: skip
        os._exit(RESTART)

    def _cancel(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> "Watchdog":
        self.step()
        return self

    def __exit__(self, *exception) -> None:
        self._cancel()
