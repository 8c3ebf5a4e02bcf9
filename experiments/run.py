"""Trains a unified model with UniGRPO.

    python -m experiments.run [PRESET] [--field value ...]

PRESET is a file in experiments/presets (default: shapes).  --help lists every field with its default and meaning.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from experiments.command_line import complain, configure_jax, interrupted, leave, preset, presets, say
from unigrpo_jax.config import ConfigError, RunConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line says beside the settings."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """Run folder, also in a bucket (gs://...); default runs/NAME."""
    resume: bool = False
    """Continue the run in the run folder from its newest checkpoint; start it where there is none."""


def main() -> None:
    """Parses the command line and runs."""
    try:
        default, rest = preset(sys.argv[1:], "shapes")
        arguments = tyro.cli(
            Arguments,
            args=rest,
            default=Arguments(default),
            prog="python -m experiments.run [PRESET]",
            description=f"{__doc__}Presets: {', '.join(presets())}.",
        )
        configure_jax()
        from unigrpo_jax.parallel.roll_call import PeersMissing
        from unigrpo_jax.training.loop import Preempted, RunStopped, run
        from unigrpo_jax.training.watchdog import RESTART

        try:
            run(arguments.config, arguments.run_dir or f"runs/{arguments.config.name}", arguments.resume)
        except PeersMissing as error:
            leave(RESTART, f"experiments.run: {error}.")
        except RunStopped as error:
            say("experiments.run", error)
            sys.exit(RESTART if isinstance(error, Preempted) else 1)
    except ConfigError as error:
        complain(error, "experiments.run")
    except KeyboardInterrupt:
        interrupted()


if __name__ == "__main__":
    main()
