"""Trains a generator by reinforcement learning: a unified model with UniGRPO, any other with DanceGRPO.

    python -m experiments.run [PRESET] [--field value ...]

PRESET is a file in experiments/presets (default: shapes).  --help lists every field with its default and meaning.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from experiments.command_line import (
    complain,
    configure_jax,
    given_arguments,
    interrupted,
    leave,
    preset,
    presets,
    say,
    unheard,
)
from unigrpo_jax.config import ConfigError, RunConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line says beside the settings."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """Run folder, also in a bucket (gs://...); default runs/NAME."""
    resume: bool = False
    """Continue the run in the run folder from its newest whole checkpoint; start it where there is none."""
    allow_changed: tuple[str, ...] = ()
    """Settings that --resume accepts though they differ from the run's and change what is learned, such as seed."""


def main() -> None:
    """Parses the command line and runs."""
    train("experiments.run", __doc__)


def train(
    program: str, words: str, settings: Callable[[RunConfig], RunConfig] = lambda preset: preset,
    then: Callable[[str], None] = lambda run_dir: None,
) -> None:  # fmt: skip
    """Parses the command line and runs.

    Args:
      program: its name, for messages.
      words: what --help says first.
      settings: makes the defaults of a preset's.
      then: what comes after the last iteration, given the run folder.
    """
    try:
        default, rest = preset(given_arguments(), "shapes")
        arguments = tyro.cli(
            Arguments,
            args=rest,
            default=Arguments(settings(default)),
            prog=f"python -m {program} [PRESET]",
            description=f"{words}Presets: {', '.join(presets())}.",
        )
        configure_jax()
        from unigrpo_jax.parallel.roll_call import PeersMissing
        from unigrpo_jax.training.loop import JudgeAway, Preempted, RunStopped, StorageFailed, run
        from unigrpo_jax.training.watchdog import RESTART

        try:
            run_dir = arguments.run_dir or f"runs/{arguments.config.name}"
            run(arguments.config, run_dir, arguments.resume, arguments.allow_changed)
            then(run_dir)
        except PeersMissing as error:
            leave(RESTART, f"{program}: {error}.")
        except StorageFailed as error:
            leave(1, f"{program}: {error}")
        except RunStopped as error:
            say(program, error)
            sys.exit(RESTART if isinstance(error, (Preempted, JudgeAway)) else 1)
    except ConfigError as error:
        complain(error, program)
    except BrokenPipeError:
        unheard()
    except KeyboardInterrupt:
        interrupted()


if __name__ == "__main__":
    main()
