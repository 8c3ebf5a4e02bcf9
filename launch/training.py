"""What every launcher starts: `python -m experiments.run PRESET --resume --run-dir RUN` and the user's own settings.

    python -m launch.tpu PRESET --run-dir gs://bucket/runs/one ... -- --mesh.fsdp 64 --seed 1

What stands after `--` is parsed and checked here as `experiments.run` would, so that a typo costs no machine, and handed on
as it is.  `--resume` starts where there is no checkpoint and continues from the newest one where there is, so a restart
needs nothing else.  The program's exit code says what a launcher does:

    0    finished
    75   EX_TEMPFAIL: saved after SIGTERM, or lost its peers or its judge; start again
    1    stopped for a reason that a restart does not mend, such as a reward that raises
    2    settings that cannot work
    126, 127   a shell's codes for a program that cannot be started

A process that was killed (by a signal, or with its machine) is started again like one that ended with 75.
"""

import dataclasses
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import tyro

import experiments.run
from experiments.command_line import complain, given_arguments, interrupted, preset, say, unheard
from launch.external import LaunchError
from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_checks import check, check_devices, mesh_sizes

FINAL = (1, 2, 126, 127)

_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What every launcher asks for.

    Attributes:
      SECRETS: how this launcher takes a secret, the end of a sentence.
    """

    SECRETS: ClassVar[str] = ""

    preset: tyro.conf.Positional[str]
    """A file in experiments/presets, such as bagel_7b."""
    run_dir: str
    """Run folder that all processes see: gs://BUCKET/PATH, or a path on shared storage."""
    name: str | None = None
    """Name on the cluster; the run folder's by default, '_' and '.' written as '-'."""
    cache: str | None = None
    """Folder of compiled programs (JAX_COMPILATION_CACHE_DIR); default `compile_cache` beside the run folder."""
    setup: str = ""
    """Bash commands that run before training, in the same shell: an installation, an activation, an export. The exit code of
    the last one counts: where it is not 0, a Slurm job ends, and the others try again."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an environment variable of the training; give it once for each."""
    restarts: int = 10
    """Largest number of restarts after a preemption or a lost process."""
    dry_run: bool = False
    """Print everything that would be run or applied, and run nothing."""

    def check(self) -> None:
        """Raises ConfigError where a value cannot work; a launcher adds its own checks."""
        require(
            bool(re.fullmatch("[a-z0-9]+://[^/]+/+[^/].*" if "://" in self.run_dir else ".*[^/].*", self.run_dir)),
            f"run_dir = {self.run_dir!r} names no folder; use gs://BUCKET/PATH or a path on shared storage.",
        )
        require(self.restarts >= 0, f"restarts = {self.restarts}, but it must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class Training:
    """What is started.

    Attributes:
      command: the program and its arguments.
      environment: variables that it needs beside the machine's.
      config: its settings, checked.
      name: what the cluster calls it.
    """

    command: list[str]
    environment: dict[str, str]
    config: RunConfig
    name: str


L = TypeVar("L", bound=Launch)


def program(kind: type[L], start: Callable[[L, Training], int], module: str, description: str) -> None:
    """A launcher's command line: own arguments before `--`, the training's after it; exits with what `start` returns."""
    try:
        arguments = given_arguments()
        at = arguments.index("--") if "--" in arguments else len(arguments)
        launch = tyro.cli(kind, args=arguments[:at], prog=f"python -m {module}", description=description)
        training = resolve(launch, arguments[at + 1 :])
        launch.check()
        sys.exit(start(launch, training))
    except ConfigError as error:
        complain(error, module)
    except LaunchError as error:
        say(module, error)
        sys.exit(1)
    except BrokenPipeError:
        unheard()
    except KeyboardInterrupt:
        interrupted()


def resolve(launch: Launch, settings: Sequence[str]) -> Training:
    """The training that `launch` and the training's own arguments describe.

    Raises:
      ConfigError: what `experiments.run` would refuse from the numbers alone, or arguments that are the launcher's.
      SystemExit: an argument that `experiments.run` does not know, with tyro's message.
    """
    given = [one for x in vars(launch).values() for one in (x if isinstance(x, tuple) else (x,)) if isinstance(one, str)]
    for text in (*given, *settings):
        require(not re.search("[\ud800-\udfff\0]", text), f"{text!r} is not text in UTF-8; give it in another way.")
    arguments = [launch.preset, "--resume", "--run-dir", launch.run_dir, *settings]
    require(not launch.preset.startswith("-"), f"preset = {launch.preset!r}; the training's arguments stand after `--`.")
    require(not launch.run_dir.startswith("-"), f"run_dir = {launch.run_dir!r} reads like an option; put ./ before it.")
    default, rest = preset(arguments, launch.preset)
    parsed = tyro.cli(
        experiments.run.Arguments,
        args=rest,
        default=experiments.run.Arguments(default),
        prog="python -m experiments.run",
    )
    given = pathlib.PurePosixPath(str(parsed.run_dir))
    require(parsed.resume, "--no-resume would begin again after every preemption; leave it out, or use another run folder.")
    require(given == pathlib.PurePosixPath(launch.run_dir), f"--run-dir {parsed.run_dir} stands after `--`; give it before.")
    check(parsed.config)
    cache = launch.cache or "/".join([*launch.run_dir.rstrip("/").split("/")[:-1], "compile_cache"])
    return Training(
        command=["python", "-m", "experiments.run", *arguments],
        environment={"JAX_COMPILATION_CACHE_DIR": cache, **variables(launch.env, launch.SECRETS)},
        config=parsed.config,
        name=launch.name or re.sub(r"[_.]", "-", launch.run_dir.rstrip("/").split("/")[-1]),
    )


def variables(given: Sequence[str], secrets: str) -> dict[str, str]:
    """NAME=VALUE texts as a dict.

    Raises:
      ConfigError: a name is none, is the launcher's own, or a secret's; `secrets` says how to give those.
    """
    out = dict(one.partition("=")[::2] for one in given)
    for one in given:
        name, equals, _ = one.partition("=")
        variable_name(name, equals, "env", one, "NAME=VALUE")
        require(not _SECRET.search(name), f"env {name} is a secret by its name, and --env is printed and stored; {secrets}.")
        require(name != "JAX_COMPILATION_CACHE_DIR", "env JAX_COMPILATION_CACHE_DIR is what --cache sets; use that.")
    require(len(out) == len(given), "env gives a name twice; give each once.")
    return out


def variable_name(name: str, separator: str, field: str, given: str, form: str) -> None:
    """Raises ConfigError unless `name` can name an environment variable and is not one that launchers set."""
    good = separator and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
    require(bool(good), f"{field} = {given.partition('=')[0]!r} must be {form} with letters, digits and '_' in the name.")
    require(not name.startswith("UNIGRPO_"), f"{field} {name}: names that begin with UNIGRPO_ are set by the launcher.")


def prepared(setup: str, otherwise: str) -> str:
    """Lines of a shell script that run `setup` and, where its last command fails, `otherwise`."""
    return f"{{ :\n{setup}\n}} || {otherwise}\n" if setup else ""


def exports(environment: Mapping[str, str]) -> str:
    """Lines of a shell script that export the variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())


def check_mesh(config: RunConfig, devices: int, words: str, slices: int = 1) -> None:
    """Raises ConfigError unless mesh and episodes fit the devices; `words` names them, such as "64 chips of v5p:4x4x4"."""
    require(config.devices in (0, devices), f"devices = {config.devices}, but the run has the {words}; leave it out.")
    sizes = mesh_sizes(config.mesh, devices, slices, words)
    check_devices(config, devices // sizes["sequence"] // sizes["tensor"])
