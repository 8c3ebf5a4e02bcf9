"""The flow sampler's times: a shifted schedule from t = 1 (noise) to t = 0 (data)."""

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
