"""Pictures from files: BAGEL's resize rules, what is opened as RGB and how, and one sentence for what cannot be opened."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.bagel.pictures import PIXEL_CAP, ResizeRule, autoencoder_rule, picture, vision_rule
from unigrpo_jax.picture_files import open_rgb

DRAWN = (16, 1024, 512)  # stride, longest, shortest before the autoencoder
SEEN = (14, 980, 224)  # and before the vision encoder
WIDE = (14, 4000, 224)  # no rule of the release: pictures that are large on both sides reach the cap
SIDES = st.integers(1, 5000)


def rule(stride, longest, shortest) -> ResizeRule:
    return ResizeRule(stride=stride, longest=longest, shortest=shortest)


def bagel(downsample, patch, side, vision=None) -> BagelConfig:
    """A config of which only the sizes of images matter."""
    return BagelConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, layers=1, heads=1, kv_heads=1, bos_token=1, eos_token=2,
        image_start_token=3, image_end_token=4, pad_token=0, latent_channels=16, latent_patch=patch,
        latent_downsample=downsample, max_latent_size=side, vision=vision,
    )  # fmt: skip


def eyes(patch, table_side, max_side) -> VisionConfig:
    return VisionConfig(hidden_size=8, intermediate_size=8, layers=1, heads=1, patch=patch, table_side=table_side,
                        max_side=max_side)  # fmt: skip


RELEASE = bagel(8, 2, 64, eyes(14, 70, 70))
TOY = bagel(4, 2, 3, eyes(4, 5, 7))  # tokens of 8 px, at most 3 x 3; patches of 4 px, at most 5 x 5


# Sizes.


def by_the_sentences(width, height, stride, longest, shortest, cap=14 * 14 * 9 * 1024):
    """Section 7 in exact fractions; `round` of a Fraction is half to even.

    For these three rules it gives the same as floats for each of the 25 million sizes up to 5000 x 5000.
    """

    def scaled(scale):
        pixels = [round(Fraction(side) * scale) for side in (width, height)]
        strides = [round(Fraction(side, stride)) for side in pixels]
        return [max(stride, count * stride) for count in strides]

    scale = Fraction(longest, max(width, height))
    scale = Fraction(1) if scale > 1 else scale
    if min(width, height) * scale < shortest:
        scale = Fraction(shortest, min(width, height))
    width, height = scaled(scale)
    if width * height > cap:
        width, height = scaled(Fraction(cap, width * height))
    if max(width, height) > longest:
        width, height = scaled(Fraction(longest, max(width, height)))
    return width, height


@pytest.mark.parametrize(
    "numbers, size, expected",
    [
        (DRAWN, (1024, 1024), (1024, 1024)),
        (DRAWN, (512, 512), (512, 512)),
        (DRAWN, (512, 1024), (512, 1024)),
        (DRAWN, (1, 1), (512, 512)),
        (DRAWN, (5, 3), (848, 512)),  # 853.3 px = 53.3 strides
        (DRAWN, (3, 5), (512, 848)),
        (DRAWN, (256, 256), (512, 512)),
        (DRAWN, (640, 480), (688, 512)),  # 682.7, 42.7
        (DRAWN, (1920, 1080), (1024, 576)),
        (DRAWN, (4000, 3000), (1024, 768)),
        (DRAWN, (3000, 2000), (1024, 688)),
        (DRAWN, (1025, 1025), (1024, 1024)),
        (DRAWN, (1000, 1016), (992, 1024)),  # 62.5 strides to 62, 63.5 to 64
        (DRAWN, (600, 552), (608, 544)),  # 37.5 to 38, 34.5 to 34
        (DRAWN, (520, 520), (512, 512)),  # 32.5 to 32
        (DRAWN, (2048, 1041), (1024, 512)),  # 520.5 px to 520, 32.5 strides to 32
        (DRAWN, (2048, 1000), (1024, 496)),  # 1056 x 512 is too long, and the short side gives way
        (DRAWN, (4000, 100), (1024, 32)),  # 20480 x 512; above the cap: 220.5 to 220 and 5.5 to 6 strides; too long
        (DRAWN, (100, 4000), (32, 1024)),
        (DRAWN, (5000, 1), (1024, 16)),  # never below one stride
        (SEEN, (980, 980), (980, 980)),
        (SEEN, (224, 224), (224, 224)),
        (SEEN, (1, 1), (224, 224)),
        (SEEN, (100, 200), (224, 448)),
        (SEEN, (700, 231), (700, 224)),  # 16.5 to 16
        (SEEN, (245, 500), (252, 504)),  # 17.5 to 18
        (SEEN, (848, 512), (854, 518)),
        (SEEN, (1024, 1024), (980, 980)),
        (SEEN, (1024, 576), (980, 546)),
        (SEEN, (1024, 32), (980, 28)),  # 7168 x 224, below the cap and too long
        (SEEN, (32, 1024), (28, 980)),
        (SEEN, (5000, 10), (980, 14)),
        (WIDE, (1344, 1344), (1344, 1344)),  # exactly the cap
        (WIDE, (1344, 1358), (1330, 1344)),
        (WIDE, (1400, 1400), (1288, 1288)),
        (WIDE, (2000, 2000), (896, 896)),  # 2002 * 0.4507; the root of the scale would give 1344
        (WIDE, (4000, 3000), (602, 448)),
    ],
)
def test_sizes_are_those_worked_out_by_hand(numbers, size, expected):
    assert rule(*numbers).size(*size) == expected
    assert by_the_sentences(*size, *numbers) == expected


@pytest.mark.parametrize("numbers", [DRAWN, SEEN, WIDE])
@settings(max_examples=300, deadline=None)
@given(width=SIDES, height=SIDES)
def test_sizes_follow_the_sentences_in_exact_fractions(numbers, width, height):
    assert rule(*numbers).size(width, height) == by_the_sentences(width, height, *numbers)


@pytest.mark.parametrize("numbers", [DRAWN, SEEN, WIDE, (16, 1000, 500), (16, 1004, 500), (1, 3, 1), (24, 24, 12)])
@settings(max_examples=200, deadline=None)
@given(width=SIDES, height=SIDES)
def test_sides_are_strides_at_least_one_and_at_most_the_longest(numbers, width, height):
    """The longest side is itself rounded to strides: 1000 is 62.5 of 16 and becomes 992, 1004 becomes 1008."""
    stride, longest, _ = numbers
    largest = {1000: 992, 1004: 1008, 4000: 4004}.get(longest, longest)
    for side in rule(*numbers).size(width, height):
        assert side % stride == 0 and stride <= side <= largest


@given(width=SIDES, height=SIDES)
def test_turning_a_picture_turns_its_size(width, height):
    for numbers in (DRAWN, SEEN, WIDE):
        assert rule(*numbers).size(width, height) == rule(*numbers).size(height, width)[::-1]


def test_the_release_has_the_published_numbers():
    assert PIXEL_CAP == 1806336
    assert autoencoder_rule(RELEASE) == ResizeRule(stride=16, longest=1024, shortest=512, cap=1806336)
    assert vision_rule(RELEASE.vision) == ResizeRule(stride=14, longest=980, shortest=224, cap=1806336)


def test_a_larger_table_of_latents_does_not_change_the_published_numbers():
    assert autoencoder_rule(bagel(8, 2, 128)) == rule(*DRAWN)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES), downsample=st.sampled_from([1, 2, 4, 8]), latent_patch=st.sampled_from([1, 2, 3]),
    side=st.integers(1, 130), patch=st.integers(1, 20), sides=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)  # fmt: skip
def test_smaller_tables_scale_the_rules_down_so_that_every_picture_fits(size, downsample, latent_patch, side, patch, sides):
    """Rows and columns of the tables by division; both position tables of the vision encoder hold them."""
    config = bagel(downsample, latent_patch, side, eyes(patch, *sides))
    first = autoencoder_rule(config).size(*size)
    second = vision_rule(config.vision).size(*first)
    pixels = downsample * latent_patch
    assert config.grid(first[1], first[0]) == (first[1] // pixels, first[0] // pixels)
    assert config.vision.grid(second[1], second[0]) == (second[1] // patch, second[0] // patch)
    assert max(first) <= side * pixels and max(second) <= min(sides) * patch


# What the network looks at.


def noise(height, width, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cubic(x):
    """The cubic convolution kernel with a = -1/2 (Keys 1981)."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def by_the_kernel(pixels, width, height):
    """Bicubic, the kernel widened where the picture shrinks; rows first, uint8 between the passes."""
    for axis, target in ((1, width), (0, height)):
        source = pixels.shape[axis]
        scale = source / target
        centre = (np.arange(target)[:, None] + 0.5) * scale
        weights = cubic((np.arange(source)[None] + 0.5 - centre) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, np.asarray(pixels, np.float64), (1, axis)), 0, axis)
        pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return pixels


def signed(pixels):
    return (pixels / 255 - 0.5) / 0.5


@pytest.mark.parametrize("height, width", [(50, 31), (24, 24), (7, 40), (3, 2)])
def test_the_vision_encoder_sees_the_autoencoders_picture_resized_again(height, width):
    """Both by a bicubic written out here, to one level of 255; patches run row by row, inside (row, column, channel)."""
    image = noise(height, width)
    shown = picture(Image.fromarray(image), TOY)
    w, h = by_the_sentences(width, height, 8, 24, 12)
    first = by_the_kernel(image, w, h)
    assert shown.pixels.shape == (1, h, w, 3) and shown.pixels.dtype == np.float32
    np.testing.assert_allclose(shown.pixels[0], signed(first), atol=1.01 * 2 / 255)

    exact = np.asarray(shown.pixels[0] * 127.5 + 127.5).round().astype(np.uint8)
    w, h = by_the_sentences(w, h, 4, 20, 20 * 224 // 980)
    second = by_the_kernel(exact, w, h)
    assert shown.patches.shape == (1, h // 4, w // 4, 48) and shown.patches.dtype == np.float32
    for row in range(h // 4):
        for column in range(w // 4):
            patch = [second[4 * row + r, 4 * column + c, k] for r in range(4) for c in range(4) for k in range(3)]
            np.testing.assert_allclose(shown.patches[0, row, column], signed(np.array(patch)), atol=1.01 * 2 / 255)


def test_a_picture_for_the_release_has_the_sizes_worked_out_by_hand():
    """1000 x 600: 62.5 and 37.5 strides to 62 and 38; then 980 x 600.6, 42.9 patches to 43."""
    shown = picture(Image.fromarray(noise(600, 1000)), RELEASE)
    assert shown.pixels.shape == (1, 608, 992, 3) and shown.patches.shape == (1, 43, 70, 588)
    assert RELEASE.grid(608, 992) == (38, 62)


def test_values_run_from_minus_one_to_one():
    """A picture that needs no resizing: black, grey 51 and white are -1, -3/5 and 1."""
    levels = np.repeat(np.array([0, 51, 255], np.uint8), 8)
    shown = picture(Image.fromarray(np.broadcast_to(levels[:, None, None], (24, 24, 3)).copy()), TOY)
    np.testing.assert_allclose(shown.pixels[0, ::8, 0, 0], [-1, -0.6, 1], atol=1e-6)
    assert np.abs(shown.patches).max() <= 1


def test_a_model_that_only_draws_gets_no_patches():
    assert picture(Image.fromarray(noise(8, 8)), bagel(4, 2, 3)).patches is None


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_every_picture_fits_the_tables_of_a_toy(width, height):
    shown = picture(Image.new("RGB", (width, height), (255, 0, 51)), TOY)
    _, h, w, _ = shown.pixels.shape
    assert TOY.grid(h, w) == (h // 8, w // 8)
    _, rows, columns, _ = shown.patches.shape
    assert TOY.vision.grid(4 * rows, 4 * columns) == (rows, columns)
    np.testing.assert_allclose(shown.pixels[0, 0, 0], [1, -1, -0.6], atol=1e-6)
    np.testing.assert_allclose(shown.patches[0, -1, -1, -3:], [1, -1, -0.6], atol=1e-6)


# Files.


def opened(path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def on_white(color, alpha):
    return [round(255 + (c - 255) * alpha / 255) for c in color]


def test_transparent_parts_become_white_and_half_transparent_ones_mix_with_it(tmp_path):
    """Whatever colour hides under a transparent pixel."""
    red, blue = (255, 0, 0), (10, 20, 200)
    rows = [[(*red, 255), (*red, 128), (*red, 0)], [(*blue, 255), (*blue, 51), (*blue, 0)]]
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / "a.png")
    found = opened(tmp_path / "a.png")
    np.testing.assert_array_equal(found[:, 0], [red, blue])
    np.testing.assert_array_equal(found[:, 2], [[255] * 3] * 2)
    np.testing.assert_allclose(found[:, 1], [on_white(red, 128), on_white(blue, 51)], atol=1)
    assert on_white(red, 128) == [255, 127, 127]


def indexed() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 10, 30, 0, 100, 0, 7, 8, 9])
    return image


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_gives_its_colours(tmp_path, suffix):
    indexed().save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as file:
        assert file.mode == "P"
    assert opened(tmp_path / f"a.{suffix}").tolist() == [[[200, 10, 30], [0, 100, 0], [7, 8, 9]]]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palettes_transparent_entry_becomes_white(tmp_path, suffix):
    indexed().save(tmp_path / f"a.{suffix}", transparency=1)
    assert opened(tmp_path / f"a.{suffix}").tolist() == [[[200, 10, 30], [255, 255, 255], [7, 8, 9]]]


def test_a_palettes_half_transparent_entry_mixes_with_white(tmp_path):
    indexed().save(tmp_path / "a.png", transparency=bytes([255, 0, 102]))
    mixed = on_white((7, 8, 9), 102)
    np.testing.assert_allclose(opened(tmp_path / "a.png")[0], [[200, 10, 30], [255] * 3, mixed], atol=1)


def test_a_colour_that_the_file_calls_transparent_becomes_white(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "a.png", transparency=(4, 5, 6))
    assert opened(tmp_path / "a.png").tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_grey_becomes_three_equal_channels(tmp_path):
    Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").tolist() == [[[level] * 3 for level in (0, 1, 128, 255)]]


def test_grey_with_transparency_is_laid_on_white(tmp_path):
    levels, alpha = np.array([[0, 100, 100]], np.uint8), np.array([[255, 0, 51]], np.uint8)
    Image.merge("LA", [Image.fromarray(levels), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    np.testing.assert_allclose(opened(tmp_path / "a.png")[0, :, 1], [0, 255, 224], atol=1)


def test_black_and_white_of_one_bit_is_read(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0, :, 0].tolist() == [255, 0]


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped(tmp_path):
    """65535 = 257 * 255, so level 257 k is k."""
    levels = 257 * np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode.startswith("I")
    np.testing.assert_array_equal(opened(tmp_path / "a.png"), np.stack([levels // 257] * 3, axis=-1))


def test_transparent_grey_of_sixteen_bits_is_white_and_the_rest_is_scaled(tmp_path):
    levels = np.array([[0, 257 * 10, 257 * 200]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=257 * 10)
    assert opened(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 200]


@pytest.mark.parametrize("most", [255, 65535, 2**31 - 1])
def test_whole_numbers_of_32_bits_are_refused_since_no_white_is_known(tmp_path, most):
    Image.fromarray(np.array([[0, most]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match="a.tif.*32-bit whole numbers have no white that is known; save it with 8 or 16"):
        open_rgb(tmp_path / "a.tif")


def test_floating_point_grey_runs_from_zero_to_one(tmp_path):
    Image.fromarray(np.array([[0, 0.2, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    assert opened(tmp_path / "a.tif").tolist() == [[[level] * 3 for level in (0, 51, 128, 255)]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255])
def test_floating_point_grey_of_another_range_is_one_sentence(tmp_path, value):
    Image.fromarray(np.array([[0, value]], np.float32)).save(tmp_path / "a.tif")
    text = refusal(tmp_path / "a.tif")
    assert "a.tif is not a picture that can be read" in text and "from 0, black, to 1, white" in text


def test_a_printers_jpeg_has_its_colours(tmp_path):
    """Cyan, magenta, yellow and black inks are subtracted from white."""
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    colors = [(255, 255, 255), (0, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 0)]
    for ink, color in zip(inks, colors, strict=True):
        Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100)
        with Image.open(tmp_path / "a.jpg") as file:
            assert file.mode == "CMYK"
        np.testing.assert_allclose(opened(tmp_path / "a.jpg"), np.broadcast_to(color, (16, 16, 3)), atol=3)


def turned(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_picture_taken_with_the_camera_on_its_side_stands_upright(tmp_path):
    """Orientation 6: the file's first row is the right edge, its first column the top."""
    pixels = noise(2, 3)
    found = opened(turned(tmp_path / "a.png", pixels, 6))
    assert found.shape == (3, 2, 3)
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(found[column, 1 - row], pixels[row, column])


@pytest.mark.parametrize(
    "orientation, upright",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: a[::-1].swapaxes(0, 1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: a[:, ::-1].swapaxes(0, 1)),
    ],
)
def test_every_exif_orientation_is_undone(tmp_path, orientation, upright):
    """A JPEG of 2 x 3 flat squares; each is read at its middle."""
    squares = noise(2, 3, seed=1)
    found = opened(turned(tmp_path / "a.jpg", squares.repeat(16, 0).repeat(16, 1), orientation))
    np.testing.assert_allclose(found[8::16, 8::16], upright(squares), atol=25)


# Files that are no pictures.


def refusal(path) -> str:
    """The sentence: one line that ends with a dot and names the file."""
    with pytest.raises(ConfigError) as caught:
        open_rgb(path)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and str(path) in text, text
    return text


@pytest.mark.parametrize("content", [b"", b"\x00", b"this is text\nin two lines\n", b"GIF89a", b"\xff\xd8\xff"])
def test_a_file_that_holds_no_picture_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "is not a picture" in refusal(path) and "PNG or JPEG" in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_a_truncated_picture_is_one_sentence(tmp_path, suffix):
    path = turned(tmp_path / f"a.{suffix}", noise(32, 32), 6)
    whole = path.read_bytes()
    for share in range(16):
        path.write_bytes(whole[: len(whole) * share // 16])
        assert "is not a picture" in refusal(path)


def test_a_damaged_picture_is_read_or_is_one_sentence(tmp_path, monkeypatch):
    """Whatever a decoder raises or warns of; the limit is there only so that no damaged size takes long."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "tif"):
        path = turned(tmp_path / f"a.{suffix}", noise(16, 16), 6)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 300), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                opened(path)
            except ConfigError:
                assert "is not a picture" in refusal(path)


def test_a_folder_is_one_sentence(tmp_path):
    assert "is not a picture" in refusal(tmp_path)


def test_a_missing_file_is_one_sentence(tmp_path):
    assert "there is no picture" in refusal(tmp_path / "a.png")


def test_a_picture_of_absurd_size_is_one_sentence(tmp_path, monkeypatch):
    """Pillow refuses more than twice its limit."""
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "900 pixels" in refusal(tmp_path / "a.png")


def test_a_large_picture_is_read_although_pillow_warns(tmp_path, monkeypatch):
    """Between the limit and twice the limit it only warns, and a warning is an error in these tests."""
    Image.new("RGB", (15, 10), "red").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "a.png").close()
    assert opened(tmp_path / "a.png")[9, 14].tolist() == [255, 0, 0]
