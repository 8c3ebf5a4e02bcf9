"""Pictures from files, opened as RGB whatever they hold."""

import contextlib
import pathlib
import warnings

import numpy as np

from unigrpo_jax.config import ConfigError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would give others (EPS) to programs outside
MOST_PIXELS = 2**26  # of a file; a small one may unpack to any number


def open_rgb(path: pathlib.Path):
    """A file as a Pillow RGB image: turned as its EXIF says, transparency on white, the first picture of an animation.

    ConfigError where it is no picture in one of FORMATS, or a larger one than MOST_PIXELS.
    """
    from PIL import ImageOps

    with _opened(path) as file:
        return rgb(ImageOps.exif_transpose(file), file.format)


def check_picture(path: pathlib.Path) -> None:
    """ConfigError where the head of a file, which alone is read, is not that of a picture that `open_rgb` takes."""
    with _opened(path):
        pass


def fit(image, height: int, width: int) -> np.ndarray:
    """A Pillow RGB image as uint8 [height, width, 3]: what fills that size when it is scaled, cut out of its middle.

    A picture of that size keeps every bit.
    """
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


@contextlib.contextmanager
def _opened(path: pathlib.Path):
    """The file as Pillow opens it, its pixels not yet read; whatever is raised inside becomes a ConfigError."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:  # large, or odd EXIF
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it has {file.width} x {file.height} pixels, more than {MOST_PIXELS}")
            yield file
    except FileNotFoundError:
        raise ConfigError(f"there is no picture {path}; give an existing file.") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise ConfigError(f"{path} is not a picture that can be read ({error}); give a PNG or JPEG file.") from None


def rgb(image, kind: str | None):
    """A Pillow image of a format as RGB, transparency on white; ValueError where its numbers have no black and white."""
    from PIL import Image

    if image.mode == "I" and kind != "PNG":  # older versions of Pillow open a PNG of 16 bits so
        raise ValueError("its 32-bit whole numbers have no white that is known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        values = np.asarray(image, np.float64)
        grey = Image.fromarray((np.clip(values / 65535, 0, 1) * 255).astype(np.uint8))
        if "transparency" in image.info:
            grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
        image = grey
    elif image.mode == "F":  # floating-point grey, which Pillow would cut to whole levels; it has no range of its own
        values = np.asarray(image, np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("its floating-point values must be from 0, black, to 1, white")
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
