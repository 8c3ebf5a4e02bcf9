"""The prompts of `shapes_sound`: every text says what its metadata says, of the sound too, and the parts share nothing."""

import re

import pytest

from tests.test_motion_prompts import asked, read_text
from unigrpo_jax.worlds.motion.prompts import MAX_PROMPT_WORDS
from unigrpo_jax.worlds.sound.prompts import CATEGORIES, by_category, held_out_prompts

SPLITS = ("train", "held_out")
SAID = {" in silence": "silent", " without a sound": "silent", " with its tone": "one tone",
        " with their tones": "two tones", " with a click": "one click", " with two clicks": "two clicks"}  # fmt: skip
# By courses, in the order of the alphabet.
HEARD = {"still": "silent", "straight": "one tone", "still straight": "one tone", "straight straight": "two tones",
         "bounce": "one click", "stop": "one click", "meet meet": "one click", "bounce still": "one click",
         "bounce bounce": "two clicks"}  # fmt: skip
ENDS = re.compile(f"({'|'.join(SAID)})$")


def every(split: str):
    return [prompt for prompts in by_category(split).values() for prompt in prompts]


def sound_of(metadata) -> str:
    return HEARD[" ".join(sorted(o["course"] for o in metadata["objects"]))]


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_asks_for_what_its_metadata_says_and_half_or_more_say_the_sound(split):
    said = 0
    for prompt in every(split):
        end = ENDS.search(prompt.text)
        assert read_text(ENDS.sub("", prompt.text)) == asked(prompt.metadata), prompt.text
        assert end is None or SAID[end[1]] == sound_of(prompt.metadata), prompt.text
        said += end is not None
    assert 0.4 < said / len(every(split)) < 0.8


def test_the_parts_share_neither_text_nor_requirement():
    train, held_out = every("train"), every("held_out")
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert not {p.metadata["key"] for p in train} & {p.metadata["key"] for p in held_out}
    for prompts in (train, held_out):
        assert len({p.text for p in prompts}) == len(prompts)


def test_every_category_has_many_prompts_of_many_requirements():
    for split, texts, keys in (("train", 250, 20), ("held_out", 50, 4)):
        assert tuple(by_category(split)) == CATEGORIES
        for category, prompts in by_category(split).items():
            assert len(prompts) >= texts and len({p.metadata["key"] for p in prompts}) >= keys
            assert {p.metadata["category"] for p in prompts} == {category}
            assert max(len(p.text.split()) for p in prompts) <= MAX_PROMPT_WORDS


def test_evaluation_takes_the_categories_in_turn_and_is_always_the_same():
    first = held_out_prompts(12)
    assert [p.metadata["category"] for p in first] == list(CATEGORIES) * 2
    assert first == held_out_prompts(13)[:12]


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="held_out"):
        by_category("test")
