"""Judges clips with sound against what a prompt requires, from pixels and samples alone; eight dimensions, each in [0, 1].

content, motion, smoothness   as the judge of `shapes_motion` has them, of the picture alone.  What follows is of the sound,
             beside the paths that this judge sees.

pitch        the mean over frames of how far the right pitches sound and no others: |heard and right| / |heard or right|, 1
             where both are none.  Right are the pitches of required shapes whose objects are seen to move; heard is what has
             half the level of a tone.  Of more than `LOUDEST` times the level it is not right.  Frames in which motion
             begins or ends do not count.  An object that is to move and is never seen moving is right in no frame.
clicks       1 - |heard - required| / max(heard, required): how many there are.
synchrony    heard clicks and seen turns, stops and meetings in pairs, the nearest first: a pair has 1 within
             `TIME_TOLERANCE` and falls to 0 over `LATE` more; their sum / max(clicks heard, touches seen), 1 of none.
stereo       the mean over right pitches that are heard, by frame, and over clicks in their pairs: 1 where they come from
             their place, within `ANGLE_TOLERANCE`, falling to 0 over 45 degrees more.  1 where silence is required, 0
             where it is not and nothing right is heard.
noise        1 where what is neither tone nor click has a root mean square of at most `NOISE_TOLERANCE` in every frame, else
             `NOISE_TOLERANCE` / that of the worst frame.

A clip is exact where all eight are 1, and

    graded = 1 where exact, else PARTIAL * content * (picture + sound) / 2,
    picture = (1 + 2 motion + motion * smoothness) / 4,    sound = noise * mean(pitch, clicks, synchrony, stereo).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.worlds.motion import judge as motion_judge
from unigrpo_jax.worlds.motion.judge import ClipVerdict, match, seen_path, with_colours
from unigrpo_jax.worlds.motion.reading import Frame, read_clips
from unigrpo_jax.worlds.motion.requirement import MotionRequirement, from_metadata
from unigrpo_jax.worlds.shapes.judge import PARTIAL
from unigrpo_jax.worlds.sound.hearing import Heard, HeardClick, hear
from unigrpo_jax.worlds.sound.seeing import Seen, moving, seen_touches, x_in_frames
from unigrpo_jax.worlds.sound.synthesis import PITCHES, angle

HEARD, LOUDEST = 0.5, 2.0  # of the level of a tone
TIME_TOLERANCE = 1.0  # frames between a click and what is seen
LATE = 3.0  # frames more in which a pair falls to 0
ANGLE_TOLERANCE = np.pi / 9
NOISE_TOLERANCE = 0.08

_SHAPES = tuple(PITCHES)


@dataclasses.dataclass(frozen=True)
class SoundVerdict(ClipVerdict):
    """A judgement of a clip with its sound; what is more than a clip's is as above."""

    pitch: float
    clicks: float
    synchrony: float
    stereo: float
    noise: float


def judge_sounds(
    clips: np.ndarray, sounds: np.ndarray, rate: float, metadata: Sequence[Mapping[str, Any]]
) -> list[SoundVerdict]:
    """A verdict for each of B clips, uint8 [B, F, 24, 24, 3], with its sound, float32 [B, 128 F, 2], by its metadata.

    ValueError where they are others, or `rate` is not the world's.
    """
    heard = hear(sounds, rate, clips.shape[1])
    return [judge(*seen, facts) for *seen, facts in zip(read_clips(clips), heard, metadata, strict=True)]


def judge(frames: Sequence[Frame], heard: Heard, metadata: Mapping[str, Any]) -> SoundVerdict:
    """Judges what was read in one clip's frames and heard in its sound by the rules above."""
    clip, requirement = motion_judge.judge(frames, metadata), with_colours(frames, from_metadata(metadata))
    matches = [match(frame, requirement.actors) for frame in frames]
    paths = [seen_path([m.seen[i] for m in matches]) for i in range(len(requirement.actors))]
    pairs = in_pairs(heard.clicks, met := seen_touches(paths))
    pitch, stereo = _tones(heard, requirement, paths)
    wanted, count = wanted_clicks(requirement), len(heard.clicks)
    near = sum(_near(abs(click.time - touch.time), TIME_TOLERANCE, LATE) for click, touch in pairs)
    stereo += [_from_there(click.angle, touch.place[1]) for click, touch in pairs]
    silent = not wanted and all(actor.motion.course == "still" for actor in requirement.actors)
    loudest = float(heard.noise.max())
    found = {
        "pitch": pitch,
        "clicks": 1 - abs(count - wanted) / max(count, wanted, 1),
        "synchrony": near / max(count, len(met)) if count or met else 1.0,
        "stereo": float(np.mean(stereo)) if stereo else float(silent),
        "noise": 1.0 if loudest <= NOISE_TOLERANCE else NOISE_TOLERANCE / loudest,
    }
    words = {
        "pitch": "other pitches than of what moves",
        "clicks": f"{count} clicks instead of {wanted}",
        "synchrony": f"clicks not when something is met: heard {_times(heard.clicks)}, seen {_times(met)}",
        "stereo": "heard from elsewhere",
        "noise": f"noise of {loudest:.2f}",
    }
    faults = [clip.reason] * (not clip.exact) + [words[name] for name, value in found.items() if value < 1]
    picture = (1 + 2 * clip.motion + clip.motion * clip.smoothness) / 4
    sound = found["noise"] * np.mean([found[name] for name in ("pitch", "clicks", "synchrony", "stereo")])
    graded = 1.0 if not faults else float(PARTIAL * clip.content * (picture + sound) / 2)
    own = {name: getattr(clip, name) for name in ("content", "motion", "smoothness")}
    return SoundVerdict(exact=not faults, graded=graded, reason="; ".join(faults) or "right", **own, **found)


def wanted_clicks(requirement: MotionRequirement) -> int:
    """How many clicks a requirement asks for: one for each turn or stop at a wall, one for two that meet."""
    courses = [actor.motion.course for actor in requirement.actors]
    return courses.count("bounce") + courses.count("stop") + courses.count("meet") // 2


def in_pairs(clicks: Sequence[HeardClick], met: Sequence[Seen]) -> list[tuple[HeardClick, Seen]]:
    """Clicks and touches in pairs, the two nearest in time first."""
    times = np.abs(np.subtract.outer([c.time for c in clicks], [m.time for m in met]).reshape(len(clicks), len(met)))
    pairs = []
    for _ in range(min(times.shape)):
        i, j = np.unravel_index(times.argmin(), times.shape)
        pairs.append((clicks[i], met[j]))
        times[i], times[:, j] = np.inf, np.inf
    return pairs


def _tones(
    heard: Heard, requirement: MotionRequirement, paths: Sequence[np.ndarray | None]
) -> tuple[float, list[float]]:
    """The score of the pitches, and how well each right tone in each frame is placed."""
    frames = len(heard.levels)
    right, counts = np.zeros((frames, len(_SHAPES)), bool), np.ones(frames, bool)
    x, missed = np.zeros((frames, len(_SHAPES))), np.zeros(len(_SHAPES), bool)
    for actor, path in zip(requirement.actors, paths, strict=True):
        tone = _SHAPES.index(actor.what.shape)
        moves, certain = (np.zeros(frames, bool), np.ones(frames, bool)) if path is None else moving(path)
        right[:, tone], counts = moves, counts & certain
        x[:, tone] = 0 if path is None else x_in_frames(path)
        missed[tone] = actor.motion.course != "still" and not moves.any()
    loud = heard.levels >= HEARD
    both = right & loud & (heard.levels <= LOUDEST)
    either = np.maximum((right | loud | missed).sum(1), 1)
    shares = np.where((right | loud | missed).any(1), both.sum(1) / either, 1.0)
    placed = [_from_there(heard.angles[t, k], x[t, k]) for t, k in zip(*np.nonzero(both & counts[:, None]), strict=True)]
    return float(shares[counts].mean()) if counts.any() else 0.0, placed


def _from_there(heard: float, x: float) -> float:
    return _near(abs(heard - float(angle(x))), ANGLE_TOLERANCE, np.pi / 4)


def _near(distance: float, tolerance: float, fall: float) -> float:
    """1 up to the tolerance, less and less further away, 0 from `fall` beyond it on."""
    return float(np.clip(1 - (distance - tolerance) / fall, 0, 1))


def _times(events: Sequence[HeardClick | Seen]) -> str:
    return ", ".join(f"{event.time:.1f}" for event in events) or "none"
