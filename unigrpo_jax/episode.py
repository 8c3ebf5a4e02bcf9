"""The decision process as data: what a rollout writes and an update reads.

An episode is a prompt, with a picture before it where the user shows one, and a list of segments on one growing context:
thinking (tokens are the actions), then drawing (denoising transitions are the actions); in each later round first a look at
the image drawn before, and the user's next words where there are any.  Arrays have the batch of episodes B first; the
episodes of a prompt's group stand next to each other.
"""

from typing import Any

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class TokenBlock:
    """Text blocks, padded to one length.

    Attributes:
      tokens: int32 [B, L].
      valid: bool [B, L], False on padding.
    """

    tokens: jax.Array
    valid: jax.Array


@flax.struct.dataclass
class Picture:
    """A batch of pictures of one size, as they come with prompts.

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


@flax.struct.dataclass
class Thinking:
    """Sampled text.

    Attributes:
      tokens: int32 [B, M], the actions; the last one of a chain is the stop token unless the chain was truncated.
      mask: bool [B, M], where an action was taken.
      log_probs: float32 [B, M], of the actions at sampling time, under softmax(logits / temperature); 0 elsewhere.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array


@flax.struct.dataclass
class Drawing:
    """What was drawn: the stochastic transitions of the window, and what came out.

    A latent is a pytree of modalities {name: [B, N, C]}; an image's is the array itself.  Tokens of a first frame that
    a clip keeps are none of them: nothing was drawn there.

    Attributes:
      steps: int32 [B, W], indices of the window's transitions in the schedule.
      x: float32 [B, W, N, C], the latent before each of them.
      noise: float32 [B, W, N, C], the eps that was drawn.
      mean: float32 [B, W, N, C], the transition's mean at sampling time.
      latent: float32 [B, N, C], the clean latent tokens that the media were decoded from.
      media: {name: array}: "image", uint8 [B, height, width, 3], or "video", uint8 [B, F, height, width, 3]; with "audio",
        float32 [B, samples, channels] in [-1, 1], where sound was made, too.
      finite: bool [B], whether everything on the way to the media was a finite number, its episode's thinking included.
      times: float32 [B, W], where `x` lies; None for the schedule's times at `steps`.  Set, there are no transitions, only
        noisy versions of a picture that is given.
    """

    steps: jax.Array
    x: Any
    noise: Any
    mean: Any
    latent: Any
    media: dict[str, jax.Array]
    finite: jax.Array
    times: jax.Array | None = None

    @property
    def image(self) -> jax.Array:
        """The images, uint8 [B, height, width, 3]."""
        return self.media["image"]

    @property
    def seen(self) -> jax.Array:
        """What is looked at: the images, or the clips, uint8 [B, F, height, width, 3], where those were drawn."""
        return self.media["video" if "video" in self.media else "image"]


@flax.struct.dataclass
class Look:
    """An image as it was read into the context; its numbers are the world's, and no gradient goes through them.

    Attributes:
      latent: float32 [B, rows, columns, C], clean latent tokens; of a clip's first frame the autoencoder's latents,
        [B, 1, rows, columns, channels].
      patches: float32 [B, rows, columns, P], for the vision encoder; None where the model has none.
    """

    latent: jax.Array
    patches: jax.Array | None


Segment = Thinking | Drawing | Look | TokenBlock


@flax.struct.dataclass
class Episodes:
    """A batch of finished episodes.

    Attributes:
      prompt: the text that was read first, or right after the picture: a `TokenBlock`, or what a painter reads.
      segments: what was done, seen (`Look`) and heard (`TokenBlock`) then, in order.
      goals: what a differentiable reward asks of each image, arrays [B, ...]; None where none is followed.
      picture: what was seen before the prompt; None where nothing was.
      fps: frames per second of the clips; None where images were drawn.
      rate: samples per second of their sound; None where there is none.
    """

    prompt: Any
    segments: tuple[Segment, ...]
    goals: Any = None
    picture: Look | None = None
    fps: float | None = flax.struct.field(pytree_node=False, default=None)
    rate: float | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def thinking(self) -> Thinking | None:
        """The last thinking segment, or None."""
        return next((s for s in reversed(self.segments) if isinstance(s, Thinking)), None)

    @property
    def drawing(self) -> Drawing:
        """The last drawing segment, whose image is judged."""
        return self.drawings[-1]

    @property
    def thinkings(self) -> tuple[Thinking | None, ...]:
        """The thinking of each round; None where it drew without."""
        out: list[Thinking | None] = [None]
        for segment in self.segments:
            if isinstance(segment, Thinking):
                out[-1] = segment
            elif isinstance(segment, Drawing):
                out.append(None)
        return tuple(out[:-1])

    @property
    def judged(self) -> "Episodes":
        """What is judged of it: the thinkings, and the media of the drawings with whether they are finite."""
        parts = (s for s in self.segments if isinstance(s, Thinking | Drawing))
        unseen = dict.fromkeys(("steps", "x", "noise", "mean", "latent", "times"))
        light = tuple(s.replace(**unseen) if isinstance(s, Drawing) else s for s in parts)
        return self.replace(prompt=None, segments=light, goals=None, picture=None)

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """The drawing of each round."""
        return tuple(s for s in self.segments if isinstance(s, Drawing))
