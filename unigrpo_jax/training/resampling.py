"""Dynamic sampling (DAPO, arXiv 2503.14476): the batch of an update is filled with groups that teach something.

A group whose rewards are all alike has the advantage 0 and teaches nothing.  Where there are such groups, further rollouts
of the same size and shapes, of other prompts, are sampled and judged; their groups that teach take the places of those that
do not, in the order in which they were sampled, until none is left or `rollout.resample` of them were made.  What an
iteration samples is a function of (seed, iteration, number of the rollout), so that a resume repeats it.

All rollouts are measured, and none of them more than another: metrics are means over them, seconds are sums, speeds are
those of all their seconds, and `episodes/sampled` counts all that was sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.training.trainer import Trainer

Metrics = Mapping[str, float]
# The seconds that a speed is of.
SPEEDS = {"images_per_second": ("time/rollout_text", "time/rollout_flow"), "tokens_per_second": ("time/rollout_text",)}


def collect(
    trainer: Trainer, state: TrainState, step: int, judge: Callable[[Any, Metrics], tuple[Any, dict[str, float]]]
) -> tuple[Episodes, Any, dict[str, float]]:
    """The episodes that iteration `step` learns from, their advantages, and metrics of all that were sampled.

    `judge` is `trainer.judge`, or does the same.
    """
    rollout, group = trainer.parts.config.rollout, trainer.parts.config.learning.group_size
    found = []
    for number in range(1 + rollout.resample):
        fresh, own, times = trainer.sample(state, step, number)
        values, judged = judge(own, times)
        found.append({**times, **judged})
        if number == 0:
            episodes, advantages = fresh, values
        else:
            rows = replaced(teaching(advantages, group), teaching(values, group))
            episodes = trainer.replace(episodes, fresh, rows)
            advantages = picked(advantages, values, by_episode(rows, group))
        if not rollout.resample or teaching(advantages, group).all():
            break
    if not rollout.resample:
        return episodes, advantages, found[0]
    taught = teaching(advantages, group)
    counts = {"episodes/sampled": len(found) * len(taught) * group, "episodes/teaching": int(taught.sum()) * group}
    return episodes, advantages, over_rollouts(found) | counts


def teaching(advantages: Any, group: int) -> np.ndarray:
    """Which groups teach something, bool [P]: some advantage of theirs, [P * group, ...] or {modality: such}, is not 0."""
    return np.any([(x.reshape(-1, group * x[0].size) != 0).any(axis=1) for x in jax.tree.leaves(advantages)], axis=0)


def replaced(kept_P: np.ndarray, fresh_P: np.ndarray) -> np.ndarray:
    """Which groups of two batches, one after the other, make the new one, int [P]; the arguments say which teach.

    The first place that teaches nothing takes the first fresh group that teaches, and so on; all others stay.
    """
    rows = np.arange(len(kept_P))
    free, better = np.flatnonzero(~kept_P), len(kept_P) + np.flatnonzero(fresh_P)
    count = min(len(free), len(better))
    rows[free[:count]] = better[:count]
    return rows


def by_episode(groups_P: np.ndarray, group: int) -> np.ndarray:
    """The episodes of groups, int [P * group]."""
    return (groups_P[:, None] * group + np.arange(group)).reshape(-1)


def picked(kept: Any, fresh: Any, rows_B: np.ndarray) -> Any:
    """Those rows of two batches' arrays, numbered one after the other."""
    return jax.tree.map(lambda a, b: np.concatenate([a, b])[rows_B], kept, fresh)


def over_rollouts(found: Sequence[Metrics]) -> dict[str, float]:
    """One iteration's metrics of several rollouts of one size; a metric that one of them lacks is that of the others."""
    out = {}
    for name in dict.fromkeys(name for metrics in found for name in metrics):
        there = [metrics for metrics in found if name in metrics]
        values = np.array([metrics[name] for metrics in there], np.float64)
        if name.startswith("time/"):
            out[name] = float(values.sum())
        else:
            seconds = [sum(metrics[part] for part in SPEEDS[name]) for metrics in there] if name in SPEEDS else None
            out[name] = float(np.average(values, weights=seconds))
    return out
