"""BAGEL's `Work`: what the episodes of a run cost, from `flops` and the bytes of its experts and of its cache.

A text block reads the `und` expert, an image block both; thinking reads `und`, the LM head and the cache at every token.
Seven matrices of each expert's layers count as weights; the vision encoder's are left out.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models import tree
from unigrpo_jax.models.bagel import flops
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.flops import Flops, Lengths
from unigrpo_jax.models.work import Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagelWork:
    """What the episodes of a run cost; see `models.work.ThinkingWork`.

    Attributes:
      run: the settings.
      config: the network's sizes.
      lengths: tokens of an episode.
    """

    run: RunConfig
    config: BagelConfig
    lengths: Lengths

    @property
    def latents(self) -> int:
        """Latent tokens of an image."""
        return self.lengths.latents

    @property
    def slot_bytes(self) -> float:
        """Of a key and a value in all layers."""
        return flops.cache_bytes(self.config, 1, self._itemsize)

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self.run.model.dtype).itemsize

    @functools.cached_property
    def _expert(self) -> int:
        """Numbers in the matrices of one expert's layers."""
        return self.config.layers * Flops(self.config).expert_weights

    @property
    def _image(self) -> int:
        """Numbers that looking at an image reads: latents go through both experts, patches through one."""
        return (2 + (self.lengths.patches > 0)) * self._expert

    def blocks(self) -> list[dict[str, float]]:
        """As `Work.blocks`."""
        return self.lengths.blocks()

    def rollout(self, executed: bool = False, passes: int | None = None) -> dict[str, float]:
        """As `Work.rollout`; one round looks at nothing."""
        return self._there(flops.rollout(self.run, Flops(self.config, executed), self.lengths, passes))

    def _there(self, found: dict[str, float]) -> dict[str, float]:
        absent = {"looking": self.lengths.rounds == 1, "thinking": self.lengths.thinking is None}
        return {name: value for name, value in found.items() if not absent.get(name)}

    def int8(self) -> dict[str, float]:
        """As `Work.int8`."""
        if self.run.rollout.quantised == "none":
            return {}
        return self._there(flops.rollout(self.run, flops.ExpertFlops(self.config, executed=True), self.lengths))

    def update(self, executed: bool = False) -> dict[str, float]:
        """As `Work.update`."""
        return flops.update(self.run, Flops(self.config, executed), self.lengths)

    def evaluation(self, slots: float, executed: bool = False) -> float:
        """As `Work.evaluation`."""
        return Flops(self.config, executed).velocity(self.lengths.latents, slots)

    def read(self, split: Split) -> dict[str, float]:
        """As `Work.read`."""
        run, n, rollout, learning = self.run, self.lengths, self.run.rollout, self.run.learning
        size = self._itemsize if rollout.quantised == "none" else 1  # of what a rollout reads of the experts
        expert, image = (count * size / split.tensor for count in (self._expert, self._image))
        decode = flops.decode_weight_bytes(self.config, self._itemsize) - self._expert * (self._itemsize - size)
        decode = decode / split.tensor
        rows = run.episodes / rollout.micro_batches / split.batch
        upon = [rows * self.slot_bytes * n.drawn_upon(turn) / split.tensor for turn in range(n.rounds)]
        passes = self.update(executed=True)
        # A pass reads both experts once per piece; the backward pass reads them for the inputs' gradients, too.
        reads = 1 + bool(passes["old"]) + learning.ppo_epochs * (2 + bool(passes["remat"]))
        trained = self._expert * self._itemsize / split.tensor
        found = {
            "prefill": rollout.micro_batches * (2 * expert + n.picture * image),  # system prompt, prompts
            "looking": rollout.micro_batches * sum(image + bool(n.turn) * expert + cache for cache in upon[:-1]),
            "thinking": rollout.micro_batches * n.thought * sum(decode + cache for cache in upon),
            "drawing": rollout.micro_batches * rollout.flow_steps * sum(2 * expert + cache for cache in upon),
        }
        return self._there(found) | {"update": learning.minibatches * learning.micro_batches * reads * 2 * trained}

    def sent(self, split: Split, fsdp: int) -> dict[str, float]:
        """As `Work.sent`: text passes gather the `und` expert alone, and the residual stream is summed twice per layer."""
        run, n, rollout, learning = self.run, self.lengths, self.run.rollout, self.run.learning
        itemsize, share, sums = self._itemsize, (fsdp - 1) / fsdp, 2 * (split.tensor - 1) / split.tensor
        weights, image = self._expert / split.tensor, self._image / split.tensor
        stream = 2 * self.config.layers * self.config.hidden_size * itemsize * sums
        rows = run.episodes / rollout.micro_batches / split.batch
        length, later, pieces = n.latents + flops.MARKERS, n.rounds - 1, learning.minibatches * learning.micro_batches
        own = run.trained_episodes / pieces / split.batch * (n.context + n.rounds * run.trained_states * length)
        reads = 1 + 3 * learning.ppo_epochs
        decode = flops.decode_weight_bytes(self.config, itemsize) / split.tensor
        found = {
            "prefill": rollout.micro_batches * (2 * weights + n.picture * image) * itemsize * share,
            "looking": rollout.micro_batches * later * (
                (image + bool(n.turn) * weights) * itemsize * share + rows * (n.look + n.turn) * stream),
            "thinking": rollout.micro_batches * n.rounds * n.thought * (decode * share + rows * stream),
            "drawing": rollout.micro_batches * n.rounds * rollout.flow_steps * (
                2 * weights * itemsize * share + rows * length * stream),
        }  # fmt: skip
        update = pieces * (reads * (2 * weights * itemsize * share + own * stream) + 2 * weights * 4 * share)
        return self._there(found) | {"update": update}

    def kept(self, split: Split) -> float:
        """As `Work.kept`: norms, q, k, v, mixed, MLP, weights of attention."""
        learning, c, n = self.run.learning, self.config, self.lengths
        rows = self.run.trained_episodes / learning.minibatches / learning.micro_batches / split.batch
        latents, steps = flops.MARKERS + n.latents, self.run.trained_states * n.rounds
        tokens = rows * (n.context + steps * latents)
        scores = rows * steps * c.heads * latents * (latents + n.context) * 4
        each = (6 * c.hidden_size + 3 * c.intermediate_size) * self._itemsize
        return c.layers / split.tensor * (tokens * each + scores)

    def measured(self, prompt: float, thinking: float | None) -> "BagelWork":
        """As `ThinkingWork.measured`."""
        return dataclasses.replace(self, lengths=dataclasses.replace(self.lengths, prompt=prompt, thinking=thinking))

    def decoded(self, steps: int, itemsize: int) -> float:
        """As `ThinkingWork.decoded`: the weights in each step, and the slots filled so far of every episode."""
        cache = self.slot_bytes * (self.lengths.before_thinking + (steps - 1) / 2)
        return steps * (flops.decode_weight_bytes(self.config, itemsize) + self.run.episodes * cache)

    def decoding_matrices(self, params) -> list[jax.Array]:
        """As `ThinkingWork.decoding_matrices`: the `und` expert's seven of each layer, and the LM head."""
        flat = tree.flatten(params)
        paths = [path for path in flat if re.fullmatch(r"layers/und/.*_proj/kernel", path)]
        inputs = lambda path: 2 if "/o_proj/" in path else 1  # heads and their width
        matrix = lambda weight, inputs: weight.reshape(math.prod(weight.shape[:inputs]), -1)
        return [matrix(layer, inputs(path)) for path in paths for layer in flat[path]] + [flat["lm_head/kernel"]]
