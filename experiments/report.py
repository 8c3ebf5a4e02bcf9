"""Makes one page of several runs: settings that differ, held-out tables, samples of the same prompts, curves overlaid.

python -m experiments.report RUN [RUN ...] [--out FILE]

RUN is a run folder, also in a bucket, finished or not.  The first one is what the others are compared with.  The page is one
HTML file, which loads nothing.
"""

import dataclasses

import tyro

from experiments.command_line import command_line


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which runs, and where the page goes."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders."""
    out: str = "runs.html"
    """The page: an .html file."""


@command_line
def main(arguments: Arguments) -> None:
    """Reads the runs and writes the page."""
    from unigrpo_jax.config import ConfigError, require
    from unigrpo_jax.foreign_text import tell
    from unigrpo_jax.training import storage
    from unigrpo_jax.training.recorded_run import read_runs
    from unigrpo_jax.training.runs_page import MOST_RUNS, runs_page

    require(arguments.runs, "no run is given; give one run folder or more, such as runs/shapes.")
    require(arguments.out.endswith((".html", ".htm")), f"--out {arguments.out} is no .html file; name the page so.")
    out = storage.path(arguments.out)
    require(not out.is_dir(), f"--out {out} is a folder; name a file in it, such as {out / 'runs.html'}.")
    try:
        runs = read_runs(arguments.runs)
        require(len(runs) <= MOST_RUNS, f"{len(runs)} runs cannot be told apart on one page; give at most {MOST_RUNS}.")
        html = runs_page(runs)
    except OSError as error:
        raise ConfigError(f"a run cannot be read: {storage.reason(error)}.") from None
    except ConfigError:
        raise
    except ValueError as error:  # a damaged file, which it names
        raise ConfigError(f"{str(error).rstrip('.')}; restore it, or leave that run out.") from None
    try:
        storage.write_atomically(out, html.encode())
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {storage.reason(error)}; choose another --out.") from None
    tell(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {out}")


if __name__ == "__main__":
    main()
