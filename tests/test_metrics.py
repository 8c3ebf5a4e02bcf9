"""metrics.jsonl: one line per step, whatever happens."""

import json
import math

import numpy as np
import pytest

from unigrpo_jax.training.metrics import MetricsWriter, read_metrics


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_when_write_returns_and_nothing_is_nan(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"reward/mean": np.float32(0.5), "text/entropy": math.nan, "loss": math.inf, "count": 3})
        assert lines(tmp_path) == [{"step": 1, "reward/mean": 0.5, "text/entropy": None, "loss": None, "count": 3}]


def test_steps_strictly_increase(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {"a": 1})
        for step in (2, 1):
            with pytest.raises(ValueError):
                writer.write(step, {"a": 1})
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_a_resume_drops_what_it_will_compute_anew(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"a": step})
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, {"a": 40})
    assert [(line["step"], line["a"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1), (2, 2), (3, 3), (4, 40)]  # fmt: skip


def test_a_half_written_last_line_is_no_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    with MetricsWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, {"a": 2})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": 1})
    with pytest.raises(ValueError, match="already holds steps 1 to 1"):
        MetricsWriter(tmp_path)


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, sink, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'unigrpo_jax\[{sink}\]'"):
        MetricsWriter(tmp_path, **{sink: True})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")
