"""Samples of a run: files in and out, and a grid that any text survives."""

import json

import numpy as np
import pytest
from PIL import Image

from unigrpo_jax.training import samples as module
from unigrpo_jax.training.samples import Moment, Sample, draw_grid, load_samples, save_samples, saved_steps
from unigrpo_jax.training.storage import write_atomically


def sample(prompt="a red circle", side=24, correct=True, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Sample(prompt=prompt, thinking="red circle : red circle top", image=image, verdict="right", correct=correct)


def test_samples_survive_the_way_to_disk(tmp_path):
    written = [sample(seed=i, correct=c) for i, c in enumerate((True, False, None))]
    grid = save_samples(tmp_path, 25, written)
    assert grid == tmp_path / "samples" / "000025.png" and Image.open(grid).format == "PNG"
    read = load_samples(tmp_path, 25)
    for before, after in zip(written, read, strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        assert (before.prompt, before.thinking, before.verdict, before.correct) == (
            after.prompt, after.thinking, after.verdict, after.correct)  # fmt: skip


def moment(prompt, seed, correct=None, given=()):
    image = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    given = tuple(np.full((*size, 3), 200, np.uint8) for size in given)
    return dict(prompt=prompt, thinking=f"plan {seed}", image=image, verdict=f"verdict {seed}", correct=correct, given=given)


def strip(first, *later, seed=0):
    """An episode of as many rounds as texts, wrong at first, right at last; a picture is given before the first and last."""
    texts = [first, *later]
    rounds = [moment(text, seed + n, n == len(later), [(10, 30)] * (n == 0)) for n, text in enumerate(texts)]
    *before, last = rounds
    return Sample(**last | {"given": (np.zeros((5, 6, 3), np.uint8),) * 2}, earlier=tuple(Moment(**m) for m in before))


def assert_same(a, b):
    assert (a.prompt, a.thinking, a.verdict, a.correct) == (b.prompt, b.thinking, b.verdict, b.correct)
    assert len(a.given) == len(b.given)
    for x, y in zip((a.image, *a.given), (b.image, *b.given), strict=True):
        np.testing.assert_array_equal(x, y)


def test_episodes_of_several_rounds_survive_the_way_to_disk(tmp_path):
    written = [strip("a", "b", "c", seed=0), strip("d", "", "f", seed=10)]
    assert [s.asked for s in written] == ["a → b → c", "d → f"]
    save_samples(tmp_path, 3, written)
    read = load_samples(tmp_path, 3)
    assert len(read) == 2
    for before, after in zip(written, read, strict=True):
        assert isinstance(after, Sample) and len(after.rounds) == 3
        for a, b in zip(before.rounds, after.rounds, strict=True):
            assert_same(a, b)


def test_files_of_single_rounds_are_what_they_always_were(tmp_path):
    """Names of the arrays, text byte for byte, and where the grid holds its images."""
    save_samples(tmp_path, 0, [sample(seed=i, correct=c) for i, c in enumerate((True, False, None))])
    text = (tmp_path / "samples" / "000000.json").read_text()
    words = {"prompt": "a red circle", "thinking": "red circle : red circle top", "verdict": "right"}
    assert text == json.dumps([words | {"correct": c} for c in (True, False, None)], indent=1)
    with np.load(tmp_path / "samples" / "000000.npz") as arrays:
        assert arrays.files == ["images"]
    grid = np.asarray(draw_grid([sample(seed=i, correct=c) for i, c in enumerate((True, False, None))]))
    assert grid.shape == (2 * (96 + 6 + 4 + 2 * 16 + 10) + 10, 2 * 178 + 10, 3)  # two rows of two, two lines below each
    for index, (top, left) in enumerate([(13, 13), (13, 191), (161, 13)]):
        image = sample(seed=index).image.repeat(4, 0).repeat(4, 1)
        np.testing.assert_array_equal(grid[top : top + 96, left : left + 96], image)


def test_a_strip_is_a_row_of_what_was_given_and_drawn():
    two, four = draw_grid([strip("a", "b")]), draw_grid([strip("a", "b")] * 2)
    assert four.width == two.width and 2 * two.height - 2 * module.MARGIN < four.height <= 2 * two.height
    assert two.width == 5 * (module.CELL_WIDTH + module.MARGIN) + module.MARGIN  # one given, drawn, two given, drawn
    pixels = np.asarray(two)
    cell = module.CELL_WIDTH + module.MARGIN
    column = lambda n: set(map(tuple, pixels[:, n * cell : (n + 1) * cell].reshape(-1, 3).tolist()))
    assert [module.RED in column(n) for n in range(5)] == [False, True, False, False, False]
    assert [module.GREEN in column(n) for n in range(5)] == [False, False, False, False, True]
    assert [(200, 200, 200) in column(n) for n in range(5)][0]
    assert [module.THOUGHT in column(n) for n in range(5)] == [False, True, False, False, True]  # above what was drawn
    first = np.asarray(module.readable_size(strip("a", "b").earlier[0].image))
    top = module.MARGIN + 2 * module.LINE_HEIGHT + module.FRAME  # below what was said and what was thought
    left = module.MARGIN + cell + module.FRAME
    np.testing.assert_array_equal(pixels[top : top + 96, left : left + 96], first)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda texts, arrays: texts[1].pop("earlier"),
        lambda texts, arrays: texts[0]["earlier"].append(1),
        lambda texts, arrays: texts[0]["earlier"][0].update(correct="yes"),
        lambda texts, arrays: texts[0].update(earlier={}),
        lambda texts, arrays: arrays.pop("images_1"),
        lambda texts, arrays: arrays.update(images_1=arrays["images_1"][:, :5]),
        lambda texts, arrays: arrays.update(given_0_1_1=np.zeros((3, 3), np.uint8)),
    ],
)
def test_damaged_rounds_are_named(tmp_path, spoil):
    save_samples(tmp_path, 3, [strip("a", "b"), strip("c", "d")])
    text, npz = (tmp_path / "samples" / f"000003.{kind}" for kind in ("json", "npz"))
    with np.load(npz) as file:
        arrays = dict(file)
    texts = json.loads(text.read_text())
    spoil(texts, arrays)
    text.write_text(json.dumps(texts))
    np.savez(npz, **arrays)
    with pytest.raises(ValueError, match="does not hold|do not hold"):
        load_samples(tmp_path, 3)


def test_saved_steps_are_the_whole_ones_in_order(tmp_path):
    assert saved_steps(tmp_path) == []
    for step in (100, 0, 25):
        save_samples(tmp_path, step, [sample()])
    (tmp_path / "samples" / "000025.npz").unlink()
    assert saved_steps(tmp_path) == [0, 100]


def test_frames_tell_right_from_wrong():
    colours = lambda correct: set(map(tuple, np.asarray(draw_grid([sample(correct=correct)])).reshape(-1, 3).tolist()))
    assert module.GREEN in colours(True) and module.RED not in colours(True)
    assert module.RED in colours(False) and module.GREEN not in colours(False)


@pytest.mark.parametrize("text", ["", "word " * 200, "x" * 500, "emoji 🟥 and عربي", "tab\tnew\nline \x1b[31m \x00", "<b>"])
def test_any_text_fits_a_cell(text):
    short = draw_grid([sample()])
    grid = draw_grid([sample(prompt=text)])
    assert grid.width == short.width and grid.height < 3 * short.height


def test_small_images_are_enlarged_by_whole_factors_and_large_ones_shrunk():
    assert module.readable_size(np.zeros((24, 24, 3), np.uint8)).size[0] % 24 == 0
    assert max(module.readable_size(np.zeros((1024, 512, 3), np.uint8)).size) <= module.SHRINK_TO


def test_mixed_sizes_and_other_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share one size"):
        save_samples(tmp_path, 0, [sample(side=24), sample(side=12)])
    with pytest.raises(ValueError, match="share one number of rounds"):
        save_samples(tmp_path, 0, [strip("a"), strip("a", "b")])
    with pytest.raises(ValueError, match="no samples"):
        save_samples(tmp_path, 0, [])
    with pytest.raises(ValueError, match="uint8"):
        Sample(prompt="", thinking="", image=np.zeros((4, 4, 3)), verdict="", correct=None)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
