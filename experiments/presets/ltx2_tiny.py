"""Every part of LTX-2 at toy size with random weights: clips that are drawn with their sound, in seconds, on a CPU.

    python -m experiments.run ltx2_tiny

Seen on one CPU core: 51 s, an iteration in 0.4 s.

Clips of 9 frames of 32 pixels, judged frame by frame by a reward of images (colourfulness), which asks for nothing sensible
and hears nothing; a reward of one's own finds the sound in `batch.audio` and its samples per second in `batch.rate`.
"""

import dataclasses

from experiments.presets import hunyuan_tiny
from unigrpo_jax.config import RunConfig


def config() -> RunConfig:
    """`hunyuan_tiny`'s sizes with the toy of LTX-2."""
    full = hunyuan_tiny.config()
    return dataclasses.replace(
        full, name="ltx2_tiny", model=dataclasses.replace(full.model, path="ltx2_tiny", family="ltx2")
    )
