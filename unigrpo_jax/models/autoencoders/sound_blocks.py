"""Sounds as cosine transforms of their blocks, and back: the autoencoder of sounds that learns nothing and loses nothing.

A block of N samples of each channel becomes N numbers by the orthonormal cosine transform of the second kind,

    X_k = sqrt(2 / N) c_k sum_n x_n cos(pi k (n + 1/2) / N),    c_0 = 1 / sqrt(2), else 1,

so that a tone of k half cycles a block with that phase is one number, a click is many, and noise stays noise of the same
size.  A latent is one block: number c N + k for channel c and frequency k.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockAutoencoder:
    """The transform, with the verbs of a learned autoencoder and empty parameters.

    Attributes:
      block: samples of a latent.
      sides: channels of sound, 2 for stereo.
    """

    block: int
    sides: int = 2

    @property
    def numbers(self) -> int:
        """Of a latent."""
        return self.block * self.sides

    def latents(self, samples: int) -> int:
        """How many latents a sound of so many samples has; ValueError where they are no whole blocks."""
        if samples % self.block or samples < 1:
            low = samples // self.block * self.block
            raise ValueError(f"a sound of {samples} samples has no latents, which are {self.block} samples each; use "
                             f"{f'{low} or ' if low > 0 else ''}{max(low, 0) + self.block} samples.")  # fmt: skip
        return samples // self.block

    def encode(self, params, sound_BSC, keys_B: jax.Array | None = None):
        """Latents, float32 [B, L, numbers], of sounds [B, L `block`, sides]; there is nothing to sample."""
        del params, keys_B
        count, samples, sides = sound_BSC.shape
        if sides != self.sides:
            raise ValueError(f"sounds [B, S, {self.sides}] have latents, not {list(sound_BSC.shape)}")
        blocks = jnp.asarray(sound_BSC, jnp.float32).reshape(count, self.latents(samples), self.block, sides)
        parts = jnp.einsum("kn,blnc->blck", _cosines(self.block), blocks, precision="highest")
        return parts.reshape(count, -1, self.numbers)

    def decode(self, params, latent_BLN):
        """Sounds, float32 [B, L `block`, sides], of latents [B, L, numbers]; not clipped."""
        del params
        count, length, numbers = latent_BLN.shape
        if numbers != self.numbers:
            raise ValueError(f"latents [B, L, {self.numbers}] have sounds, not {list(latent_BLN.shape)}")
        parts = jnp.asarray(latent_BLN, jnp.float32).reshape(count, length, self.sides, self.block)
        blocks = jnp.einsum("kn,blck->blnc", _cosines(self.block), parts, precision="highest")
        return blocks.reshape(count, length * self.block, self.sides)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """No parameters."""
        return {}


def _cosines(block: int) -> np.ndarray:
    """The orthonormal transform, float32 [block, block]: frequencies, samples."""
    k, n = np.indices((block, block))
    size = np.where(k == 0, np.sqrt(1 / block), np.sqrt(2 / block))
    return (size * np.cos(np.pi * k * (n + 0.5) / block)).astype(np.float32)
