"""A sampler's times from t = 1 (noise) to t = 0 (data): shifted for flows, spaced as Stable Diffusion's for diffusions."""

import math
from typing import Literal

import numpy as np


def timesteps(steps: int, shift: float) -> np.ndarray:
    """The times between which a flow sampler moves, float32 [steps + 1], from exactly 1 down to exactly 0.

        t = shift * u / (1 + (shift - 1) * u),    u = linspace(1, 0, steps + 1)

    (resolution-dependent shift, arXiv 2403.03206).  A shift above 1 spends more of the steps near the noise.

    `steps` counts transitions, so there is one time more.  BAGEL's own loop counts times instead: its 25 are 24
    transitions, `timesteps(24, 3.0)` here; the "25 training timesteps" of UniGRPO are `timesteps(25, 3.0)`.

    The result is a numpy constant: both arguments are static, and every program sees the same bits.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: a schedule needs at least 1 transition.")
    if not shift > 0:
        raise ValueError(f"shift = {shift}: it must be above 0; 1 gives evenly spaced times.")
    u = np.linspace(1.0, 0.0, steps + 1, dtype=np.float64)
    return (shift * u / (1 + (shift - 1) * u)).astype(np.float32)


def resolution_shift(tokens: int, base: tuple[int, float] = (256, 0.5), largest: tuple[int, float] = (4096, 1.15)) -> float:
    """FLUX's shift for an image of so many latent tokens, exp(mu), where mu is a line through two (tokens, mu)."""
    (first, low), (last, high) = base, largest
    return math.exp(low + (tokens - first) * (high - low) / (last - first))


def diffusion_times(
    steps: int, train_steps: int, spacing: Literal["leading", "trailing"] = "leading", offset: int = 1, to_data: bool = False
) -> np.ndarray:
    """The times of DDIM over a diffusion that was trained in K steps, k / K, float32 [steps + 1].

    Args:
      steps: transitions T, a divisor of K.
      train_steps: K.
      spacing: "leading" counts up from the data, k - 1 = offset, offset + K / T, ...; "trailing" down from the noise, k = K,
        K - K / T, ...
      offset: of "leading", Stable Diffusion's `steps_offset`; fewer than K / T.
      to_data: whether the last transition ends in the data (`set_alpha_to_one`) or after the first of the K steps.
    """
    if steps < 1 or train_steps % steps:
        raise ValueError(f"steps = {steps}: it must divide the {train_steps} steps of the training.")
    stride = train_steps // steps
    if spacing == "leading" and not 0 <= offset < stride:
        raise ValueError(f"steps_offset = {offset}: it must be at least 0 and below {train_steps} / {steps} = {stride}.")
    first = offset + 1 if spacing == "leading" else stride
    k = np.array([*range(first + (steps - 1) * stride, 0, -stride), 0 if to_data else 1])
    return (k / train_steps).astype(np.float32)
