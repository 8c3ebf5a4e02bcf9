"""The comparison of several rounds: what is counted over episodes, by hand; its arms, its page; a small one runs."""

import json
import types

import numpy as np
import pytest

from experiments import compare
from experiments.comparison import rounds
from experiments.comparison.execute import Job
from tests.command import JobHere, command
from tests.test_comparison_page import cells, record
from unigrpo_jax.config_checks import check
from unigrpo_jax.training.evaluation import Judged

PRESETS = {world: module.config() for world, module in rounds.WORLDS.items()}
NAN = np.nan


def judged(*exact, verdict=None, thinkings=None) -> Judged:
    """Episodes of which each round's images are right or not."""
    names = [*(f"round{r}_exact" for r in range(1, len(exact))), "exact"]
    scores = {name: np.array(x, float) for name, x in zip(names, exact, strict=True)}
    if verdict is not None:
        scores["verdict_right"] = np.array(verdict, float)
    return Judged({}, [], scores, thinkings or tuple([""] * len(exact[0]) for _ in exact))


def overall(found: Judged, images: int) -> dict[str, float]:
    return {name: row["overall"] for name, row in rounds.over_episodes(found, images).items()}


def test_what_the_model_chooses_itself_is_counted_by_hand():
    """Three prompts, two episodes each; those that find the first image right are 1, 2, 3 and 5 (from 0)."""
    says = ["missing circle : x", "right : x", "right : y", "right : z", "not above : x", "right : x"]
    found = judged([1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 1, 0], verdict=[0] * 6, thinkings=(["plan"] * 6, says))
    assert overall(found, 2) == {
        "every_round": round(2 / 6, 6),
        "either_round": 1.0,
        "own_choice_of_rounds": round((1 + 0 + 1 + 1 + 1 + 1) / 6, 6),  # second, first, first, first, second, first
        "own_choice_of_images": round((0 + 1 + 1) / 3, 6),  # episodes 1, 2 and 5
        "either_image": 1.0,
    }
    silent = judged([1, 0], [0, 1], verdict=[1, 1], thinkings=(["a", "b"], ["right", "rights : x"]))
    assert overall(silent, 2)["own_choice_of_images"] == 1 and overall(silent, 2)["own_choice_of_rounds"] == 0.5


def test_without_a_verdict_there_is_no_choice_and_of_one_round_nothing():
    found = overall(judged([1, 1], [1, 0], [1, 1]), 1)
    assert found == {"every_round": 0.5, "either_round": 1.0}
    assert rounds.over_episodes(judged([1, 0]), 1) == {}


def test_arms_draw_as_many_images_and_can_run():
    arms = {a.name: a for a in rounds.arms(PRESETS)}
    drawn = {n: [c.episodes * c.rollout.rounds * c.iterations for c in a.stages] for n, a in arms.items()}
    assert drawn["reflect"] == drawn["reflect_one"] == drawn["reflect_thoughts"]
    assert {n: a.base.prompts for n, a in arms.items()} == {n: (f"shapes_{n.partition('_')[0]}",) for n in arms}
    for name, arm in arms.items():
        for config in arm.stages:
            check(config)
            assert config.prompts == arm.base.prompts and config.model == arm.base.model
        (evaluation,) = arm.evaluations(arm.base.evaluation).values()
        looks = name.startswith("reflect")
        assert (evaluation.rounds, evaluation.images_per_prompt) == ((2, 2) if looks else (0, 1))
    learning = arms["reflect_thoughts"].stages[0].learning
    assert learning.credit == "segment" and learning.thought_rewards == ("plan", "verdict")
    short = {a.name: a for a in rounds.arms(PRESETS, 7)}
    assert {c.iterations for a in short.values() for c in a.stages} == {7}
    assert short["story"].stages[0].learning.cooldown == (0, 0) != arms["story"].stages[0].learning.cooldown


def test_the_page_shows_worlds_choices_and_the_confusion_table(tmp_path):
    """Of 0.6 seen right 0.9 stay right, of 0.4 seen wrong 0.25 become right: 0.54, 0.06, 0.1, 0.3."""
    found = record("reflect", 0, 0.64, title="two rounds")
    scores = {"seen_right": 0.6, "kept": 0.9, "mended": 0.25, "caught": 0.4}
    scores |= {"round1_exact": 0.6, "own_choice_of_rounds": 0.7}
    found["evaluations"]["ode"] |= {name: {"overall": value} for name, value in scores.items()}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "reflect-seed0.json").write_text(json.dumps(found))
    rounds.write_rounds(tmp_path, rounds.arms(PRESETS))
    page, html = (tmp_path / "rounds.md").read_text(), (tmp_path / "rounds.html").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| two rounds |")]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert rows[0][2:4] == ["0.600", "0.640"] and rows[1][2:5] == ["0.600", "0.640", "0.700"]
    assert rows[2][2:9] == ["0.540", "0.060", "0.100", "0.300", "0.400", "0.250", "0.900"]
    assert set(cells(page, "one round")[1:] if page.count("| one round |") == 1 else {"missing"}) == {"missing"}
    assert page.count("| two rounds |") == 4 and "data:image/svg+xml" in html and "figures/rounds.svg" in page


def test_jobs_come_back_from_their_files(tmp_path):
    for arm in rounds.arms(PRESETS):
        job = Job(
            study="rounds", arm=arm.name, title=arm.title, seed=3, base=arm.base, stages=arm.stages,
            evaluations=arm.evaluations(arm.base.evaluation), runs=tmp_path / "runs", record=tmp_path / "x.json",
        )  # fmt: skip
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


SMALL = """
    rounds --arms reflect_base reflect_one --seeds 4 5 --updates 2 --devices 1 --rollout.prompts-per-iteration 2
    --learning.group-size 2 --rollout.flow-steps 4 --rollout.window-size 1 --rollout.window-range 0 3
    --evaluation.prompts 6 --evaluation.batch 12 --evaluation.flow-steps 2 --logging.samples 4
""".split()


def test_a_small_comparison_of_rounds_goes_from_nothing_to_its_page(tiny_rounds_model, tmp_path, monkeypatch):
    """One base for all seeds; a model that was trained to draw once is judged in two rounds."""
    folder = tmp_path / "c"
    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(Popen=JobHere, STDOUT=None))
    done = command("experiments.compare", *SMALL, "--model.path", tiny_rounds_model, "--out", folder)
    assert done.code == 0, done
    names = {path.stem for path in (folder / "records").iterdir()}
    assert names == {"reflect_base-seed4", "reflect_one-seed4", "reflect_one-seed5"}
    one = json.loads((folder / "records" / "reflect_one-seed5.json").read_text())
    assert one["budget"] == {"iterations": 2, "episodes": 16, "updates": 2} and one["configs"][0]["rollout"]["rounds"] == 1
    assert {"round1_exact", "own_choice_of_images", "own_choice_of_rounds", "seen_right"} <= one["evaluations"]["ode"].keys()
    assert (folder / "rounds.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shapes"], ["shapes", "presets of its own"]),
        (["--arms", "reflect_three"], ["--arms reflect_three", "reflect_thoughts"]),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, arguments, words):
    outcome = command("experiments.compare", "rounds", *arguments, "--out", tmp_path / "c")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "c").exists()
