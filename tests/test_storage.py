"""Files of a run folder on a disk and in a bucket; the bucket is fsspec's gs:// on a folder of this machine."""

import io
import json
import os
import pathlib
import types

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from unigrpo_jax.config import CheckpointConfig, ConfigError, RunConfig
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.training import checkpoint, loop, manifest, run_folder, storage
from unigrpo_jax.training.metrics import MetricsWriter, read_metrics
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.samples import Sample, load_samples, save_samples, saved_steps


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket, kept in a folder; what a bucket cannot do fails, and a folder is there where a file lies below it."""
    root = tmp_path / "cloud"
    root.mkdir()

    class Bucket(LocalFileSystem):
        protocol, cachable = ("gcs", "gs"), False

        def __init__(self, finalize_on_close=True, **rest):
            super().__init__(**rest)

        @classmethod
        def _strip_protocol(cls, path):
            path = str(path)
            return str(root / path.split("://")[1]) if "://" in path else path

        def open(self, path, mode="rb", **rest):
            assert "a" not in mode and "+" not in mode, "a bucket cannot append"
            if "w" in mode:
                os.makedirs(self._parent(path), exist_ok=True)
                return super().open(path, mode, **rest)
            return Object(pathlib.Path(self._strip_protocol(path)).read_bytes())

        def makedirs(self, path, exist_ok=False):
            pass

        mkdir = makedirs

        def isdir(self, path):
            return any(files for _, _, files in os.walk(self._strip_protocol(path)))

        def exists(self, path, **rest):
            return self.isfile(path) or self.isdir(path)

        def ls(self, path, detail=False, **rest):
            if not self.exists(path):
                raise FileNotFoundError(path)
            found = [own for own in super().ls(path, detail=True, **rest) if self.exists(own["name"])]
            return found if detail else [own["name"] for own in found]

        def glob(self, path, **rest):
            return [found.removeprefix(f"{root}/") for found in super().glob(path, **rest)]

        def mv(self, *_, **__):
            raise AssertionError("a bucket cannot rename in one step")

        rename = mv

    from etils.epath import backend

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: Bucket())
    yield root
    fsspec.config.conf.clear()


class Object(io.BytesIO):
    """What a bucket's client gives to read from: it reads whole lines alone."""

    def readline(self):
        return super().readline()


def lines(path: pathlib.Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_bucket_gets_whole_files(bucket):
    place = storage.path("gs://bucket/run") / "config.json"
    storage.write_atomically(place, b"{}")
    storage.write_atomically(place, b"{1}")
    assert (bucket / "bucket/run/config.json").read_bytes() == b"{1}" == place.read_bytes()
    assert sorted(p.name for p in (bucket / "bucket/run").iterdir()) == ["config.json"]


def test_metrics_in_a_bucket_are_all_there_after_a_flush_and_a_resume_goes_on(bucket, monkeypatch):
    run_dir, there = storage.path("gs://bucket/run"), bucket / "bucket/run/metrics.jsonl"
    with MetricsWriter(run_dir) as writer:
        writer.write(1, {"a": 1})
        assert lines(there) == []
        writer.flush()
        writer.write(2, {"a": 2})
        assert lines(there) == [1]
        monkeypatch.setattr(storage, "UPLOAD_EVERY", 0.0)
        monkeypatch.setattr(storage, "UPLOAD_SHARE", 0.0)
        writer.write(3, {"a": 3})
        assert lines(there) == [1, 2, 3]
    with MetricsWriter(run_dir, resume_step=2) as writer:
        assert lines(there) == [1, 2]
        writer.write(3, {"a": 30})
    assert [line["a"] for line in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 30]


def test_an_upload_once_a_minute_may_fail_and_one_before_a_checkpoint_may_not(bucket, monkeypatch):
    said, write = [], storage.write_atomically
    run_dir, there = storage.path("gs://bucket/run"), bucket / "bucket/run/metrics.jsonl"

    def fails(place, data):
        raise RuntimeError("503, after all retries")  # of the client's own kind

    with MetricsWriter(run_dir, say=said.append) as writer:
        monkeypatch.setattr(storage, "UPLOAD_EVERY", 0.0)
        monkeypatch.setattr(storage, "UPLOAD_SHARE", 0.0)
        monkeypatch.setattr(storage, "write_atomically", fails)
        writer.write(1, {"a": 1})
        writer.write(2, {"a": 2})
        with pytest.raises(RuntimeError, match="503"):
            writer.flush()
        assert said == [f"{run_dir / 'metrics.jsonl'} could not be uploaded (503, after all retries); "
                        "that is tried again once a minute."] and lines(there) == []  # fmt: skip
        monkeypatch.setattr(storage, "write_atomically", write)
        writer.write(3, {"a": 3})
        assert lines(there) == [1, 2, 3]


def test_an_upload_is_tried_again_and_its_last_failure_is_raised(bucket, monkeypatch):
    monkeypatch.setattr(storage, "UPLOAD_AGAIN", (0.0, 0.0))
    place, write, tried = storage.path("gs://bucket/run") / "config.json", type(storage.path("gs://b/r")).write_bytes, []

    def fails(times):
        def attempt(path, data):
            tried.append(data)
            if len(tried) <= times:
                raise RuntimeError("503")
            return write(path, data)

        return attempt

    monkeypatch.setattr(type(place), "write_bytes", fails(2))
    storage.write_atomically(place, b"{}")
    assert tried == [b"{}"] * 3 and place.read_bytes() == b"{}"
    monkeypatch.setattr(type(place), "write_bytes", fails(100))
    with pytest.raises(RuntimeError, match="503"):
        storage.write_atomically(place, b"{1}")


def test_a_last_upload_that_fails_does_not_hide_why_a_run_ends(bucket, monkeypatch):
    said, run_dir = [], storage.path("gs://bucket/run")

    def fails(place, data):
        raise RuntimeError("503")

    with pytest.raises(KeyError, match="the reason"), MetricsWriter(run_dir, say=said.append) as writer:
        writer.write(1, {"a": 1})
        monkeypatch.setattr(storage, "write_atomically", fails)
        raise KeyError("the reason")
    assert said == [f"{run_dir / 'metrics.jsonl'} could not be closed (503); its last lines may be missing."]


def test_samples_and_report_in_a_bucket(bucket):
    run_dir = storage.path("gs://bucket/run")
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_samples(run_dir, 0, [Sample(prompt="p", thinking="t", image=image, verdict="", correct=True)])
    assert saved_steps(run_dir) == [0]
    np.testing.assert_array_equal(load_samples(run_dir, 0)[0].image, image)
    storage.write_atomically(run_dir / "config.json", b'{"name": "n"}')
    storage.write_atomically(run_dir / "metrics.jsonl", b'{"step": 1, "reward/mean": 0.5}\n')
    write_report(run_dir)
    assert "<html" in (bucket / "bucket/run/report.html").read_text()


def written(place, state, overwrite):
    """Stands for `save_async`, whose client writes to real buckets alone: the files that must be there."""
    for name in manifest.REQUIRED:
        (place / name).write_bytes(b"x")
    return types.SimpleNamespace(result=lambda: None)


def test_a_run_begins_where_no_object_of_a_bucket_lies_yet(bucket, monkeypatch):
    """A probe that is written and removed leaves no folder, either."""
    monkeypatch.setattr(checkpoint.ocp, "save_async", written)
    monkeypatch.setattr(checkpoint.ocp, "load", lambda place, like: {"numbers": np.arange(16, dtype=np.float32)})
    run_dir = storage.path("gs://bucket/runs/new")
    checkpoints = checkpoint.Checkpoints(run_dir / "checkpoints", CheckpointConfig(keep=1), {})
    assert checkpoints.newest() == (None, [])
    loop._prepare(run_dir, checkpoints)
    checkpoints.probe()
    assert not run_dir.exists() and storage.inside(run_dir) == []
    loop._records(run_dir, RunConfig(), {"model_sha256": "a"}, False, 0, print).close()
    for step in (1, 2):
        state = TrainState(trained={}, opt_state=(), ema=None, step=jnp.int32(step), skipped_in_row=jnp.int32(0))
        checkpoints.save(state)
    checkpoints.close()
    assert checkpoints.failure() is None and checkpoints.steps() == [2]
    names = {path.name for path in storage.inside(run_dir)}
    assert names == {"checkpoints", "config.json", "metrics.jsonl", "provenance.json"}


def test_a_loggers_failure_removes_from_a_new_bucket_what_was_written(bucket, monkeypatch):
    def fails(*_, **__):
        raise ConfigError("no login")

    monkeypatch.setattr(loop, "MetricsWriter", fails)
    run_dir = storage.path("gs://bucket/runs/new")
    with pytest.raises(ConfigError, match="no login"):
        loop._records(run_dir, RunConfig(), {"model_sha256": "a"}, False, 0, print)
    assert not run_dir.exists()


def test_the_empty_object_that_marks_a_folder_is_nothing_in_it(bucket, monkeypatch):
    """A bucket's own console makes one, which the client lists under the folder's own name."""
    run_dir = storage.path("gs://bucket/run")
    storage.write_atomically(run_dir / "run", b"")
    assert not run_folder._hardly_begun(run_dir)
    (bucket / "bucket/run/run").unlink()
    monkeypatch.setattr(type(run_dir), "iterdir", lambda self: iter([self / self.name]))
    assert storage.inside(run_dir) == [] and run_folder._hardly_begun(run_dir)


def test_a_disk_has_every_line_at_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1})
        assert lines(tmp_path / "metrics.jsonl") == [1]


def test_a_bucket_without_its_package_is_one_sentence(monkeypatch):
    def missing(name, **_):
        raise ImportError("Please install gcsfs to access Google Storage")

    from etils.epath import backend

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: missing(name))
    with pytest.raises(ConfigError, match=r"gs://b/run is a bucket .*pip install 'unigrpo_jax\[gcs\]'"):
        storage.path("gs://b/run")
