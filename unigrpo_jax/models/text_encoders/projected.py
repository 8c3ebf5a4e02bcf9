"""An encoder with a frozen network of its family behind it, as one encoder: what leaves the program is the network's alone.

Gemma 3 12B says 49 states of 3840 numbers of each of 1024 tokens, 770 MB a text in float32; LTX-2's connectors make two of
them, 31 MB.  So both run in one program, a few texts at a time, and only the end of it is fetched and kept on disk:

    gemma = open_gemma(folder, dtype, tokens)
    Encoders((Projected(gemma, Connectors(...)),), dtype, rows=4)
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.text_encoders.coder import TextCoder
from unigrpo_jax.models.text_encoders.encoder import Encoder

Said = Mapping[str, jax.Array]


class Projection(Protocol):
    """A frozen network that reads what an encoder says.

    Attributes:
      files: all that decides what it says: its config.json and its weights.
    """

    files: tuple[pathlib.Path, ...]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What it says of one text, as `Encoder.shapes`."""

    def read(self, place: Place | None) -> Any:
        """Its parameters, each where `place` says (`component.read`)."""

    def __call__(self, params: Any, said: Said) -> Said:
        """What it says of B texts, from all that the encoder says of them."""


@dataclasses.dataclass(frozen=True)
class Projected:
    """An `Encoder`.

    Attributes:
      encoder: what reads texts.
      projection: what reads its states.
    """

    encoder: Encoder
    projection: Projection

    @property
    def name(self) -> str:
        """Of the encoder."""
        return self.encoder.name

    @property
    def coder(self) -> TextCoder:
        """Of the encoder."""
        return self.encoder.coder

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Of both."""
        return (*self.encoder.files, *self.projection.files)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the projection."""
        return self.projection.shapes()

    def read(self, place: Place | None) -> Any:
        """The parameters of both."""
        return self.encoder.read(place), self.projection.read(place)

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Said:
        """What the projection says."""
        of_encoder, of_projection = params
        return self.projection(of_projection, self.encoder(of_encoder, ids_BL, mask_BL))
