"""Encoders' states of texts on disk: whole or not at all, of one encoder, of a limited size, shared by processes."""

import os
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, EmbeddingsConfig
from unigrpo_jax.models.text_encoders.cache import ABANDONED, Store

SHAPES = {"states": jax.ShapeDtypeStruct((5, 4), ml_dtypes.bfloat16), "pooled": jax.ShapeDtypeStruct((3,), np.float32)}
BYTES = 32 + 5 * 4 * 2 + 3 * 4


def store(folder, encoder="a" * 64, files=100.0):
    return Store(EmbeddingsConfig(folder=str(folder), gigabytes=files * BYTES / 1e9), encoder, SHAPES)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=like.shape).astype(like.dtype) for name, like in SHAPES.items()}


def same(found, wanted):
    assert found is not None and set(found) == set(wanted)
    assert all(found[name].dtype == x.dtype and (found[name] == x).all() for name, x in wanted.items())


def files(folder):
    return sorted(folder.glob("*/*.states"))


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("text", ["a cat", "", "猫 \u202e\n", "x" * 10_000, "\ud800"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, text):
    kept = store(tmp_path)
    assert kept.read(text) is None and not kept.has(text)
    kept.write(text, arrays())
    assert kept.has(text) and not kept.has(text + " ")
    same(store(tmp_path).read(text), arrays())


def test_another_encoder_s_files_are_never_read(tmp_path):
    store(tmp_path).write("a cat", arrays())
    other = store(tmp_path, "b" * 64)
    assert other.read("a cat") is None and not other.has("a cat")
    other.write("a cat", arrays(1))
    mine, theirs = (kept._path("a cat") for kept in (store(tmp_path), other))
    theirs.write_bytes(mine.read_bytes())  # whoever renames files
    assert other.read("a cat") is None
    same(store(tmp_path).read("a cat"), arrays())


@pytest.mark.parametrize("harm", ["cut", "empty", "longer", "bit", "other text", "zeros", "folder"])
def test_a_damaged_file_is_not_believed_and_can_be_made_again(tmp_path, harm):
    kept = store(tmp_path)
    kept.write("a cat", arrays())
    kept.write("a dog", arrays(1))
    path, data = kept._path("a cat"), kept._path("a cat").read_bytes()
    changed = bytearray(data)
    changed[60] ^= 1
    other = kept._path("a dog").read_bytes()
    wrong = {"cut": data[:-1], "empty": b"", "longer": data + b"\0", "bit": bytes(changed), "other text": other,
             "zeros": bytes(BYTES)}  # fmt: skip
    if harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(wrong[harm])
    assert kept.read("a cat") is None
    if harm != "folder":
        kept.write("a cat", arrays())
        same(kept.read("a cat"), arrays())


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path, monkeypatch):
    kept = store(tmp_path)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        kept.write("a cat", arrays())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_beyond_the_limit_what_was_used_longest_ago_goes_whichever_encoder_s_it_is(tmp_path):
    old, new = store(tmp_path, "b" * 64, 40), store(tmp_path, files=40)
    for i in range(20):
        old.write(str(i), arrays())
        age(old._path(str(i)), 1000 - i)
    old.read("3")  # is now the one used last
    began = time.time()
    for i in range(20):
        assert new.room(1, began)
        new.write(str(i), arrays())
    assert len(files(tmp_path)) == 40
    for i in range(20, 25):
        assert new.room(1, began)
        new.write(str(i), arrays())
        assert len(files(tmp_path)) <= 40
    assert all(new.has(str(i)) for i in range(25)) and old.has("3")
    gone = [i for i in range(20) if not old.has(str(i))]
    assert gone == [i for i in range(len(gone) + 1) if i != 3] and len(gone) >= 5


def test_what_is_needed_now_is_never_removed(tmp_path):
    kept, began = store(tmp_path, files=10), time.time()
    for i in range(10):
        assert kept.room(1, began)
        kept.write(str(i), arrays(i))
    assert not kept.room(1, began)
    assert all(kept.has(str(i)) for i in range(10))
    assert kept.room(1, time.time() + 1) and len(files(tmp_path)) < 10


def test_what_others_write_counts_too(tmp_path):
    first, second = store(tmp_path, files=40), store(tmp_path, "b" * 64, 40)
    began = time.time()
    for i in range(60):
        for kept in (first, second):
            if kept.room(1, began):
                kept.write(str(i), arrays())
    assert 40 <= len(files(tmp_path)) <= 44  # each looks again after a twentieth of the limit


def test_half_written_files_of_the_dead_are_cleared_away(tmp_path):
    kept = store(tmp_path)
    kept.write("a cat", arrays())
    dead, living = kept.folder / ".x.states.partial", kept.folder / ".y.states.partial"
    for path in (dead, living):
        path.write_bytes(b"x")
    age(dead, ABANDONED + 10)
    assert kept.room(1, time.time()) and not dead.exists() and living.exists() and kept.has("a cat")


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path):
    kept, own = store(tmp_path, files=1), tmp_path / "mine" / "x.states"
    own.parent.mkdir()
    own.write_bytes(bytes(100 * BYTES))
    age(own, 10_000)
    assert kept.room(1, time.time()) and own.exists()


WRITER = """
import sys, time
from tests.test_text_cache import arrays, store
kept = store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    for i in range(20):
        kept.write(str(i), arrays(i))
        found = kept.read(str(i))
        assert found is not None and (found["pooled"] == arrays(i)["pooled"]).all()
"""


def test_two_processes_write_the_same_files_at_once(tmp_path):
    start = lambda: subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    processes = [start(), start()]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.wait(60) == 0, process.stderr.read()
    assert len(files(tmp_path)) == 20 and not list(tmp_path.rglob(".*"))
    for i in range(20):
        same(store(tmp_path).read(str(i)), arrays(i))


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as error:
        store(tmp_path / "file" / "cache")
    assert "model.embeddings.folder" in str(error.value) and "\n" not in str(error.value)


def test_without_a_folder_the_files_lie_beside_the_other_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = Store(EmbeddingsConfig(), "a" * 64, SHAPES)
    assert kept.folder.is_relative_to(tmp_path / "unigrpo_jax" / "texts")
