"""Samples of a run: files in and out, and a grid that any text survives."""

import numpy as np
import pytest
from PIL import Image

from unigrpo_jax.training import samples as module
from unigrpo_jax.training.samples import Sample, draw_grid, load_samples, save_samples, saved_steps
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
