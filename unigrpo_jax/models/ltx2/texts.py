"""What LTX-2's connectors make of an encoder's states, as the projection behind that encoder, in one program with it."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.models.ltx2.config import read_connectors
from unigrpo_jax.models.ltx2.connectors import LTX2Connectors


@dataclasses.dataclass(frozen=True)
class ConnectedTexts:
    """The connectors of a folder; what they say is all to be seen, so that there is no mask.

    Attributes:
      network: their sizes.
      weights: their file.
      files: all that decides what they say.
      tokens: of a text, with the padding.
      dtype: of the pass.
    """

    network: LTX2Connectors
    weights: StoredTensors
    files: tuple[pathlib.Path, ...]
    tokens: int
    dtype: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What they say of one text: arrays of `TextStates` by name, and their shapes without the batch."""
        return {"states": (self.tokens, self.network.video.width), "audio": (self.tokens, self.network.audio.width)}

    def read(self, place: Place | None) -> Any:
        """The parameters."""
        return component.read(self.weights, self.network, jnp.dtype(self.dtype), place)

    def __call__(self, params: Any, said: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """What they say of B texts, from "states" [B, L, W, S] of an encoder and "mask" [B, L]."""
        out, _ = self.network(params, said["states"].astype(self.dtype), said["mask"])
        return {"states": out["video"], "audio": out["audio"]}


def open_connectors(folder: pathlib.Path, tokens: int, dtype: str) -> ConnectedTexts:
    """The connectors in a folder, for texts of so many tokens; only headers of weights are read.

    Raises:
      ValueError: a file is missing or does not fit, or the tokens do not divide over the registers.
    """
    network = read_connectors(folder / "config.json")
    for connector in (network.video, network.audio):
        if connector.registers is not None and tokens % connector.registers:
            near = -(-tokens // connector.registers) * connector.registers
            raise ValueError(f"{folder / 'config.json'}: {connector.registers} registers do not fill texts of {tokens} "
                             f"tokens; pad them to {near}.")  # fmt: skip
    weights = component.open_weights(folder, component.DIFFUSERS, network)
    return ConnectedTexts(network, weights, (folder / "config.json", *weights.files), tokens, dtype)
