"""The whole way of a student of few steps, at toy size: GRPO on it, drawing anew at each transition, export."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import tiny
from tests.command import command
from tests.test_resume import state_at
from unigrpo_jax.config import ConfigError, ModelConfig, RolloutConfig, RunConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.models.building.second_time import is_second_time
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.flux.config import read_transformer
from unigrpo_jax.models.flux.tiny import make_tiny
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.folders.toys import save_weights
from unigrpo_jax.models.stable_diffusion.tiny import make_tiny as make_sd
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.rollout.program import check_window, flow_sampler

STUDENT = Student(method="mean_flow", steps=(2, 4), second_time=True, guidance=3.5, timestep_shift=0.0, teacher="a toy")
SETTINGS = ("--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.flow-steps", 3, "--devices", 1,
            "--rollout.prompts-per-iteration", 2, "--rollout.flow-steps", 4, "--rollout.window-size", 2,
            "--rollout.window-range", 0, 3, "--rollout.noise-range", 0, 0, "--rollout.step-rule", "cps",
            "--rollout.noise-level", 1, "--evaluation.drift", 4, "--learning.reference", "device")  # fmt: skip
LEASHES = ("--learning.mse-weight", 0.01, "--learning.leash-times", 0.5)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "flux"
    loaded = load_model(ModelConfig(path=str(teacher), second_time=True))
    params, rng = loaded.with_fresh(loaded.params()), np.random.default_rng(0)
    params |= {path: 0.1 * rng.standard_normal(x.shape, np.float32) for path, x in params.items() if is_second_time(path)}
    loaded.export(params, folder, "float32", student=STUDENT)
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "student"
    texts = ("--model.embeddings.folder", run_dir.parent / "texts")
    words = ("flux_tiny", "--model.path", folder, "--run-dir", run_dir)
    outcome = command("experiments.run", *words, *SETTINGS, *LEASHES, *texts)
    assert outcome.code == 0, outcome
    assert outcome.out.count("is a student (mean_flow)") == 1
    assert "Warning: evaluation.flow_steps = 3" in outcome.out and "made for 2 or 4 steps" in outcome.out
    return run_dir


def test_a_run_on_a_student_learns_on_policy(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["flow/ratio_min"] == line["flow/ratio_max"] == 1 and line["flow/log_prob_gap_max"] < 1e-4
    assert lines[0]["flow/velocity_mse"] == 0 < lines[1]["flow/velocity_mse"]
    assert min(json.loads((trained / "summary.json").read_text())["drift"]["flow"]["squared"]) > 0


def test_it_is_judged_by_drawing_new_noise_at_each_transition(trained, tmp_path):
    asked = ("--evaluation.no-thinking", "--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.drift", 0)
    tables = []
    for sampler in ("sde", "ode"):
        own = ("--evaluation.sampler", sampler, "--evaluation.flow-steps", 4, "--out", tmp_path / f"{sampler}.json")
        outcome = command("experiments.evaluate", trained, *asked, *own)
        assert outcome.code == 0 and "Warning" not in outcome.out, outcome
        tables.append(json.loads((tmp_path / f"{sampler}.json").read_text())["table"])
    assert tables[0] != tables[1]


def test_where_nobody_says_otherwise_its_run_folder_is_judged_and_drawn_as_the_run_judged_it(trained, tmp_path):
    """In the 3 steps of the run's evaluations, and not in the 4 that its student was made for."""
    table, pictures = tmp_path / "table.json", [tmp_path / "0.png", tmp_path / "1.png"]
    asked = ("--evaluation.no-thinking", "--evaluation.prompts", 4, "--evaluation.batch", 4, "--evaluation.drift", 0)
    outcome = command("experiments.evaluate", trained, *asked, "--out", table)
    assert outcome.code == 0 and "Warning: evaluation.flow_steps = 3" in outcome.out, outcome
    found, summary = json.loads(table.read_text()), json.loads((trained / "summary.json").read_text())
    assert found["evaluation"]["flow_steps"] == 3 and found["table"] == summary["after"]
    for picture, own in zip(pictures, ((), ("--flow-steps", 3)), strict=True):
        outcome = command("experiments.generate", trained, "a red circle", "--out", picture, *own)
        assert outcome.code == 0 and "Warning: evaluation.flow_steps = 3" in outcome.out, outcome
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_it_exports_a_student_whose_second_time_was_learned(folder, trained, tmp_path):
    out, picture = tmp_path / "out", tmp_path / "drawn.png"
    assert command("experiments.export", trained, out, "--dtype", "float32").code == 0
    assert students.read(out) == STUDENT
    before, after = load_file(folder / WEIGHTS), load_file(out / WEIGHTS)
    own = [name for name in before if is_second_time(name)]
    assert before.keys() == after.keys() and len(own) == 4
    assert all((before[name] != after[name]).any() for name in own)
    outcome = command("experiments.generate", out, "a red circle", "--out", picture)  # in 4 steps, without a word
    assert outcome.code == 0 and outcome.out == f"Wrote {picture}\n", outcome
    outcome = command("experiments.generate", out, "a red circle", "--out", picture, "--flow-steps", 3)
    assert outcome.code == 0 and "Warning: evaluation.flow_steps = 3" in outcome.out, outcome


def held(folder, run_dir, texts, *own):
    """A run on the student that is held to a teacher."""
    weights = ("--learning.matching-weight", 0.01, "--learning.mse-weight", 0, "--learning.distillation.fake-steps", 2)
    words = ("flux_tiny", "--model.path", folder, "--run-dir", run_dir, *SETTINGS, *weights)
    return command("experiments.run", *words, "--model.embeddings.folder", texts, "--checkpoint.every", 1, *own)


def test_a_student_that_is_held_to_its_teacher_goes_on_after_a_resume_with_the_same_bits(folder, teacher, trained, tmp_path):
    """Its fake score begins as the teacher, is in the checkpoints, and has no second time; another teacher is refused."""
    teacher = shutil.copytree(teacher, tmp_path / "teacher")
    texts, run_dir, named = trained.parent / "texts", tmp_path / "run", ("--learning.distillation.teacher", teacher)
    outcome = held(folder, run_dir, texts, *named, "--checkpoint.keep", 3)
    assert outcome.code == 0 and "drift" not in json.loads((run_dir / "summary.json").read_text()), outcome
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["flow/ratio_min"] == line["flow/ratio_max"] == 1 and line["matching/distance"] > 0 < line["fake/loss"]
        assert "flow/velocity_mse" not in line and line["update/skipped"] == 0
    first, second = (state_at(run_dir, step) for step in (1, 2))
    assert first.fake.trained.keys() == {path for path in first.trained if not is_second_time(path)} < first.trained.keys()
    began = flatten(load_model(ModelConfig(path=str(teacher))).params())
    steps = [np.abs(np.asarray(x) - began[path]).max() for path, x in first.fake.trained.items()]
    assert 3.9e-3 < max(steps) < 4.1e-3  # two steps of Adam at 2e-3, twice the student's rate
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "2")
    outcome = held(folder, copy, texts, *named, "--checkpoint.keep", 3, "--resume")
    assert outcome.code == 0 and "Resuming after iteration 1" in outcome.out, outcome
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(state_at(copy, 2)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    sizes = teacher / "transformer" / "config.json"
    save_weights(sizes.parent, component.DIFFUSERS, component.wanted(read_transformer(sizes)), seed=1)
    outcome = held(folder, copy, texts, *named, "--iterations", 3, "--resume")
    assert outcome.code != 0 and "needs as the teacher" in outcome.err and outcome.err.count("\n") == 1, outcome


def test_a_teacher_that_is_none_of_this_student_is_refused(folder, teacher, tmp_path):
    smaller, other = shutil.copytree(teacher, tmp_path / "smaller"), tmp_path / "sd"
    sizes = smaller / "transformer" / "config.json"
    sizes.write_text(json.dumps(json.loads(sizes.read_text()) | {"num_single_layers": 1}))
    save_weights(sizes.parent, component.DIFFUSERS, component.wanted(read_transformer(sizes)), 0)
    other.mkdir()
    make_sd(other)
    wrong = {folder: "is a student itself", smaller: "has other parameters than", other: "teacher: "}
    for path, said in wrong.items():
        outcome = held(folder, tmp_path / "run", tmp_path / "texts", "--learning.distillation.teacher", path)
        assert outcome.code != 0 and said in outcome.err and outcome.err.count("\n") == 1, outcome


def test_a_run_that_would_not_teach_the_second_time_is_refused(folder, tmp_path):
    run = lambda *own: command("experiments.run", "flux_tiny", "--run-dir", tmp_path / "x", *SETTINGS, *own)
    for method in ("fpo", "diffusion_nft"):
        outcome = run("--model.path", folder, "--learning.method", method)
        assert outcome.code != 0 and "use grpo or refl" in outcome.err, outcome
    outcome = run("--model.second-time")
    assert outcome.code != 0 and "model.second_time gives the network an input" in outcome.err, outcome


@pytest.mark.parametrize("rule, steps, window, said", [
    ("flow_sde", 1, (0, 1), None),
    ("cps", 1, (0, 1), "where cps has no noise"),
    ("cps", 2, (0, 1), None),
    ("cps", 3, (0, 2), None),
    ("cps", 4, (0, 4), "let the range end at 3"),
    ("flow_sde", 4, (0, 4), None),
    ("flow_sde", 2, (0, 3), "reaches beyond the schedule"),
    ("ddim", 2, (0, 2), "where ddim has no noise"),
])  # fmt: skip
def test_windows_fit_schedules_of_few_steps_or_it_is_said_why_not(rule, steps, window, said):
    rollout = dataclasses.replace(RolloutConfig(), image_height=12, image_width=8, step_rule=rule, flow_steps=steps,
                                  window_range=window, window_size=1)  # fmt: skip

    def checked():
        check(RunConfig(rollout=rollout))
        check_window(flow_sampler(rollout, tiny.MODEL), rollout)

    if said is None:
        checked()
    else:
        with pytest.raises(ConfigError, match=said):
            checked()
