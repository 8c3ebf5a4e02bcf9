"""Runs in the shapes worlds of several rounds, from the command line to the table, and what is refused."""

import json

import numpy as np
import pytest

from tests.command import HEADS, command, run_small
from unigrpo_jax.models.families import find_folder
from unigrpo_jax.training.metrics import read_metrics
from unigrpo_jax.training.samples import load_samples
from unigrpo_jax.worlds.shapes import tokenizer

ROUNDS = {"shapes_reflect": 2, "shapes_edit": 1, "shapes_story": 3}
KINDS = {"recolour", "move", "add", "remove", "count"}


def of_world(world, *arguments):
    """A run of four iterations rewarded by the world's own rules, and by what they say of the thoughts."""
    return ["--prompts", world, "--rollout.rounds", ROUNDS[world], "--rewards", "shapes", "shapes_thoughts",
            "--rollout.prompts-per-iteration", 2, "--iterations", 2, *HEADS, *arguments]  # fmt: skip


@pytest.mark.parametrize("world", ROUNDS)
def test_a_run_in_each_world_is_rewarded_by_its_rules_in_every_round(tiny_rounds_model, tmp_path, world):
    credit = ["--learning.credit", "segment", "--learning.thought-rewards", "plan", "--learning.round-reward", "each"]
    outcome = run_small(tiny_rounds_model, tmp_path / "run", *of_world(world, *credit))
    assert outcome.code == 0, outcome.err
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    rounds = ["", *(f"round{r}/" for r in range(1, ROUNDS[world]))]
    for line in lines:
        assert all(f"{r}reward/{name}/mean" in line for r in rounds for name in ("graded", "plan", "follows"))
        assert line["text/ratio_max"] == line["flow/ratio_max"] == 1 and line["reward/dropped_share"] == 0
        graded, judged = ([line[f"{r}{name}"] for r in rounds] for name in ("reward/graded/mean", "judge/graded"))
        np.testing.assert_allclose(graded, judged, atol=1e-6)  # the reward is the world's own grade
    table = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    assert {"exact", "graded", "plan_exact", "drawing_follows_plan"} <= table.keys()
    assert ("verdict" in table) == (world == "shapes_reflect") and ("seen_right" in table) == (world == "shapes_reflect")
    assert set(table["graded"]) - {"overall"} <= (KINDS if world != "shapes_reflect" else table["graded"].keys())
    sample = load_samples(tmp_path / "run", 2)[0]
    assert len(sample.rounds) == ROUNDS[world] and bool(sample.rounds[0].given) == (world == "shapes_edit")
    assert [bool(r.prompt) for r in sample.rounds] == [True, *[world == "shapes_story"] * (ROUNDS[world] - 1)]


@pytest.mark.parametrize(
    ("world", "arguments", "words"),
    [
        ("shapes_story", ["--rollout.rounds", 2], ["has 2 later turns", "use rollout.rounds = 3"]),
        ("shapes_edit", ["--rollout.image-height", 16, "--rollout.image-width", 16], ["24 x 24", "16 x 16"]),
        ("shapes_edit", ["--evaluation.source", "examples"], ["`shapes_edit` has rules", "give it alone"]),
    ],
)
def test_what_a_world_cannot_do_is_one_sentence(tiny_rounds_model, tmp_path, world, arguments, words):
    outcome = run_small(tiny_rounds_model, tmp_path / "run", *of_world(world, *arguments))
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_know_the_words_of_a_world_is_refused(tiny_model, tmp_path):
    outcome = run_small(tiny_model, tmp_path / "run", *of_world("shapes_edit"))
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert "does not know" in outcome.err and "--model.path rounds_base" in outcome.err


def test_the_base_of_several_rounds_is_small_and_can_read_a_picture(tmp_path):
    """Its tokenizer is the one that is made today; plans of edits, which copy what is seen, are mostly right."""
    folder = find_folder("rounds_base")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    tokenizer.save(tmp_path, rounds=True)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    few = ["--evaluation.prompts", 50, "--evaluation.batch", 50, "--evaluation.flow-steps", 2, "--devices", 1]
    out = tmp_path / "table.json"
    outcome = command("experiments.evaluate", "rounds_base", "--preset", "shapes_edit", *few, "--out", out)
    assert outcome.code == 0, outcome.err
    table = json.loads(out.read_text())["table"]
    assert table["plan_exact"]["overall"] > 0.5 and set(table["plan_exact"]) == {"overall", *KINDS}
