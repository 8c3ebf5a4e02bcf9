"""The world of second looks: what is wrong with a picture against brute force, and verdicts that say so truly."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from tests.scenes import CELLS, COLOURS, SHAPES, metadata, objects, random_scene
from unigrpo_jax.config import RunConfig
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.shapes import reflect, world
from unigrpo_jax.worlds.shapes.checker import Findings
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.judge import judge
from unigrpo_jax.worlds.shapes.prompts import evaluation_prompts, prompts
from unigrpo_jax.worlds.shapes.reflect import find_faults, is_true, judge_verdict, verdict_text
from unigrpo_jax.worlds.shapes.requirement import from_metadata
from unigrpo_jax.worlds.shapes.scene import Object, parse_plan

TWO_ANY = metadata("counting", "2 any circle")
PAIR = metadata("color_attr", "1 blue square", "1 red circle")
LEFT = metadata("position", "1 any circle", "1 any square", relation="left of")
THREE = metadata("counting", "3 red cross")

# Facts, picture, unclear cells, what is said, whether it is true.
BY_HAND = [
    (PAIR, "red circle top, blue square left", "", "right", True),
    (PAIR, "red circle top, blue square left", "", "missing blue square", False),
    (PAIR, "red circle top", "", "missing blue square", True),
    (PAIR, "red circle top", "", "right", False),
    (PAIR, "red circle top", "", "missing square", False),
    (PAIR, "red circle top", "", "missing blue square and missing blue square", False),
    (PAIR, "red circle top", "", "missing red circle", False),
    (PAIR, "red circle top, green square left", "", "missing blue square and extra green square", True),
    (PAIR, "red circle top, green square left", "", "extra green square and missing blue square", True),
    (PAIR, "red circle top, green square left", "", "missing blue square", False),
    (PAIR, "red circle top, green square left", "", "extra blue square and missing blue square", False),
    (PAIR, "", "", "missing blue square and missing red circle", True),
    (PAIR, "", "", "missing blue square", False),
    (PAIR, "red circle top, blue square left, red circle bottom", "", "extra red circle", True),
    (PAIR, "red circle top, blue square left, red circle bottom", "", "extra blue square", False),
    (PAIR, "white cross top, white cross left", "", "extra white cross and extra white cross", True),
    (PAIR, "white cross top, white cross left", "", "missing red circle and extra white cross", True),
    (PAIR, "white cross top, white cross left", "", "missing red circle", False),
    (PAIR, "red circle top, blue square left", "center", "unclear center", True),
    (PAIR, "red circle top, blue square left", "center", "unclear top", False),
    (PAIR, "red circle top, blue square left", "center", "right", False),
    (PAIR, "red circle top", "center", "missing blue square", True),
    (PAIR, "red circle top", "center", "missing blue square and unclear center", True),
    (TWO_ANY, "red circle top, blue circle left, blue circle right", "", "extra red circle", True),
    (TWO_ANY, "red circle top, blue circle left, blue circle right", "", "extra blue circle", True),
    (TWO_ANY, "red circle top, blue circle left, blue circle right", "", "extra blue circle and extra red circle", False),
    (TWO_ANY, "red circle top", "", "missing circle", True),
    (TWO_ANY, "red circle top", "", "missing red circle", False),
    (THREE, "", "", "missing red cross and missing red cross", True),
    (THREE, "red cross top, red cross left", "", "missing red cross", True),
    (LEFT, "red circle right, blue square left", "", "not left of", True),
    (LEFT, "red circle right, blue square left", "", "not right of", False),
    (LEFT, "red circle left, blue square right", "", "not left of", False),
    (LEFT, "red circle right", "", "missing square", True),
    (LEFT, "red circle right", "", "missing square and not left of", False),
    (PAIR, "red circle top", "", "", False),
    (PAIR, "red circle top", "", "wrong blue square", False),
    (PAIR, "red circle top", "", "right and missing blue square", False),
    (PAIR, "red circle top", "", "missing blue square and", False),
    (PAIR, "red circle top", "", "missing blue square please", False),
]


@pytest.mark.parametrize("facts, picture, unclear, said, true", BY_HAND)
def test_verdicts_worked_out_by_hand(facts, picture, unclear, said, true):
    seen = Findings(objects(picture), tuple(unclear.split()))
    assert judge_verdict(f"{said} : red circle top", seen, facts) is true


def brute_force(found: Findings, facts: dict) -> set[tuple[str, ...]]:
    """All true verdicts as sorted faults, by every way to give the found objects to the wanted ones."""
    wanted = [w for w in facts["objects"] for _ in range(w["count"])]
    fits = lambda w, o: w["shape"] == o.shape and w["colour"] in (None, o.colour)
    ways, most = [], -1
    for chosen in itertools.permutations([*range(len(found.objects)), *[None] * len(wanted)], len(wanted)):
        pairs = [(w, j) for w, j in zip(wanted, chosen, strict=True) if j is not None]
        if all(fits(w, found.objects[j]) for w, j in pairs):
            if len(pairs) > most:
                ways, most = [], len(pairs)
            if len(pairs) == most:
                ways.append(chosen)
    true = set()
    for chosen in set(ways):
        faults = [f"missing {w['colour'] + ' ' if w['colour'] else ''}{w['shape']}"
                  for w, j in zip(wanted, chosen, strict=True) if j is None]  # fmt: skip
        faults += [f"extra {o.colour} {o.shape}" for j, o in enumerate(found.objects) if j not in chosen]
        if not faults and not found.unclear and not judge(found, facts).exact:
            faults = [f"not {facts['relation']['relation']}"]
        unclear = [f"unclear {cell}" for cell in found.unclear]
        needed = min(len(faults) or len(unclear), 2)
        for n in (1, 2):
            if n >= needed and needed:
                true |= {tuple(sorted(some)) for some in itertools.combinations([*faults, *unclear], n)}
        if not faults and not unclear:
            true.add(("right",))
    return true


def cases(n: int):
    """Findings and facts of real prompts: pictures that are nearly right, of at most five objects."""
    rng, asked = np.random.default_rng(0), evaluation_prompts(240)
    for i in range(n):
        facts = asked[i % len(asked)].metadata
        scene = list(random_scene(rng, rng.integers(0, 6)))
        wanted = [w for w in facts["objects"] for _ in range(w["count"])]
        for j, w in enumerate(wanted[: len(scene)]):
            if rng.random() < 0.8:
                scene[j] = Object(w["colour"] or scene[j].colour, w["shape"], scene[j].cell)
        if rng.random() < 0.6:
            scene = scene[: len(wanted)]
        free = [cell for cell in CELLS if cell not in {o.cell for o in scene}]
        yield Findings(tuple(scene), tuple(free[: rng.integers(0, 5) // 3])), facts


def said_of(found: Findings, facts: dict) -> list[str]:
    """Single faults that may be said of a picture, true or not."""
    kinds = {(o.colour, o.shape) for o in found.objects} | {(w["colour"] or "red", w["shape"]) for w in facts["objects"]}
    kinds |= {(COLOURS[(COLOURS.index(c) + 1) % 6], s) for c, s in kinds}
    faults = [f"{word} {c} {s}" for c, s in sorted(kinds) for word in ("missing", "extra")]
    faults += [f"missing {s}" for s in SHAPES]
    return faults + [f"unclear {cell}" for cell in ("top", *found.unclear)] + ["not left of", "not above", "right"]


def test_a_verdict_is_true_exactly_where_brute_force_says_so():
    """400 pictures against every verdict of one fault and of two out of those at hand; verdicts in any order."""
    true = collections.Counter()
    for found, facts in cases(400):
        expected, faults = brute_force(found, facts), find_faults(found, from_metadata(facts))
        single = said_of(found, facts)
        for said in (*((a,) for a in single), *itertools.product(single, single)):
            assert is_true(" and ".join(said), faults) == (tuple(sorted(said)) in expected), (said, found, facts)
            true[len(said)] += tuple(sorted(said)) in expected
    print(dict(true))
    assert true[1] > 150 and true[2] > 300


def test_the_verdict_that_is_written_is_true_and_right_exactly_where_the_picture_is():
    for found, facts in cases(1500):
        said = verdict_text(faults := find_faults(found, from_metadata(facts)))
        assert is_true(said, faults) and tuple(sorted(said.split(" and "))) in brute_force(found, facts)
        assert (said == "right") == judge(found, facts).exact == (len(faults) == 0)
        assert len(said.split()) <= 7


def test_faults_are_those_that_the_judge_names():
    """Missing and extra ones as often; which of the found ones are extra is free where colours are."""
    for found, facts in cases(600):
        faults, reason = find_faults(found, from_metadata(facts)), judge(found, facts).reason
        assert len(faults.missing) == reason.count("missing: ")
        assert sum(n for n, _ in faults.extra) == reason.count("extra: ")
        assert len(faults.unclear) == reason.count("unclear cell: ") and (faults.relation is not None) == ("not " in reason)


def test_no_thinking_breaks_the_judge():
    """3000 random word sequences, mostly of the verdict's own words; what is no verdict is never right."""
    rng, seen = np.random.default_rng(3), Findings(objects("red circle top, green square left"), ("center",))
    words = "missing extra unclear not right and : , blue green square center left of".split()
    true = 0
    for _ in range(3000):
        text = " ".join(words[i] for i in rng.integers(0, len(words), rng.integers(0, 9)))
        verdict = judge_verdict(text, seen, PAIR)
        said = tuple(sorted(text.split(" : ")[0].split(" and ")))
        assert verdict is False or said in brute_force(seen, PAIR), text
        true += verdict
    print(f"{true} of 3000 are true by chance")


def test_the_longest_thinking_has_23_words_and_its_plan_is_read_as_ever():
    said = "missing blue square and extra green square : " + " , ".join(f"red circle {cell}" for cell in CELLS[:4])
    assert len(said.split()) == 23 and len(parse_plan(said)) == 4


def batch(facts, images, thinking, before=None) -> RewardBatch:
    """A batch that also tells the image before, as the later rounds of training do."""
    given = dict(prompts=[""] * len(facts), metadata=facts, images=images, thinking=thinking)
    return RewardBatch(**given, before=before)


def test_the_world_judges_image_plan_and_verdict_apart():
    plan = "red circle left , blue square center"
    said = [f"missing blue square : {plan}", f"right : {plan}", f"missing blue square : {plan}", f"right : {plan}", "right"]
    seen = ["red circle left"] * 2 + ["red circle left, blue square center"] * 3
    shown = ["red circle left, blue square center", "red circle left"] * 2 + ["red circle left, blue square center"]
    images, before = (np.stack([render(objects(picture)) for picture in pictures]) for pictures in (shown, seen))
    judged = reflect.shapes_reflect().judge(batch([PAIR] * 5, images, said, before))
    np.testing.assert_array_equal(judged.scores["verdict_right"], [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(judged.scores["seen_right"], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(judged.scores["exact"], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(judged.scores["caught"], [1, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(judged.scores["mended"], [1, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(judged.scores["kept"], [np.nan, np.nan, 1, 0, 1])
    np.testing.assert_array_equal(judged.scores["thinking_right"], [1, np.nan, 0, np.nan, 0])
    np.testing.assert_array_equal(judged.scores["plan_exact"], [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(judged.scores["drawing_follows_plan"], [1, 0, 1, 0, np.nan])
    np.testing.assert_array_equal(judged.scores["exact_given_plan"], [1, 0, 1, 0, np.nan])
    assert judged.correct.tolist() == [True, False, True, False, True]


def test_to_name_a_fault_gains_twice_what_a_true_right_does():
    plan = "red circle left , blue square center"
    said = [f"{verdict} : {plan}" for verdict in ("missing blue square", "right", "extra red circle", "right", "not above")]
    seen = np.stack([render(objects(x)) for x in ["red circle left"] * 3 + ["red circle left, blue square center"] * 2])
    config = dataclasses.replace(RunConfig(), prompts=("shapes_reflect",))
    found = load_reward("shapes_thoughts", config)(batch([PAIR] * 5, seen, said, before=seen))
    np.testing.assert_array_equal(found["verdict"], [1.5, 0.5, 0.5, 1, 0.5])
    np.testing.assert_array_equal(found["plan"], np.ones(5))
    np.testing.assert_array_equal(found["follows"], [0, 0, 0, 1, 1])
    first = load_reward("shapes_thoughts", config)(batch([PAIR] * 5, seen, said))
    np.testing.assert_array_equal(first["verdict"], np.zeros(5))


def test_the_first_round_is_judged_as_in_shapes_and_has_no_verdict():
    images = np.stack([render(objects("red circle left"))] * 2)
    given = batch([PAIR] * 2, images, ["x : red circle left", "right : red circle left"])
    judged, plain = reflect.shapes_reflect().judge(given), world.shapes().judge(given)
    assert np.isnan(judged.scores["verdict_right"]).all() and np.isnan(judged.scores["seen_right"]).all()
    right = np.where(plain.correct, plain.scores["plan_exact"], np.nan)
    np.testing.assert_array_equal(judged.scores["thinking_right"], right)
    for name, values in plain.scores.items():
        np.testing.assert_array_equal(judged.scores[name], values)


def test_the_prompts_are_those_of_shapes_and_the_user_says_nothing_later():
    mine, plain = reflect.shapes_reflect(), world.shapes()
    assert mine.train(3).batch(2, 30) == plain.train(3).batch(2, 30)
    assert mine.evaluation(100) == plain.evaluation(100)
    for prompt in (*prompts("train")[::50], *prompts("held_out")[::20]):
        assert prompt.turns == () and prompt.at(1).metadata == prompt.metadata and prompt.at(1).text == prompt.text
