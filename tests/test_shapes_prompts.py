"""The prompts of the shapes world: texts against answers worked out by hand, and all against an independent reader."""

import collections
import hashlib
import os
import re
import subprocess
import sys

import pytest

from unigrpo_jax.config import ConfigError
from unigrpo_jax.worlds.shapes.prompts import by_category, evaluation_prompts, prompts
from unigrpo_jax.worlds.world import load_world

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SPLITS = ("train", "held_out")

# Texts as they stand in the lists, and what they ask for: `count colour shape` each, and the relation.
BY_HAND = {
    "show the shape without corners": ("1 any circle",),
    "please draw a single shape with three corners": ("1 any triangle",),
    "something like a plus sign": ("1 any cross",),
    "a single shape with four equal sides": ("1 any square",),
    "an image of an eggplant coloured shape like a ring": ("1 purple circle",),
    "a leaf coloured shape with four corners": ("1 green square",),
    "show a single banana coloured square": ("1 yellow square",),
    "a tomato coloured shape with three sides": ("1 red triangle",),
    "a single circle in the colour of snow": ("1 white circle",),
    "half of two red crosses": ("1 red cross",),
    "please draw one fewer than two triangles": ("1 any triangle",),
    "show as many squares as a bird has tails": ("1 any square",),
    "as many red crosses as a bird has tails": ("1 red cross",),
    "one fewer than three red squares": ("2 red square",),
    "draw two squares in the colour of a lemon": ("2 yellow square",),
    "an image of one yellow circle and one more": ("2 yellow circle",),
    "a picture with as many crosses as a triangle has sides": ("3 any cross",),
    "a picture with as many white triangles as a square has corners": ("4 white triangle",),
    "draw one more than three red crosses": ("4 red cross",),
    "draw four green shapes without corners": ("4 green circle",),
    "a picture with something without corners and a square": ("1 any circle", "1 any square"),
    "show a triangle and a shape with twelve corners": ("1 any cross", "1 any triangle"),
    "please draw a blue triangle and a circle in the colour of snow": ("1 blue triangle", "1 white circle"),
    "a picture with a green square and an ocean coloured triangle": ("1 blue triangle", "1 green square"),
    "draw a circle with a square on its right": ("1 any square", "right of", "1 any circle"),
    "draw a circle east of a square": ("1 any circle", "right of", "1 any square"),
    "show a square with a cross on top": ("1 any cross", "above", "1 any square"),
    "show a square south of a cross": ("1 any square", "below", "1 any cross"),
    "an image of a cross left of something with three sides": ("1 any cross", "left of", "1 any triangle"),
    "show a triangle over a cross": ("1 any triangle", "above", "1 any cross"),
    "a picture with both a blue triangle and a red cross": ("1 blue triangle", "1 red cross"),
    "a picture with a group of two purple triangles": ("2 purple triangle",),
}

CLUES = {
    "circle": r"circles?|without corners|like a ring",
    "square": r"squares?|four corners|four equal sides",
    "triangle": r"triangles?|three sides|three corners",
    "cross": r"cross(es)?|plus sign|twelve corners",
    "red": "red|blood|tomato",
    "green": "green|grass|leaf",
    "blue": "blue|sky|ocean",
    "yellow": "yellow|banana|lemon",
    "white": "white|snow|milk",
    "purple": "purple|grape|eggplant",
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
OWNED = {
    "face has noses": 1, "bird has tails": 1, "bird has wings": 2, "person has eyes": 2,
    "triangle has sides": 3, "triangle has corners": 3, "square has corners": 4, "car has wheels": 4,
}  # fmt: skip
# Pattern with two groups, the relation of the first group to the second, whether the groups are to be swapped.
RELATIONS = (
    (r"(.+) with (.+) on its left", "left of", True),
    (r"(.+) with (.+) on its right", "right of", True),
    (r"(.+) with (.+) on top", "above", True),
    (r"(.+) with (.+) underneath", "below", True),
    (r"(.+) (?:left of|to the left of|west of) (.+)", "left of", False),
    (r"(.+) (?:right of|to the right of|east of) (.+)", "right of", False),
    (r"(.+) (?:above|over|north of) (.+)", "above", False),
    (r"(.+) (?:below|under|south of) (.+)", "below", False),
)
INDIRECT = re.compile(
    r"\b(shapes?|something|coloured|colour|west|east|north|south|its|on top|underneath|plus|more|fewer|half|pairs?|many)\b"
)


def read_kind(phrase: str, count: int = 1) -> str:
    """The one shape and at most one colour that a noun phrase names or describes."""
    names = [name for name, clue in CLUES.items() if re.search(rf"\b({clue})\b", phrase)]
    shapes = [name for name in names if name in ("circle", "square", "triangle", "cross")]
    colours = [name for name in names if name not in shapes] or ["any"]
    assert len(shapes) == len(colours) == 1, (phrase, names)
    return f"{count} {colours[0]} {shapes[0]}"


def read_text(text: str, category: str) -> tuple[str, ...]:
    """What a prompt asks for, from its words alone: sorted kinds, or first kind, relation, second kind."""
    text = re.sub("^(please draw|draw|show|an image of|a picture with) ", "", text)
    if category == "counting":
        if match := re.fullmatch("as many (.+) as an? (.+)", text):
            return (read_kind(match[1], OWNED[match[2]]),)
        if match := re.fullmatch("one more than (.+?) (.+)|(.+?) (.+) and one more", text):
            return (read_kind(match[2] or match[4], NUMBERS[match[1] or match[3]] + 1),)
        if match := re.fullmatch("one fewer than (.+?) (.+)", text):
            return (read_kind(match[2], NUMBERS[match[1]] - 1),)
        if match := re.fullmatch("half of (.+?) (.+)", text):
            return (read_kind(match[2], NUMBERS[match[1]] // 2),)
        if match := re.fullmatch("(.+) plus one (.+)", text):
            return (read_kind(match[2], NUMBERS[match[1]] + 1),)
        if match := re.fullmatch("(a pair|two pairs) of (.+)", text):
            return (read_kind(match[2], {"a pair": 2, "two pairs": 4}[match[1]]),)
        match = re.fullmatch("(?:exactly |a group of )?(one|two|three|four) (.+)", text)
        return (read_kind(match[2], NUMBERS[match[1]]),)
    if category == "position":
        for pattern, relation, swapped in RELATIONS:
            if match := re.fullmatch(pattern, text):
                first, second = (match[2], match[1]) if swapped else (match[1], match[2])
                return (read_kind(first), relation, read_kind(second))
    if category in ("two_object", "color_attr"):
        first, second = re.fullmatch("(?:both )?(.+?)(?: together with| and) (.+)", text).groups()
        return tuple(sorted((read_kind(first), read_kind(second))))
    return (read_kind(text.removesuffix(" and nothing else")),)


def asked(metadata) -> tuple[str, ...]:
    """The same from a prompt's metadata."""
    kinds = [f"{o['count']} {o['colour'] or 'any'} {o['shape']}" for o in metadata["objects"]]
    if metadata["relation"] is None:
        return tuple(sorted(kinds))
    relation = metadata["relation"]
    return (kinds[relation["first"]], relation["relation"], kinds[relation["second"]])


def fulfilled_alike(answer: tuple[str, ...]) -> tuple[str, ...]:
    """An answer with `right of` and `below` turned round, so that equal answers are fulfilled by the same pictures."""
    turned = {"right of": "left of", "below": "above"}
    return (answer[2], turned[answer[1]], answer[0]) if len(answer) == 3 and answer[1] in turned else answer


@pytest.mark.parametrize("text", BY_HAND)
def test_texts_ask_for_what_was_worked_out_by_hand(text):
    metadata = {prompt.text: prompt.metadata for split in SPLITS for prompt in prompts(split)}
    assert asked(metadata[text]) == BY_HAND[text]


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_asks_for_what_an_independent_reader_makes_of_it(split):
    for category, members in by_category(split).items():
        for prompt in members:
            assert read_text(prompt.text, category) == asked(prompt.metadata), prompt.text
            assert prompt.metadata["category"] == category


def test_indirect_is_what_must_be_worked_out():
    """A description, a comparison, an analogy or a sum: by the words that only these have."""
    for split in SPLITS:
        for prompt in prompts(split):
            assert prompt.metadata["indirect"] == bool(INDIRECT.search(prompt.text)), prompt.text


def test_sizes_of_the_lists():
    """Seen: train 216 + 5 x 600 = 3216, 58.9 % indirect; held-out 72 + 5 x 120 = 672, 60.0 % indirect."""
    for split, most in (("train", 600), ("held_out", 120)):
        for category, members in by_category(split).items():
            indirect = sum(prompt.metadata["indirect"] for prompt in members)
            keys = {prompt.metadata["key"] for prompt in members}
            print(f"{split} {category}: {len(members)} texts, {indirect} indirect, {len(keys)} requirements")
            assert len(members) == most or category == "single_object"
            assert 1 / 3 <= indirect / len(members) <= 0.75
        assert tuple(by_category(split)) == CATEGORIES
        assert sum(prompt.metadata["indirect"] for prompt in prompts(split)) >= len(prompts(split)) / 3


def test_the_parts_share_neither_text_nor_requirement():
    """Requirements as the independent reader sees them; hence no pair of prompt and plan is in both either."""
    texts = {split: [prompt.text for prompt in prompts(split)] for split in SPLITS}
    answers = {
        split: {fulfilled_alike(read_text(p.text, c)) for c, members in by_category(split).items() for p in members}
        for split in SPLITS
    }
    assert all(len(set(texts[split])) == len(texts[split]) for split in SPLITS)
    assert not set(texts["train"]) & set(texts["held_out"])
    assert not answers["train"] & answers["held_out"]


def test_the_validation_part_asks_what_is_trained_in_words_that_are_not():
    """But for single objects, which have no words left, and half of two objects: theirs are training prompts."""
    known = {split: {prompt.text for prompt in prompts(split)} for split in SPLITS}
    for category, members in by_category("validation").items():
        texts = {prompt.text for prompt in members}
        assert len(members) == len(texts) == 120 and not texts & known["held_out"]
        assert len(texts & known["train"]) == {"single_object": 120, "two_object": 60}.get(category, 0)
        answers = lambda split, category=category: {asked(p.metadata) for p in by_category(split)[category]}
        assert answers("validation") <= answers("train") and len(answers("validation")) >= min(20, len(answers("train")))
        for prompt in members:
            assert read_text(prompt.text, category) == asked(prompt.metadata), prompt.text


def test_a_world_is_judged_on_the_part_that_is_named():
    world = load_world(["shapes"])
    assert world.judged_on("held_out", 480) == evaluation_prompts(480)
    assert world.judged_on("validation", 480) == evaluation_prompts(480, "validation")
    plain = load_world(["shapes_direct"]).judged_on("validation", 100)
    assert len(plain) == 100 and not any(p.metadata["indirect"] for p in plain)
    for name in ("shapes_edit", "shapes_story"):  # without end: made as training prompts are, from other random numbers
        world = load_world([name])
        own = [(p.text, str(p.metadata)) for p in world.judged_on("validation", 40)]
        others = [*world.judged_on("held_out", 40), *world.train(0).batch(0, 200)]
        assert len(own) == 40 and not set(own) & {(p.text, str(p.metadata)) for p in others}


def test_prompts_without_rules_have_no_validation_part(tmp_path):
    (tmp_path / "mine.txt").write_text("a red circle\n")
    world = load_world([str(tmp_path / "mine.txt")])
    assert len(world.judged_on("held_out", 1)) == 1
    with pytest.raises(ConfigError, match=r"evaluation\.split = 'validation', .*--evaluation\.source"):
        world.judged_on("validation", 1)


def test_every_held_out_word_occurs_in_training():
    words = {split: {word for prompt in prompts(split) for word in prompt.text.split()} for split in (*SPLITS, "validation")}
    assert words["held_out"] <= words["train"] and words["validation"] <= words["train"]


def test_every_shape_colour_number_and_relation_is_trained_in_its_category():
    """What is held out is a combination, never a value that its category does not know."""
    values = collections.defaultdict(set)
    for prompt in prompts("train"):
        values[prompt.metadata["category"]] |= set(" ".join(asked(prompt.metadata)).split())
    for prompt in prompts("held_out"):
        category = prompt.metadata["category"]
        if category != "single_object":  # three shapes are trained and the circle is held out
            assert set(" ".join(asked(prompt.metadata)).split()) <= values[category], prompt.text


def test_the_train_and_the_held_out_part_are_those_that_results_are_of():
    """Every text and what it requires, in order; the file of a result says which prompts it is of by their number alone."""
    digest = lambda split: hashlib.sha256("\n".join(f"{p.text}|{p.metadata['key']}" for p in prompts(split)).encode())
    assert digest("train").hexdigest().startswith("2f7634c353a115c1989ac0a71d7dd1b3")
    assert digest("held_out").hexdigest().startswith("5e6abed4579c4ef09176c64eff465c56")


def test_texts_are_short_plain_words():
    for prompt in (*prompts("train"), *prompts("held_out"), *prompts("validation")):
        assert re.fullmatch("[a-z]+( [a-z]+)*", prompt.text) and len(prompt.text.split()) <= 14


def test_the_order_is_the_same_in_every_process():
    module = "unigrpo_jax.worlds.shapes.prompts"
    code = f"from {module} import prompts\nprint([(p.text, p.metadata['key']) for p in prompts('train')])"
    here = str([(prompt.text, prompt.metadata["key"]) for prompt in prompts("train")])
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_prompts_have_equal_shares_and_grow_at_the_end(split):
    many = evaluation_prompts(432, split)
    assert collections.Counter(prompt.metadata["category"] for prompt in many) == dict.fromkeys(CATEGORIES, 72)
    texts = {prompt.text for prompt in many}
    assert len(texts) == 432 and texts <= {prompt.text for prompt in prompts(split)}
    assert evaluation_prompts(100, split) == many[:100]
    shares = collections.Counter(prompt.metadata["category"] for prompt in many[:100])
    assert set(shares.values()) == {16, 17}


def test_a_text_of_evaluation_comes_again_only_after_its_whole_category():
    singles = [p.text for p in evaluation_prompts(6 * 100) if p.metadata["category"] == "single_object"]
    assert len(set(singles[:72])) == 72 and singles[72:] == singles[:28]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match='no split "test"'):
        by_category("test")
