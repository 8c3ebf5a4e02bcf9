"""Pictures from files: opened as RGB, resized by BAGEL's rules, cut into what the network looks at.

The picture is first resized for the autoencoder; the vision encoder's version is made from that one, and an edit has its
size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.episode import Picture
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.building.patches import patchify

PIXEL_CAP = 14 * 14 * 9 * 1024


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


def picture(image, config: BagelConfig) -> Picture:
    """What the network looks at, of one Pillow RGB image; a batch of one."""
    first = autoencoder_rule(config).resize(image)
    patches = None
    if config.vision is not None:
        second = vision_rule(config.vision).resize(first)
        grid = config.vision.grid(second.height, second.width)
        tokens = patchify(_signed(second), config.vision.patch)
        patches = tokens.reshape(1, *grid, config.vision.patch_width)
    return Picture(pixels=_signed(first), patches=patches)


def see_again(image_BHWC, config: BagelConfig) -> tuple[jax.Array, jax.Array | None]:
    """A drawn image, uint8 [B, H, W, 3], as the network looks at it: pixels in [-1, 1], and patches where it has an encoder.

    It keeps its size for the autoencoder; for the vision encoder it is resized inside the program, bicubic and antialiased.
    """
    pixels = from_uint8(image_BHWC)
    if config.vision is None:
        return pixels, None
    batch, height, width, _ = image_BHWC.shape
    width, height = vision_rule(config.vision).size(width, height)
    seen = pixels
    if seen.shape[1:3] != (height, width):
        seen = jnp.clip(jax.image.resize(pixels, (batch, height, width, 3), "cubic"), -1.0, 1.0)
    tokens = patchify(seen, config.vision.patch)
    return pixels, tokens.reshape(batch, *config.vision.grid(height, width), config.vision.patch_width)


def _signed(image) -> np.ndarray:
    return np.asarray(from_uint8(np.asarray(image)[None]))
