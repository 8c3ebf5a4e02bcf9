"""Rewards to advantages: how much better an episode is than the other episodes of its prompt.

Rewards come as [P, G], one row per prompt and one column per episode of its group, and so do the advantages.  One
advantage serves both phases of an episode.  Everything is float32 and finite; failed episodes are the caller's matter.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Normalisation = Literal["group_std", "global_std", "none"]

# (epsilon, limit) of each normalisation, as published.
_PUBLISHED: dict[str, tuple[float, float]] = {
    "group_std": (1e-8, math.inf),
    "global_std": (1e-4, 5.0),
    "none": (0.0, math.inf),
}


def group_advantages(
    rewards_PG: jax.Array,
    normalisation: Normalisation = "group_std",
    *,
    epsilon: float | None = None,
    limit: float | None = None,
    ddof: int = 0,
) -> jax.Array:
    """Advantages [P, G], float32: A = (R - mean of the group) / (std + epsilon), within +-limit.

    | normalisation | std | epsilon | limit | source |
    |---|---|---|---|---|
    | group_std | of the group | 1e-8 | none | GRPO, as in UniGRPO (arXiv 2603.23500) |
    | global_std | of the whole batch | 1e-4 | 5 | Flow-GRPO (arXiv 2505.05470) |
    | none | not divided | - | none | Dr. GRPO (arXiv 2503.20783) |

    A group whose rewards are all equal gets exactly 0.

    Args:
      rewards_PG: rewards of P groups of G episodes.
      normalisation: what the centred rewards are divided by.
      epsilon: added to the std; None takes the table's.
      limit: advantages are clipped to +-limit; None takes the table's, `math.inf` never clips.
      ddof: 0 for the population std, 1 for the unbiased one (verl, verl-omni).
    """
    if normalisation not in _PUBLISHED:
        raise ValueError(
            f"No normalisation is called {normalisation!r}. There are: {', '.join(get_args(Normalisation))}."
        )
    published_epsilon, published_limit = _PUBLISHED[normalisation]
    epsilon = published_epsilon if epsilon is None else epsilon
    limit = published_limit if limit is None else limit

    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    _, group = rewards_PG.shape
    # Relative to the group's first reward: a constant group is then exactly 0 before the mean, which would round.
    relative_PG = rewards_PG - rewards_PG[:, :1]
    centred_PG = relative_PG - jnp.mean(relative_PG, axis=1, keepdims=True)
    match normalisation:
        case "group_std":
            _check_count(group, ddof)
            centred_PG /= jnp.sqrt(jnp.sum(centred_PG**2, axis=1, keepdims=True) / (group - ddof)) + epsilon
        case "global_std":
            _check_count(rewards_PG.size, ddof)
            centred_PG /= jnp.std(rewards_PG, ddof=ddof) + epsilon
    return jnp.clip(centred_PG, -limit, limit)


def combine(
    rewards: Mapping[str, jax.Array],
    weights: Mapping[str, float],
    normalisation: Normalisation = "group_std",
    *,
    epsilon: float | None = None,
    limit: float | None = None,
    ddof: int = 0,
    applies: Mapping[str, np.ndarray] | None = None,
) -> jax.Array:
    """Advantages [P, G] of several rewards: A = sum_k weight_k * A_k (DanceGRPO, arXiv 2505.07818).

    Advantages are added, not rewards, so that a reward's scale does not decide its share.  Every reward has a weight;
    0 means that it is only looked at.  The other arguments are those of `group_advantages`, for each reward.

    Args:
      applies: bool [P] of each reward, concrete: the groups that it applies to.  It adds nothing to the others, and weights
        stay as they are; so two rewards of weight 1, each for half of the prompts, teach each group as one reward would.
    """
    if not rewards or set(rewards) != set(weights):
        raise ValueError(
            f"Rewards {sorted(rewards)} and weights {sorted(weights)} must have the same names, at least one. "
            "Give a reward that is only to be looked at the weight 0."
        )
    advantages = lambda x: group_advantages(x, normalisation, epsilon=epsilon, limit=limit, ddof=ddof)
    total = 0.0
    for name in sorted(rewards):
        rows = None if applies is None else np.flatnonzero(applies[name])
        if rows is None or len(rows) == len(rewards[name]):
            total += weights[name] * advantages(rewards[name])
        elif len(rows):
            own = advantages(rewards[name][rows])
            total += weights[name] * jnp.zeros(rewards[name].shape, jnp.float32).at[rows].set(own)
    return total + jnp.zeros(next(iter(rewards.values())).shape, jnp.float32)


def extremes(advantages_PG: np.ndarray, best: int, worst: int) -> np.ndarray:
    """Positions int [P * (best + worst)] in the flattened batch, increasing: the largest and smallest of each group.

    DanceGRPO (arXiv 2505.07818) samples many episodes and trains on the k best and the k worst.  Of equal advantages the
    earlier episode counts as the better one.
    """
    order = np.argsort(-np.asarray(advantages_PG), axis=1, kind="stable")
    group = order.shape[1]
    if not 0 < best + worst <= group:
        raise ValueError(f"{best} best and {worst} worst of {group} episodes: take from 1 to {group} in all.")
    kept = np.sort(np.concatenate([order[:, :best], order[:, group - worst :]], axis=1), axis=1)
    return (kept + group * np.arange(len(order))[:, None]).reshape(-1)


def zero_variance_share(rewards_PG: jax.Array) -> jax.Array:
    """Share [] of the groups whose rewards are all equal, and which therefore teach nothing."""
    return jnp.mean(jnp.max(rewards_PG, axis=1) == jnp.min(rewards_PG, axis=1), dtype=jnp.float32)


def _check_count(count: int, ddof: int) -> None:
    if count <= ddof:
        raise ValueError(
            f"The std of {count} rewards with ddof = {ddof} divides by {count - ddof}. Use a larger group."
        )
