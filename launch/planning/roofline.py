"""Seconds per iteration that no implementation of these programs can go below, from FLOPs, bytes and links.

    seconds = sum over phases of max(FLOPs / peak, bytes / memory bandwidth, bytes sent / link bandwidth)

FLOPs are those that dense attention executes, split evenly over the chips; bytes are the weights, once per pass and
micro-batch in the compute dtype, the caches that decoding reads, and the optimizer's state; bytes sent are those of the
compiled program.  Activations, the autoencoder, the vision encoder's weights, rewards and the host are left out, so a run is
slower.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.bagel import flops
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.flops import Flops, Lengths
from unigrpo_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of an iteration, per chip.

    Attributes:
      name: prefill, looking, thinking, drawing or update.
      flops: executed operations.
      read: bytes of its memory.
      sent: bytes to chips that are linked.
      networked: bytes to other nodes.
    """

    name: str
    flops: float
    read: float
    sent: float = 0.0
    networked: float = 0.0

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Seconds by what bounds them."""
        links = self.sent / chip.links + self.networked / (chip.network or chip.links)
        return {"compute": self.flops / chip.flops, "memory": self.read / chip.bandwidth, "links": links}

    def seconds(self, chip: Chip) -> float:
        """The largest of the bounds."""
        return max(self.bounds(chip).values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the work lies on the chips.

    Attributes:
      chips: how many.
      batch: parts that episodes are spread over.
      tensor: parts of heads and MLPs.
      devices_per_chip: JAX devices of a chip; `batch` and `tensor` count devices.
    """

    chips: int
    batch: int
    tensor: int
    devices_per_chip: int = 1


def phases(run: RunConfig, config: BagelConfig, n: Lengths, split: Split, optimizer_bytes: float) -> list[Phase]:
    """The phases of an iteration without what they send.

    Args:
      run: the settings.
      config: the network.
      n: an episode's lengths.
      split: how the work lies on the chips.
      optimizer_bytes: trained weights and moments on one device.
    """
    count, itemsize = Flops(config, executed=True), jnp.dtype(run.model.dtype).itemsize
    expert = config.layers * count.expert_weights * itemsize / split.tensor
    decode = flops.decode_weight_bytes(config, itemsize) / split.tensor
    rollout, learning = run.rollout, run.learning
    rows = run.episodes / rollout.micro_batches / split.batch
    upon = [rows * flops.cache_bytes(config, n.drawn_upon(turn), itemsize) / split.tensor for turn in range(n.rounds)]
    image = (2 + (n.patches > 0)) * expert  # latents go through both experts, patches through one
    work = flops.rollout(run, count, n)
    passes = flops.update(run, count, n)
    # A pass reads both experts once per piece; the backward pass reads them for the inputs' gradients, too.
    reads = 1 + bool(passes["old"]) + learning.ppo_epochs * (2 + bool(passes["remat"]))
    steps = learning.ppo_epochs * learning.minibatches
    read = {
        "prefill": rollout.micro_batches * (2 * expert + n.picture * image),  # system prompt, prompts
        "looking": rollout.micro_batches * sum(image + bool(n.turn) * expert + cache for cache in upon[:-1]),
        "thinking": rollout.micro_batches * n.thought * sum(decode + cache for cache in upon),
        "drawing": rollout.micro_batches * rollout.flow_steps * sum(2 * expert + cache for cache in upon),
        # Adam reads and writes weights and both moments.
        "update": learning.minibatches * learning.micro_batches * reads * 2 * expert + steps * 2 * optimizer_bytes,
    }
    amount = work | {"update": sum(passes.values())}
    found = [Phase(name, amount[name] / split.chips, read[name] * split.devices_per_chip) for name in read]
    return [phase for phase in found if phase.name != "looking" or n.rounds > 1]


def with_collectives(found: Sequence[Phase], rows: dict[str, Sequence[dict]], per_chip: int = 1) -> list[Phase]:
    """The phases with what the compiled programs send.

    Args:
      found: from `phases`.
      rows: tables of collectives by program; a rollout's phase that is no phase of the roofline counts as prefill.
      per_chip: JAX devices of a chip.
    """
    out, names = [], {phase.name for phase in found}
    for phase in found:
        own = rows.get("update", ()) if phase.name == "update" else [
            row for row in rows.get("rollout", ())
            if row["phase"] == phase.name or (phase.name == "prefill" and row["phase"] not in names)
        ]  # fmt: skip
        total = lambda rows: sum(row["bytes"] for row in rows) * per_chip
        across = [row for row in own if row["nodes"]]
        out.append(dataclasses.replace(phase, sent=total(own) - total(across), networked=total(across)))
    return out


def guessed_sent(run: RunConfig, config: BagelConfig, n: Lengths, split: Split, fsdp: int) -> dict[str, float]:
    """Bytes that one device sends by phase, before anything is compiled: to order candidates.

    Weights that `fsdp` cuts are gathered once per pass, in text passes the `und` expert alone; gradients are scattered in
    float32; `tensor` sums the residual stream twice per layer and pass.
    """
    itemsize = jnp.dtype(run.model.dtype).itemsize
    share, sums = (fsdp - 1) / fsdp, 2 * (split.tensor - 1) / split.tensor
    weights = config.layers * Flops(config).expert_weights / split.tensor
    stream = 2 * config.layers * config.hidden_size * itemsize * sums
    rollout, learning = run.rollout, run.learning
    rows = run.episodes / rollout.micro_batches / split.batch
    length, image, later = n.latents + flops.MARKERS, (2 + (n.patches > 0)) * weights, n.rounds - 1
    pieces = learning.minibatches * learning.micro_batches
    own = run.trained_episodes / pieces / split.batch * (n.context + n.rounds * rollout.window_size * length)
    reads = 1 + 3 * learning.ppo_epochs
    decode = flops.decode_weight_bytes(config, itemsize) / split.tensor
    return {
        "prefill": rollout.micro_batches * (2 * weights + n.picture * image) * itemsize * share,
        "looking": rollout.micro_batches * later * (
            (image + bool(n.turn) * weights) * itemsize * share + rows * (n.look + n.turn) * stream),
        "thinking": rollout.micro_batches * n.rounds * n.thought * (decode * share + rows * stream),
        "drawing": rollout.micro_batches * n.rounds * rollout.flow_steps * (
            2 * weights * itemsize * share + rows * length * stream),
        "update": pieces * (reads * (2 * weights * itemsize * share + own * stream) + 2 * weights * 4 * share),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An iteration by the roofline.

    Attributes:
      seconds: of one iteration.
      samples_per_chip_hour: episodes per chip and hour.
      model_flops: of one iteration, what is seen.
      utilisation: model FLOPs over what the chips could do in that time; the best that can be hoped for.
    """

    seconds: float
    samples_per_chip_hour: float
    model_flops: float
    utilisation: float


def estimate(run: RunConfig, config: BagelConfig, n: Lengths, chip: Chip, chips: int, found: Sequence[Phase]) -> Estimate:
    """Seconds, throughput and the utilisation that goes with them."""
    seconds = sum(phase.seconds(chip) for phase in found)
    seen = Flops(config)
    model = sum(flops.rollout(run, seen, n).values()) + sum(flops.update(run, seen, n).values())
    return Estimate(seconds, run.episodes / seconds / chips * 3600, model, model / (seconds * chips * chip.flops))
