"""Programs outside Python (gcloud, kubectl, sbatch): found, run by argument list, never through a shell."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from unigrpo_jax.config import require


class LaunchError(RuntimeError):
    """A program outside ended with an error; the message is one sentence for the user."""


def need(program: str, source: str) -> None:
    """Raises ConfigError where `program` is not on PATH; `source` says where it comes from."""
    require(shutil.which(program) is not None, f"{program} is not on PATH; install {source}, or look with --dry-run.")


def run(command: Sequence[str], stdin: str | None = None) -> int:
    """Runs with the terminal's output; returns the exit code."""
    return subprocess.run(command, input=stdin, encoding="utf-8", check=False).returncode


def read(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs and returns exit code, stdout and stderr."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False)


def last_line(text: str) -> str:
    """What a program said last, for an error's sentence."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def shown(command: Sequence[str]) -> str:
    """The command as one could type it."""
    return shlex.join(command)
