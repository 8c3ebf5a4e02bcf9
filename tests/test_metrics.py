"""metrics.jsonl: one line per step, whatever happens."""

import io
import json
import math
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from unigrpo_jax.config import ConfigError
from unigrpo_jax.training.metrics import MetricsWriter, read_metrics
from unigrpo_jax.training.samples import Moment, Sample, draw_grid


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


IMAGE = np.full((24, 24, 3), 7, np.uint8)
SAMPLE = Sample(prompt="two | red\n<b>circles", thinking="a\x1b_plan_", image=IMAGE, verdict="1 of 2", correct=False)
TABLE = {"exact": {"overall": 0.5, "colors": 0.25}, "graded": {"overall": 0.75}}


def events(folder):
    """{tag: [(step, value)]} of the event files: TFRecords, each a length, a checksum, a protocol buffer, a checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_tensorboard_gets_numbers_the_grid_its_words_and_the_held_out_table(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.table(0, TABLE, "held_out")
        writer.write(1, {"reward/mean": 0.5, "text/entropy": None})
        writer.samples(1, [SAMPLE])
    found = events(tmp_path)
    assert [(step, value.simple_value) for step, value in found["reward/mean"]] == [(1, 0.5)] and len(found) == 4
    ((step, value),) = found["samples"]
    grid = draw_grid([SAMPLE])
    assert (step, value.image.width, value.image.height) == (1, *grid.size)
    drawn = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert np.array_equal(drawn, np.asarray(grid))
    words = found["samples/words/text_summary"][0][1].tensor.string_val[0].decode()
    assert words.splitlines()[0] == "| sample | prompt | thinking | verdict | right |"
    assert words.splitlines()[2:] == [r"| 1 | two \| red<br>&lt;b&gt;circles | a\\x1b\_plan\_ | 1 of 2 | no |"]
    ((step, value),) = found["held_out/text_summary"]
    assert step == 0 and value.tensor.string_val[0].decode().splitlines() == [
        "| score | overall | colors |", "| --- | --- | --- |", "| exact | 0.500 | 0.250 |", "| graded | 0.750 |  |",
    ]  # fmt: skip


class FakeRun:
    """What is used of a W&B run; `broken` methods raise."""

    def __init__(self, broken=()):
        self.id, self.logged, self.ended, self.broken = "id7", [], 0, broken

    def log(self, data, step):
        if "log" in self.broken:
            raise RuntimeError("the network is away.\nand more")
        self.logged.append((step, data))

    def finish(self):
        self.ended += 1
        if "finish" in self.broken:
            raise OSError(28, "No space left on device")


def fake_wandb(monkeypatch, run):
    picture, table = lambda image: ("picture", image.shape), lambda columns, data: (columns, data)
    module = types.SimpleNamespace(init=lambda **_: run, Image=picture, Table=table)
    monkeypatch.setitem(__import__("sys").modules, "wandb", module)


def test_wandb_gets_numbers_the_grid_its_words_and_tables_named_as_their_prompts(tmp_path, monkeypatch):
    fake_wandb(monkeypatch, run := FakeRun())
    rounds = Sample(prompt="", thinking="t", image=IMAGE, verdict="ok", correct=None,
                    earlier=(Moment(prompt="p", thinking="s", image=IMAGE, verdict="no", correct=True),))  # fmt: skip
    with MetricsWriter(tmp_path, wandb=True) as writer:
        writer.write(1, {"reward/mean": 0.5, "text/entropy": None})
        writer.samples(1, [rounds])
        writer.table(1, TABLE, "held_out")
        writer.table(1, TABLE, "validation")
    rows = (["score", "overall", "colors"], [["exact", "0.500", "0.250"], ["graded", "0.750", ""]])
    assert run.logged == [
        (1, {"reward/mean": 0.5}),
        (1, {"samples": ("picture", np.asarray(draw_grid([rounds])).shape)}),
        (1, {"samples/words": (["sample", "round", "prompt", "thinking", "verdict", "right"],
                               [["1", "1", "p", "s", "no", "yes"], ["1", "2", "", "t", "ok", ""]])}),
        (1, {"held_out": rows}),
        (1, {"validation": rows}),
    ]  # fmt: skip
    assert run.ended == 1 and (tmp_path / "wandb_id").read_text() == "id7"


def test_a_logger_that_fails_is_told_once_and_the_run_goes_on(tmp_path, monkeypatch):
    fake_wandb(monkeypatch, run := FakeRun(broken=["log", "finish"]))
    said = []
    with MetricsWriter(tmp_path, wandb=True, say=said.append) as writer:
        writer.write(1, {"a": 1})
        writer.samples(1, [SAMPLE])
        writer.table(1, TABLE, "held_out")
        run.broken = ["finish"]
        writer.write(2, {"a": 2})
    failed = "Weights & Biases failed at step 1 (the network is away)"
    assert said == [f"{failed}; the run goes on, and metrics.jsonl holds all metrics."]
    assert run.logged == [(2, {"a": 2})] and run.ended == 1
    assert [line["a"] for line in lines(tmp_path)] == [1, 2]


def test_a_run_without_loggers_draws_nothing_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr("unigrpo_jax.training.metrics.draw_grid", None)
    with MetricsWriter(tmp_path) as writer:
        writer.samples(1, [SAMPLE])
        writer.table(1, TABLE, "held_out")
    assert lines(tmp_path) == []


def test_ctrl_c_inside_a_logger_is_not_swallowed(tmp_path, monkeypatch):
    fake_wandb(monkeypatch, run := FakeRun())
    with MetricsWriter(tmp_path, wandb=True) as writer:
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        run.log = interrupt
        with pytest.raises(KeyboardInterrupt):
            writer.write(1, {"a": 1})


def test_a_logger_that_ends_the_program_ends_nothing(tmp_path, monkeypatch):
    fake_wandb(monkeypatch, run := FakeRun())
    said = []
    with MetricsWriter(tmp_path, wandb=True, say=said.append) as writer:
        run.log = lambda *_, **__: sys.exit(3)
        writer.write(1, {"a": 1})
    assert "failed at step 1 (it wanted to end the program, with 3); the run goes on" in said[0]
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: sys.exit("no key"))
    with pytest.raises(ConfigError, match="logging.wandb: it cannot be opened .it wanted to end the program, with 'no key'"):
        MetricsWriter(tmp_path / "new", wandb=True)
