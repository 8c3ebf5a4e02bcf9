"""What the house may ask of a generator, whatever its family: the verbs of a painter, and those of a thinker in addition.

Rollout, learning, training and planning are written against these words alone; a family is found by `models.families`.
Every verb is a pure function of `params`.  A *condition* is whatever a family draws upon, a pytree that knows to repeat its
samples: a key-value cache, or the states of a text.  A *text* is what a codec makes of prompts, a pytree, the batch first.
A latent is a pytree of modalities, tokens [B, N, C] each; an image is the case of one array.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from unigrpo_jax.config import LoraConfig, RunConfig
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.episode import Picture
from unigrpo_jax.models.building.guidance import Guiding
from unigrpo_jax.models.paths import Path, Prediction
from unigrpo_jax.models.work import Work

Params = Mapping[str, Any]
Latent = Any


class Condition(Protocol):
    """What a drawing is conditioned on, of B samples."""

    def repeat(self, times: int) -> "Condition":
        """Every sample `times` times in a row."""


class Painter(Protocol):
    """A network that draws by denoising; frozen and hashable, so that it can be static in a jitted program.

    Attributes:
      path: between noise and data.
      prediction: what `predict` says of a latent on it.
      dtype: compute dtype, "float32" or "bfloat16".
      hold: applied to activations with the batch first, to hold them to their place on a mesh; None leaves them free.
      attend: the attention, with the signature of `building.attention.xla`.
      axes: (pattern, names): which axis of which parameter is what, for `parallel.rules`; the first pattern that matches a
        path whole counts.
      thinks: whether it is a thinker.
      begins: whether it is an animator.
      needs_picture: whether a picture must come with each prompt: an animator that does nothing else.
      trained_by: {group: pattern}: which parameter is trained at which rate, "reasoning" or "denoising", and which is
        "frozen", never trained; each parameter's path matches exactly one of them whole.
      two_times: whether it is told where a velocity is to arrive, so that it says average ones (`building.second_time`).
      one_time: the same network, which is never told that and reads no parameters of it.
      further_passes: whether it is guided by more passes than that without the text, and has the verb `guided_by`.
      guidance_renorm: what holds a guided output's norm to the conditional one's where a run does not say, as
        `building.guidance.Guidance.renorm`.
      float32_paths: pattern of the parameters that stay float32 whatever `dtype` is.
    """

    path: Path
    prediction: Prediction
    dtype: str
    hold: Callable[[jax.Array], jax.Array] | None
    attend: Callable[..., jax.Array]
    axes: tuple[tuple[str, tuple[str | None, ...]], ...]
    thinks: bool
    begins: bool
    needs_picture: bool
    trained_by: Mapping[str, str]
    two_times: bool
    one_time: "Painter"
    further_passes: bool
    guidance_renorm: str
    float32_paths: str

    def cuts(self) -> Mapping[str, Mapping[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}.

        The axis `sequence` is named, with nothing that it must divide, by a network whose tokens can be cut over devices
        (`building.token_cut`); the parameters are cut over `fsdp` and `sequence` alike.
        """

    def work(self, run: RunConfig, system: int, pictures: bool = False, turns: bool = False) -> Work:
        """What the episodes of a run cost; `models.work` says of what."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32."""

    def empty(self, batch: int) -> Condition:
        """The condition of B samples that have read nothing."""

    def read(self, params: Params, text, condition: Condition) -> Condition:
        """The condition after a text."""

    def unread(self, params: Params, text, condition: Condition) -> Condition:
        """What guidance compares `read` with: the condition without this text."""

    def times(self, steps: int, shift: float, grid: tuple[float, ...]) -> np.ndarray:
        """A sampler's times from the noise to the data, float32 [steps + 1]; a `shift` of 0 is the family's own.

        ValueError, in one sentence, where there is no such schedule.
        """

    def predict(
        self, params: Params, x: Latent, t_B: jax.Array, grid: tuple[float, ...], condition: Condition,
        to_B: jax.Array | None = None,
    ) -> Latent:  # fmt: skip
        """The network's output, float32 like x, of a latent at time t upon a condition, which stays as it is.

        Where there are `two_times`, `to_B` is that of arrival, in [0, t]: the output is the average velocity on the way.
        None leaves the second time out, and needs no parameters of it; a network with one time takes nothing else.
        """

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> tuple[float, ...]:
        """Latent tokens (rows, columns) of an image, (frames, rows, columns) where a family draws clips.

        Where it draws their sound, too, latents of that and frames per second follow, on which alone it depends.
        ValueError, in one sentence, where it cannot be drawn.
        """

    def latent_shape(self, grid: tuple[float, ...]) -> Any:
        """Shape (N, C) of each modality of one sample's whole latent."""

    def to_tokens(self, latent_BHWC: Latent) -> Latent:
        """Latents as tokens [B, N, C]; of a clip they are [B, frames, h, w, channels], of sound tokens themselves."""

    def to_latent(self, tokens_BNC: Latent, grid: tuple[float, ...]) -> Latent:
        """Tokens as latents, [B, h, w, channels] or of a clip [B, frames, h, w, channels], for the autoencoder."""

    def in_int8(self, params: Params) -> Params:
        """The parameters to sample with in int8: weights of the blocks' products with tokens are held so (`building.int8`).

        Every verb takes them.  Norms, embeddings, heads, times and what they modulate, convolutions, attention's own
        products and adapters stay as they are.
        """

    def guided_by(self, text: float, interval: tuple[float, float], passes: PassesConfig) -> Guiding:
        """A guidance of several passes, where there are `further_passes`.

        Args:
          text: scale of the text, at least 1.
          interval: it acts where interval[0] < t <= interval[1].
          passes: the other scales.

        Raises:
          ValueError: in one sentence, where the network has not what one of them needs.
        """

    def adapted(self, params: Params, lora: LoraConfig, key: jax.Array) -> Params:
        """The parameters with fresh adapters; ValueError where a target hits nothing."""

    def with_second_time(self, params: Params, key: jax.Array) -> Params:
        """The parameters with a fresh embedder of the second time, where there are `two_times`: at first it says nothing."""


class Animator(Painter, Protocol):
    """A painter that goes on from a picture, the first frame of what it draws, where one comes with each prompt.

    Attributes:
      keeps_first: whether the first frame is the picture itself, of which nothing is drawn: no noise, no action.
    """

    keeps_first: bool

    def begun(self, condition: Condition, latent_BFHWC: jax.Array) -> Condition:
        """The condition with a picture's latents, of one frame."""

    def free(self, latent: Latent, condition: Condition) -> Latent:
        """Of tokens of a whole latent those that are drawn upon a condition: all, or all but the first frame's."""

    def whole(self, tokens: Latent, condition: Condition) -> Latent:
        """The inverse: the tokens that were drawn, with those that the condition gives."""

    def see_again(self, image_BHWC) -> tuple[jax.Array, None]:
        """Pictures, uint8, in [-1, 1]; nothing else looks at them."""

    def look_at(self, image) -> Picture:
        """What it goes on from, of one Pillow RGB image in the size that is drawn; a batch of one."""


class Thinker(Painter, Protocol):
    """A painter that reads and writes tokens, too; its conditions are `building.context.Context`.

    Attributes:
      config: sizes and special tokens.
      sees: whether it has an encoder through which pictures are understood, beside the latents upon which they are edited.
    """

    config: Any
    sees: bool

    def cut(self, params: Params) -> tuple["Thinker", Params]:
        """The same network and parameters, laid out for decoding."""

    def prefill(self, params: Params, tokens_BL, valid_BL, context) -> tuple[jax.Array, Any]:
        """Hidden states [B, L, D] of a text block, and the block."""

    def decode(self, params: Params, token_B, valid_B, context) -> tuple[jax.Array, Any]:
        """Logits [B, V] of the next token, and the block of this one."""

    def text_logits(self, params: Params, hidden) -> jax.Array:
        """Hidden [..., D] to float32 logits [..., V]."""

    def see_again(self, image_BHWC) -> tuple[jax.Array, jax.Array | None]:
        """A drawn image, uint8, as it looks at it: pixels in [-1, 1], and patches where it has an encoder."""

    def look_at(self, image) -> Picture:
        """What it looks at, of one Pillow RGB image, resized as it takes it; a batch of one."""

    def see_latents(self, params: Params, x_BNC, grid: tuple[int, int], context):
        """The block of an image's clean latent tokens."""

    def see_patches(self, params: Params, patches_BNP, grid: tuple[int, int], context):
        """The block of an image's patches."""
