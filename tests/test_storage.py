"""Files of a run folder on a disk and in a bucket; the bucket is fsspec's gs:// on a folder of this machine."""

import json
import pathlib

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from unigrpo_jax.config import ConfigError
from unigrpo_jax.training import storage
from unigrpo_jax.training.metrics import MetricsWriter, read_metrics
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.samples import Sample, load_samples, save_samples, saved_steps


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket, kept in a folder; what a bucket cannot do fails."""
    root = tmp_path / "cloud"
    root.mkdir()

    class Bucket(LocalFileSystem):
        protocol, cachable = ("gcs", "gs"), False

        def __init__(self, finalize_on_close=True, **rest):
            super().__init__(auto_mkdir=True, **rest)

        @classmethod
        def _strip_protocol(cls, path):
            path = str(path)
            return str(root / path.split("://")[1]) if "://" in path else path

        def open(self, path, mode="rb", **rest):
            assert "a" not in mode and "+" not in mode, "a bucket cannot append"
            return super().open(path, mode, **rest)

        def glob(self, path, **rest):
            return [found.removeprefix(f"{root}/") for found in super().glob(path, **rest)]

        def mv(self, *_, **__):
            raise AssertionError("a bucket cannot rename in one step")

        rename = mv

    from etils.epath import backend

    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: Bucket())
    yield root
    fsspec.config.conf.clear()


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
        writer.write(3, {"a": 3})
        assert lines(there) == [1, 2, 3]
    with MetricsWriter(run_dir, resume_step=2) as writer:
        assert lines(there) == [1, 2]
        writer.write(3, {"a": 30})
    assert [line["a"] for line in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 30]


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
