"""The judge of clips: right on every clean clip, still right under some noise, and no faulty clip passes as exact."""

import itertools
import json

import numpy as np
import pytest

from tests.motion_clips import blurred, noisy, quantised, staged
from unigrpo_jax.worlds.motion.course import fit
from unigrpo_jax.worlds.motion.drawing import draw, kinds, render
from unigrpo_jax.worlds.motion.judge import judge_clips, scores
from unigrpo_jax.worlds.motion.prompts import requirements
from unigrpo_jax.worlds.motion.reading import Frame, Sighting
from unigrpo_jax.worlds.motion.requirement import CATEGORIES, Motion, from_metadata
from unigrpo_jax.worlds.motion.scene import ROOM, Mover, MovingScene, places
from unigrpo_jax.worlds.motion.smoothness import smooth_steps
from unigrpo_jax.worlds.shapes.scene import COLOURS, SHAPES


def wants(category: str, *objects: str) -> dict:
    """Metadata by hand of `red circle straight right slow` each; `any` and `-` stand for None."""
    names = ("colour", "shape", "course", "direction", "pace")
    rows = [dict(zip(names, text.split(), strict=True)) for text in objects]
    return {"category": category, "objects": [{k: None if v in ("any", "-") else v for k, v in row.items()} for row in rows]}


def clip(*movers: tuple, walls: str = "reflect") -> np.ndarray:
    """The clip of (`red circle`, start, velocity) each."""
    return render(MovingScene(tuple(Mover(*name.split(), start, velocity) for name, start, velocity in movers), walls))


def verdict(pixels: np.ndarray, metadata: dict):
    return judge_clips(pixels[None], [metadata])[0]


@pytest.fixture(scope="module")
def clean():
    """What 228 requirements of all categories ask for, with a scene and a clip of each."""
    required, scenes, clips = staged(40)
    return [r.metadata() for r in required], scenes, clips


def some(clean, every: int = 5):
    metadata, scenes, clips = clean
    return metadata[::every], scenes[::every], clips[::every]


def exact(clips: np.ndarray, metadata) -> np.ndarray:
    return scores(judge_clips(clips, metadata))["exact"] > 0


def paths_changed(clean, change) -> np.ndarray:
    """The clips anew with `change(path [F, n, 2])` for each path."""
    return np.stack([draw(*kinds(scene), change(places(scene))) for scene in clean[1]])


def test_every_clean_clip_is_right_in_all_dimensions(clean):
    metadata, _, clips = clean
    assert {m["category"] for m in metadata} == set(CATEGORIES) and len(clips) > 200
    for found in judge_clips(clips, metadata):
        assert (found.exact, found.graded, found.content, found.motion, found.smoothness) == (True, 1, 1, 1, 1), found
        assert found.reason == "right"


# Condition, level, and the most clean clips in a hundred that may be misjudged.
ERRORS = [
    (noisy, 20, 0), (noisy, 25, 3), (noisy, 30, 50),
    (blurred, 0.5, 0), (blurred, 0.6, 3),
    (quantised, 60, 0), (quantised, 80, 3),
]  # fmt: skip


@pytest.mark.parametrize("damage, level, most", ERRORS)
def test_clean_clips_under_noise_blur_and_quantisation(clean, damage, level, most):
    metadata, _, clips = some(clean, 3)
    wrong = ~exact(damage(clips, level), metadata)
    print(f"| {damage.__name__} {level} | {100 * wrong.mean():.1f} % |")
    assert 100 * wrong.mean() <= most


def test_a_clip_for_another_prompt_is_not_right(clean):
    rows = [i for i, m in enumerate(clean[0]) if m["category"] != "single_motion"][::5]
    metadata, third = [clean[0][i] for i in rows], len(rows) // 3
    assert not exact(clean[2][rows], metadata[third:] + metadata[:third]).any()


def test_frozen_clips_do_not_pass_and_get_a_fifth(clean):
    metadata, _, clips = some(clean)
    for found in judge_clips(np.repeat(clips[:, :1], 9, 1), metadata):
        assert not found.exact and found.content == 1 and found.smoothness == 1
        assert found.motion <= 0.5 and found.graded < 0.6  # of two objects one may have been asked to stay still
        assert found.motion < 0.05 and found.graded < 0.22 or found.motion == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("moving", [2, 3, 4, 5, 6, 7])
def test_clips_that_stop_half_way_do_not_pass(clean, moving):
    """Left out are those that are to stop at the wall: they may have arrived."""
    rows = [i for i, m in enumerate(clean[0]) if m["objects"][0]["course"] != "stop"][::6]
    stopped = clean[2][rows][:, np.minimum(np.arange(9), moving)]
    assert not exact(stopped, [clean[0][i] for i in rows]).any()


def test_clips_that_stutter_do_not_pass(clean):
    """Every second frame is shown twice."""
    metadata, _, clips = some(clean)
    assert not exact(clips[:, [0, 0, 2, 2, 4, 4, 6, 6, 8]], metadata).any()


@pytest.mark.parametrize("order", [[*range(8, -1, -1)], [0, 1, 2, 3, 5, 4, 6, 7, 8], [0, 1, 2, 3, 3, 3, 6, 7, 8]])
def test_frames_in_another_order_do_not_pass(clean, order):
    """Backwards, with two frames exchanged, and with a pause that is made up for; of objects that do not turn."""
    rows = [i for i, m in enumerate(clean[0]) if m["category"] in ("direction", "speed", "two_object")][::4]
    assert not exact(clean[2][rows][:, order], [clean[0][i] for i in rows]).any()


def test_flicker_does_not_pass(clean):
    """One frame black, at each place in time; and every second one at half brightness."""
    metadata, _, clips = some(clean, 8)
    for t in range(9):
        dark = clips.copy()
        dark[:, t] = 0
        assert not exact(dark, metadata).any()
    dim = clips.copy()
    dim[:, 1::2] //= 2
    assert not exact(dim, metadata).any()


def test_clips_mirrored_do_not_pass_where_a_direction_is_asked_for(clean):
    """Left to right, top to bottom: whoever moves along that axis moves the wrong way (the shapes stay upright)."""
    for axis, ways in ((0, {"up", "down"}), (1, {"left", "right"})):
        def mirror(path, axis=axis):
            path = path.copy()
            path[..., axis] = ROOM - path[..., axis]
            return path

        rows = [i for i, m in enumerate(clean[0]) if {o["direction"] for o in m["objects"]} & ways][::4]
        chosen = ([clean[0][i] for i in rows], [clean[1][i] for i in rows])
        assert rows and not exact(paths_changed(chosen, mirror), chosen[0]).any()


def test_the_other_pace_does_not_pass():
    for pace, speed, ok in (("slow", 0.8, True), ("fast", 0.8, False), ("slow", 1.8, False), ("fast", 1.8, True),
                            ("-", 0.8, True), ("-", 1.8, True), ("-", 0.3, False), ("slow", 0.3, False)):  # fmt: skip
        found = verdict(clip(("red cross", (7, 1.5), (0, speed))), wants("speed", f"red cross straight right {pace}"))
        assert found.exact == ok and (ok or 0 < found.motion < 0.9)


@pytest.mark.parametrize("jump", [1.5, 2.5, 6.0])
def test_a_jump_does_not_pass(clean, jump):
    """From frame 1 to 8 on, one object is elsewhere, along its way or across it.

    A turn 0.75 pixels before the wall is right, and a jump of 1.5 there is no more; so those have no turn.
    """
    rng = np.random.default_rng(0)

    def jumped(path):
        path, t, axis = path.copy(), rng.integers(1, 9), rng.integers(2)
        inside = path[t:, 0, axis]
        path[t:, 0, axis] += jump if inside.max() + jump <= ROOM else -jump
        return path

    rows = [i for i, m in enumerate(clean[0]) if jump > 2 or m["category"] not in ("wall", "meeting")][::4]
    chosen = [clean[0][i] for i in rows], [clean[1][i] for i in rows]
    assert not exact(paths_changed(chosen, jumped), chosen[0]).any()


def test_a_shape_or_a_colour_that_changes_does_not_pass(clean):
    metadata, scenes, _ = some(clean)
    for (which, n), t in itertools.product(((0, len(COLOURS)), (1, len(SHAPES))), (1, 5, 8)):
        clips = []
        for scene in scenes:
            names = [np.repeat(numbers[None], 9, 0) for numbers in kinds(scene)]
            names[which][t:, 0] = (names[which][t:, 0] + 1) % n
            clips.append(draw(*names, places(scene)))
        found = judge_clips(np.stack(clips), metadata)
        assert not any(v.exact for v in found) and all(v.content < 1 and v.smoothness <= 7 / 8 for v in found)


def test_an_object_that_vanishes_or_appears_does_not_pass(clean):
    """The first object is away before or from some frame on; or a small white cross is there, in one frame or in all."""
    metadata, scenes, clips = some(clean)
    alone = np.stack([draw(*(k[1:] for k in kinds(scene)), places(scene)[:, 1:]) for scene in scenes])
    for t in (1, 4, 8):
        for before, after in ((clips, alone), (alone, clips)):
            found = judge_clips(np.concatenate([before[:, :t], after[:, t:]], 1), metadata)
            assert not any(v.exact for v in found) and all(v.content < 1 and v.smoothness < 1 for v in found)
    extra = clip(("white cross", (0, 0), (0, 0)))
    for frames in (slice(None), slice(4, 5)):
        more = clips.copy()
        more[:, frames] = np.maximum(more[:, frames], extra[frames])
        assert not exact(more, metadata).any()


def test_the_wrong_object_moves_rightly_and_gets_less_than_the_right_one():
    wanted = wants("direction", "red circle straight right -")
    way = (9, 1), (0, 1.5)
    grades = [verdict(clip((name, *way)), wanted).graded for name in
              ("red circle", "blue circle", "red cross", "blue cross")]  # fmt: skip
    assert grades[0] == 1 and grades == sorted(grades, reverse=True) and len(set(grades)) == 4
    # Shape right, colour wrong: content 0.7, motion and smoothness 1.
    assert grades[1] == pytest.approx(0.8 * 0.7)
    # Nothing right: content 0.2; the object is not taken for the one that was asked for, so there is no motion.
    assert grades[3] == pytest.approx(0.8 * 0.2 / 4)


def test_the_worse_the_way_the_lower_the_grade():
    wanted = wants("direction", "green square straight right slow")
    ways = [(0, 0.8), (0.4, 0.7), (0.8, 0), (0, -0.8)]
    grades = [verdict(clip(("green square", (6, 8), way)), wanted).graded for way in ways]
    assert grades[0] == 1 and grades[1] > grades[2] + 0.1 and grades[2] == pytest.approx(0.2, abs=0.03)
    assert grades[3] == pytest.approx(0.2)


def test_a_free_colour_may_be_any_but_only_one():
    wanted = wants("direction", "any circle straight down -")
    path = 2 + 1.2 * np.stack([np.arange(9), np.zeros(9)], 1)[:, None]
    colours, shapes = np.zeros((9, 1), int), np.zeros((9, 1), int)
    assert verdict(draw(colours, shapes, path), wanted).exact
    assert verdict(draw(colours + 3, shapes, path), wanted).exact
    colours[6:] = 1
    found = verdict(draw(colours, shapes, path), wanted)
    assert found.content == pytest.approx((6 + 3 * 0.7) / 9) and "frame 6: no red circle" in found.reason


def test_walls_turn_back_or_hold_as_asked():
    bounce, stop = (wants("wall", f"red cross {course} right -") for course in ("bounce", "stop"))
    way = ("red cross", (4, 11), (0, 1.5))
    back, held, straight = clip(way), clip(way, walls="stop"), clip(("red cross", (4, 1), (0, 1.5)))
    assert verdict(back, bounce).exact and verdict(held, stop).exact
    assert not verdict(back, stop).exact and not verdict(held, bounce).exact
    assert not verdict(straight, bounce).exact and not verdict(straight, stop).exact
    found = verdict(np.roll(back, -3, axis=2), bounce)  # three pixels before the wall
    assert not found.exact and "turns elsewhere" in found.reason and found.motion > 0.5


def test_two_that_meet_must_touch_and_turn_together():
    wanted = wants("meeting", "red circle meet right -", "blue square meet left -")
    near = (("red circle", (9, 1), (0, 1.0)), ("blue square", (9, 15), (0, -1.0)))
    assert verdict(clip(*near), wanted).exact
    passing = (("red circle", (2, 1), (0, 1.0)), ("blue square", (12, 15), (0, -1.0)))
    assert not verdict(clip(*passing), wanted).exact
    path = places(MovingScene(tuple(Mover(*name.split(), a, b) for name, a, b in near)))
    apart = path + np.array([[0, -1.0], [0, 1.5]])  # each turns back 2.5 pixels from the other
    colours, shapes = np.array([0, 2]), np.array([0, 1])
    assert verdict(draw(colours, shapes, path), wanted).exact
    found = verdict(draw(colours, shapes, apart), wanted)
    assert not found.exact and "turns elsewhere" in found.reason
    exchanged = wants("meeting", "blue square meet right -", "red circle meet left -")
    assert not verdict(clip(*near), exchanged).exact


def test_one_moves_and_the_other_stays():
    wanted = wants("two_object", "red circle straight up -", "blue square still - -")
    moving, resting = ("red circle", (15, 3), (-1.5, 0)), ("blue square", (4, 15), (0, 0))
    assert verdict(clip(moving, resting), wanted).exact
    assert not verdict(clip(moving, ("blue square", (4, 15), (0.7, 0))), wanted).exact
    found = verdict(clip(("red circle", (15, 3), (0, 0)), ("blue square", (13, 15), (-1.5, 0))), wanted)
    assert not found.exact and found.motion < 0.1


def test_courses_are_fitted_as_worked_out_by_hand():
    t = np.arange(9.0)
    line = fit(np.stack([3 + 0 * t, 1 + 1.5 * t], 1), Motion("straight", "right"))
    assert line.speed == pytest.approx(1.5) and line.turn is None
    assert fit(np.stack([3 + 0 * t, 1 + 1.5 * t], 1), Motion("straight", "left")).speed == 0
    free = fit(np.stack([9 - 0.6 * t, 1 + 0.8 * t], 1), Motion("straight"))
    assert free.speed == pytest.approx(1)
    vee = fit(np.stack([np.abs(t - 3.25) * 2, 7 + 0 * t], 1), Motion("bounce", "up"))
    assert (vee.turn, vee.speed) == (3.25, pytest.approx(2)) and vee.turns_at == pytest.approx([0, 7], abs=1e-9)
    held = fit(np.stack([7 + 0 * t, 18 + np.minimum(t - 5, 0)], 1), Motion("stop", "right"))
    assert (held.turn, held.speed) == (5, pytest.approx(1)) and held.turns_at == pytest.approx([7, 18])
    for found in (line, free, vee, held):
        assert found.path.shape == (9, 2)


def frames_of(*rows: str) -> list[Frame]:
    """Frames of `red circle 3 4, blue square 9 9` each."""
    things = [[part.split() for part in row.split(",") if part.strip()] for row in rows]
    return [Frame(tuple(Sighting(c, s, (float(y), float(x))) for c, s, y, x in row)) for row in things]


def test_smooth_steps_by_hand():
    steady = [f"red circle 3 {1.5 * t}" for t in range(6)]
    assert smooth_steps(frames_of(*steady)).all()
    assert smooth_steps(frames_of(*["red circle 3 4"] * 6)).all()
    turned = [f"red circle 3 {x}" for x in (2, 4, 6, 6, 4, 2)]  # the wall is met half way between two frames
    assert smooth_steps(frames_of(*turned)).all()
    jumped = [f"red circle 3 {x}" for x in (1, 2, 3, 5, 6, 7)]
    assert smooth_steps(frames_of(*jumped)).tolist() == [True, True, False, True, True]
    changed = [*steady[:3], *(row.replace("red", "blue") for row in steady[3:])]
    assert smooth_steps(frames_of(*changed)).tolist() == [True, True, False, True, True]
    gone = [*steady[:2], "", *steady[3:]]
    assert smooth_steps(frames_of(*gone)).tolist() == [True, False, False, True, True]
    far = [f"red circle 3 {3.5 * t}" for t in range(5)]
    assert not smooth_steps(frames_of(*far)).any()


def test_smoothness_follows_two_objects_of_one_kind():
    rows = [f"red circle 3 {t}, red circle 12 {15 - t}" for t in range(9)]
    assert smooth_steps(frames_of(*rows)).all()


def test_unclear_things_are_not_smooth():
    frames = frames_of(*["red circle 3 4"] * 6)
    frames[2] = Frame(frames[2].objects, unclear=1)
    assert smooth_steps(frames).tolist() == [True, False, False, True, True]


def test_black_clips_get_nothing(clean):
    metadata, _, clips = some(clean, 16)
    assert all(v.graded == 0 and not v.exact for v in judge_clips(0 * clips, metadata))


def test_metadata_says_all_of_a_requirement():
    for category in CATEGORIES:
        for required in list(requirements(category))[::97]:
            assert from_metadata(json.loads(json.dumps(required.metadata()))) == required


def test_clips_of_too_few_frames_are_refused(clean):
    metadata, _, clips = some(clean, 100)
    with pytest.raises(ValueError, match="5 or more"):
        judge_clips(clips[:, :4], metadata)
    assert judge_clips(clips[:0], []) == [] and scores([]) == {}
