"""What all entry points share: typed arguments in, one plain sentence and exit code 2 where something cannot work."""

import contextlib
import difflib
import functools
import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from unigrpo_jax.caches import cache_folder
from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.foreign_text import is_unicode, quoted, silence, tell
from unigrpo_jax.parallel.host_memory import keep_freed
from unigrpo_jax.rewards.judging import RewardError


def say(program: str, words: Any) -> None:
    """Prints an error's sentence on stderr: one line with nothing hidden in it, since it may quote a file or a server."""
    with contextlib.suppress(OSError):  # nobody reads it; the exit code says it, too
        tell(f"{program}: {words}", sys.stderr, keep="")


def complain(error: ConfigError, program: str) -> NoReturn:
    """Prints the sentence on stderr and exits with code 2."""
    say(program, error)
    sys.exit(2)


def leave(code: int, words: str = "") -> NoReturn:
    """Exits without waiting for what still compiles in the background, or for processes that are gone."""
    with contextlib.suppress(OSError):
        if words:
            tell(words, sys.stderr, keep="")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def interrupted() -> NoReturn:
    """Exits with a shell's code for Ctrl-C."""
    leave(130)


def given_arguments() -> list[str]:
    """The command line's arguments; ConfigError where one is not text, which could be neither shown nor stored.

    Comes first in every program, and so also lets standard streams that its caller closed lead nowhere.
    """
    _open_streams()
    arguments = sys.argv[1:]
    for argument in arguments:
        require(is_unicode(argument), f"the argument {quoted(argument)} is not UTF-8 text; write it in UTF-8, and rename a "
                                      "file of such a name.")  # fmt: skip
    return arguments


def _open_streams() -> None:
    """Opens what is closed of the standard streams, lest a file gets its number, and with it what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def unheard() -> NoReturn:
    """Exits where nobody reads what a program prints, and printing is all that it had left to do."""
    silence(sys.stdout)
    sys.exit(1)


def configure_jax() -> None:
    """Keeps compiled programs in the user's cache, so that the second start is quick; JAX_COMPILATION_CACHE_DIR moves them.

    A TPU that is not there is not asked for, so that a TPU compiler beside it stays silent.  Freed memory is kept where
    programs run on CPU.
    """
    import jax

    from unigrpo_jax.parallel.platforms import leave_out_absent_tpu

    leave_out_absent_tpu()
    keep_freed()
    cache = None if os.environ.get("JAX_COMPILATION_CACHE_DIR") else cache_folder()  # an empty one is not set
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))


def presets() -> list[str]:
    """Names of the files in experiments/presets."""
    import experiments.presets

    return sorted(module.name for module in pkgutil.iter_modules(experiments.presets.__path__))


def preset(arguments: Sequence[str], default: str) -> tuple[RunConfig, list[str]]:
    """The config of the preset that comes first among the arguments, and the other arguments."""
    module, others = preset_file(arguments, default)
    return module.config(), others


def preset_file(arguments: Sequence[str], default: str) -> tuple[types.ModuleType, list[str]]:
    """The file of the preset that comes first among the arguments, and the other arguments."""
    names = presets()
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else default
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise ConfigError(f"no preset is called {name!r}; {hint}")
    return importlib.import_module(f"experiments.presets.{name}"), list(arguments[1:] if named else arguments)


def read_again(kind: Any, known: Any) -> Any:
    """The command line's arguments, where what was read of them at first says what else is usual.

    `known` are those arguments, and what is usual in the place of what was; what the command line names is as named.
    """
    import tyro

    return tyro.cli(kind, args=given_arguments(), default=known)


def command_line(main: Callable[..., Any]) -> Callable[[], Any]:
    """Turns `main(config)` into a program: tyro reads its arguments, a ConfigError becomes one sentence."""

    @functools.wraps(main)
    def program() -> Any:
        import tyro

        (config_type,) = [t for name, t in main.__annotations__.items() if name != "return"]
        module = sys.modules[main.__module__]
        name = module.__spec__.name
        try:
            arguments = given_arguments()
            config = tyro.cli(config_type, args=arguments, prog=f"python -m {name}", description=module.__doc__)
            configure_jax()
            return main(config)
        except ConfigError as error:
            complain(error, name)
        except RewardError as error:
            say(name, f"{error}.")
            sys.exit(1)
        except BrokenPipeError:
            unheard()
        except OSError as error:  # a disk that is full, or a file that went away meanwhile
            if error.errno is None or error.filename is None:
                raise
            say(name, f"{error.filename}: {error.strerror}.")
            sys.exit(1)
        except KeyboardInterrupt:
            interrupted()

    return program
