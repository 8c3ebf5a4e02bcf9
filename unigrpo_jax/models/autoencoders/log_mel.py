"""From sound to log-mel spectrograms, as LTX-2's own program makes what its autoencoder is given (its AudioProcessor).

Frame t is the window of samples around sample t * hop, weighted by a Hann window; beyond the sound it is mirrored.  Of its
spectrum the magnitudes are summed in triangles whose corners lie at equal steps on Slaney's mel scale, from 0 to half the
rate, each triangle of area 1; their logarithm is what comes out, none below log(1e-5).
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

FLOOR = 1e-5
# Slaney's scale: linear up to 1000 Hz, a mel every 200 / 3 Hz, and above 27 mels for a factor of 6.4.
_HZ_PER_MEL, _LINEAR_HZ, _LOG_STEP = 200.0 / 3, 1000.0, math.log(6.4) / 27


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
    """The map from sound to spectrograms.

    Attributes:
      rate: samples per second.
      hop: samples from one frame to the next.
      bins: triangles.
      window: samples of a frame.
    """

    rate: int = 16000
    hop: int = 160
    bins: int = 64
    window: int = 1024

    def __call__(self, sound_BSC):
        """Spectrograms [B, 1 + S // hop, bins, C] of sound in [-1, 1]; ValueError where it is shorter than half a window."""
        samples, half = sound_BSC.shape[1], self.window // 2
        if samples <= half:
            raise ValueError(f"a sound of {samples} samples is too short for windows of {self.window}, which are mirrored "
                             f"at its ends; it needs more than {half}.")  # fmt: skip
        mirrored = jnp.pad(sound_BSC, ((0, 0), (half, half), (0, 0)), mode="reflect")
        places = self.hop * np.arange(1 + samples // self.hop)[:, None] + np.arange(self.window)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        seen = mirrored[:, places] * hann.astype(np.float32)[None, None, :, None]
        magnitude = jnp.abs(jnp.fft.rfft(seen, axis=2))
        mel = jnp.einsum("btfc,fm->btmc", magnitude, triangles(self.rate, self.bins, self.window))
        return jnp.log(jnp.maximum(mel, FLOOR))


@functools.cache
def triangles(rate: int, bins: int, window: int) -> np.ndarray:
    """float32 [window // 2 + 1, bins]: how much each frequency of a spectrum counts in each bin."""
    hertz = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    corners = _hertz(np.linspace(0, _mels(rate / 2), bins + 2))
    low, top, high = corners[:-2], corners[1:-1], corners[2:]
    height = np.minimum((hertz - low) / (top - low), (high - hertz) / (high - top))
    return (np.maximum(height, 0) * 2 / (high - low)).astype(np.float32)


def _mels(hertz: float) -> float:
    if hertz < _LINEAR_HZ:
        return hertz / _HZ_PER_MEL
    return _LINEAR_HZ / _HZ_PER_MEL + math.log(hertz / _LINEAR_HZ) / _LOG_STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    above = _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_HZ / _HZ_PER_MEL))
    return np.where(mels < _LINEAR_HZ / _HZ_PER_MEL, mels * _HZ_PER_MEL, above)
