"""Optimizer steps: gradients added over micro-batches, and steps that are dropped where they are not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from unigrpo_jax.config import LearningConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import reduce_metrics
from unigrpo_jax.rollout import randomness


def rate_share(config: LearningConfig, step):
    """What share of its rates iteration `step`, from 0 on, learns with, float32 []: 1, then a line towards 0 at the end."""
    first, end = config.cooldown
    if not end:
        return jnp.float32(1.0)
    return jnp.clip((end - step) / (end - first), 0.0, 1.0)


def keys(seed: int, iteration, number, count: int) -> jax.Array:
    """`count` keys of what an optimizer step looks through, its number within the iteration counted from 0."""
    own = jax.random.fold_in(randomness.stream_key(seed, iteration, randomness.FORWARD), number)
    return jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(count))


def pieces(tree, count: int):
    """[B, ...] arrays to [count, B / count, ...], interleaved."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), tree)


def stepped(transform, flat, moments, grads, metrics, signal, share) -> tuple[dict, Any, dict, jax.Array]:
    """Parameters and moments after a step, the step itself, and whether it was finite, float32 []; the old bits else."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(optax.tree.norm(grads))
    taken = finite & signal
    updates, new = transform.update(grads, moments, flat)
    updates = jax.tree.map(lambda u: jnp.where(taken, share * u, 0.0), updates)
    moments = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, moments)
    return optax.apply_updates(flat, updates), moments, updates, finite.astype(jnp.float32)


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
