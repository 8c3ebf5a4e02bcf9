"""Pictures as CLIP's image tower sees them: resized as Pillow does (bicubic, antialiased), made square, normalised.

In JAX, so that pixels stay on the devices and a score has a gradient.
"""

import dataclasses
import json
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, require

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # Pillow's number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRule:
    """How a picture becomes a normalised square.

    Attributes:
      side: of the square in pixels.
      edge: length that the short edge gets before the square is cut out of the middle; not below `side`.
      mean: of each colour, in [0, 1].
      std: of each colour.
      fit: "crop" cuts the middle out; "pad" shrinks or grows the long edge to `side` instead and lays black around.
    """

    side: int
    edge: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""
        if self.fit == "pad":
            return round(height * (self.side / max(height, width))), round(width * (self.side / max(height, width)))
        long = int(self.edge * max(height, width) / min(height, width))
        return (self.edge, long) if height <= width else (long, self.edge)


def pixel_values(images_BHWC: jax.Array, rule: ImageRule) -> jax.Array:
    """Normalised squares [B, side, side, 3].

    Args:
      images_BHWC: uint8, which is rounded to whole numbers where Pillow does; or floats in the same range, 0 to 255, which
        are not, so that gradients pass.
      rule: sizes and colours.

    Returns:
      float32 for uint8, else the dtype of the images.
    """
    whole = images_BHWC.dtype == jnp.uint8
    x = images_BHWC.astype(jnp.float32) if whole else images_BHWC
    for axis, size in zip((2, 1), reversed(rule.size(*x.shape[1:3])), strict=True):  # Pillow resizes along rows first
        if x.shape[axis] != size:
            x = jax.image.resize(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]), "cubic", antialias=True)
            x = jnp.clip(jnp.floor(x + 0.5) if whole else x, 0, 255)
    height, width = x.shape[1:3]
    top, left = abs(height - rule.side) // 2, abs(width - rule.side) // 2
    if rule.fit == "crop":
        x = x[:, top : top + rule.side, left : left + rule.side]
    else:
        around = (0, 0), (top, rule.side - height - top), (left, rule.side - width - left), (0, 0)
        x = jnp.pad(x, around)
    colours = lambda values: np.asarray(values, x.dtype)[None, None, None]
    return (x / 255 - colours(rule.mean)) / colours(rule.std)


def read_rule(folder: pathlib.Path, side: int) -> ImageRule:
    """The rule of preprocessor_config.json, or CLIP's own where a folder has none.

    Args:
      folder: a model's.
      side: of the images that the model takes.

    Raises:
      ConfigError: the file asks for something that is not done here, or for another side.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return ImageRule(side=side, edge=side)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error}); copy it again, or delete it for CLIP's own.") from None
    require(isinstance(data, dict), f"{path} is not a mapping of settings; copy it again, or delete it for CLIP's own.")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        require(data.get(name, True) is True, f"{path}: {name} = {data[name] if name in data else None}, but pictures are "
                "always resized, cropped, scaled to [0, 1] and normalised here; copy the file of a CLIP.")  # fmt: skip
    resample = data.get("resample", BICUBIC)
    require(resample == BICUBIC, f"{path}: resample = {resample}, but only {BICUBIC}, bicubic, is known here.")
    size, crop = data.get("size", side), data.get("crop_size", side)
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    require(isinstance(edge, int) and edge >= side, f"{path}: size = {size}, but it must be the shortest edge's length, at "
            f"least the model's image_size = {side}.")  # fmt: skip
    square = crop in (side, {"height": side, "width": side})
    require(square, f"{path}: crop_size = {crop}, but the model's image_size in config.json is {side}.")
    mean, std = (data.get(name, default) for name, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    for name, values in (("image_mean", mean), ("image_std", std)):
        numbers = isinstance(values, list | tuple) and all(isinstance(x, int | float) for x in values)
        require(numbers and len(values) == 3, f"{path}: {name} = {values}, but it must be three numbers.")
    require(min(std) > 0, f"{path}: image_std = {std}, but it must be above 0.")
    return ImageRule(side=side, edge=edge, mean=tuple(mean), std=tuple(std))
