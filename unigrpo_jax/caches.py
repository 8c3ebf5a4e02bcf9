"""Where this user's caches lie: $XDG_CACHE_HOME, else ~/.cache; a variable that is empty or no whole path is not set.

There may be no such place: a container's user without a name has no home, and a home may be read-only.  Then nothing is
kept.
"""

import functools
import os
import pathlib
import tempfile

from unigrpo_jax.config import ConfigError

OWN = "unigrpo_jax"


def home() -> pathlib.Path | None:
    """The user's home: $HOME, else what the system's list of users says; None where neither does."""
    named = _absolute("HOME")
    if named is not None:
        return named
    try:
        import pwd

        found = pathlib.Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):  # a system without such a list, or a user who is not on it
        return None
    return found if found.is_absolute() else None


def user_caches() -> pathlib.Path | None:
    """The folder of all programs' caches, whether it is there or not; None where there is no home either."""
    named, own = _absolute("XDG_CACHE_HOME"), home()
    return named or (own / ".cache" if own else None)


def cache_folder() -> pathlib.Path | None:
    """This program's folder there, made where it is missing; None where it cannot be made or written into."""
    place = user_caches()
    if place is None:
        return None
    folder = place / OWN
    return folder if _made(folder) and os.access(folder, os.W_OK | os.X_OK) else None


def cache_or_temporary() -> pathlib.Path:
    """`cache_folder`, or else a folder that lasts as long as this process; ConfigError where that cannot be made, either."""
    try:
        return cache_folder() or pathlib.Path(_temporary().name)
    except OSError as error:
        raise ConfigError(f"there is neither a folder for caches nor a temporary one ({error.strerror}); set TMPDIR, or "
                          "XDG_CACHE_HOME, to a folder that can be written.") from None  # fmt: skip


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix=f"{OWN}-")


def hub_folder() -> pathlib.Path | None:
    """Where the Hugging Face client is to keep what it fetches; None where its own rule names a place that can be.

    Its rule takes an empty variable for the current folder or the root of the disk, and an absent home for one named `~`.
    """
    from huggingface_hub import constants

    own = pathlib.Path(constants.HF_HUB_CACHE)
    if own.is_absolute() and _made(own):
        return None
    place = cache_folder()
    return (place.parent / "huggingface" if place else cache_or_temporary()) / "hub"


def _made(folder: pathlib.Path) -> bool:
    """Whether a folder is there, or could be made now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _absolute(variable: str) -> pathlib.Path | None:
    value = pathlib.Path(os.environ.get(variable, ""))
    return value if value.is_absolute() else None
