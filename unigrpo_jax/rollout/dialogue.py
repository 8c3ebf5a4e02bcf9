"""What a model has read so far, and the two shortened versions of it that guidance compares with.

    full             everything: system prompt, images, texts, thinking
    without_text     without the last text and all that came after it
    without_images   system prompt and texts; no images, no thinking

A block is read upon each version that it belongs to; where two versions are still the same, it is read once.
"""

import flax.struct
import jax.numpy as jnp

from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.verbs import Condition, Painter, Thinker


@flax.struct.dataclass
class Dialogue:
    """Three conditions of B samples.

    Attributes:
      full: what thinking and drawing are conditioned on.
      without_text: for text guidance.
      without_images: for image guidance.
    """

    full: Condition
    without_text: Condition
    without_images: Condition

    def repeat(self, times: int) -> "Dialogue":
        """Every sample `times` times in a row."""
        return Dialogue(*(c.repeat(times) for c in (self.full, self.without_text, self.without_images)))


def begin(model: Painter | Thinker, params, system: tuple[int, ...], batch: int) -> Dialogue:
    """A dialogue of `batch` samples that has read the system prompt's block of tokens, or nothing where it is empty."""
    context = model.empty(batch)
    if system:
        tokens = jnp.array([system], jnp.int32)
        _, block = model.prefill(params, tokens, jnp.ones(tokens.shape, bool), model.empty(1))
        context = block.repeat(batch)
    return Dialogue(full=context, without_text=context, without_images=context)


def hear(model: Painter, params, dialogue: Dialogue, text) -> Dialogue:
    """Reads the texts of B samples."""
    read = lambda condition: model.read(params, text, condition)
    full, without = read(dialogue.full), model.unread(params, text, dialogue.full)
    same = dialogue.without_images is dialogue.full
    return Dialogue(full=full, without_text=without, without_images=full if same else read(dialogue.without_images))


def look(model: Painter | Thinker, params, dialogue: Dialogue, latent=None, patches=None) -> Dialogue:
    """Reads an image, as `read_image` does."""
    full = read_image(model, params, dialogue.full, latent, patches)
    return dialogue.replace(full=full, without_text=full)


def read_image(model: Painter | Thinker, params, context: Condition, latent=None, patches=None) -> Condition:
    """The context after an image: its clean latents, then its patches, each where given; or its latents as the first frame.

    Args:
      model: the network.
      params: its parameters.
      context: what was read before.
      latent: latent tokens [B, *grid, C], for a model that is to draw upon the image; the autoencoder's latents of it
        [B, 1, rows, columns, channels], for one that goes on from it; or None.
      patches: patches [B, rows, columns, P], where the model has a vision encoder; or None.
    """
    if model.begins:
        return model.begun(context, latent)
    for tokens, see in ((latent, model.see_latents), (patches, model.see_patches)):
        if tokens is not None:
            batch, *grid, width = tokens.shape
            block = see(params, tokens.reshape(batch, -1, width), tuple(grid), context)
            context = contexts.extend(context, block)
    return context
