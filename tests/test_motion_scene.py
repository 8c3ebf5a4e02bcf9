"""Mechanics and drawing of moving scenes, against paths worked out by hand and areas counted on a fine grid."""

import numpy as np
import pytest

from tests.scenes import SHAPES, random_scene
from unigrpo_jax.worlds.motion.drawing import cover, render
from unigrpo_jax.worlds.motion.scene import Mover, MovingScene, places, touches
from unigrpo_jax.worlds.shapes.drawing import PATTERNS
from unigrpo_jax.worlds.shapes.drawing import render as render_still


def path(*movers: tuple, walls: str = "reflect", frames: int = 9) -> np.ndarray:
    return places(MovingScene(tuple(Mover("red", "square", *mover) for mover in movers), walls), frames)


def test_an_object_moves_steadily():
    expected = [[3 + 0.5 * t, 10 - 1.25 * t] for t in range(9)]
    np.testing.assert_allclose(path(((3, 10), (0.5, -1.25)))[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("walls, expected", [
    ("reflect", [14, 15.5, 17, 17.5, 16, 14.5, 13, 11.5, 10]),
    ("stop", [14, 15.5, 17, 18, 18, 18, 18, 18, 18]),
])  # fmt: skip
def test_a_wall_turns_back_or_holds(axis, walls, expected):
    """At 14 with 1.5 a frame the wall at 18 is met at frame 2 2/3: half a pixel past it is half a pixel before it."""
    start, velocity = [5.0, 5.0], [0.0, 0.0]
    start[axis], velocity[axis] = 14.0, 1.5
    found = path((tuple(start), tuple(velocity)), walls=walls)[:, 0]
    np.testing.assert_allclose(found[:, axis], expected, atol=1e-12)
    mirrored = path((tuple(18 - np.array(start)), tuple(-np.array(velocity))), walls=walls)[:, 0]
    np.testing.assert_allclose(18 - mirrored, found, atol=1e-12)
    assert (found[:, 1 - axis] == 5).all()


def test_a_corner_turns_both_ways_and_a_fast_object_meets_two_walls_in_one_frame():
    np.testing.assert_allclose(path(((16, 17), (2, 1)), frames=3)[:, 0], [[16, 17], [18, 18], [16, 17]], atol=1e-12)
    np.testing.assert_allclose(path(((0, 9), (0, 40)), frames=2)[:, 0], [[0, 9], [0, 13]], atol=1e-12)  # 9 + 18 + 13


def test_two_that_meet_head_on_exchange_their_velocities():
    """The gap of 8 closes by 2 a frame: they touch at frame 4, at 4 and 10."""
    first, second = path(((7, 0), (0, 1)), ((7, 14), (0, -1))).transpose(1, 0, 2)[..., 1]
    np.testing.assert_allclose(first, [0, 1, 2, 3, 4, 3, 2, 1, 0], atol=1e-12)
    np.testing.assert_allclose(second, [14, 13, 12, 11, 10, 11, 12, 13, 14], atol=1e-12)


def test_a_resting_object_takes_over_the_motion_of_the_one_that_hits_it():
    first, second = path(((2, 3), (1, 0)), ((10, 5), (0, 0))).transpose(1, 0, 2)[..., 0]
    np.testing.assert_allclose(first, [2, 3, 4, 4, 4, 4, 4, 4, 4], atol=1e-12)
    np.testing.assert_allclose(second, [10, 10, 10, 11, 12, 13, 14, 15, 16], atol=1e-12)


def test_objects_that_pass_side_by_side_do_not_meet():
    moved = path(((2, 0), (0, 2)), ((8, 16), (0, -2)))
    np.testing.assert_allclose(moved[-1], [[2, 16], [8, 0]], atol=1e-12)


def test_random_scenes_move_as_in_small_steps_of_time():
    """Stepped 4000 times a frame, with walls and touches handled where they have been passed."""
    rng = np.random.default_rng(0)
    for walls in ("reflect", "stop"):
        at, moves = np.array([[1.0, 2.0], [9.0, 11.0]]) + rng.uniform(0, 5, (2, 2)), rng.uniform(-2, 2, (2, 2))
        expected = path(*((tuple(a), tuple(m)) for a, m in zip(at, moves, strict=True)), walls=walls)
        for frame in range(1, 9):
            for _ in range(4000):
                gap = np.abs(at[0] - at[1])
                at = at + moves / 4000
                outside = ((at < 0) & (moves < 0)) | ((at > 18) & (moves > 0))
                moves = np.where(outside, -moves if walls == "reflect" else 0.0, moves)
                if (np.abs(at[0] - at[1]) < 6).all():
                    axis = int(gap.argmax())
                    if (at[0] - at[1])[axis] * (moves[0] - moves[1])[axis] < 0:
                        moves[:, axis] = moves[::-1, axis].copy()
            np.testing.assert_allclose(at, expected[frame], atol=0.02)


@pytest.mark.parametrize("movers, walls, words", [
    ((((0, 19), (0, 0)),), "reflect", "outside"),
    ((((0, 0), (0, 0)), ((5.9, 5.9), (0, 0))), "reflect", "overlap"),
    ((((0, 0), (0, 0)),), "absorb", "absorb"),
])  # fmt: skip
def test_scenes_that_cannot_be_are_refused(movers, walls, words):
    with pytest.raises(ValueError, match=words):
        path(*movers, walls=walls)


def test_at_whole_places_a_frame_is_the_shapes_worlds_own_drawing():
    rng = np.random.default_rng(1)
    for _ in range(50):
        still = random_scene(rng, rng.integers(0, 5))
        movers = tuple(Mover(o.colour, o.shape, (8.0 * o.row + 1, 8.0 * o.column + 1)) for o in still)
        clip = render(MovingScene(movers))
        assert clip.shape == (9, 24, 24, 3) and clip.dtype == np.uint8
        assert (clip == render_still(still)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pixel_is_lit_as_far_as_the_figure_covers_it(shape):
    """Counted on a grid of 20 x 20 points in each pixel; places are multiples of 1/20, so that the count is exact."""
    fine = np.kron([[c == "#" for c in row] for row in PATTERNS[shape]], np.ones((20, 20)))
    rng = np.random.default_rng(2)
    for y, x in [(0, 0), (360, 360), (30, 7), *rng.integers(0, 361, (20, 2))]:
        canvas = np.zeros((480, 480))
        canvas[y : y + 120, x : x + 120] = fine
        counted = canvas.reshape(24, 20, 24, 20).mean((1, 3))
        found = cover(np.array([SHAPES.index(shape)]), np.array([[y / 20, x / 20]]))[0]
        np.testing.assert_allclose(found, counted, atol=1e-5)


def test_objects_that_touch_add_their_light_and_no_light_is_lost():
    scene = MovingScene((Mover("red", "square", (3.3, 2.5)), Mover("blue", "cross", (3.3, 8.5))))
    light = render(scene, frames=1)[0].astype(float).sum((0, 1)) / 255
    np.testing.assert_allclose(light, [36, 0, 20], atol=0.1)


def test_what_is_met_is_known_by_time_place_and_who():
    """At 14 with 1.5 a frame the wall at 18 is met at 2 2/3; 18 pixels later, at 14 2/3, the other one."""
    wall = MovingScene((Mover("red", "square", (5.0, 14.0), (0.0, 1.5)),))
    (met,) = touches(wall)
    assert met.who == (0,) and met.time == pytest.approx(8 / 3) and met.place == pytest.approx((5, 18))
    assert [touch.time for touch in touches(wall, 20)] == pytest.approx([8 / 3, 44 / 3])
    stopped = MovingScene(wall.movers, "stop")
    assert [touch.time for touch in touches(stopped, 20)] == pytest.approx([8 / 3])


def test_two_that_meet_touch_once_in_their_middle():
    """The gap of 8 closes by 2 a frame: at frame 4, at 4 and 10."""
    pair = Mover("red", "square", (7, 0), (0, 1)), Mover("blue", "cross", (7, 14), (0, -1))
    met, wall = touches(MovingScene(pair))
    assert (wall.who, wall.time) == ((0,), pytest.approx(8))  # back where it began, in the last frame
    assert (met.who, met.time, met.place) == ((0, 1), pytest.approx(4), pytest.approx((7, 7)))
    assert touches(MovingScene((Mover("red", "square", (7, 0), (0.5, 0)), Mover("blue", "cross", (7, 14))))) == []
