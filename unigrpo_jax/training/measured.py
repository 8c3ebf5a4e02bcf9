"""What is measured of an iteration's episodes, as plain functions of columns.

A column holds one number per episode.  Its name says what it is: `reward/NAME` a component of the reward, `judge/NAME` a
score of the world's own judge, `image/NAME` a statistic of the image or of a clip's frames, `video/NAME` one of the clip,
`text/NAME` one of the thinking.
NaN stands for what is not known.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]


def known(columns: Mapping[str, Sequence], finite_B: np.ndarray) -> dict[str, np.ndarray]:
    """float32 [B] columns with NaN for each episode that is not finite, of which nothing is known."""
    return {name: np.where(finite_B, np.asarray(x, np.float32), np.nan) for name, x in columns.items()}


def by_group(columns: Columns, prefix: str, size: int) -> dict[str, np.ndarray]:
    """The columns whose names begin with `prefix`, without it, as [P, size]: one row per prompt."""
    return {name.removeprefix(prefix): x.reshape(-1, size) for name, x in columns.items() if name.startswith(prefix)}


def means(rounds: Sequence[Columns]) -> dict[str, float]:
    """Metrics of each round's episodes; those of a round before the last are called `roundN/...`, N from 1 on.

    A reward's mean and std over the episodes that it judged, and the means of judge, image, video and text; nothing of a
    column that knows nothing.
    """
    metrics = {}
    for turn, columns in enumerate(rounds, 1):
        prefix = "" if turn == len(rounds) else f"round{turn}/"
        for name, x in columns.items():
            seen = x[np.isfinite(x)]
            if seen.size and name.startswith("reward/"):
                metrics |= {f"{prefix}{name}/mean": float(seen.mean()), f"{prefix}{name}/std": float(seen.std())}
        for name, x in columns.items():
            if name.startswith(("judge/", "image/", "video/", "text/")) and np.isfinite(x).any():
                metrics[f"{prefix}{name}"] = float(np.nanmean(x))
    return metrics


def speeds(tokens_B: np.ndarray, text_seconds: float, flow_seconds: float, thinking: bool) -> dict[str, float]:
    """Images per second of the rollout, and tokens per second of its thinking where there is any."""
    metrics = {"images_per_second": len(tokens_B) / (text_seconds + flow_seconds)}
    if thinking:
        metrics["tokens_per_second"] = float(np.nansum(tokens_B)) / max(text_seconds, 1e-9)
    return metrics
