"""How clips with sound are worded: as clips are, and at times it is said what is heard."""

from collections.abc import Iterator

from unigrpo_jax.worlds.motion import wording
from unigrpo_jax.worlds.motion.requirement import MotionRequirement
from unigrpo_jax.worlds.sound.judge import wanted_clicks

CLICKS = {1: ("with a click",), 2: ("with two clicks",)}
SILENT = ("in silence", "without a sound")
SOUNDING = {1: ("with its tone",), 2: ("with their tones",)}


def wordings(requirement: MotionRequirement) -> Iterator[str]:
    """All texts that ask for a clip, and a sound, which fulfil a requirement."""
    sounds = heard(requirement)
    for text in wording.wordings(requirement):
        yield text
        yield from (f"{text} {said}" for said in sounds)


def heard(requirement: MotionRequirement) -> tuple[str, ...]:
    """What may be said of the sound that goes with a requirement."""
    sounding = sum(actor.motion.course != "still" for actor in requirement.actors)
    if not sounding:
        return SILENT
    count = wanted_clicks(requirement)
    return CLICKS[count] if count else SOUNDING[sounding]
