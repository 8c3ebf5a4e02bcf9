"""Pictures that come with prompts: read, resized as the model takes them, and held to the size that a run draws.

An edit has its picture's size, and a program has one size: so all pictures of a run have that of its images.  A first frame
that a clip goes on from may have any size.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unigrpo_jax.config import RolloutConfig, require
from unigrpo_jax.episode import Picture
from unigrpo_jax.models.verbs import Painter, Thinker
from unigrpo_jax.picture_files import fit
from unigrpo_jax.worlds.prompt import Prompt, pictured

CHECKED = 64  # pictures of a source that are read before a run, to see their size


def given_pictures(
    prompts: Sequence[Prompt], model: Painter | Thinker, rollout: RolloutConfig, others: bool | None = None
) -> Picture | None:
    """The pictures of P prompts as the network looks at them, arrays of the host; None where the prompts show none.

    Args:
      prompts: at least one.
      model: the network, which looks at them or goes on from them.
      rollout: the size of the images.
      others: as in `pictured`.

    Raises:
      ConfigError: some prompts show a picture and some do not, one cannot be read, it has not the run's size, or there must
        be one and is none.
    """
    if not pictured(prompts, others):
        require(not model.needs_picture, "the model goes on from a picture, the first frame of what it draws, but the "
                                         'prompts come with none; give each an "image".')  # fmt: skip
        return None
    require(model.thinks or model.begins, "the prompts come with pictures, but the model only draws and sees none; take "
                                          "them out, or use a model that sees.")  # fmt: skip
    each = [_given(prompt, model, rollout) for prompt in prompts]
    return jax.tree.map(lambda *x: np.concatenate(x), *each)


def _given(prompt: Prompt, model: Painter | Thinker, rollout: RolloutConfig) -> Picture:
    pixels = np.asarray(prompt.picture())
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"a prompt's picture is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if model.begins:
        return first_frame(Image.fromarray(pixels), model, rollout)
    found = model.look_at(Image.fromarray(pixels))
    size, wanted = found.pixels.shape[1:3], (rollout.image_height, rollout.image_width)
    words = lambda size: f"{size[0]} x {size[1]}"
    resized = "" if size == pixels.shape[:2] else f", {words(size)} as the model takes it"
    require(
        size == wanted,
        f"the picture of {prompt.named} has {words(pixels.shape)} pixels (height x width){resized}, and the run draws "
        f"{words(wanted)}; an edit has its picture's size, so give all prompts pictures of {words(wanted)}, or use "
        f"rollout.image_height = {size[0]} and rollout.image_width = {size[1]}.",
    )
    return found


def first_frame(image, model: Painter, rollout: RolloutConfig) -> Picture:
    """A Pillow RGB image of any size as what a model goes on from: scaled to fill the frame, and cut out of its middle.

    ConfigError where it would be all that there is to see.
    """
    _check_more_is_drawn(model, rollout)
    return model.look_at(Image.fromarray(fit(image, rollout.image_height, rollout.image_width)))


def _check_more_is_drawn(model: Painter | Thinker, rollout: RolloutConfig) -> None:
    kept = model.begins and model.keeps_first
    require(rollout.frames > 1 or not kept, "the picture is the first frame of what is drawn, and rollout.frames = 1 leaves "
            "nothing else to draw; use --rollout.frames 9 (in experiments.generate --frames 9), or leave out the "
            "picture.")  # fmt: skip


def check_pictures(sources: Iterable[Sequence[Prompt]], model: Painter | Thinker, rollout: RolloutConfig) -> None:
    """What `given_pictures` would say of prompts of each source; reads the pictures of the first `CHECKED`."""
    shows: bool | None = None
    for prompts in sources:
        shows = pictured(prompts, shows)
        for prompt in itertools.islice(prompts, CHECKED if shows else 0):
            given_pictures([prompt], model, rollout)


def picture_shapes(prompts: int, model: Painter | Thinker, rollout: RolloutConfig) -> Picture:
    """Shapes and dtypes of the pictures of this many prompts; ConfigError where the model makes nothing of them."""
    require(model.thinks or model.begins, "the prompts come with pictures, but the model only draws and sees none; leave "
                                          "them out.")  # fmt: skip
    _check_more_is_drawn(model, rollout)
    images = jax.ShapeDtypeStruct((prompts, rollout.image_height, rollout.image_width, 3), jnp.uint8)
    return jax.eval_shape(lambda x: Picture(*model.see_again(x)), images)
