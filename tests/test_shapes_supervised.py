"""What the base model learns from: how often plans and drawings are faulty, and that every fault is another scene."""

import itertools
import math

import numpy as np
import pytest

from unigrpo_jax.worlds.shapes.checker import find_objects_batch
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.judge import drawing_follows_plan, judge_images, judge_plan
from unigrpo_jax.worlds.shapes.prompts import by_category
from unigrpo_jax.worlds.shapes.scene import parse_plan
from unigrpo_jax.worlds.shapes.supervised import example, examples

N = 4000
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def drawn():
    """Examples and what the checker reads in their images."""
    members = examples(np.random.default_rng(0), by_category("train"), N)
    return members, find_objects_batch(np.stack([e.image for e in members]))


@pytest.fixture(scope="module")
def sloppy_plans(drawn):
    return np.array([not judge_plan(e.thinking, e.prompt.metadata).exact for e in drawn[0]])


@pytest.fixture(scope="module")
def sloppy_drawings(drawn):
    return np.array([not drawing_follows_plan(found, e.thinking) for e, found in zip(*drawn, strict=True)])


def assert_share(hits, share: float, sigmas: float = 4):
    """The hits are Bernoulli trials of the given share, within some standard deviations."""
    assert abs(np.mean(hits) - share) < sigmas * math.sqrt(share * (1 - share) / len(hits)), np.mean(hits)


def stated_kinds(thinking: str) -> list[str]:
    """Colour and shape, or shape alone, of every object that the statement names."""
    kinds, statement = [], thinking.split(" : ")[0]
    for relation in (" left of ", " right of ", " above ", " below "):
        statement = statement.replace(relation, " and ")
    for name in statement.split(" and "):
        first, *rest = name.split()
        kinds += [" ".join(rest)] * NUMBERS[first] if first in NUMBERS else [name]
    return sorted(kinds)


def wanted_kinds(metadata) -> list[str]:
    return sorted(
        f"{o['colour']} {o['shape']}" if o["colour"] else o["shape"] for o in metadata["objects"] for _ in range(o["count"])
    )


def test_a_quarter_of_the_plans_misses_the_prompt(sloppy_plans):
    """Seen: 0.2587; allowed: 0.25 within 0.027, four standard deviations of 4000 trials."""
    print(f"sloppy plans: {sloppy_plans.mean():.4f}")
    assert_share(sloppy_plans, 0.25)


def test_two_fifths_of_the_drawings_miss_the_plan(sloppy_drawings):
    """Seen: 0.4025; allowed: 0.40 within 0.031."""
    print(f"sloppy drawings: {sloppy_drawings.mean():.4f}")
    assert_share(sloppy_drawings, 0.40)


def test_the_two_faults_are_independent(sloppy_plans, sloppy_drawings):
    assert_share(sloppy_plans & sloppy_drawings, 0.25 * 0.40)
    assert_share(sloppy_drawings[sloppy_plans], 0.40)


def test_half_of_the_faulty_plans_state_the_prompt_rightly(drawn, sloppy_plans):
    """Seen: 0.5135 of 849, by the kinds that the statement names; prompts with a relation are left out."""
    told = []
    for e, sloppy in zip(drawn[0], sloppy_plans, strict=True):
        right = stated_kinds(e.thinking) == wanted_kinds(e.prompt.metadata)
        if not sloppy:
            assert right, e.thinking
        elif e.prompt.metadata["relation"] is None:
            told.append(right)
    print(f"faulty plans that state the prompt: {np.mean(told):.4f} of {len(told)}")
    assert_share(told, 0.5)


def test_categories_come_equally_often(drawn):
    for category in by_category("train"):
        assert_share([e.prompt.metadata["category"] == category for e in drawn[0]], 1 / 6)


def test_every_image_is_the_clean_picture_of_some_scene(drawn):
    """No unclear cell, and drawing what was read gives back every pixel."""
    for e, found in zip(*drawn, strict=True):
        assert found.unclear == ()
        np.testing.assert_array_equal(render(found.objects), e.image)


def test_every_thinking_is_a_plan_of_one_to_four_objects(drawn):
    for e in drawn[0]:
        assert 1 <= len(parse_plan(e.thinking)) <= 4 and len(e.thinking.split()) <= 23


def test_a_faulty_drawing_lacks_one_object_or_recolours_one(drawn, sloppy_drawings):
    """Recoloured only where the prompt names colours."""
    for e, found, sloppy in zip(*drawn, sloppy_drawings, strict=True):
        plan, shown = set(parse_plan(e.thinking)), set(found.objects)
        lost, new = plan - shown, shown - plan
        assert (len(lost), len(new)) in (((1, 0), (1, 1)) if sloppy else ((0, 0),))
        for a, b in itertools.product(lost, new):
            assert (a.shape, a.cell) == (b.shape, b.cell) and a.colour != b.colour
            assert e.prompt.metadata["objects"][0]["colour"]


def test_free_colours_and_cells_are_uniform(drawn, sloppy_plans):
    """Of right plans of one object: each of the nine cells, and of free colours each of the six, equally often."""
    single = [e for e, sloppy in zip(drawn[0], sloppy_plans, strict=True) if not sloppy]
    single = [(e, parse_plan(e.thinking)[0]) for e in single if len(parse_plan(e.thinking)) == 1]
    cells, free = [o.cell for _, o in single], [o.colour for e, o in single if not e.prompt.metadata["objects"][0]["colour"]]
    for values, n in ((cells, 9), (free, 6)):
        assert len(set(values)) == n
        for value in set(values):
            assert_share([v == value for v in values], 1 / n)


def test_the_same_seed_gives_the_same_examples():
    first, again, other = (examples(np.random.default_rng(seed), by_category("train"), 50) for seed in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        assert (a.prompt, a.thinking) == (b.prompt, b.thinking)
        np.testing.assert_array_equal(a.image, b.image)
    assert [e.thinking for e in first] != [e.thinking for e in other]


def test_without_sloppiness_every_drawing_is_right():
    rng = np.random.default_rng(0)
    drawn = [example(rng, by_category("train"), 0.0, 0.0) for _ in range(60)]
    assert all(v.exact for v in judge_images(np.stack([d.image for d in drawn]), [d.prompt.metadata for d in drawn]))
