"""Verdicts of the shapes world: cases worked out by hand, and the formula with the matching found by trying them all."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.scenes import COLOURS, SHAPES, metadata, objects, random_scene
from unigrpo_jax.config import ConfigError, RunConfig
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.shapes.checker import Findings
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.judge import drawing_follows_plan, judge, judge_plan, reward
from unigrpo_jax.worlds.shapes.prompts import evaluation_prompts
from unigrpo_jax.worlds.shapes.scene import Object
from unigrpo_jax.worlds.shapes.world import judge_episodes

COLUMN = {"left": 0, "top-left": 0, "bottom-left": 0, "right": 2, "top-right": 2, "bottom-right": 2}
ROW = {"top": 0, "top-left": 0, "top-right": 0, "bottom": 2, "bottom-left": 2, "bottom-right": 2}


SINGLE = metadata("single_object", "1 any circle")
TWO = metadata("two_object", "1 any circle", "1 any square")
COUNTING = metadata("counting", "3 red circle")
ANY_COUNTING = metadata("counting", "2 any cross")
COLORS = metadata("colors", "1 red circle")
LEFT = metadata("position", "1 any circle", "1 any square", relation="left of")
BELOW = metadata("position", "1 any cross", "1 any triangle", relation="below")
COLOR_ATTR = metadata("color_attr", "1 red circle", "1 blue square")

# Facts, picture, unclear cell, grade, reason (its beginning where it ends in a semicolon).  A pair scores 0.2, and 0.5 more
# for the shape, 0.3 more for the colour; a faulty picture gets 0.8 of the share.
CASES = [
    (SINGLE, "purple circle left", "", 1.0, "right"),
    (SINGLE, "", "", 0.0, "missing: circle"),
    (SINGLE, "red square top", "", 0.8 * 0.2, "missing: circle; extra: red square"),
    (SINGLE, "red circle top, blue circle left", "", 0.8 * 1 / 2, "extra: blue circle"),
    (SINGLE, "red circle top, blue cross left", "", 0.8 * 1 / 2, "extra: blue cross"),
    (SINGLE, "red circle top", "center", 0.8 * 1 / 2, "unclear cell: center"),
    (SINGLE, "", "center", 0.0, "missing: circle; unclear cell: center"),
    (TWO, "red circle top, red square bottom", "", 1.0, "right"),
    (TWO, "green square top, white circle bottom", "", 1.0, "right"),
    (TWO, "red circle top", "", 0.8 * 1 / 2, "missing: square"),
    (TWO, "red circle top, red circle bottom", "", 0.8 * 1.2 / 2, "missing: square; extra: red circle"),
    (TWO, "red circle top, red square left, blue cross right", "", 0.8 * 2 / 3, "extra: blue cross"),
    (TWO, "red circle top, red square left", "bottom", 0.8 * 2 / 3, "unclear cell: bottom"),
    (TWO, "red cross top, red triangle left", "", 0.8 * 0.4 / 2, "missing: circle; missing: square; extra: red cross;"),
    (COUNTING, "red circle top, red circle left, red circle bottom-right", "", 1.0, "right"),
    (COUNTING, "red circle top, red circle left", "", 0.8 * 2 / 3, "missing: red circle"),
    (COUNTING, "red circle top", "", 0.8 * 1 / 3, "missing: red circle; missing: red circle"),
    (COUNTING, "red circle top, red circle left, red circle right, red circle bottom", "", 0.8 * 3 / 4, "extra: red circle"),
    (COUNTING, "red circle top, red circle left, blue circle right", "", 0.72, "missing: red circle; extra: blue circle"),
    (COUNTING, "red circle top, red circle left, red square right", "", 2 / 3, "missing: red circle; extra: red square"),
    (COUNTING, "red circle top, red circle left, red circle right", "top-left", 0.8 * 3 / 4, "unclear cell: top-left"),
    (ANY_COUNTING, "red cross top, blue cross left", "", 1.0, "right"),
    (ANY_COUNTING, "red cross top, blue square left", "", 0.8 * 1.2 / 2, "missing: cross; extra: blue square"),
    (COLORS, "red circle bottom", "", 1.0, "right"),
    (COLORS, "blue circle bottom", "", 0.8 * 0.7, "missing: red circle; extra: blue circle"),
    (COLORS, "red square bottom", "", 0.8 * 0.5, "missing: red circle; extra: red square"),
    (COLORS, "blue square bottom", "", 0.8 * 0.2, "missing: red circle; extra: blue square"),
    (COLORS, "red circle bottom, red circle top", "", 0.8 * 1 / 2, "extra: red circle"),
    (COLORS, "red circle bottom", "top", 0.8 * 1 / 2, "unclear cell: top"),
    (LEFT, "red circle left, blue square center", "", 1.0, "right"),
    (LEFT, "red circle bottom-left, blue square top-right", "", 1.0, "right"),
    (LEFT, "red circle right, blue square left", "", 0.8 * 0.75, "not left of"),
    (LEFT, "red circle top, blue square bottom", "", 0.8 * 0.75, "not left of"),
    (LEFT, "red circle left", "", 0.8 * 0.75 / 2, "missing: square"),
    (LEFT, "red circle left, red cross right", "", 0.8 * 0.75 * 1.2 / 2, "missing: square; extra: red cross"),
    (LEFT, "red circle left, red square top, red cross right", "", 0.8 * (0.75 * 2 / 3 + 0.25), "extra: red cross"),
    (LEFT, "red circle right, red square top, red cross left", "", 0.8 * 0.75 * 2 / 3, "extra: red cross"),
    (LEFT, "red circle left, blue square center", "top", 0.8 * (0.75 * 2 / 3 + 0.25), "unclear cell: top"),
    (BELOW, "red cross bottom, red triangle top-left", "", 1.0, "right"),
    (BELOW, "red triangle bottom, red cross top-left", "", 0.8 * 0.75, "not below"),
    (BELOW, "red triangle left, red cross right", "", 0.8 * 0.75, "not below"),
    (COLOR_ATTR, "red circle left, blue square right", "", 1.0, "right"),
    (COLOR_ATTR, "blue circle left, red square right", "", 0.8 * 1.4 / 2, "missing: red circle; missing: blue square;"),
    (COLOR_ATTR, "red circle left, green square right", "", 0.8 * 1.7 / 2, "missing: blue square; extra: green square"),
    (COLOR_ATTR, "blue square right", "", 0.8 * 1 / 2, "missing: red circle"),
    (COLOR_ATTR, "red circle left, blue square right, white cross top", "", 0.8 * 2 / 3, "extra: white cross"),
    (COLOR_ATTR, "red circle left, blue square right", "top", 0.8 * 2 / 3, "unclear cell: top"),
]  # fmt: skip


def findings(picture: str, unclear: str = "") -> Findings:
    return Findings(objects(picture), tuple(unclear.split()))


def pair_score(wanted: dict, o: Object) -> float:
    """0.2 for being there, 0.5 more for the shape, 0.3 more for the colour; a free colour is right where the shape is."""
    shape = wanted["shape"] == o.shape
    colour = wanted["colour"] == o.colour if wanted["colour"] else shape
    return 0.2 + 0.5 * shape + 0.3 * colour


def stands(a: Object, relation: str, b: Object) -> bool:
    places = COLUMN if relation in ("left of", "right of") else ROW
    p, q = places.get(a.cell, 1), places.get(b.cell, 1)
    return p < q if relation in ("left of", "above") else p > q


def formula(found: Findings, facts: dict) -> float:
    """The grade by trying every matching of the required to the found objects."""
    required = [wanted for wanted in facts["objects"] for _ in range(wanted["count"])]
    slots = [*found.objects, *[None] * len(required)]
    best = max(
        sum(pair_score(w, o) for w, o in zip(required, chosen, strict=True) if o is not None)
        for chosen in itertools.permutations(slots, len(required))
    )
    share = best / max(len(required), len(found.objects) + len(found.unclear))
    related = 1
    if facts["relation"]:
        first, second = facts["objects"]
        pairs = itertools.permutations(found.objects, 2)
        right = [(a, b) for a, b in pairs if (a.shape, b.shape) == (first["shape"], second["shape"])]
        related = any(stands(a, facts["relation"]["relation"], b) for a, b in right)
        partial = 0.75 * share + 0.25 * related
    else:
        partial = share
    return 1.0 if math.isclose(share, 1) and related else 0.8 * partial


@pytest.mark.parametrize("facts, picture, unclear, grade, reason", CASES)
def test_cases_worked_out_by_hand(facts, picture, unclear, grade, reason):
    verdict = judge(findings(picture, unclear), facts)
    assert verdict.graded == pytest.approx(grade, abs=1e-12)
    assert verdict.exact == (grade == 1)
    assert verdict.reason == reason or (reason.endswith(";") and verdict.reason.startswith(reason))


def cases(n: int):
    """n pairs of findings and facts of real prompts: random scenes, half of them near to what is wanted."""
    rng = np.random.default_rng(0)
    prompts = evaluation_prompts(240)
    for i in range(n):
        facts = prompts[i % len(prompts)].metadata
        scene = random_scene(rng, rng.integers(0, 6))
        if i % 2:
            wanted = [w for w in facts["objects"] for _ in range(w["count"])]
            near = []
            for o, w in itertools.zip_longest(scene, wanted[: len(scene)]):
                keep_shape, keep_colour = w and rng.random() < 0.8, w and w["colour"] and rng.random() < 0.8
                near.append(Object(w["colour"] if keep_colour else o.colour, w["shape"] if keep_shape else o.shape, o.cell))
            scene = tuple(near)
        taken = {o.cell for o in scene}
        free = [cell for cell in ("top", "center", "bottom") if cell not in taken]
        yield Findings(scene, tuple(free[: rng.integers(0, 2)])), facts


def test_the_grade_is_the_formula_with_the_best_of_all_matchings():
    """1500 pairs; 1 exactly where exact, below 0.8 else."""
    exact = 0
    for found, facts in cases(1500):
        verdict = judge(found, facts)
        assert verdict.graded == pytest.approx(formula(found, facts), abs=1e-9), (found, facts)
        assert verdict.exact == (verdict.graded == 1) == (verdict.reason == "right")
        assert 0 <= verdict.graded < 0.8 or verdict.exact
        exact += verdict.exact
    print(f"{exact} of 1500 are exact")
    assert exact > 50


def test_the_order_of_the_found_objects_does_not_matter():
    for found, facts in itertools.islice(cases(600), 0, None, 3):
        turned = judge(Findings(found.objects[::-1], found.unclear), facts)
        assert turned.graded == pytest.approx(judge(found, facts).graded)


def test_every_further_right_object_scores_higher():
    """Of k wanted, j are right and the others missing, of another colour, or of another shape and colour."""
    cells = ("top-left", "top", "right", "bottom")
    for k in (1, 2, 3, 4):
        facts = metadata("counting", f"{k} red circle")
        for other in (None, ("blue", "circle"), ("blue", "square")):
            grades = []
            for j in range(k + 1):
                kinds = [("red", "circle")] * j + ([other] * (k - j) if other else [])
                scene = tuple(Object(*kind, cell) for kind, cell in zip(kinds, cells, strict=False))
                grades.append(judge(Findings(scene, ()), facts).graded)
            assert all(a < b for a, b in itertools.pairwise(grades)) and grades[-1] == 1


@pytest.mark.parametrize("facts", [TWO, LEFT, COLOR_ATTR, COUNTING])
def test_one_miss_scores_higher_than_all_missed(facts):
    """Drops one object of a right picture, or all; gives one a wrong shape, or all."""
    kinds = [((w["colour"] or "red"), w["shape"]) for w in facts["objects"] for _ in range(w["count"])]
    scene = [Object(*kind, cell) for kind, cell in zip(kinds, ("left", "center", "right"), strict=False)]
    wrong = [Object("yellow", "triangle", o.cell) for o in scene]
    right, *others = (
        judge(Findings(tuple(s), ()), facts).graded for s in (scene, scene[1:], [], [wrong[0], *scene[1:]], wrong)
    )
    assert right == 1 > others[0] > others[1] == 0
    assert 1 > others[2] > others[3] > 0


def test_a_plan_is_judged_like_the_picture_of_it():
    for found, facts in cases(300):
        if found.objects:
            plan = "whatever : " + " , ".join(f"{o.colour} {o.shape} {o.cell}" for o in found.objects)
            assert judge_plan(plan, facts) == judge(Findings(found.objects, ()), facts)
    verdict = judge_plan("a red circle", COLORS)
    assert (verdict.exact, verdict.graded, verdict.reason) == (False, 0.0, "no plan")


def test_following_the_plan_is_showing_the_same_objects_in_the_same_cells():
    plan = "anything : blue square right , red circle left"
    assert drawing_follows_plan(findings("red circle left, blue square right"), plan) is True
    for picture, unclear in (
        ("red circle left", ""),
        ("red circle left, blue square center", ""),
        ("red circle left, red square right", ""),
        ("red circle left, blue square right, blue cross top", ""),
        ("red circle left, blue square right", "top"),
    ):
        assert drawing_follows_plan(findings(picture, unclear), plan) is False
    assert drawing_follows_plan(findings("red circle left"), "red circle left") is None


def batch(facts, pictures, thinking=None, prompts=None) -> RewardBatch:
    n = len(facts)
    images = np.stack([render(objects(picture)) for picture in pictures])
    return RewardBatch(prompts=prompts or [""] * n, metadata=facts, images=images, thinking=thinking or [""] * n)


CLEAR = [(facts, picture, grade) for facts, picture, unclear, grade, _ in CASES if not unclear]


def test_the_reward_is_the_grade_of_the_picture():
    """From pixels to float32, on the cases by hand."""
    facts, pictures, grades = zip(*CLEAR, strict=True)
    scores = reward(batch(facts, pictures))
    assert list(scores) == ["graded"] and scores["graded"].dtype == np.float32
    np.testing.assert_allclose(scores["graded"], grades, rtol=1e-6)


def test_the_reward_reads_neither_thinking_nor_prompt():
    facts, pictures, _ = zip(*CLEAR, strict=True)
    plain = reward(batch(facts, pictures))["graded"]
    for text in ("garbage ) : , : red", "red circle : red circle top", "\x00", "right " * 100):
        texts = [text] * len(facts)
        np.testing.assert_array_equal(reward(batch(facts, pictures, texts, texts))["graded"], plain)


def test_a_scribble_in_the_picture_costs_the_exact_mark():
    image = render(objects("red circle top-left"))
    image[18:22, 18:22] = 255
    scores = reward(RewardBatch(prompts=[""], metadata=[COLORS], images=image[None], thinking=[""]))
    assert scores["graded"] == pytest.approx(0.4)


def test_episodes_tell_wrong_plans_from_wrong_drawings():
    plans = ["red circle : red circle top", "x : blue circle top", "x : red circle left", "no plan at all", ""]
    pictures = ["red circle top", "blue circle top", "red circle top", "red circle top", ""]
    judged = judge_episodes(batch([COLORS] * 5, pictures, plans))
    assert judged.correct.tolist() == [True, False, True, True, False]
    assert judged.verdicts == ["right", "missing: red circle; extra: blue circle", "right", "right", "missing: red circle"]
    np.testing.assert_array_equal(judged.scores["exact"], [1, 0, 1, 1, 0])
    np.testing.assert_allclose(judged.scores["graded"], [1, 0.56, 1, 1, 0])
    np.testing.assert_array_equal(judged.scores["plan_exact"], [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(judged.scores["drawing_follows_plan"], [1, 1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(judged.scores["exact_given_plan"], [1, np.nan, 1, np.nan, np.nan])


def test_the_process_reward_is_what_the_rules_say_of_the_thought():
    """A thinking that is no plan is neither right nor followed, and counts as 0, not as not judged."""
    plans = ["red circle : red circle top", "x : blue circle top", "x : red circle left", "no plan at all", ""]
    pictures = ["red circle top", "blue circle top", "red circle top", "red circle top", ""]
    found = load_reward("shapes_thoughts", RunConfig())(batch([COLORS] * 5, pictures, plans))
    assert list(found) == ["plan", "follows"]
    np.testing.assert_array_equal(found["plan"], [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(found["follows"], [1, 1, 0, 0, 0])


def test_thoughts_of_prompts_without_rules_are_refused():
    config = dataclasses.replace(RunConfig(), prompts=("examples",))
    with pytest.raises(ConfigError, match="reads plans of the shapes worlds.*judge:thinking"):
        load_reward("shapes_thoughts", config)


def test_every_kind_is_right_for_its_own_prompt_only():
    """24 kinds as facts against 24 kinds in the picture."""
    kinds = list(itertools.product(COLOURS, SHAPES))
    for (colour, shape), (c, s) in itertools.product(kinds, repeat=2):
        verdict = judge(Findings((Object(c, s, "center"),), ()), metadata("colors", f"1 {colour} {shape}"))
        assert verdict.exact == ((colour, shape) == (c, s))
