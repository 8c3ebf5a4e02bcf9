"""The prompts of `shapes_sound`: every text says what its metadata says, of the sound too."""

import re

import pytest

from tests.test_motion_prompts import asked, read_text
from unigrpo_jax.worlds.sound.prompts import by_category

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
