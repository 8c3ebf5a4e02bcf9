"""Seconds per iteration that no implementation of these programs can go below, from FLOPs, bytes and links.

    seconds = sum over phases of max(FLOPs / peak + int8 operations / their peak, bytes / memory bandwidth,
                                     bytes sent / link bandwidth)

FLOPs are those that dense attention executes, split evenly over the chips; bytes are the weights, once per pass and
micro-batch in the compute dtype, or in int8 where they are sampled with so, the caches that decoding reads, and the
optimizer's state; bytes sent are those of the compiled program.  Activations, the autoencoder, encoders of images and texts,
rewards and the host are left out, so a run is slower.
"""

import dataclasses
from collections.abc import Sequence

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.work import Split, Work, distilled
from unigrpo_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of an iteration, per chip.

    Attributes:
      name: as the rollout's scope is called, such as thinking or drawing; or update.
      flops: executed operations, but for those in int8.
      read: bytes of its memory.
      sent: bytes to chips that are linked.
      networked: bytes to other nodes.
      int8: executed operations in int8.
    """

    name: str
    flops: float
    read: float
    sent: float = 0.0
    networked: float = 0.0
    int8: float = 0.0

    def bounds(self, chip: Chip) -> dict[str, float]:
        """Seconds by what bounds them."""
        links = self.sent / chip.links + self.networked / (chip.network or chip.links)
        compute = self.flops / chip.flops + (self.int8 / chip.int8 if self.int8 else 0)
        return {"compute": compute, "memory": self.read / chip.bandwidth, "links": links}

    def seconds(self, chip: Chip) -> float:
        """The largest of the bounds."""
        return max(self.bounds(chip).values())


def phases(run: RunConfig, work: Work, split: Split, optimizer_bytes: float) -> list[Phase]:
    """The phases of an iteration without what they send.

    Args:
      run: the settings.
      work: what its episodes cost.
      split: how the work lies on the chips.
      optimizer_bytes: trained weights and moments on one device.
    """
    operations, small = _operations(run, work, executed=True), work.int8()
    read, rewarded = dict(work.read(split)), sum(work.update(executed=True).values())
    read["update"] *= operations["update"] / rewarded  # a pass of a distillation reads what one of any update does
    read["drawing"] *= _passes(run) or 1
    # Adam reads and writes weights and both moments.
    read["update"] += run.learning.ppo_epochs * run.learning.minibatches * 2 * optimizer_bytes
    return [
        Phase(name, (operations[name] - small.get(name, 0)) / split.chips, read[name] * split.devices_per_chip,
              int8=small.get(name, 0) / split.chips)
        for name in read
    ]  # fmt: skip


def _passes(run: RunConfig) -> int | None:
    """Evaluations in a transition where another one draws than what is trained: the guided teacher of `mean_flow`."""
    return Guidance(text=run.learning.distillation.guidance).passes if run.learning.method == "mean_flow" else None


def _operations(run: RunConfig, work: Work, executed: bool = False) -> dict[str, float]:
    """Operations of an iteration by phase; what a teacher or a fake score is asked for counts to the update."""
    update = 0.0 if run.learning.distils else sum(work.update(executed).values())
    return work.rollout(executed, _passes(run)) | {"update": update + distilled(run, work, executed)}


def with_collectives(found: Sequence[Phase], rows: dict[str, Sequence[dict]], per_chip: int = 1) -> list[Phase]:
    """The phases with what the compiled programs send.

    Args:
      found: from `phases`.
      rows: tables of collectives by program; a rollout's phase that is no phase of the roofline counts as the first.
      per_chip: JAX devices of a chip.
    """
    out, names = [], {phase.name for phase in found}
    for phase in found:
        own = rows.get("update", ()) if phase.name == "update" else [
            row for row in rows.get("rollout", ())
            if row["phase"] == phase.name or (phase is found[0] and row["phase"] not in names)
        ]  # fmt: skip
        total = lambda rows: sum(row["bytes"] for row in rows) * per_chip
        across = [row for row in own if row["nodes"]]
        out.append(dataclasses.replace(phase, sent=total(own) - total(across), networked=total(across)))
    return out


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An iteration by the roofline.

    Attributes:
      seconds: of one iteration.
      samples_per_chip_hour: episodes per chip and hour.
      model_flops: of one iteration, what is seen.
      utilisation: model FLOPs over what the chips could do in that time in bfloat16; the best that can be hoped for.
    """

    seconds: float
    samples_per_chip_hour: float
    model_flops: float
    utilisation: float


def estimate(run: RunConfig, work: Work, chip: Chip, chips: int, found: Sequence[Phase]) -> Estimate:
    """Seconds, throughput and the utilisation that goes with them."""
    seconds = sum(phase.seconds(chip) for phase in found)
    model = sum(_operations(run, work).values())
    return Estimate(seconds, run.episodes / seconds / chips * 3600, model, model / (seconds * chips * chip.flops))
