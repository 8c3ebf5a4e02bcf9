"""What the episodes of a run cost a network, by formula: all that planning and measuring ask of a family about cost.

A network gives it by one verb, `network.work(run, system, pictures, turns) -> Work`:

    run        the settings, a RunConfig
    system     tokens of the block that is read before the prompt, 0 where there is none
    pictures   whether each prompt comes with a picture
    turns      whether the user says something in each later round

Operations are the products of matrices, 2 for each multiply-add, of all episodes of an iteration; norms, softmax, adapters,
the autoencoder and whatever encodes texts before the programs run are left out.  They come in two readings: what the
mathematics needs, of which a utilisation (MFU) is a share, and what dense attention and rematerialisation `executed`.
The phases of a rollout have the names of its scopes (`thinking`, `drawing`, ...); a phase that a family has not is left out.
A painter that only draws needs no more than `PainterWork`, from a few numbers of one evaluation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from unigrpo_jax.config import RunConfig
from unigrpo_jax.models.building.guidance import Guidance


def with_texts(run: RunConfig, texts: Any) -> RunConfig:
    """The settings with a bucket as long as a codec's texts, or their shapes, are; some codecs heed no bucket."""
    tokens = jax.tree.leaves(texts)[0].shape[1]
    return dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, prompt_tokens=tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the work lies on the chips.

    Attributes:
      chips: how many.
      batch: parts that episodes are spread over.
      tensor: parts of heads and MLPs.
      devices_per_chip: JAX devices of a chip; `batch`, `tensor` and `sequence` count devices.
      sequence: parts of an episode's tokens.
    """

    chips: int
    batch: int
    tensor: int
    devices_per_chip: int = 1
    sequence: int = 1


def distilled(run: RunConfig, work: "Work", executed: bool = False) -> float:
    """Operations of an update's distillation: of `mean_flow`, of `dmd2`, or of matching beside rewards; 0 without.

    A backward pass counts as two evaluations, with adapters as one.  For each drawing and optimizer step `mean_flow` asks
    the guided teacher once and the student three times, one of them backwards and one along the times, at each of its
    versions, and once more where several follow one another (`learning.window_steps`); `dmd2` asks student and fake score
    (and its gradient) in each of its steps, then student and gradient, fake score and guided teacher.  What an episode reads
    before it is drawn is left out.
    """
    learning, d = run.learning, run.learning.distillation
    back, again = (1 if run.model.lora.rank else 2), int(executed and run.model.remat == "full")
    teacher, trained = Guidance(text=d.guidance).passes, 1 + back + again
    if learning.method == "mean_flow":
        trained += executed and learning.window_steps == "scanned" and run.rollout.window_size > 1
        each = run.rollout.window_size * (teacher + 1 + trained)
    elif learning.matches:
        each = d.fake_steps * (1 + trained) + trained + 1 + teacher
    else:
        return 0.0
    slots = sum(work.blocks()[0].values())
    return run.trained_episodes * learning.ppo_epochs * each * work.evaluation(slots, executed)


class Work(Protocol):
    """What the episodes of a run cost.

    Attributes:
      latents: latent tokens of an image or a clip.
      slot_bytes: of what one slot of an episode's condition holds, in the compute dtype; 0 where a condition does not grow.
    """

    latents: int
    slot_bytes: float

    def blocks(self) -> Sequence[dict[str, float]]:
        """Slots that each round adds to an episode's condition, by what fills them; {} for a round that adds none."""

    def rollout(self, executed: bool = False, passes: int | None = None) -> dict[str, float]:
        """Operations of one iteration's rollout by phase, in their order.

        `passes` evaluations of the network make a transition; None is what the settings train with.
        """

    def int8(self) -> dict[str, float]:
        """Those operations of an executed rollout, by phase, that are products in int8; {} where nothing is sampled so."""

    def update(self, executed: bool = False) -> dict[str, float]:
        """Operations of one iteration's update by pass: reference, old, forward, backward, remat."""

    def evaluation(self, slots: float, executed: bool = False) -> float:
        """Operations of one evaluation of the network for one sample, upon so many slots of its condition."""

    def read(self, split: Split) -> dict[str, float]:
        """Bytes of weights and conditions that one device reads in an iteration, by phase of the rollout and `update`."""

    def sent(self, split: Split, fsdp: int) -> dict[str, float]:
        """Bytes that one device sends by phase, as `read`: a guess before anything is compiled, to order candidates.

        Weights that `fsdp` and `sequence` cut are gathered once per pass, gradients are scattered in float32; `tensor` sums
        activations, and along `sequence` keys and values are gathered, and their gradients scattered.
        """

    def kept(self, split: Split) -> float:
        """Bytes that one device's layers keep for the backward pass where nothing is rematerialised, beside their inputs."""


class ThinkingWork(Work, Protocol):
    """What the episodes of a network that writes tokens cost."""

    def measured(self, prompt: float, thinking: float | None) -> "ThinkingWork":
        """The same with measured mean lengths, in tokens, in place of full buckets."""

    def decoded(self, steps: int, itemsize: int) -> float:
        """Bytes that decoding cannot help reading: weights of `itemsize` bytes in each step, and the slots filled so far."""

    def decoding_matrices(self, params: Any) -> list[jax.Array]:
        """The weights [in, out] that one step of decoding multiplies with, each layer's alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a painter for one sample.

    Attributes:
      layers: operations of its layers: what is computed again where they are rematerialised.
      others: its other operations.
      weights: numbers in the matrices that it reads, those of convolutions as well.
      summed: numbers of activations that the devices of `tensor` add up, all layers together: a layer's output once for
        each of its attentions and MLPs that are cut.
      kept: numbers that its layers keep for the backward pass, beside their inputs, without scores of attention.
      scores: numbers of attention scores, all layers and heads, kept in float32 where no kernel runs.
      keys: numbers of keys and values, all layers together, that the devices of `sequence` gather; 0 where none can.
      int8: those operations of its layers that a rollout in int8 makes so.
    """

    layers: float
    others: float
    weights: int
    summed: float
    kept: float
    scores: float = 0.0
    keys: float = 0.0
    int8: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PainterWork:
    """The work of a painter without thinking, whose condition is there before the rollout and does not grow.

    Attributes:
      run: the settings.
      latents: latent tokens of an image.
      each: one evaluation for one sample.
      int8_weights: numbers in the weights that a rollout in int8 holds so.
    """

    run: RunConfig
    latents: int
    each: Evaluation
    int8_weights: int = 0
    slot_bytes: float = 0.0

    @property
    def _itemsize(self) -> int:
        return jnp.dtype(self.run.model.dtype).itemsize

    @property
    def _passes(self) -> int:
        return Guidance(text=self.run.rollout.guidance).passes

    @property
    def _pieces(self) -> int:
        """Times that the update begins to read the weights for a pass: once for each step of a window that is scanned."""
        learning = self.run.learning
        steps = self.run.trained_states if learning.window_steps == "scanned" else 1
        return learning.minibatches * learning.micro_batches * steps

    @property
    def _again(self) -> int:
        """Times that the backward pass computes the layers again: for a window that is scanned, and for themselves."""
        return (self.run.learning.window_steps == "scanned") + (self.run.model.remat == "full")

    @property
    def _reads(self) -> int:
        """Passes over the weights in an update; the backward pass reads them for the inputs' gradients, too."""
        anchors = sum(self.update()[name] > 0 for name in ("reference", "old"))
        return anchors + self.run.learning.ppo_epochs * (2 + self._again)

    def blocks(self) -> Sequence[dict[str, float]]:
        """A round adds nothing."""
        return [{}] * self.run.rollout.rounds

    def evaluation(self, slots: float = 0, executed: bool = False) -> float:
        """As `Work.evaluation`; nothing is masked, so that both readings are one."""
        return self.each.layers + self.each.others

    def rollout(self, executed: bool = False, passes: int | None = None) -> dict[str, float]:
        """As `Work.rollout`."""
        transitions = self.run.episodes * self.run.rollout.rounds * self.run.rollout.flow_steps
        return {"drawing": transitions * (self._passes if passes is None else passes) * self.evaluation()}

    def int8(self) -> dict[str, float]:
        """As `Work.int8`."""
        rollout = self.run.rollout
        transitions = self.run.episodes * rollout.rounds * rollout.flow_steps
        return {} if rollout.quantised == "none" else {"drawing": transitions * self._passes * self.each.int8}

    def update(self, executed: bool = False) -> dict[str, float]:
        """As `Work.update`; a backward pass is twice the forward, or once with adapters, whose own are left out."""
        learning, model = self.run.learning, self.run.model
        drawings = self.run.trained_episodes * self.run.rollout.rounds * self._passes
        count = drawings * self.run.trained_states
        forward = count * self.evaluation()
        own_start = learning.ppo_epochs * learning.minibatches == 1 and not learning.keeps_old
        recorded = learning.old_log_probs == "rollout" or own_start
        return {
            "reference": 0 if learning.reference == "none" else forward,
            "old": 0 if recorded else drawings * self.run.rollout.window_size * self.evaluation(),
            "forward": learning.ppo_epochs * forward,
            "backward": learning.ppo_epochs * forward * (1 if model.lora.rank else 2),
            "remat": self._again * learning.ppo_epochs * count * self.each.layers if executed else 0,
        }

    def _draws(self) -> int:
        """Evaluations of the rollout that one device makes, one after the other."""
        rollout = self.run.rollout
        return rollout.micro_batches * rollout.rounds * rollout.flow_steps * self._passes

    def read(self, split: Split) -> dict[str, float]:
        """As `Work.read`."""
        weights = self.each.weights * self._itemsize / split.tensor
        small = 0 if self.run.rollout.quantised == "none" else self.int8_weights * (self._itemsize - 1) / split.tensor
        return {"drawing": self._draws() * (weights - small), "update": self._pieces * self._passes * self._reads * weights}

    def sent(self, split: Split, fsdp: int) -> dict[str, float]:
        """As `Work.sent`."""
        run, parts = self.run, fsdp * split.sequence
        share, sums = (parts - 1) / parts, 2 * (split.tensor - 1) / split.tensor
        weights, reads = self.each.weights / split.tensor, self._reads
        gathered = weights * self._itemsize * share
        # Of one sample's evaluation: a device's tokens that are summed, and all tokens' keys and values of its heads.
        moved = self.each.summed * sums / split.sequence
        moved += self.each.keys / split.tensor * (split.sequence - 1) / split.sequence
        moved *= self._itemsize
        rows = run.episodes / run.rollout.micro_batches / split.batch
        own = run.trained_episodes / split.batch * run.rollout.rounds * run.trained_states * self._passes
        return {
            "drawing": self._draws() * (gathered + rows * moved),
            "update": self._pieces * (reads * self._passes * gathered + 2 * weights * 4 * share) + reads * own * moved,
        }

    def kept(self, split: Split) -> float:
        """As `Work.kept`; of a window that is scanned, one step's."""
        learning, rollout = self.run.learning, self.run.rollout
        rows = self.run.trained_episodes / learning.minibatches / learning.micro_batches / split.batch
        steps = 1 if learning.window_steps == "scanned" else self.run.trained_states
        count = rows * rollout.rounds * steps * self._passes
        return count * (self.each.kept * self._itemsize + self.each.scores * 4) / split.tensor / split.sequence
