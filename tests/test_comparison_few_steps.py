"""The comparison of few steps: its arms, its page, and a small one that goes from nothing to it."""

import dataclasses
import json
import types

import pytest

from experiments import compare, distill
from experiments.command_line import preset, presets
from experiments.comparison import few_steps
from experiments.comparison.arms import changed
from experiments.comparison.execute import Job
from experiments.presets import shapes, shapes_few, shapes_flux
from tests.command import JobHere, command
from tests.test_comparison_page import record
from unigrpo_jax.config_checks import check

PRESETS = [shapes.config(), shapes_flux.config()]


@pytest.mark.parametrize("base", PRESETS, ids=lambda base: base.name)
def test_arms_can_run_and_students_are_judged_without_guidance(base):
    base = dataclasses.replace(base, iterations=5)
    arms = {arm.name: arm for arm in few_steps.arms(base)}
    assert set(arms) == {name for _, names in few_steps.QUESTIONS for name in names} | set(few_steps.LONG_ONES)
    assert [c.iterations for c in arms["dmd2_rl_long"].stages] == [2, 19] and arms["rl_long"].stages[0].iterations == 38
    for name, arm in arms.items():
        for config in arm.stages:
            check(config)
            assert name in few_steps.LONG_ONES or config.iterations == 5
            assert config.prompts == base.prompts and config.model.path == base.model.path
        judged = arm.evaluations(base.evaluation)
        assert {e.images_per_prompt * e.prompts for e in judged.values()} == {base.evaluation.prompts}
        assert {e.flow_steps for e in judged.values()} >= set(few_steps.STEPS)
        guided = {e.guidance for e in judged.values()} - {1.0}
        assert guided == ({2.0} if name in ("teacher", "rl", "rl_few", "rl_long") and base.rollout.thinking else set())
    methods = {name: [c.learning.method for c in arm.stages] for name, arm in arms.items()}
    assert methods["rl_mean_flow"] == ["grpo", "mean_flow"] and methods["mean_flow_rl"] == ["mean_flow", "grpo"]
    assert methods["rl_dmd2"] == ["grpo", "dmd2"] and methods["dmd2_rl"] == methods["dmd2_held"] == ["dmd2", "grpo"]
    held = arms["dmd2_held"].stages[1].learning
    assert held.matching_weight > 0 == held.mse_weight and held.distillation.teacher == (base.model.path or "base")
    assert arms["mean_flow_rl"].stages[1] == arms["rl_few"].stages[0]
    assert arms["rl_few"].stages[0].rollout.flow_steps == few_steps.ROLLED


@pytest.mark.parametrize("name", presets())
def test_arms_of_every_world_of_single_drawings_can_run_and_students_learn_without_guidance(name):
    """Whatever a preset keeps of the start, holds to it, and guides its policy by."""
    base = preset([name], "shapes")[0]
    held = {"text_kl_weight": 0.1} if base.rollout.thinking and base.learning.reference != "none" else {}
    base = changed(base, rollout={"rounds": 1}, learning=held)
    for arm in few_steps.arms(base):
        for config in arm.stages:
            check(config)
        if len(arm.stages) == 2 and arm.stages[0].learning.distils:
            assert arm.stages[1].rollout.guidance == arm.stages[1].evaluation.guidance == 1


def test_the_long_runs_of_the_shapes_world_are_its_presets():
    """In all that trains and draws; where they begin, and when they are judged, is the comparison's."""
    base = dataclasses.replace(changed(shapes.config(), learning={"cooldown": (0, 0)}), iterations=40)
    arms = {arm.name: arm for arm in few_steps.arms(base)}
    for arm, of in (("rl_long", shapes), ("dmd2_rl_long", shapes_few)):
        trained, wanted = arms[arm].stages[-1], of.config()
        assert trained.iterations == wanted.iterations
        assert (trained.rollout, trained.learning) == (wanted.rollout, wanted.learning)
        judged = lambda config: (config.evaluation.flow_steps, config.evaluation.sampler, config.evaluation.guidance)
        assert judged(trained) == judged(wanted)


def test_settings_that_an_arm_cannot_have_are_told_before_the_first_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_run", lambda *_: pytest.fail("a job began"))
    done = command("experiments.compare", "few_steps", "shapes_story", "--arms", "rl", "dmd2_held", "--out", tmp_path / "c")
    assert done.code == 2 and "the arm dmd2_held, which --arms can leave out: rollout.rounds = 3" in done.err, done
    assert done.err.count("\n") == 1 and not (tmp_path / "c" / "records").exists()


def test_the_page_has_a_row_for_each_number_of_transitions(tmp_path):
    """Guided rows first, with two evaluations a transition; what has no record is missing."""
    found = record("teacher", 0, 0.6, title="teacher") | {"curve": []}
    scores = lambda exact: {"exact": {"overall": exact}, "diversity": {"overall": 0.25}}
    found["evaluations"] = {"10, guided": scores(0.7), "10": scores(0.5), "1, guided": scores(0.1)}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "teacher-seed0.json").write_text(json.dumps(found))
    few_steps.write_few_steps(tmp_path, few_steps.arms(PRESETS[0]))
    page = (tmp_path / "few_steps.md").read_text()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| teacher |")]
    assert [row[1:5] for row in rows] == [
        ["10, guided", "20", "1", "0.700"], ["8, guided", "16", "1", "–"], ["4, guided", "8", "1", "–"],
        ["2, guided", "4", "1", "–"], ["1, guided", "2", "1", "0.100"], ["10", "10", "1", "0.500"],
    ]  # fmt: skip
    assert rows[0][-1] == "0.250" and page.count("missing") and "RL, then MeanFlow" in page
    assert "The same prompts" in (tmp_path / "few_steps.html").read_text()


def test_the_page_tells_when_a_long_run_is_right_often_enough(tmp_path):
    """Seed 0 after 30 s and seed 1 after 50 s, seed 2 never; nor the student, but where its distillation judges few."""
    (tmp_path / "records").mkdir()
    for arm, seed, exacts in (("rl_long", 0, (0.4, 0.8, 0.86, 0.9)), ("rl_long", 1, (0.4, 0.7, 0.8, 0.85)),
                              ("rl_long", 2, (0.4, 0.5, 0.6, 0.7)),
                              ("dmd2_rl_long", 0, (0.9, 0.8, 0.84, 0.83))):  # fmt: skip
        seen = [{"update": n, "seconds": 10.0 + 20 * n, "exact": exact} for n, exact in enumerate(exacts)]
        seen = seen if seed else [point | {"seconds": point["seconds"] - 20 * (n > 1)} for n, point in enumerate(seen)]
        found = record(arm, seed, 0.6, title=arm) | {"held_out": seen, "curve": []}
        if arm == "dmd2_rl_long":  # whose first run ends after its first iteration, and is judged there once more
            found |= {"configs": [{"iterations": 1}, {}], "held_out": [seen[0], seen[1] | {"exact": 0.9}, *seen[1:]]}
        (tmp_path / "records" / f"{arm}-seed{seed}.json").write_text(json.dumps(found))
    few_steps.write_few_steps(tmp_path, [arm for arm in few_steps.arms(PRESETS[0]) if arm.name in few_steps.LONG_ONES])
    page = (tmp_path / "few_steps.md").read_text()
    assert "| RL alone, long | 3 | 50 ± 28 (2 of 3) | 63 ± 12 | 0.817 ± 0.104 |" in page, page
    assert "| DMD2 for a short time, then RL at 4 | 1 | – | 50 | 0.830 |" in page
    assert "Sooner right" in (tmp_path / "figures" / "few_steps.svg").read_text()
    last = few_steps._last_stage(json.loads((tmp_path / "records" / "dmd2_rl_long-seed0.json").read_text()))
    assert [(point["update"], point["exact"]) for point in last["held_out"]] == [(1, 0.8), (2, 0.84), (3, 0.83)]


def test_curves_of_training_drawings_are_those_of_arms_that_draw_them_themselves(tmp_path):
    """What a distillation by MeanFlow sees is its teacher's."""
    (tmp_path / "records").mkdir()
    titles = {arm.name: arm.title for arm in few_steps.arms(PRESETS[0])}
    for arm in ("mean_flow", "dmd2", "mean_flow_rl", "rl_mean_flow", "rl_dmd2"):
        (tmp_path / "records" / f"{arm}-seed0.json").write_text(json.dumps(record(arm, 0, 0.6, title=titles[arm])))
    few_steps.write_few_steps(tmp_path, few_steps.arms(PRESETS[0]))
    figure, page = ((tmp_path / name).read_text() for name in ("figures/few_steps.svg", "few_steps.md"))
    assert titles["dmd2"] in figure and titles["rl_dmd2"] in figure and "MeanFlow" not in figure and "MeanFlow" in page
    assert "a run is 4 iterations from 8 episodes." in page


def test_jobs_come_back_from_their_files(tmp_path):
    base = PRESETS[0]
    for arm in few_steps.arms(base):
        job = Job(
            study="few_steps", arm=arm.name, title=arm.title, seed=3, base=base, stages=arm.stages,
            evaluations=arm.evaluations(base.evaluation), runs=tmp_path / "runs", record=tmp_path / "x.json",
        )  # fmt: skip
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


SMALL = """
    few_steps --arms mean_flow_rl --seeds 4 --updates 2 --devices 1 --rollout.prompts-per-iteration 2
    --learning.group-size 2 --rollout.flow-steps 4 --rollout.window-size 1 --rollout.window-range 0 3
    --evaluation.prompts 4 --evaluation.batch 4 --evaluation.flow-steps 4 --logging.samples 4
""".split()


def test_a_student_is_made_then_trained_then_judged(tiny_model, tmp_path, monkeypatch):
    """Its network has two times throughout: reinforcement learning begins with the folder that the distillation left.

    What a job that died while it wrote that folder left is none.
    """
    folder = tmp_path / "c"
    left = folder / "runs" / "mean_flow_rl-seed4" / "model1"
    left.with_name("model1.part").mkdir(parents=True)
    (left.with_name("model1.part") / "half").touch()
    monkeypatch.setattr(few_steps, "STEPS", (4, 1))
    monkeypatch.setitem(distill.STEPS, "mean_flow", (4, 1))
    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(Popen=JobHere, STDOUT=None))
    done = command("experiments.compare", *SMALL, "--model.path", tiny_model, "--out", folder)
    assert done.code == 0, done
    found = json.loads((folder / "records" / "mean_flow_rl-seed4.json").read_text())
    assert [c["learning"]["method"] for c in found["configs"]] == ["mean_flow", "grpo"]
    assert sorted(path.name for path in left.parent.iterdir()) == ["model1", "stage1", "stage2"]
    assert not (left / "half").exists()
    assert json.loads((left / "student.json").read_text())["second_time"]
    assert found["configs"][1]["model"]["path"] == str(left)
    assert set(found["evaluations"]) == {"1", "4"} and "diversity" in found["evaluations"]["4"]
    assert "MeanFlow, then RL at 4" in (folder / "few_steps.md").read_text()
