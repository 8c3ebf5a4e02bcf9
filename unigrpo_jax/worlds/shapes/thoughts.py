"""The reward `shapes_thoughts`: a judge by rule that reads thinking and image together, a process reward on thoughts.

    plan       1 where the thinking is right: it says what the prompt asks for
    follows    1 where the image shows what the thinking says
    verdict    in worlds that look at what was drawn: 1 where the thinking truly finds nothing wrong with it, 1.5 where it
               says truly what is wrong, 0.5 where it is untrue; 0 where nothing was drawn before

A fault that is named gains twice what a true `right` does, since most pictures of a model that learns are right: were both
worth the same, a fault found would be no better than the `right` of the rest of its group.  And its mean must not fall
because there are ever fewer faults to find.

All follow what the world's own rules say of a round (`World.judge`); `plan` and `follows` are 0 where a thinking is no plan.
`plan` and `verdict` judge the thinking alone: name them in `learning.thought_rewards`.
"""

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction
from unigrpo_jax.worlds.world import load_world

SCORES = {"plan": "plan_exact", "follows": "drawing_follows_plan", "verdict": "verdict_right"}


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward; ConfigError where the prompts are of no world whose rules read plans."""
    require(not argument, f"rewards: shapes_thoughts:{argument}: it takes no argument; leave it out.")
    judge = load_world(config.prompts, config.prompt_weights, config.evaluation.source, config.rollout.rounds,
                       config.evaluation.rounds).judge  # fmt: skip
    require(judge is not None,
            f"rewards: shapes_thoughts reads plans of the shapes worlds, but prompts = {' '.join(config.prompts)}; use "
            "--prompts shapes, or the reward judge:thinking, which asks a server.")  # fmt: skip

    def reward(batch: RewardBatch) -> dict[str, np.ndarray]:
        scores = judge(batch).scores
        known = {name: scores[own] for name, own in SCORES.items() if own in scores}
        if "verdict" in known:
            known["verdict"] = 0.5 + known["verdict"] * np.where(scores["seen_right"] == 1, 0.5, 1.0)
        return {name: np.where(np.isfinite(x), x, 0.0).astype(np.float32) for name, x in known.items()}

    return reward
