"""A sampler's times from t = 1 (noise) to t = 0 (data): shifted for flows, spaced as Stable Diffusion's for diffusions."""

import dataclasses
import math
from typing import Literal

import numpy as np

from unigrpo_jax.config_checks import nearest_divisors


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
    with np.errstate(all="ignore"):  # what is no number goes nowhere
        times = (shift * u / (1 + (shift - 1) * u)).astype(np.float32)
    if not np.all(np.diff(times) < 0):
        raise ValueError(f"shift = {shift:g}: {steps} steps from 1 to 0 fall together; use a shift nearer to 1.")
    return times


def resolution_shift(tokens: int, base: tuple[int, float] = (256, 0.5), largest: tuple[int, float] = (4096, 1.15)) -> float:
    """FLUX's shift for an image of so many latent tokens, exp(mu), where mu is a line through two (tokens, mu)."""
    (first, low), (last, high) = base, largest
    mu = low + (tokens - first) * (high - low) / (last - first)
    return math.exp(mu) if mu < 700 else math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowShift:
    """How FLUX's scheduler shifts a flow's times: always alike, or by resolution.

    Attributes:
      shift: of `timesteps`, where `line` is None.
      line: two (tokens, mu), of `resolution_shift`.
      terminal: of `stretched`; None leaves the times as they are.
    """

    shift: float = 1.0
    line: tuple[tuple[int, float], tuple[int, float]] | None = None
    terminal: float | None = None

    def of(self, tokens: int) -> float:
        """The shift of an image of so many latent tokens."""
        return self.shift if self.line is None else resolution_shift(tokens, *self.line)

    def times(self, steps: int, tokens: int) -> np.ndarray:
        """A sampler's times for so many latent tokens, float32 [steps + 1]; ValueError as `timesteps`."""
        times = timesteps(steps, self.of(tokens))
        return times if self.terminal is None else stretched(times, self.terminal)


def stretched(times: np.ndarray, terminal: float) -> np.ndarray:
    """A flow's times, stretched away from the noise so that the last before the data is `terminal`, in (0, 1).

        t' = 1 - (1 - t) (1 - terminal) / (1 - last)

    A single transition has no time between noise and data, and stays.
    """
    noisy = times[:-1].astype(np.float64)
    if len(noisy) == 1:
        return times
    return np.append(1 - (1 - noisy) * (1 - terminal) / (1 - noisy[-1]), 0.0).astype(np.float32)


Spacing = Literal["leading", "trailing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSchedule:
    """How a scheduler spaces the times of a diffusion; what `diffusion_times` is given beside the steps.

    Attributes:
      train_steps: K.
      spacing: "leading" or "trailing".
      to_data: whether the last transition ends in the data.
    """

    train_steps: int = 1000
    spacing: Spacing = "leading"
    to_data: bool = False

    def times(self, steps: int) -> np.ndarray:
        """float32 [steps + 1]; ValueError as `diffusion_times`."""
        return diffusion_times(steps, self.train_steps, self.spacing, to_data=self.to_data)


def diffusion_times(
    steps: int, train_steps: int, spacing: Spacing = "leading", offset: int = 1, to_data: bool = False
) -> np.ndarray:
    """The times of DDIM over a diffusion that was trained in K steps, k / K, float32 [steps + 1].

    Args:
      steps: transitions T, of "trailing" a divisor of K.
      train_steps: K.
      spacing: "leading" counts up from the data, k - 1 = offset, offset + K // T, ...; "trailing" down from the
        noise, k = K, K - K / T, ...
      offset: of "leading", `steps_offset`, which Stable Diffusion's pipeline holds at 1; fewer than K // T.
      to_data: whether the last transition ends in the data (`set_alpha_to_one`) or after the first of the K steps.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps = {steps}: it must be from 1 to the {train_steps} steps of the training.")
    if spacing == "trailing" and train_steps % steps:
        raise ValueError(f"steps = {steps}: it must divide the {train_steps} steps of the training where times are "
                         f"spaced down from the noise; use {nearest_divisors(train_steps, steps)}.")  # fmt: skip
    stride = train_steps // steps
    if spacing == "leading" and not 0 <= offset < stride:
        raise ValueError(f"steps = {steps}: the offset of its times, {offset}, must be at least 0 and below "
                         f"{train_steps} // {steps} = {stride}; use fewer steps.")  # fmt: skip
    first = offset + 1 if spacing == "leading" else stride
    k = np.array([*range(first + (steps - 1) * stride, 0, -stride), 0 if to_data else 1])
    return (k / train_steps).astype(np.float32)
