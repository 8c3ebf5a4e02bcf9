"""From rewards to advantages: which rounds are rewarded, how components are weighed, and whose actions get the credit.

    last    A of r_R                     the last image alone
    each    A of r_1, ..., r_R           every image
    gain    A of r_1, r_2 - r_1, ...     the first image, then what each round improves

With shared credit all actions of an episode get the advantage of the sum over the rewarded rounds (arXiv 2603.23500 has
one round and one advantage); else a round's actions get its own.  Credit by segment also tells thinking and drawing apart:

    thinking    A of all components        it decides what is thought and, through that, what is drawn
    drawing     A of those of the image    it comes after the thinking, whose reward (a process reward) it cannot change

Of several modalities, such as a clip and its sound, all get that advantage, or each that of the components that are given
to it by name (`credit_by`): then what is heard alone does not move what is seen, but for what both have in common.

A component that abstains from an episode (`judging.ABSTAINED`) is left out of that round for the whole group: advantages are
normalised within a group, so that it can only be compared where all were judged.  It adds nothing there, and weights stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import ConfigError, LearningConfig
from unigrpo_jax.learning.advantages import combine, group_advantages
from unigrpo_jax.rewards.judging import ABSTAINED

Components = Mapping[str, np.ndarray]


def weights_of(names: Sequence[str], learning: LearningConfig) -> dict[str, float]:
    """Weights of the components that count; ConfigError where a setting names another one, or none counts."""
    for setting in ("reward_weights", "reward_thresholds", "thought_rewards", "credit_by"):
        unknown = sorted(set(getattr(learning, setting)) - set(names))
        if unknown:
            raise ConfigError(f"learning.{setting} names {', '.join(unknown)}, but the reward returns {', '.join(names)}.")
    weights = {name: learning.reward_weights.get(name, 1.0) for name in names}
    weights = {name: weight for name, weight in weights.items() if weight}
    if not weights:
        raise ConfigError("learning.reward_weights is 0 for every component, so nothing learns; set one above 0.")
    lost = [name for name in weights if name not in learning.credit_by] if learning.credit_by else []
    if lost:
        raise ConfigError(f"learning.credit_by gives {', '.join(lost)} to no modality; name one for each, or set "
                          f"learning.reward_weights {' '.join(f'{name} 0' for name in lost)}.")  # fmt: skip
    return weights


def rewarded(rounds: Sequence[Components], learning: LearningConfig) -> list[dict[str, np.ndarray]]:
    """What is rewarded, from the components [P, G] of each round's image: one mapping per rewarded round.

    Components of weight 0 are left out, and thresholds make ones and zeros; NaN, not judged, and `ABSTAINED` stay.
    """
    names = list(weights_of(list(rounds[-1]), learning))
    bounds = learning.reward_thresholds

    def counted(name: str, x: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(x), np.float32(x >= bounds[name]), x) if name in bounds else x

    each = [{name: counted(name, found[name]) for name in names} for found in rounds]
    if learning.round_reward == "last":
        return each[-1:]
    if learning.round_reward == "gain":
        pairs = zip(each[1:], each, strict=False)
        return [each[0], *({name: _gain(new[name], old[name]) for name in names} for new, old in pairs)]
    return each


def _gain(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """What is better than before; nothing is said where either abstained."""
    counts = (new != ABSTAINED) & (old != ABSTAINED)
    return np.where(counts, np.where(counts, new, 0) - np.where(counts, old, 0), ABSTAINED)


def applies(x: np.ndarray) -> np.ndarray:
    """The groups whose component [P, G] is there for all of their episodes, judged or failed; bool [P]."""
    return (x != ABSTAINED).all(axis=1)


def judged_and_failed(rounds: Sequence[Components]) -> tuple[np.ndarray, np.ndarray]:
    """Groups that can be learned from, and those where a component failed that applies; bool [P] each.

    A group is neither where all components abstain from it.
    """
    every = [x for found in rounds for x in found.values()]
    failed = np.any([applies(x) & np.isnan(x).any(axis=1) for x in every], axis=0)
    return np.any([applies(x) for x in every], axis=0) & ~failed, failed


def abstained(found: Components) -> dict[str, float]:
    """Metrics: the share of groups that each component abstains from, of those that abstain at all."""
    shares = {name: float(1 - applies(x).mean()) for name, x in found.items()}
    return {f"reward/{name}/abstained_share": share for name, share in shares.items() if share}


def advantages(
    rounds: Sequence[Components], judged_P: np.ndarray, learning: LearningConfig, modalities: Sequence[str] = ()
) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray]:
    """Advantages, and the weighted sum of all rewards [judged groups, G].

    Args:
      rounds: from `rewarded`, [P, G] each.
      judged_P: which groups were judged (`judged_and_failed`); the others' advantage is 0.
      learning: how advantages are made.
      modalities: names of those that are drawn; only read where `credit_by` tells them apart.

    Returns:
      float32 [P * G, *advantage_shape]; or {modality: float32 [P * G]}, zeros where no component is given to it.
    """
    rounds = [{name: x[judged_P] for name, x in found.items()} for found in rounds]
    weights = {name: learning.reward_weights.get(name, 1.0) for name in rounds[0]}
    there = [{name: applies(x) for name, x in found.items()} for found in rounds]
    rounds = [{name: np.where(applies(x)[:, None], x, 0) for name, x in found.items()} for found in rounds]
    if learning.credit == "shared":
        rounds = [{name: sum(found[name] for found in rounds) for name in weights}]
        there = [{name: np.any([seen[name] for seen in there], axis=0) for name in weights}]
    total = sum(weights[name] * found[name] for found in rounds for name in weights)

    def values(turn: int, names: Sequence[str]) -> np.ndarray:
        out, own = np.zeros((len(judged_P), learning.group_size), np.float32), {name: weights[name] for name in names}
        found, seen = ({name: x[turn][name] for name in names} for x in (rounds, there))
        if not own or not judged_P.any():
            return out.reshape(-1)
        if learning.combine == "rewards":
            out[judged_P] = group_advantages(sum(w * found[name] for name, w in own.items()), learning.advantage)
        else:
            out[judged_P] = combine(found, own, learning.advantage, applies=seen)
        limit = learning.advantage_limit or np.inf
        return np.clip(out, -limit, limit).reshape(-1)

    if learning.credit_by:
        own = lambda modality: [name for name in weights if modality in learning.credited[name]]
        return {modality: values(0, own(modality)) for modality in modalities}, total
    if learning.credit != "segment":
        out = [values(turn, list(weights)) for turn in range(len(rounds))]
        return (out[0] if len(out) == 1 else np.stack(out, axis=1)), total
    images = [name for name in weights if name not in learning.thought_rewards]
    pairs = [np.stack([values(turn, list(weights)), values(turn, images)], axis=1) for turn in range(len(rounds))]
    return np.stack(pairs, axis=1), total


def by_modality(advantages: Mapping[str, np.ndarray], judged_P: np.ndarray) -> dict[str, float]:
    """Metrics of `advantages` that tell modalities apart: their std, and the share of groups in which all are 0; of those
    that were judged."""
    found = {}
    for name, x in advantages.items():
        own = x.reshape(len(judged_P), -1)[judged_P]
        if own.size:
            found[f"flow_{name}/advantage_std"] = float(own.std())
            found[f"flow_{name}/advantage_zero_share"] = float((own == 0).all(axis=1).mean())
    return found


def advantage_shape(learning: LearningConfig, rounds: int, modalities: Sequence[str] = ()) -> Any:
    """Shape of an episode's advantages: () is one for all; (R,) one per round; (R, 2) a thinking's and a drawing's of each.

    R is the number of rewarded rounds, 1 where only the last image counts; all rounds then have the same.  Where `credit_by`
    tells modalities apart it is {modality: ()}.
    """
    if learning.credit_by:
        return dict.fromkeys(modalities, ())
    rewarded = 1 if learning.round_reward == "last" else rounds
    if learning.credit == "segment":
        return (rewarded, 2)
    return (rewarded,) if learning.credit == "round" and rewarded > 1 else ()
