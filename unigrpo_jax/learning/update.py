"""The update: episodes and advantages -> new parameters, as one jitted program.

Scans over PPO epochs, minibatches (one optimizer step each) and micro-batches (gradients added).  Pieces are
interleaved (piece i of n holds episodes i, i + n, ...), so that each holds a share of every group and of every device's
episodes.
"""

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning import parameters, stepping
from unigrpo_jax.learning.fake_score import FakeScore, Matching, begun, learned
from unigrpo_jax.learning.objective import Objective, reduce_metrics, with_ratio_std
from unigrpo_jax.models import tree
from unigrpo_jax.models.building.lora import is_second
from unigrpo_jax.rollout import randomness


@flax.struct.dataclass
class TrainState:
    """What an update changes; the frozen parameters lie beside it and are never copied.

    Attributes:
      trained: {path: float32 master weight} of the parameters that are trained.
      opt_state: Adam's moments of them.
      ema: {path: moving average} of them, or None.
      step: int32 [], iterations done, skipped ones included.
      skipped_in_row: int32 [], iterations in a row whose update was dropped because it was not finite.
      old: {path: weight} of the policy that samples, where it is another one than the trained one; else None.
      fake: the fake score, where drawings are matched with a teacher's; else None.
    """

    trained: dict[str, jax.Array]
    opt_state: optax.OptState
    ema: dict[str, jax.Array] | None
    step: jax.Array
    skipped_in_row: jax.Array
    old: dict[str, jax.Array] | None = None
    fake: FakeScore | None = None

    def params(self, frozen: dict[str, jax.Array]) -> dict:
        """All parameters as the network takes them; nothing is copied."""
        return tree.unflatten(frozen | self.trained)

    def sampling(self, frozen: dict[str, jax.Array]) -> dict:
        """The parameters that episodes are sampled with."""
        return tree.unflatten(frozen | (self.trained if self.old is None else self.old))

    @property
    def judged(self) -> str:
        """Name of the weights that are judged: the moving average where there is one."""
        return "trained" if self.ema is None else "ema"

    def averaged(self, frozen: dict[str, jax.Array]) -> dict:
        """The parameters that are judged."""
        return tree.unflatten(frozen | getattr(self, self.judged))

    def after(self, config: LearningConfig, carry: tuple, dropped, signal) -> tuple["TrainState", dict[str, jax.Array]]:
        """The state after an iteration, and counts of what it dropped.

        Args:
          config: decays of the averages.
          carry: trained parameters, optimizer state and fake score after its optimizer steps.
          dropped: float32 [steps], 1 for each that was not finite.
          signal: bool [], whether there was anything to learn from; else the averages stay.
        """
        (trained, opt_state, fake), skipped = carry, jnp.sum(dropped)
        decay = jnp.minimum(config.nft.old_growth * self.step, config.nft.old_decay)
        new = TrainState(
            trained=trained,
            opt_state=opt_state,
            ema=None if self.ema is None else _mixed(config.ema_decay, self.ema, trained, signal),
            step=self.step + 1,
            skipped_in_row=jnp.where(skipped > 0, self.skipped_in_row + 1, 0).astype(jnp.int32),
            old=None if self.old is None else _mixed(decay, self.old, trained, signal),
            fake=fake,
        )
        return new, {"update/skipped": skipped, "update/without_signal": 1.0 - signal.astype(jnp.float32)}


def new_state(
    params: dict, config: LearningConfig, trained_by: Mapping[str, str], teacher: Mapping[str, jax.Array] | None = None
) -> TrainState:
    """The state before the first update; the trained parameters are the given arrays themselves.

    `teacher` has those of a fake score at its start, which are the given ones where it has none.
    """
    labels = parameters.groups(params, config, trained_by)
    trained, _ = parameters.split(params, labels)
    copy = lambda wanted: jax.tree.map(jnp.copy, trained) if wanted else None
    scored = {path: (teacher or {}).get(path, x) for path, x in trained.items()}
    return TrainState(
        trained=trained,
        opt_state=parameters.optimizer(config, labels).init(trained),
        ema=copy(config.ema_decay),
        step=jnp.int32(0),  # an array of its own, as each is: all are donated
        skipped_in_row=jnp.int32(0),
        old=copy(config.keeps_old),
        fake=begun(scored, config, labels) if config.matches else None,
    )


def _mixed(decay, kept: dict[str, jax.Array], new: dict[str, jax.Array], taken) -> dict[str, jax.Array]:
    """A moving average, decay kept + (1 - decay) new; the old bits where nothing is `taken`."""
    return jax.tree.map(lambda a, b: jnp.where(taken, decay * a + (1 - decay) * b, a), kept, new)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateProgram:
    """(state, frozen, reference, episodes, advantages) -> (state, metrics), pure.

    Attributes:
      objective: loss and metrics of a batch.
      config: epochs, minibatches, optimizer.
      matching: what holds a student to its teacher, which is then the reference; None where nothing does.
    """

    objective: Objective
    config: LearningConfig
    matching: Matching | None = None

    def __call__(
        self, state: TrainState, frozen: dict, reference: dict, episodes: Episodes, advantage_B
    ) -> tuple[TrainState, dict]:
        """One iteration's update.

        Args:
          state: trained parameters and optimizer; donate it.
          frozen: {path: array} of all other parameters.
          reference: nested parameters of the policy that the leash holds to; may share the frozen arrays, and has no
            adapters where those are what is trained; {} where the config keeps none.
          episodes: B episodes, B a multiple of minibatches * micro_batches.
          advantage_B: float32 [B], or more per episode, as the objective takes them.

        Returns:
          The new state and scalar metrics.  Where a loss or gradient is not finite, that optimizer step is dropped:
          parameters and moments stay, and `update/skipped` counts it.  Where no episode teaches anything, no step is taken
          at all, the moving average stays, too, and `update/without_signal` is 1.
        """
        c = self.config
        if c.reference == "host":
            reference = jax.device_put(reference, jax.memory.Space.Device)
        start = state.sampling(frozen)
        labels = parameters.groups(start, c, self.objective.policy.model.trained_by)
        transform = parameters.optimizer(c, labels)
        trained, signal = state.trained, self.objective.signal(episodes, advantage_B)
        whole = lambda flat: tree.unflatten(frozen | flat)
        episodes = self.objective.prepare(episodes, state.step)
        data = stepping.pieces((episodes, advantage_B), c.minibatches * c.micro_batches)
        own_start = c.ppo_epochs * c.minibatches == 1 and state.old is None
        same = jnp.bool_(True) if state.old is None else ~differs(trained, start)
        anchor = lambda piece: self.objective.anchors(start, reference, piece[0], own_start)
        anchors = _map(anchor, data)
        numbers = None  # of the episodes
        if self.matching is not None:
            numbers = stepping.pieces(jnp.arange(len(episodes.drawing.finite)), c.minibatches * c.micro_batches)
        by_step = lambda x: x.reshape(c.minibatches, c.micro_batches, *x.shape[1:])
        by_step = jax.tree.map(by_step, (*data, anchors, numbers))
        share = stepping.rate_share(c, state.step)  # Adam's step is proportional to its rate, weight decay included

        def optimizer_step(carry, step):
            (trained, opt_state, fake), ((epoch, index), pieces) = carry, step
            on_policy, moved = (epoch == 0) & (index == 0) & same, differs(trained, reference)
            found, keys = {}, None
            if self.matching is not None:
                keys, (batch, _, _, numbers) = self.matching.keys(state.step, epoch * c.minibatches + index), pieces
                given = (whole(trained), reference, (batch, numbers), keys[1:], signal, share)
                fake, found = learned(self.matching.objective, fake, labels, *given)

            def loss(flat, batch, advantages, anchors, numbers):
                params = whole(flat)
                total, metrics = self.objective(params, batch, anchors, advantages, on_policy, moved)
                if self.matching is None:
                    return total, metrics
                keys_B = randomness.sample_keys(keys[0], numbers)
                held, measured = self.matching(params, fake, reference, batch, keys_B)
                return total + held, metrics | measured | {"loss": total + held}

            gradient = jax.grad(loss, has_aux=True)
            grads, metrics = stepping.accumulate(lambda piece: gradient(trained, *piece), pieces)
            trained, opt_state, updates, finite = stepping.stepped(
                transform, trained, opt_state, grads, metrics, signal, share
            )
            metrics |= stepping.group_norms(grads, labels, "grad_norm")
            metrics |= stepping.group_norms(updates, labels, "update_norm")
            dropped = jnp.maximum(1.0 - finite, jnp.float32(found.pop("fake/skipped", 0.0) > 0))
            return (trained, opt_state, fake), metrics | found | {"update/skipped": dropped}

        def epoch(carry, number):
            at = (jnp.full(c.minibatches, number), jnp.arange(c.minibatches))
            return stepping.scan(optimizer_step, carry, (at, by_step))

        carry, metrics = stepping.scan(epoch, (trained, state.opt_state, state.fake), jnp.arange(c.ppo_epochs))
        metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
        # Before the first step the trained policy is the one that sampled: only there do the two log-probabilities
        # of an action measure numerics.
        first = {name: value[0] for name, value in metrics.items() if "/log_prob_gap" in name}
        state, counts = state.after(c, carry, metrics["update/skipped"], signal)
        return state, with_ratio_std(reduce_metrics(metrics)) | first | counts


def differs(trained: dict[str, jax.Array], reference: dict) -> jax.Array:
    """Whether the trained policy is another one than the reference, bool [].

    Weights are compared in the dtype that the reference is kept in, to which the network casts them.  Adapters, which the
    reference lacks, change nothing while every B is 0.
    """
    kept = tree.flatten(reference)
    other = [jnp.any(x.astype(kept[path].dtype) != kept[path]) for path, x in trained.items() if path in kept]
    adapted = [jnp.any(x != 0) for path, x in trained.items() if path not in kept and is_second(path)]
    return jnp.any(jnp.stack([*other, *adapted])) if other or adapted else jnp.bool_(True)


def _map(function, xs):
    return stepping.scan(lambda carry, x: (carry, function(x)), None, xs)[1]
