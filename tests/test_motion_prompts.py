"""The prompts of `shapes_motion`: all texts against an independent reader, that against answers by hand; the parts.

The parts of `shapes_sound`, which are made likewise, are looked at here, too.
"""

import re

import pytest

from unigrpo_jax.worlds.motion import prompts as motion
from unigrpo_jax.worlds.motion.prompts import MAX_PROMPT_WORDS, by_category
from unigrpo_jax.worlds.sound import prompts as sound

SPLITS = ("train", "held_out")
WORLDS = (motion, sound)
WORDS = {"to the left": "left", "leftwards": "left", "from right to left": "left", "to the right": "right",
         "rightwards": "right", "from left to right": "right", "up": "up", "upwards": "up", "from bottom to top": "up",
         "down": "down", "downwards": "down", "from top to bottom": "down"}  # fmt: skip
TOWARDS = {"left": "left", "right": "right", "top": "up", "bottom": "down"}
FROM = {"left": "right", "right": "left", "top": "down", "bottom": "up"}
WAY = "|".join(sorted(WORDS, key=len, reverse=True))
MOVE = "(?:mov|glid|slid)(?:e|es|ing)"


def read_motion(text: str) -> str:
    """Course, direction and pace that a predicate such as `moves slowly to the left` asks for."""
    if re.fullmatch("stay(?:s|ing) still", text):
        return "still - -"
    if re.fullmatch(f"{MOVE} (?:in a straight line|straight on)", text):
        return "straight - -"
    turn = "(?:bounc|com)(?:e|es|ing) (?:off|back)(?: the (\\w+) wall)?"
    if match := re.fullmatch(f"(?:{MOVE} to the (\\w+) wall and )?{turn}", text):
        return f"bounce {TOWARDS[match[1] or match[2]]} -"
    if match := re.fullmatch(f"{MOVE} ({WAY}) and bounc(?:e|es|ing) off the wall", text):
        return f"bounce {WORDS[match[1]]} -"
    if match := re.fullmatch(f"{MOVE} to the (\\w+) wall and (?:stop|stopp|stay)(?:s|ing)? there", text):
        return f"stop {TOWARDS[match[1]]} -"
    if match := re.fullmatch(f"{MOVE} ({WAY}) and stop(?:s|ping)? at the wall", text):
        return f"stop {WORDS[match[1]]} -"
    match = re.fullmatch(f"{MOVE}( slowly| quickly)? ({WAY})( at a slow pace| at high speed)?", text)
    assert match, text
    pace = {None: "-", "slowly": "slow", "quickly": "fast", "at a slow pace": "slow", "at high speed": "fast"}
    return f"straight {WORDS[match[2]]} {pace[((match[1] or match[3]) or '').strip() or None]}"


def read_text(text: str) -> tuple[str, ...]:
    """What a prompt asks for: `colour shape course direction pace` of each object, in the order of the text."""
    text = re.sub("^(a video of|a clip of|show) ", "", text)
    thing = "an? (?:(red|green|blue|yellow|white|purple) )?(circle|square|triangle|cross)"
    ends = "(?:meet(?:ing)? and bounc(?:e|ing) apart|mov(?:e|ing) towards each other and bounc(?:e|ing) apart|" \
           "collid(?:e|ing) and turn(?:ing)? back)"
    side = "(?:from|on|at) the (left|right|top|bottom)"
    if match := re.fullmatch(f"{thing} {side} and {thing} {side} {ends}", text):
        return tuple(f"{match[i] or 'any'} {match[i + 1]} meet {FROM[match[i + 2]]} -" for i in (1, 4))
    parts = re.split(f"(?: and| while) (?={thing})", text)
    things = [part for part in parts if part and re.match(thing, part)]
    found = []
    for part in things:
        match = re.match(thing, part)
        found.append(f"{match[1] or 'any'} {match[2]} {read_motion(part[match.end():].strip())}")
    return tuple(found)


def asked(metadata) -> tuple[str, ...]:
    return tuple(" ".join(o[name] or ("any" if name == "colour" else "-") for name in
                          ("colour", "shape", "course", "direction", "pace")) for o in metadata["objects"])  # fmt: skip


def every(split: str):
    return [prompt for prompts in by_category(split).values() for prompt in prompts]


@pytest.mark.parametrize("text, answer", [
    ("show a yellow circle sliding straight on", ("yellow circle straight - -",)),
    ("a video of a blue square sliding quickly up", ("blue square straight up fast",)),
    ("a red cross slides from left to right at a slow pace", ("red cross straight right slow",)),
    ("show a white cross moving to the right wall and coming back", ("white cross bounce right -",)),
    ("a clip of a cross bouncing off the top wall", ("any cross bounce up -",)),
    ("show a red cross moving to the left wall and staying there", ("red cross stop left -",)),
    ("a red circle from the left and a white cross from the right collide and turn back",
     ("red circle meet right -", "white cross meet left -")),
    ("a red circle glides down while a white triangle stays still",
     ("red circle straight down -", "white triangle still - -")),
])  # fmt: skip
def test_the_reader_of_these_tests_reads_as_worked_out_by_hand(text, answer):
    assert read_text(text) == answer


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_asks_for_what_its_metadata_says(split):
    for prompt in every(split):
        assert read_text(prompt.text) == asked(prompt.metadata), prompt.text


@pytest.mark.parametrize("world", WORLDS)
def test_the_parts_share_neither_text_nor_requirement(world):
    train, held_out = (
        [prompt for prompts in world.by_category(split).values() for prompt in prompts] for split in SPLITS
    )
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert not {p.metadata["key"] for p in train} & {p.metadata["key"] for p in held_out}
    for prompts in (train, held_out):
        assert len({p.text for p in prompts}) == len(prompts)


@pytest.mark.parametrize("world, texts", zip(WORLDS, (500, 250), strict=True))
def test_every_category_has_many_prompts_of_many_requirements(world, texts):
    for split, least, keys in (("train", texts, 20), ("held_out", texts // 5, 4)):
        assert tuple(world.by_category(split)) == world.CATEGORIES
        for category, prompts in world.by_category(split).items():
            assert len(prompts) >= least and len({p.metadata["key"] for p in prompts}) >= keys
            assert {p.metadata["category"] for p in prompts} == {category}
            assert max(len(p.text.split()) for p in prompts) <= MAX_PROMPT_WORDS


@pytest.mark.parametrize("world", WORLDS)
def test_evaluation_takes_the_categories_in_turn_and_is_always_the_same(world):
    first = world.held_out_prompts(12)
    assert [p.metadata["category"] for p in first] == list(world.CATEGORIES) * 2
    assert first == world.held_out_prompts(13)[:12]


@pytest.mark.parametrize("world", WORLDS)
def test_an_unknown_part_is_refused(world):
    with pytest.raises(ValueError, match="held_out"):
        world.by_category("test")
