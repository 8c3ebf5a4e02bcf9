"""The TPU compiler that is installed: whether it fits the jax beside it, and what it says when it fails."""

import importlib.metadata
import os

from packaging.requirements import Requirement

from unigrpo_jax.config import require

WORDS = 1500  # letters of an error that are shown; compilers append whole programs


class CompilerFailed(RuntimeError):
    """A program was not compiled; the message is the compiler's, on one line, with the versions."""

    def __init__(self, error: Exception):
        words = " ".join(str(error).partition("=== Source Location Trace")[0].split()) or type(error).__name__
        super().__init__(f"{versions()} said: {words[:WORDS]}{'...' if len(words) > WORDS else ''}")


def versions() -> str:
    """Who compiles, such as `libtpu 0.0.42.1 with jax 0.10.2 and jaxlib 0.10.2`."""
    libtpu, jax, jaxlib = (f"{name} {_version(name) or 'of unknown version'}" for name in ("libtpu", "jax", "jaxlib"))
    return f"{libtpu} with {jax} and {jaxlib}"


def check_fits() -> None:
    """Raises ConfigError where libtpu is none that this jax asks for in its extra `tpu`.

    Nothing is known, and nothing raised, where one is not installed as a package, or TPU_LIBRARY_PATH names another library.
    """
    jax, libtpu = _version("jax"), _version("libtpu")
    if not jax or not libtpu or os.environ.get("TPU_LIBRARY_PATH"):
        return
    for asked in map(Requirement, importlib.metadata.requires("jax") or ()):
        if asked.name == "libtpu" and (asked.marker is None or asked.marker.evaluate({"extra": "tpu"})):
            require(asked.specifier.contains(libtpu, prereleases=True),
                    f"libtpu {libtpu} does not fit jax {jax}, which needs libtpu{asked.specifier}: "
                    f"pip install 'libtpu{asked.specifier}'.")  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
