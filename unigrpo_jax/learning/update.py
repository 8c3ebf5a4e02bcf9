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
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective, reduce_metrics, with_ratio_std
from unigrpo_jax.models import tree
from unigrpo_jax.models.building.lora import is_second


@flax.struct.dataclass
class FakeScore:
    """What `dmd2` learns of the student's own drawings: a network of the same kind, which begins as the teacher.

    Attributes:
      trained: {path: float32 master weight}, as the student's.
      opt_state: Adam's moments of them.
    """

    trained: dict[str, jax.Array]
    opt_state: optax.OptState


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
      fake: the fake score of `dmd2`; else None.
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

    def averaged(self, frozen: dict[str, jax.Array]) -> dict:
        """The parameters that are judged: with the moving average where there is one."""
        return tree.unflatten(frozen | (self.trained if self.ema is None else self.ema))


def new_state(params: dict, config: LearningConfig, trained_by: Mapping[str, str]) -> TrainState:
    """The state before the first update; the trained parameters are the given arrays themselves."""
    labels = parameters.groups(params, config, trained_by)
    trained, _ = parameters.split(params, labels)
    copy = lambda wanted: jax.tree.map(jnp.copy, trained) if wanted else None
    fake = None
    if config.method == "dmd2":
        fake = FakeScore(copy(True), parameters.fake_optimizer(config, labels).init(trained))
    return TrainState(
        trained=trained,
        opt_state=parameters.optimizer(config, labels).init(trained),
        ema=copy(config.ema_decay),
        step=jnp.int32(0),  # an array of its own, as each is: all are donated
        skipped_in_row=jnp.int32(0),
        old=copy(config.keeps_old),
        fake=fake,
    )


def rate_share(config: LearningConfig, step):
    """What share of its rates iteration `step`, from 0 on, learns with, float32 []: 1, then a line towards 0 at the end."""
    first, end = config.cooldown
    return jnp.clip((end - step) / (end - first), 0.0, 1.0)


def mixed(decay, kept: dict[str, jax.Array], new: dict[str, jax.Array], taken) -> dict[str, jax.Array]:
    """A moving average, decay kept + (1 - decay) new; the old bits where nothing is `taken`."""
    return jax.tree.map(lambda a, b: jnp.where(taken, decay * a + (1 - decay) * b, a), kept, new)


def pieces(tree, count: int):
    """[B, ...] arrays to [count, B / count, ...], interleaved."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), tree)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateProgram:
    """(state, frozen, reference, episodes, advantages) -> (state, metrics), pure.

    Attributes:
      objective: loss and metrics of a batch.
      config: epochs, minibatches, optimizer.
    """

    objective: Objective
    config: LearningConfig

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
        data = pieces((episodes, advantage_B), c.minibatches * c.micro_batches)
        own_start = c.ppo_epochs * c.minibatches == 1 and state.old is None
        same = jnp.bool_(True) if state.old is None else ~differs(trained, start)
        anchor = lambda piece: self.objective.anchors(start, reference, piece[0], own_start)
        anchors = _map(anchor, data)
        by_step = jax.tree.map(lambda x: x.reshape(c.minibatches, c.micro_batches, *x.shape[1:]), (*data, anchors))
        loss = lambda flat, *args: self.objective(whole(flat), *args)
        gradient = jax.grad(loss, has_aux=True)

        def optimizer_step(carry, step):
            trained, opt_state = carry
            (epoch, index), (batch, advantages, anchors) = step
            on_policy, moved = (epoch == 0) & (index == 0) & same, differs(trained, reference)
            grads, metrics = accumulate(
                lambda piece: gradient(trained, piece[0], piece[2], piece[1], on_policy, moved),
                (batch, advantages, anchors),
            )
            norms = group_norms(grads, labels, "grad_norm")
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(grads))
            updates, moments = transform.update(grads, opt_state, trained)
            taken = finite & signal
            if c.cooldown != (0, 0):  # Adam's step is proportional to its rate, weight decay included
                updates = jax.tree.map(lambda u: u * rate_share(c, state.step), updates)
            updates = jax.tree.map(lambda u: jnp.where(taken, u, 0.0), updates)
            opt_state = jax.tree.map(lambda new, old: jnp.where(taken, new, old), moments, opt_state)
            metrics |= norms | group_norms(updates, labels, "update_norm")
            metrics["update/skipped"] = 1.0 - finite.astype(jnp.float32)
            return (optax.apply_updates(trained, updates), opt_state), metrics

        def epoch(carry, number):
            at = (jnp.full(c.minibatches, number), jnp.arange(c.minibatches))
            return scan(optimizer_step, carry, (at, by_step))

        carry, metrics = scan(epoch, (trained, state.opt_state), jnp.arange(c.ppo_epochs))
        trained, opt_state = carry
        metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
        # Before the first step the trained policy is the one that sampled: only there do the two log-probabilities
        # of an action measure numerics.
        first = {name: value[0] for name, value in metrics.items() if "/log_prob_gap" in name}
        skipped = jnp.sum(metrics["update/skipped"])
        counts = {"update/skipped": skipped, "update/without_signal": 1.0 - signal.astype(jnp.float32)}
        metrics = with_ratio_std(reduce_metrics(metrics)) | first | counts
        ema = None if state.ema is None else mixed(c.ema_decay, state.ema, trained, signal)
        decay = jnp.minimum(c.nft.old_growth * state.step, c.nft.old_decay)
        old = None if state.old is None else mixed(decay, state.old, trained, signal)
        in_row = jnp.where(skipped > 0, state.skipped_in_row + 1, 0).astype(jnp.int32)
        state = TrainState(trained=trained, opt_state=opt_state, ema=ema, step=state.step + 1, skipped_in_row=in_row,
                           old=old)  # fmt: skip
        return state, metrics


def differs(trained: dict[str, jax.Array], reference: dict) -> jax.Array:
    """Whether the trained policy is another one than the reference, bool [].

    Weights are compared in the dtype that the reference is kept in, to which the network casts them.  Adapters, which the
    reference lacks, change nothing while every B is 0.
    """
    kept = tree.flatten(reference)
    other = [jnp.any(x.astype(kept[path].dtype) != kept[path]) for path, x in trained.items() if path in kept]
    adapted = [jnp.any(x != 0) for path, x in trained.items() if path not in kept and is_second(path)]
    return jnp.any(jnp.stack([*other, *adapted])) if other or adapted else jnp.bool_(True)


def group_norms(flat: dict[str, jax.Array], labels: dict[str, str], name: str) -> dict[str, jax.Array]:
    """Euclidean norm [] of each trained group of a flat tree, as {"name/group": norm}."""
    members = {g: [x for path, x in flat.items() if labels[path] == g] for g in parameters.GROUPS}
    return {f"{name}/{group}": optax.tree.norm(arrays) for group, arrays in members.items() if arrays}


def scan(body, carry, xs):
    """`lax.scan`; a single iteration is inlined, which compiles and runs faster."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, out = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: x[None], out)


def _map(function, xs):
    return scan(lambda carry, x: (carry, function(x)), None, xs)[1]


def accumulate(function, xs):
    """Mean of the gradients, and reduced metrics, over the leading axis of xs."""
    count = jax.tree.leaves(xs)[0].shape[0]

    def body(total, x):
        grads, metrics = function(x)
        return jax.tree.map(jnp.add, total, grads), metrics

    shapes = jax.eval_shape(lambda x: function(jax.tree.map(lambda a: a[0], x))[0], xs)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, metrics = scan(body, zeros, xs)
    return jax.tree.map(lambda g: g / count, total), reduce_metrics(metrics)
