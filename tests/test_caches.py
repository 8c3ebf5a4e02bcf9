"""Where caches lie: for a user with a home, without one, with empty variables, and with a home that cannot be written."""

import os
import pathlib
import pwd
import tempfile

import huggingface_hub.constants
import pytest

from experiments.command_line import configure_jax
from unigrpo_jax import caches
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.bagel import tiny


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without a name: neither variables nor a line in the list of users; the current folder is empty."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    "variables, place",
    [
        ({"HOME": "/a", "XDG_CACHE_HOME": "/b"}, "/b"),
        ({"XDG_CACHE_HOME": "/b"}, "/b"),
        ({"HOME": "", "XDG_CACHE_HOME": "/b"}, "/b"),
        ({"HOME": "/a"}, "/a/.cache"),
        ({"HOME": "/a", "XDG_CACHE_HOME": ""}, "/a/.cache"),
        ({"HOME": "/a", "XDG_CACHE_HOME": "b/c"}, "/a/.cache"),
        ({"HOME": "/a", "XDG_CACHE_HOME": "~/c"}, "/a/.cache"),
        ({}, None),
        ({"HOME": ""}, None),
        ({"HOME": "~", "XDG_CACHE_HOME": ""}, None),
    ],
)
def test_empty_and_relative_variables_are_not_set(nobody, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert caches.user_caches() == (pathlib.Path(place) if place else None)


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_in_the_environment_the_list_of_users_has_it(nobody, monkeypatch, home):
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: type("Line", (), {"pw_dir": "/users/me"}))
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert caches.user_caches() == pathlib.Path("/users/me/.cache")


def test_the_folder_is_made_where_it_can_be(nobody, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "new" / "caches"))
    assert caches.cache_folder() == nobody / "new" / "caches" / "unigrpo_jax" and caches.cache_folder().is_dir()


def test_where_nothing_can_be_written_there_is_no_cache(nobody, monkeypatch):
    """A file stands where the folder would, and a folder that may not be written (what root may, too)."""
    (nobody / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "file"))
    assert caches.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert caches.cache_folder() is None


def test_the_toy_of_a_user_without_a_place_is_made_once_in_a_temporary_folder(nobody, monkeypatch):
    made = []
    monkeypatch.setattr(tiny, "make_tiny", lambda folder: made.append((folder / "ae.safetensors").write_text("")))
    own = tempfile.TemporaryDirectory(dir=nobody)
    monkeypatch.setattr(caches, "_temporary", lambda: own)
    folder = tiny.tiny_folder()
    assert folder == tiny.tiny_folder() and len(made) == 1 and not os.listdir()
    assert folder.is_relative_to(nobody) and not folder.is_relative_to(nobody / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "caches"))
    assert tiny.tiny_folder().parent == nobody / "caches" / "unigrpo_jax" and len(made) == 2


def test_where_no_folder_at_all_can_be_made_that_is_one_sentence(nobody, monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(caches, "_temporary", nowhere)
    with pytest.raises(ConfigError, match="No usable temporary directory found.; set TMPDIR"):
        caches.cache_or_temporary()


@pytest.mark.parametrize("given, kept", [(None, True), ("", True), ("/own", False)])
def test_programs_are_kept_there_unless_another_place_is_named(nobody, monkeypatch, given, kept):
    updates = {}
    monkeypatch.setattr("jax.config.update", updates.__setitem__)
    monkeypatch.setattr("unigrpo_jax.parallel.platforms.leave_out_absent_tpu", lambda: None)
    monkeypatch.setattr("experiments.command_line.keep_freed", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if given is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
    configure_jax()
    assert ("jax_compilation_cache_dir" in updates) == kept


def test_the_hub_keeps_its_own_place_where_that_can_be(nobody, monkeypatch):
    """A relative path comes of an empty XDG_CACHE_HOME or of no home; what cannot be made, of an empty HOME."""
    (nobody / "file").write_text("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(nobody / "hub"))
    assert caches.hub_folder() is None
    for useless in ("huggingface/hub", "~/.cache/huggingface/hub", str(nobody / "file" / "hub")):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", useless)
        monkeypatch.setenv("HOME", str(nobody))
        assert caches.hub_folder() == nobody / ".cache" / "huggingface" / "hub"
        monkeypatch.delenv("HOME")
        assert caches.hub_folder().is_relative_to(tempfile.gettempdir())
    assert not os.listdir()
