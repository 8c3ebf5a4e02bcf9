"""Judges clips against what a prompt requires, from the pixels alone; three dimensions, each in [0, 1].

content      the mean over frames of the shapes world's match: pair scores of required and found objects under the best
             matching / max(required, found + unclear).  A colour that is left free is the one that most frames show.
motion       the mean over required objects; 1 where the course's nearest path (`course.fit`) is within `PLACE_TOLERANCE`
             of the object's in every frame and within `STEP_TOLERANCE` in every step, its pace is as asked, and it turns
             within `TURN_TOLERANCE` of the wall or of the touch.  Else

                 MISSED * explained * pace * turn,     explained = max(0, S - R) / (S + 1 pixel^2)

             with S the squared distances of the path from its mean and R those from the fit, pace = min(1, v / least,
             most / v), and turn falling from 1 to 0 over 9 pixels more.  At rest, explained = 1 / (1 + S / frames).
             Where an object is missing its path is drawn straight between the frames that show it.
smoothness   the share of steps from frame to frame that are smooth (`smooth_steps`), whatever was asked for: what is seen
             before is seen after, and moves on as just before or just after.

A clip is exact where all three are 1, and

    graded = 1 where exact, else PARTIAL * content * (1 + 2 motion + motion * smoothness) / 4.

Hence a still picture of the right things gets 0.2, and wrong things that move rightly get no more than their content.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.worlds.motion.course import Fit, fit
from unigrpo_jax.worlds.motion.reading import Frame, Sighting, read_clips
from unigrpo_jax.worlds.motion.requirement import DIRECTIONS, PACES, Actor, MotionRequirement, from_metadata
from unigrpo_jax.worlds.motion.scene import BOX, ROOM
from unigrpo_jax.worlds.motion.smoothness import smooth_steps
from unigrpo_jax.worlds.shapes.judge import PARTIAL

PLACE_TOLERANCE = 0.5  # pixels
STEP_TOLERANCE = 0.5
TURN_TOLERANCE = 1.0  # between the turn and the wall, or between two boxes when they turn
LANE_TOLERANCE = 1.5  # across the way of two that meet
TIME_TOLERANCE = 1.0  # frames between the turns of two that meet
MISSED = 0.9
LEAST_FRAMES = 5  # both legs of a turn are seen


@dataclasses.dataclass(frozen=True)
class ClipVerdict:
    """A judgement: exactly right or not, a grade in [0, 1], its three dimensions, and the reason in words."""

    exact: bool
    graded: float
    content: float
    motion: float
    smoothness: float
    reason: str


def judge_clips(clips: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> list[ClipVerdict]:
    """A verdict for each clip, uint8 [B, F, 24, 24, 3] with F at least `LEAST_FRAMES`, by its prompt's metadata."""
    return [judge(frames, facts) for frames, facts in zip(read_clips(clips), metadata, strict=True)]


def scores(verdicts: Sequence[ClipVerdict]) -> dict[str, np.ndarray]:
    """The numbers of B verdicts by name, float64 [B] each."""
    names = [field.name for field in dataclasses.fields(verdicts[0]) if field.name != "reason"] if verdicts else []
    return {name: np.array([getattr(v, name) for v in verdicts], np.float64) for name in names}


def judge(frames: Sequence[Frame], metadata: Mapping[str, Any]) -> ClipVerdict:
    """Judges what was read in one clip's frames by the rules above."""
    if len(frames) < LEAST_FRAMES:
        raise ValueError(f"motion judge: a clip of {len(frames)} frames shows no motion; it takes {LEAST_FRAMES} or more")
    requirement = with_colours(frames, from_metadata(metadata))
    matches = [match(frame, requirement.actors) for frame in frames]
    content = float(np.mean([m.score for m in matches]))
    motion, faults = judge_motion(matches, requirement)
    smooth = smooth_steps(frames)
    smoothness = float(np.mean(smooth))
    faults = [f"frame {t}: {m.fault}" for t, m in enumerate(matches) if m.fault][:1] + faults
    faults += [f"not smooth from frame {int(np.argmin(smooth))} on"] if smoothness < 1 else []
    if not faults:
        return ClipVerdict(True, 1.0, 1.0, 1.0, 1.0, "right")
    graded = PARTIAL * content * (1 + 2 * motion + motion * smoothness) / 4
    return ClipVerdict(False, float(graded), content, motion, smoothness, "; ".join(faults))


@dataclasses.dataclass(frozen=True)
class Match:
    """One frame against the required objects: the sighting of each or None, a score in [0, 1], what is wrong or ""."""

    seen: tuple[Sighting | None, ...]
    score: float
    fault: str


def with_colours(frames: Sequence[Frame], requirement: MotionRequirement) -> MotionRequirement:
    """The requirement with free colours set to those that most frames show; free still where none shows the shape."""
    actors = []
    for actor in requirement.actors:
        colours = [o.colour for frame in frames for o in frame.objects if o.shape == actor.what.shape]
        if actor.what.colour is None and colours:
            most = max(sorted(set(colours)), key=colours.count)
            actor = dataclasses.replace(actor, what=dataclasses.replace(actor.what, colour=most))
        actors.append(actor)
    return dataclasses.replace(requirement, actors=tuple(actors))


def match(frame: Frame, actors: Sequence[Actor]) -> Match:
    """The best matching of required and found objects; a pair counts as seen where the shape or the colour is right."""
    slots = [*frame.objects, *(None,) * len(actors)]
    best = max(itertools.permutations(slots, len(actors)), key=lambda seen: sum(map(_likeness, actors, seen)))
    likeness = [_likeness(actor, o) for actor, o in zip(actors, best, strict=True)]
    faults = [f"no {_name(a)}" for a, s in zip(actors, likeness, strict=True) if s < 1]
    faults += [f"extra {o.colour} {o.shape}" for o in frame.objects if o not in best]
    faults += ["something unclear"] if frame.unclear else []
    score = sum(likeness) / max(len(actors), len(frame.objects) + frame.unclear)
    return Match(tuple(o if s > 0.2 else None for o, s in zip(best, likeness, strict=True)), score, ", ".join(faults))


def judge_motion(matches: Sequence[Match], requirement: MotionRequirement) -> tuple[float, list[str]]:
    """The score of all motions, 1 where they are right, and what is wrong with them."""
    actors, grades, faults = requirement.actors, [], []
    paths = [seen_path([m.seen[i] for m in matches]) for i in range(len(actors))]
    fits = [None if path is None else fit(path, actor.motion) for path, actor in zip(paths, actors, strict=True)]
    for i, (actor, path, found) in enumerate(zip(actors, paths, fits, strict=True)):
        if found is None:
            grades.append(0.0)
            faults.append(f"{_name(actor)} has no path")
            continue
        pace, turn = _pace(found, actor), _turn(i, fits, actors)
        off = np.linalg.norm(path - found.path, axis=1).max()
        uneven = np.linalg.norm(np.diff(path - found.path, axis=0), axis=1).max()
        wrong = [f"{_name(actor)}: {words}" for words, right in (
            (f"{off:.1f} pixels off its way", off <= PLACE_TOLERANCE),
            ("not steady", uneven <= STEP_TOLERANCE),
            (f"{found.speed:.1f} pixels a frame", pace == 1),
            ("turns elsewhere", turn == 1),
        ) if not right]  # fmt: skip
        grades.append(MISSED * _explained(path, found, actor) * pace * turn if wrong else 1.0)
        faults += wrong
    return float(np.mean(grades)), faults


def seen_path(seen: Sequence[Sighting | None]) -> np.ndarray | None:
    """The places in all frames, [F, 2], straight over gaps; None where fewer than two frames show the object."""
    known = [t for t, o in enumerate(seen) if o is not None]
    if len(known) < 2:
        return None
    places = np.array([seen[t].place for t in known])
    return np.stack([np.interp(np.arange(len(seen)), known, places[:, axis]) for axis in (0, 1)], 1)


def _explained(path: np.ndarray, found: Fit, actor: Actor) -> float:
    spread, rest = (float(np.square(path - centre).sum()) for centre in (path.mean(0), found.path))
    return 1 / (1 + spread / len(path)) if actor.motion.course == "still" else max(0.0, spread - rest) / (spread + 1)


def _pace(found: Fit, actor: Actor) -> float:
    if actor.motion.course == "still":
        return 1.0
    least, most = PACES[actor.motion.pace]
    return min(1.0, found.speed / least, most / max(found.speed, least))


def _turn(i: int, fits: Sequence[Fit | None], actors: Sequence[Actor]) -> float:
    """1 where object i turns at the wall or, of two that meet, where they touch; less the further away, and 0 alone."""
    motion, own = actors[i].motion, fits[i]
    if own.turn is None:
        return 1.0
    axis, sign = DIRECTIONS[motion.direction]
    if motion.course != "meet":
        return _near(abs(own.turns_at[axis] - (ROOM if sign > 0 else 0)), TURN_TOLERANCE)
    others = [f for j, f in enumerate(fits) if j != i and f is not None and actors[j].motion.course == "meet"]
    if not others:
        return 0.0
    apart = (others[0].turns_at - own.turns_at) * sign
    return (_near(abs(apart[axis] - BOX), TURN_TOLERANCE) * _near(abs(apart[1 - axis]), LANE_TOLERANCE)
            * _near(abs(others[0].turn - own.turn), TIME_TOLERANCE))  # fmt: skip


def _near(distance: float, tolerance: float) -> float:
    return min(1.0, max(0.0, 1 - (distance - tolerance) / (ROOM / 2)))


def _likeness(actor: Actor, o: Sighting | None) -> float:
    """The shapes world's score of a pair: 0.2 for being there, 0.5 more for the shape, 0.3 more for the colour."""
    if o is None:
        return 0.0
    shape = actor.what.shape == o.shape
    return (2 + 5 * shape + 3 * (shape if actor.what.colour is None else actor.what.colour == o.colour)) / 10


def _name(actor: Actor) -> str:
    return f"{actor.what.colour} {actor.what.shape}" if actor.what.colour else actor.what.shape
