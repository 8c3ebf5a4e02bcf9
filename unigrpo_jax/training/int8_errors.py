"""What drawing in int8 does to an evaluation: errors of predictions by time, and of judges' scores, as tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from unigrpo_jax.training.overview import COLUMNS, spread


def score_errors(own: Mapping[str, np.ndarray], full: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """How far scores are from those of the same prompts and noises in full precision.

    Args:
      own: {score: [B]}, as `Judged.scores`; NaN where nothing was said.
      full: the same in full precision.

    Returns:
      {score: {"own": mean, "full": mean, "difference": its mean, "standard_error": of that, "absolute": the mean size of an
      episode's difference}}, of the episodes that both have a score of; without the scores that no episode has, or one.
    """
    found = {}
    for name in own:
        pair = np.stack([np.asarray(own[name], np.float64), np.asarray(full[name], np.float64)])
        pair = pair[:, np.isfinite(pair).all(axis=0)]
        count = pair.shape[1]
        if count < 2:
            continue
        difference = pair[0] - pair[1]
        values = {
            "own": pair[0].mean(), "full": pair[1].mean(), "difference": difference.mean(),
            "standard_error": difference.std(ddof=1) / count**0.5, "absolute": np.abs(difference).mean(),
        }  # fmt: skip
        found[name] = {kind: round(float(value), 6) for kind, value in values.items()}
    return found


def moved_table(found: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `score_errors`."""
    cells = lambda own: [f"{own['own']:.3f}", f"{own['full']:.3f}", f"{own['difference']:+.3f}",
                         f"{own['standard_error']:.3f}", f"{own['absolute']:.3f}"]  # fmt: skip
    header = ["score", "int8", "full", "difference", "s.e.", "mean |difference|"]
    return header, [[name, *cells(own)] for name, own in found.items()]


def error_table(error: Mapping[str, Mapping[str, Sequence[float | None]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `Judged.error`: a column for each of a drawing's steps, or of COLUMNS of them, by its time."""
    times, rows = next(iter(error.values()))["times"], []
    shown = spread(len(times), COLUMNS)
    for name, own in error.items():
        cells = ["-" if own["relative"][step] is None else f"{own['relative'][step]:.4f}" for step in shown]
        rows.append([f"{name.removeprefix('flow').removeprefix('_')} relative".strip(), *cells])
    return ["t", *(f"{times[step]:.3g}" for step in shown)], rows
