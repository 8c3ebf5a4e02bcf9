"""What all entry points share: typed arguments in, one plain sentence and exit code 2 where something cannot work."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from unigrpo_jax.config import ConfigError


def complain(error: ConfigError, program: str) -> None:
    """Prints the sentence on stderr and exits with code 2."""
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(2)


def command_line(main: Callable[..., Any]) -> Callable[[], Any]:
    """Turns `main(config)` into a program: tyro reads its arguments, a ConfigError becomes one sentence."""

    @functools.wraps(main)
    def program() -> Any:
        import tyro

        (config_type,) = [t for name, t in main.__annotations__.items() if name != "return"]
        name = main.__module__ if main.__module__ != "__main__" else sys.modules["__main__"].__spec__.name
        config = tyro.cli(config_type, prog=f"python -m {name}", description=sys.modules[main.__module__].__doc__)
        try:
            return main(config)
        except ConfigError as error:
            complain(error, name)

    return program
