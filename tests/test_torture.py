"""The program that harms a run: that it harms, that it notices what is lost, and that a run survives its short form."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1 as ocp

from experiments.survival.compare import differences
from experiments.survival.faults import KILLS, KINDS, Fault, Victim, plan
from experiments.survival.lives import Stage, finished, unfinished, whole
from experiments.survival.torture import Result, table
from tests.command import command
from tests.conftest import ROOT
from unigrpo_jax.training import manifest


def test_three_faults_leave_the_run_as_it_would_have_been(tmp_path):
    """A kill while a checkpoint is written, a flipped bit, a full disk; real processes throughout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    words = [
        sys.executable,
        "-m",
        "experiments.torture",
        "--quick",
        "--folder",
        tmp_path / "t",
        "--json",
        tmp_path / "r.json",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and not done.stderr, done
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["passed"] and found["differences"] == [] and len(found["faults"]) == 3
    assert {fault["kind"] for fault in found["faults"]} == {
        "killed while a checkpoint is written", "one bit of it flipped", "disk full"}  # fmt: skip
    assert all(fault["trouble"] is None and fault["skipped"] is None for fault in found["faults"])
    assert max(fault["lost"] for fault in found["faults"]) > 0  # something was done again, so that something was proved
    assert "bit for bit" in done.stdout


def make_run(folder: pathlib.Path) -> pathlib.Path:
    """What `differences` looks at, of a run of three iterations."""
    folder.mkdir()
    lines = [{"step": step, "reward/mean": step / 7, "time/update": 0.1, "images_per_second": 3.0} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"before": {"red": 0.1}, "after": {"red": 0.2}, "seconds": 4}))
    ocp.save(folder / "checkpoints" / "3", {"w": jnp.arange(4.0), "step": jnp.int32(3)})
    return folder


def rewrite(run_dir: pathlib.Path, **changes):
    """Saves other arrays as the last checkpoint."""
    shutil.rmtree(run_dir / "checkpoints" / "3")
    ocp.save(run_dir / "checkpoints" / "3", {"w": jnp.arange(4.0), "step": jnp.int32(3)} | changes)


def edit(name: str, old: str, new: str):
    def change(run_dir: pathlib.Path):
        text = (run_dir / name).read_text()
        assert old in text
        (run_dir / name).write_text(text.replace(old, new))

    return change


SECOND = json.dumps({"step": 2, "reward/mean": 2 / 7, "time/update": 0.1, "images_per_second": 3.0}) + "\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("metrics.jsonl", repr(2 / 7), "0.2857142857142858"), ["metrics of iteration 2: reward/mean"]),
        (edit("metrics.jsonl", SECOND, ""), ["iterations [2] have no line"]),
        (edit("metrics.jsonl", SECOND, SECOND * 2), ["iterations [2] have several lines"]),
        (edit("summary.json", "0.2", "0.3"), ["summary: after"]),
        (lambda run_dir: rewrite(run_dir, w=jnp.arange(4.0).at[0].set(-0.0)), ["1 of 2 arrays", "'w'"]),  # equal, other bits
        (lambda run_dir: rewrite(run_dir, v=jnp.arange(4.0)), ["1 of 2 arrays", "'v'"]),
    ],
)
def test_every_difference_is_found(tmp_path, change, words):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    edit("metrics.jsonl", '"time/update": 0.1', '"time/update": 0.9')(other)  # a clock may differ
    assert differences(one, other, 3) == []
    change(one)
    (said,) = differences(one, other, 3)
    for word in words:
        assert word in said, said


def test_the_long_form_makes_every_fault_and_at_least_twenty_kills():
    names = plan(30, random.Random(0))
    assert set(names) == set(KINDS) and sum(name in KILLS for name in names) == 24
    assert sum(name in KILLS for name in plan(25, random.Random(5))) == 20
    assert plan(30, random.Random(1)) != names and sorted(plan(30, random.Random(1))) == sorted(names)


@pytest.fixture
def victim(tmp_path):
    """A run with checkpoints 2, 4 and 6 of which the last was damaged, and seven lines of metrics."""
    run_dir = tmp_path / "run"
    for step in (2, 4, 6):
        folder = run_dir / "checkpoints" / str(step)
        for name in (*manifest.REQUIRED, "data"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("abc")
        manifest.write(folder, {"step": step})
    (run_dir / "checkpoints" / "6" / "data").write_text("abd")
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n' * 7)
    stage = types.SimpleNamespace(folder=tmp_path)
    return Victim(stage, run_dir, random.Random(0), None)


@pytest.mark.parametrize(
    ("resumed", "said", "trouble"),
    [
        (4, "Skipping the checkpoint x/checkpoints/6: data", None),
        (4, "", "the damaged checkpoints [6] were not named"),
        (
            2,
            "Skipping the checkpoint x/checkpoints/6: data",
            "resumed after iteration 2, but the newest whole checkpoint was [4]",
        ),
        (0, "checkpoints/6: starting.", "resumed after iteration 0, but the newest whole checkpoint was [4]"),
    ],
)
def test_a_life_that_resumes_elsewhere_is_noticed(victim, monkeypatch, resumed, said, trouble):
    life = types.SimpleNamespace(resumed_at=lambda: resumed, out=lambda: said)
    monkeypatch.setattr("experiments.survival.faults.Life", lambda *_: life)
    victim.blamed = Fault("one bit of it flipped")
    victim.start()
    victim.account()
    assert victim.blamed.trouble == trouble and victim.blamed.lost == 7 - resumed


def test_what_is_whole_is_read_without_the_products_help(victim):
    assert whole(victim.run_dir) == [2, 4] and finished(victim.run_dir) == [2, 4, 6] and not unfinished(victim.run_dir)
    (victim.run_dir / "checkpoints" / "4" / "manifest.json").unlink()
    assert unfinished(victim.run_dir) and whole(victim.run_dir) == [2]
    (victim.run_dir / "checkpoints" / "4").rename(victim.run_dir / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert unfinished(victim.run_dir) and finished(victim.run_dir) == [2, 6]


def test_the_clock_of_a_life_jumps_when_it_is_told_to(tmp_path):
    stage = Stage(tmp_path, 3)
    (tmp_path / "clock" / "offset").write_text("-86400")
    program = "import time, datetime; print(time.time() - datetime.datetime.now().timestamp(), time.time_ns())"
    shown = subprocess.run([sys.executable, "-c", program], env=stage.environment(True), capture_output=True, text=True)
    assert float(shown.stdout.split()[0]) == pytest.approx(-86400, abs=60), shown
    (tmp_path / "clock" / "offset").unlink()
    shown = subprocess.run([sys.executable, "-c", program], env=stage.environment(True), capture_output=True, text=True)
    assert float(shown.stdout.split()[0]) == pytest.approx(0, abs=60), shown


def test_a_fault_that_was_not_survived_fails_the_whole():
    faults = [Fault("killed", lost=1), Fault("killed", trouble="x", lost=3), Fault("disk full", skipped="no disk")]
    assert table(faults) == [["killed", "2", "1", "3"], ["disk full", "-", "skipped", "no disk"]]
    assert not Result(faults, [], "", 0.0).passed()
    assert Result(faults[:1] + faults[2:], [], "", 0.0).passed()
    assert not Result(faults[:1], ["metrics"], "", 0.0).passed()


@pytest.mark.parametrize(("arguments", "words"), [(["--faults", "0"], "--faults 0"), (["--folder", "."], "is not empty")])
def test_a_folder_in_use_or_no_fault_at_all_is_one_sentence(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("")
    outcome = command("experiments.torture", *arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and words in outcome.err
    assert re.match("experiments.torture: ", outcome.err) and sorted(p.name for p in tmp_path.iterdir()) == ["x"]
