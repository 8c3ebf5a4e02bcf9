"""The comparison: its arms spend alike and can run, and a small one goes from nothing to a page and continues."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest

from experiments import compare
from experiments.comparison import arms as all_arms
from experiments.comparison.execute import Job
from experiments.presets import shapes
from tests.command import HEADS, JobHere, command
from tests.conftest import ROOT
from unigrpo_jax.config_checks import check

BASE = dataclasses.replace(shapes.config(), iterations=40)
EVERY_ABLATION = tuple(a.name for a in all_arms.ABLATIONS)


def test_every_arm_of_the_table_spends_the_same_and_can_run():
    arms = all_arms.table(BASE, learned_scorer=True)
    assert len({a.name for a in arms}) == len(arms) == 13
    for arm in arms:
        for config in arm.stages:
            check(config)
            assert config.episodes == BASE.episodes and config.learning.ppo_epochs == config.learning.minibatches == 1
            assert config.rollout.thinking == arm.thinking
        assert not arm.stages or sum(config.iterations for config in arm.stages) == BASE.iterations
    assert not {"refl", "refl_text"} & {a.name for a in all_arms.table(BASE, learned_scorer=False)}


def test_what_an_arm_trains_is_what_its_name_says():
    by_name = {a.name: a for a in all_arms.table(BASE, learned_scorer=True)}
    weights = lambda name: [(c.learning.text_weight, c.learning.flow_weight) for c in by_name[name].stages]
    assert weights("unigrpo") == [(1, 1)]
    assert weights("text_grpo") == [(1, 0)]
    assert weights("flow_grpo") == weights("flow_grpo_plain") == weights("fpo") == weights("diffusion_nft") == [(0, 1)]
    assert weights("unifpo") == [(1, 1)]
    assert weights("two_stage") == [(1, 0), (0, 1)] and weights("refl_text") == [(0, 1), (1, 0)]
    methods = {a.name: [c.learning.method for c in a.stages] for a in by_name.values()}
    assert methods["fpo"] == methods["unifpo"] == ["fpo"] and methods["diffusion_nft"] == ["diffusion_nft"]
    assert methods["refl_text"] == ["refl", "grpo"]
    first, second = by_name["refl_text"].stages
    assert first.rewards == ("shapes_scorer",) and second.rewards == BASE.rewards  # TextGRPO learns from the rule again
    assert weights("base") == weights("base_plain") == []
    assert by_name["text_grpo"].stages[0].learning.mse_weight == 0


def test_every_ablation_can_run_and_none_trains_a_setting_twice():
    arms, named = all_arms.ablations(BASE, EVERY_ABLATION)
    assert len({repr(a.stages) for a in arms}) == len({a.name for a in arms}) == len(arms)
    assert set(named) == set(EVERY_ABLATION)
    for arm in arms:
        (config,) = arm.stages
        check(config)
        assert config.episodes == BASE.episodes and config.iterations == BASE.iterations
    by_name = {a.name: a for a in arms}
    for study in all_arms.ABLATIONS:
        assert len(named[study.name]) >= 2
        assert all(study.judged in by_name[arm].judged for arm in named[study.name].values())
    shared = [arm for labels in named.values() for arm in labels.values() if by_name[arm].stages == (BASE,)]
    assert len(shared) >= 5 and len(set(shared)) == 1


def test_evaluations_differ_in_guidance_alone():
    arm = all_arms.table(BASE, learned_scorer=False)[-1]
    found = arm.evaluations(BASE.evaluation)
    assert found["ode"].guidance == 1 and found["guided"].guidance == 2
    assert dataclasses.replace(found["guided"], guidance=1.0) == found["ode"]
    assert found["ode"].sampler == "ode" and found["ode"].thinking


def test_a_job_comes_back_from_its_file(tmp_path):
    arm = all_arms.table(BASE, learned_scorer=True)[6]
    job = Job(
        study="table", arm=arm.name, title=arm.title, seed=3, base=BASE, stages=arm.stages,
        evaluations=arm.evaluations(BASE.evaluation), runs=tmp_path / "runs", record=tmp_path / "x.json",
    )  # fmt: skip
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


SMALL = """
    table smoke --arms base two_stage --seeds 5 --updates 4 --devices 1 --rollout.prompts-per-iteration 2
    --learning.group-size 4 --rollout.thinking-tokens 4 --rollout.flow-steps 4 --rollout.window-size 2
    --rollout.window-range 0 3 --evaluation.prompts 12 --evaluation.batch 12 --evaluation.flow-steps 2 --logging.samples 4
""".split()
SMALL += HEADS


def started(folder, model, *arguments) -> subprocess.CompletedProcess:
    """The program as a user starts it, since it starts processes itself."""
    words = [sys.executable, "-m", "experiments.compare", *SMALL, "--model.path", model, "--out", folder, *arguments]
    own = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    done = subprocess.run(words, cwd=folder.parent, env=os.environ | own, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done, *(log.read_text() for log in (folder / "jobs").glob("*.log")))
    return done


def test_a_comparison_goes_from_nothing_to_a_page_and_runs_nothing_twice(tiny_model, tmp_path, monkeypatch):
    """First one arm as a process, then both in this one."""
    folder = tmp_path / "c"
    started(folder, tiny_model, "--arms", "two_stage")
    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(Popen=JobHere, STDOUT=None))
    again = lambda *words: command("experiments.compare", *SMALL, "--model.path", tiny_model, "--out", folder, *words)
    record = json.loads((folder / "records" / "two_stage-seed5.json").read_text())
    assert record["budget"] == {"iterations": 4, "episodes": 32, "updates": 4}
    assert [point["update"] for point in record["curve"]] == [1, 2, 3, 4]
    assert [c["learning"]["text_weight"] for c in record["configs"]] == [1, 0]
    assert record["configs"][1]["model"]["path"].endswith("model1")
    assert {"ode", "guided"} == set(record["evaluations"]) and record["seed"] == 5
    seconds = [point["seconds"] for point in record["curve"]]
    assert seconds == sorted(seconds) and 0 < seconds[0]
    ends = [(p["update"], p["graded"]) for p in record["held_out"]]
    assert [u for u, _ in ends] == [0, 1, 2, 2, 3, 4] and ends[2][1] == ends[3][1]  # stage 2 starts where stage 1 ended
    assert record["evaluations"]["ode"]["graded"]["overall"] == ends[-1][1]
    assert {"table.md", "table.html"} <= {path.name for path in folder.iterdir()}

    said = again().out
    assert "1/1 base-seed5" in said and "two_stage-seed5" not in said
    assert json.loads((folder / "records" / "two_stage-seed5.json").read_text()) == record
    page = (folder / "table.md").read_bytes()
    (folder / "table.md").unlink()
    assert "-seed5" not in again("--pages").out
    assert (folder / "table.md").read_bytes() == page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tables"], ["tables", "`table`, `ablations`, `dance`, `rounds`, `few_steps`."]),
        (["table", "--arms", "grpo"], ["--arms grpo", "unigrpo"]),
        (["table", "--updates", 1], ["--updates 1", "at least 2"]),
        (["table", "--seeds", 1, 1], ["--seeds"]),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, arguments, words):
    outcome = command("experiments.compare", *arguments, "--out", tmp_path / "c")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "c").exists()
