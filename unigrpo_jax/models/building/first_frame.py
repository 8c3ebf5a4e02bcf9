"""What painters of clips share that can go on from a picture, the first frame: what they draw upon, and its verbs."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import numpy as np

from unigrpo_jax.episode import Picture
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.text_painter import TextPainter
from unigrpo_jax.models.text_encoders.states import TextStates


@flax.struct.dataclass
class VideoCondition(TextStates):
    """What a clip is drawn upon, a pytree with the batch first.

    Attributes:
      first: [B, M, C], latent tokens of the first frame, M of a frame; None where there is no picture.
    """

    first: Any = None


def upon(text: TextStates, first_BMC) -> VideoCondition:
    """A text, and the first frame or None."""
    return VideoCondition(states=text.states, pooled=text.pooled, mask=text.mask, audio=text.audio, first=first_BMC)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipPainter(TextPainter):
    """The verbs; a family says whether it `begins`, and what it makes of the first frame."""

    keeps_first: ClassVar[bool] = False

    def look_at(self, image) -> Picture:
        """A Pillow RGB image in the size that is drawn, as the autoencoder takes it; a batch of one."""
        pixels, _ = self.see_again(np.asarray(image)[None])
        return Picture(pixels=np.asarray(pixels), patches=None)

    def see_again(self, image_BHWC) -> tuple[jax.Array, None]:
        """Pictures, uint8, in [-1, 1]; nothing else looks at them."""
        return from_uint8(image_BHWC), None

    def empty(self, batch: int) -> VideoCondition:
        """No text and no picture."""
        return upon(super().empty(batch), None)

    def begun(self, condition: VideoCondition, latent_BFHWC) -> VideoCondition:
        """The condition with a picture's latents, of one frame, as the video's first."""
        return condition.replace(first=self.to_tokens(latent_BFHWC))

    def read(self, params: Params, text: TextStates, condition: VideoCondition) -> VideoCondition:
        """The text, and the picture that is there."""
        return upon(text, condition.first)

    def unread(self, params: Params, text: TextStates, condition: VideoCondition) -> VideoCondition:
        """The empty text, and the picture all the same; without an empty text the condition as it was."""
        return upon(super().unread(params, text, condition), condition.first)

    def free(self, latent, condition: VideoCondition) -> Any:
        """All of a latent: a picture is only looked at."""
        return latent

    def whole(self, tokens, condition: VideoCondition) -> Any:
        """The tokens as they are."""
        return tokens

    def check_first(self, first_BMC, rows: int, columns: int) -> None:
        """ValueError where a picture has not the size of a frame of so many tokens."""
        if first_BMC is not None and first_BMC.shape[1] != rows * columns:
            raise ValueError(f"the picture has {first_BMC.shape[1]} latent tokens, but a frame has {rows} x {columns} = "
                             f"{rows * columns}; use a picture of the video's size.")  # fmt: skip
