"""Pictures from files: opened as RGB, resized by BAGEL's rules, cut into what the network looks at.

The picture is first resized for the autoencoder; the vision encoder's version is made from that one, and an edit has its
size.
"""

import dataclasses
import pathlib
import warnings

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.bagel import latents
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig

PIXEL_CAP = 14 * 14 * 9 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would give others (EPS) to programs outside
MOST_PIXELS = 2**26  # of a file; a small one may unpack to any number


@flax.struct.dataclass
class Picture:
    """A batch of pictures of one size.

    Attributes:
      pixels: float32 [B, height, width, 3] in [-1, 1], for the autoencoder.
      patches: float32 [B, rows, columns, patch_width], for the vision encoder; None where the model has none.
    """

    pixels: jax.Array
    patches: jax.Array | None

    @property
    def levels(self) -> np.ndarray:
        """The numbers 0 to 255 that `pixels` were made of, uint8 [B, height, width, 3] on the host."""
        return np.rint((np.asarray(self.pixels) + 1) * 127.5).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeRule:
    """Sides become multiples of `stride`, the long one at most `longest`, the short one at least `shortest`.

    Attributes:
      stride: pixels.
      longest: pixels; stronger than `shortest`.
      shortest: pixels.
      cap: largest number of pixels.
    """

    stride: int
    longest: int
    shortest: int
    cap: int = PIXEL_CAP

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing.

        Rounds half to even, as the original.  Above the cap both sides are scaled by cap / pixels, not by its root: that,
        too, is what the published model was trained with.
        """
        width, height = self._scaled(width, height, max(min(self.longest / max(width, height), 1.0),
                                                        self.shortest / min(width, height)))  # fmt: skip
        if width * height > self.cap:
            width, height = self._scaled(width, height, self.cap / (width * height))
        if max(width, height) > self.longest:
            width, height = self._scaled(width, height, self.longest / max(width, height))
        return width, height

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        side = lambda n: max(self.stride, round(round(n * scale) / self.stride) * self.stride)
        return side(width), side(height)

    def resize(self, image):
        """A Pillow image resized by the rule, bicubic with antialiasing."""
        from PIL import Image

        return image.resize(self.size(*image.size), Image.Resampling.BICUBIC)


def autoencoder_rule(config: BagelConfig) -> ResizeRule:
    """The rule before the autoencoder: 16, 1024, 512 for the release; smaller tables scale it down."""
    longest = min(1024, config.max_latent_size * config.token_pixels)
    return ResizeRule(stride=config.token_pixels, longest=longest, shortest=longest // 2)


def vision_rule(config: VisionConfig) -> ResizeRule:
    """The rule before the vision encoder: 14, 980, 224 for the release; smaller tables scale it down."""
    longest = min(config.table_side, config.max_side) * config.patch
    return ResizeRule(stride=config.patch, longest=longest, shortest=longest * 224 // 980)


def open_rgb(path: pathlib.Path):
    """A file as a Pillow RGB image: turned as its EXIF says, transparency on white, the first picture of an animation.

    ConfigError where it is no picture in one of FORMATS, or a larger one than MOST_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:  # large, or odd EXIF
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it has {file.width} x {file.height} pixels, more than {MOST_PIXELS}")
            return _rgb(ImageOps.exif_transpose(file), file.format)
    except FileNotFoundError:
        raise ConfigError(f"there is no picture {path}; give an existing file.") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise ConfigError(f"{path} is not a picture that can be read ({error}); give a PNG or JPEG file.") from None


def _rgb(image, kind: str | None):
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


def picture(image, config: BagelConfig) -> Picture:
    """What the network looks at, of one Pillow RGB image; a batch of one."""
    first = autoencoder_rule(config).resize(image)
    patches = None
    if config.vision is not None:
        second = vision_rule(config.vision).resize(first)
        grid = config.vision.grid(second.height, second.width)
        tokens = latents.patchify(_signed(second), config.vision.patch)
        patches = tokens.reshape(1, *grid, config.vision.patch_width)
    return Picture(pixels=_signed(first), patches=patches)


def see_again(image_BHWC, config: BagelConfig) -> tuple[jax.Array, jax.Array | None]:
    """A drawn image, uint8 [B, H, W, 3], as the network looks at it: pixels in [-1, 1], and patches where it has an encoder.

    It keeps its size for the autoencoder; for the vision encoder it is resized inside the program, bicubic and antialiased.
    """
    pixels = latents.from_uint8(image_BHWC)
    if config.vision is None:
        return pixels, None
    batch, height, width, _ = image_BHWC.shape
    width, height = vision_rule(config.vision).size(width, height)
    seen = pixels
    if seen.shape[1:3] != (height, width):
        seen = jnp.clip(jax.image.resize(pixels, (batch, height, width, 3), "cubic"), -1.0, 1.0)
    tokens = latents.patchify(seen, config.vision.patch)
    return pixels, tokens.reshape(batch, *config.vision.grid(height, width), config.vision.patch_width)


def _signed(image) -> np.ndarray:
    return np.asarray(latents.from_uint8(np.asarray(image)[None]))
