"""What is read in frames: every object at its place, to a fraction of a pixel; and nothing else passes for an object."""

import itertools

import numpy as np
import pytest

from tests.motion_clips import as_bytes, blurred, noisy, quantised, staged
from tests.scenes import COLOURS, SHAPES
from unigrpo_jax.worlds.motion.drawing import render
from unigrpo_jax.worlds.motion.reading import Frame, read_clips
from unigrpo_jax.worlds.motion.scene import Mover, MovingScene, places


def still(*things: str) -> np.ndarray:
    """One frame, float [24, 24, 3], of `red circle 3.5 7` each."""
    movers = [Mover(c, s, (float(y), float(x))) for c, s, y, x in (thing.split() for thing in things)]
    return render(MovingScene(tuple(movers)), frames=1)[0].astype(float)


def read(*frames: np.ndarray) -> tuple[Frame, ...]:
    return read_clips(as_bytes(np.stack(frames))[None])[0]


def seen(frame: Frame) -> set[str]:
    return {f"{o.colour} {o.shape}" for o in frame.objects} | ({"unclear"} if frame.unclear else set())


def test_every_kind_of_object_is_read_at_every_fraction_of_a_pixel():
    """24 kinds at 30 places each, corners and half pixels among them: never wrong, and at most 1/15 of a pixel away."""
    rng = np.random.default_rng(0)
    kinds = list(itertools.product(COLOURS, SHAPES))
    spots = [(0, 0), (18, 18), (0, 17.5), (9.5, 9.5), (3.25, 8.75), *rng.uniform(0, 18, (25, 2)).tolist()]
    frames = [still(f"{c} {s} {y} {x}") for (c, s), (y, x) in itertools.product(kinds, spots)]
    assert len(frames) == 720
    for frame, ((colour, shape), spot) in zip(read(*frames), itertools.product(kinds, spots), strict=True):
        (found,), unclear = frame.objects, frame.unclear
        assert (found.colour, found.shape, unclear) == (colour, shape, 0)
        np.testing.assert_allclose(found.place, spot, atol=1 / 15)


def test_two_objects_are_read_apart_also_where_they_touch():
    """All pairs of kinds with different colours, side by side without a gap, in one lane or half beside it."""
    rng, frames, expected = np.random.default_rng(1), [], []
    for (a, b), (c, d) in itertools.product(itertools.product(SHAPES, SHAPES), itertools.permutations(COLOURS, 2)):
        y, x, off = rng.uniform(3, 15), rng.uniform(0, 12), rng.choice([0.0, 0.0, -2.5, 2.5])
        pair = {f"{c} {a}": (y, x), f"{d} {b}": (y + off, x + 6)}
        frames.append(still(*(f"{kind} {p} {q}" for kind, (p, q) in pair.items())))
        expected.append(pair)
    worst = 0.0
    for frame, pair in zip(read(*frames), expected, strict=True):
        assert seen(frame) == set(pair)
        worst = max(worst, *(np.abs(np.subtract(o.place, pair[f"{o.colour} {o.shape}"])).max() for o in frame.objects))
    print(f"{len(frames)} pairs that touch: at most {worst:.3f} pixels away")
    assert worst < 0.2


def test_an_empty_frame_shows_nothing_and_a_third_object_is_seen():
    three = ("red circle 0 0", "blue square 0.5 12.5", "white cross 15.25 3")
    empty, full = read(np.zeros((24, 24, 3)), still(*three))
    assert empty == Frame(()) and seen(full) == {"red circle", "blue square", "white cross"}


def test_a_fourth_object_is_at_least_unclear():
    (frame,) = read(still("red circle 0 0", "blue square 0.5 12.5", "white cross 15.25 3", "green triangle 15 15"))
    assert len(frame.objects) == 3 and frame.unclear == 1


@pytest.mark.parametrize("damage, level", [(noisy, 20), (blurred, 0.6), (quantised, 60)])
def test_places_are_found_under_noise_blur_and_quantisation(damage, level):
    """At most 0.3 pixels away, no object missed and none invented (seen: 0.17, 0.27, 0.24)."""
    _, scenes, clips = staged(12)
    worst = 0.0
    for frames, scene in zip(read_clips(damage(clips, level)), scenes, strict=True):
        for frame, at in zip(frames, places(scene), strict=True):
            assert seen(frame) == {f"{m.colour} {m.shape}" for m in scene.movers}
            true = {f"{m.colour} {m.shape}": place for m, place in zip(scene.movers, at, strict=True)}
            worst = max(worst, *(np.abs(true[f"{o.colour} {o.shape}"] - o.place).max() for o in frame.objects))
    print(f"{damage.__name__} {level}: at most {worst:.3f} pixels away")
    assert worst < 0.3


def test_strong_noise_makes_frames_unclear_and_invents_no_object():
    _, scenes, clips = staged(4)
    for std in (45, 90):
        for frames, scene in zip(read_clips(noisy(clips, std)), scenes, strict=True):
            kinds = {f"{m.colour} {m.shape}" for m in scene.movers}
            assert all(seen(frame) <= kinds | {"unclear"} and frame.unclear for frame in frames)


def test_noise_images_and_gradients_show_nothing():
    rng, ramp = np.random.default_rng(4), np.linspace(0, 255, 24)
    frames = [
        *rng.integers(0, 256, (40, 24, 24, 3)),
        *(255 * rng.integers(0, 2, (40, 24, 24, 3))),
        *np.kron(rng.integers(0, 256, (40, 6, 6, 3)), np.ones((1, 4, 4, 1))),
        *(ramp[:, None, None] * np.sign(still(f"{c} square 0 0")[3, 3]) * np.ones((1, 24, 1)) for c in COLOURS),
        *(np.full((24, 24, 3), float(value)) for value in (60, 128, 255)),
    ]
    assert all(frame.objects == () and frame.unclear for frame in read(*frames))


def test_no_half_way_between_two_kinds_passes():
    """Every kind faded half into every other shape of its colour and into every other colour of its shape."""
    frames = []
    for colour, shape in itertools.product(COLOURS, SHAPES):
        others = [(colour, s) for s in SHAPES if s != shape] + [(c, shape) for c in COLOURS if c != colour]
        here = still(f"{colour} {shape} 4.5 9.25")
        frames += [(here + still(f"{c} {s} 4.5 9.25")) / 2 for c, s in others]
    passed = [frame for frame in read(*frames) if frame.objects]
    print(f"{len(passed)} of {len(frames)} blends of two kinds pass for an object")
    assert not passed


def test_halves_ghosts_overlaps_and_other_colours_do_not_pass():
    frames = []
    for shape in SHAPES:
        whole = still(f"yellow {shape} 6 6")
        for region in (np.s_[:9], np.s_[9:], np.s_[:, :9], np.s_[:, 9:]):
            half = whole.copy()
            half[region] = 0
            frames.append(half)
        frames.append((whole + still(f"yellow {shape} 6 9")) / 2)  # a fast object smeared over its way
        frames += [whole * np.array(rgb) for rgb in ((0.45, 0.45, 0), (0.55, 0, 0), (1, 0.5, 0))]  # over yellow's (1, 1, 0)
        over = still(f"blue {shape} 8 8")
        frames.append(np.where(over.any(-1, keepdims=True), over, whole))
    assert not any(seen(frame) & {f"yellow {s}" for s in SHAPES} for frame in read(*frames))
    assert all(frame.unclear for frame in read(*frames))


@pytest.mark.parametrize("clips", [np.zeros((2, 9, 24, 24, 3)), np.zeros((9, 24, 24, 3), np.uint8),
                                   np.zeros((2, 9, 32, 32, 3), np.uint8)])  # fmt: skip
def test_other_clips_are_refused(clips):
    with pytest.raises(ValueError, match="uint8"):
        read_clips(clips)


def test_no_clips_are_read_as_none():
    assert read_clips(np.zeros((0, 9, 24, 24, 3), np.uint8)) == []
