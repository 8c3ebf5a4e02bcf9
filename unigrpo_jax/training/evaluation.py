"""Judging a model on prompts it was not trained on: the table of a run, before and after.

The same prompts, tokens' randomness and noises are used for every checkpoint, so that differences are paired.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from unigrpo_jax.config import EvaluationConfig, RolloutConfig
from unigrpo_jax.models.bagel.guidance import Guidance
from unigrpo_jax.models.folder import LoadedModel
from unigrpo_jax.rewards.load import call_reward
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction
from unigrpo_jax.rollout.program import RolloutProgram, flow_sampler
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training.samples import Sample
from unigrpo_jax.worlds.prompt import Prompt
from unigrpo_jax.worlds.world import World


def evaluation_rollout(evaluation: EvaluationConfig, rollout: RolloutConfig, loaded: LoadedModel) -> RolloutProgram:
    """The rollout of an evaluation: no window with the ODE, all transitions stochastic with the SDE."""
    guidance = Guidance(
        text=evaluation.guidance,
        image=evaluation.guidance_image,
        interval=evaluation.guidance_interval,
        renorm=evaluation.guidance_renorm,
        renorm_min=evaluation.guidance_renorm_min,
    )
    rollout = dataclasses.replace(rollout, flow_steps=evaluation.flow_steps)
    steps = evaluation.flow_steps if evaluation.sampler == "sde" else 0
    return RolloutProgram(
        model=loaded.network,
        autoencoder=loaded.autoencoder,
        group_size=evaluation.images_per_prompt,
        system=loaded.codec.system(dataclasses.replace(rollout, thinking=evaluation.thinking)),
        thinking_tokens=rollout.thinking_tokens if evaluation.thinking else 0,
        tokens=TokenSampler(temperature=evaluation.temperature, top_k=rollout.top_k, top_p=rollout.top_p),
        flow=flow_sampler(rollout, loaded.network, guidance),
        window_size=steps,
        window_range=(0, steps),
    )


class Evaluator:
    """A compiled evaluation of one model, world and setting.

    Attributes:
      prompts: the prompts it judges on.
    """

    def __init__(
        self,
        evaluation: EvaluationConfig,
        rollout: RolloutConfig,
        loaded: LoadedModel,
        world: World,
        reward: RewardFunction,
        reward_name: str,
    ):
        self.prompts = world.evaluation(evaluation.prompts)
        self._per_call = evaluation.batch // evaluation.images_per_prompt
        self._config, self._world = evaluation, world
        self._reward, self._reward_name = reward, reward_name
        self._codec = loaded.codec
        self._blocks = loaded.codec.prompts([p.text for p in self.prompts], rollout.prompt_tokens)
        self._run = jax.jit(evaluation_rollout(evaluation, rollout, loaded).__call__)

    def __call__(self, params, autoencoder_params) -> tuple[dict[str, Any], list[Sample]]:
        """The table and all samples, prompt by prompt.

        The table holds {"overall": mean, category: mean, ...} for each score of the world and each component of the
        reward.
        """
        starts = range(0, len(self.prompts), self._per_call)
        batches = [self._call(params, autoencoder_params, start) for start in starts]
        return self._judge(batches)

    def samples(self, params, autoencoder_params, count: int) -> list[Sample]:
        """Samples of the first prompts only."""
        return self._judge([self._call(params, autoencoder_params, 0)])[1][:count]

    def _call(self, params, autoencoder_params, start: int) -> RewardBatch:
        """One call of the program; the last one is filled up with repeated prompts, which are then dropped."""
        per, images = self._per_call, self._config.images_per_prompt
        rows = [min(i, len(self.prompts) - 1) for i in range(start, start + per)]
        block = jax.tree.map(lambda x: x[rows], self._blocks)
        episodes = self._run(params, autoencoder_params, block, self._config.seed, 0, start * images)
        keep = min(per, len(self.prompts) - start) * images
        thoughts = self._codec.thoughts(episodes.thinking, per * images)[:keep]
        return reward_batch(
            [p for p in self.prompts[start : start + per] for _ in range(images)],
            np.asarray(episodes.drawing.image)[:keep],
            thoughts,
        )

    def _judge(self, batches: Sequence[RewardBatch]) -> tuple[dict[str, Any], list[Sample]]:
        batch = RewardBatch(
            prompts=[p for b in batches for p in b.prompts],
            metadata=[m for b in batches for m in b.metadata],
            images=np.concatenate([b.images for b in batches]),
            thinking=[t for b in batches for t in b.thinking],
        )
        scores = call_reward(self._reward, self._reward_name, batch)
        if self._world.judge is None:
            correct = [None] * len(batch.prompts)
            verdicts = [", ".join(f"{n} {v[i]:.3f}" for n, v in scores.items()) for i in range(len(batch.prompts))]
        else:
            judged = self._world.judge(batch)
            scores = scores | dict(judged.scores)
            correct, verdicts = [bool(c) for c in judged.correct], judged.verdicts
        table = by_category(scores, [str(m.get("category", "")) for m in batch.metadata])
        rows = zip(batch.prompts, batch.thinking, batch.images, verdicts, correct, strict=True)
        return table, [Sample(prompt=p, thinking=t, image=i, verdict=v, correct=c) for p, t, i, v, c in rows]


def reward_batch(prompts: Sequence[Prompt], images: np.ndarray, thinking: Sequence[str]) -> RewardBatch:
    """Episodes as rewards see them."""
    return RewardBatch(
        prompts=[p.text for p in prompts], metadata=[p.metadata for p in prompts], images=images, thinking=thinking
    )


def by_category(scores: dict[str, np.ndarray], categories: Sequence[str]) -> dict[str, dict[str, float]]:
    """{score: {"overall": mean, category: mean}}; NaN entries do not count, a mean of nothing is left out."""
    labels, table = np.array(categories), {}
    for name, values in scores.items():
        masks = {"overall": np.ones(len(labels), bool)} | {c: labels == c for c in dict.fromkeys(categories) if c}
        rows = {key: values[mask & np.isfinite(values)] for key, mask in masks.items()}
        table[name] = {key: round(float(row.mean()), 6) for key, row in rows.items() if row.size}
    return table
