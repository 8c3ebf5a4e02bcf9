"""Steps of AdamW on a loss, with a moving average of the parameters, which is what is kept of them."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unigrpo_jax.foreign_text import tell

WEIGHT_DECAY = 1e-3


def learn(
    loss: Callable[..., jax.Array],
    params: Any,
    batches: Iterator[tuple],
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float,
    key: jax.Array,
) -> Any:
    """The averaged parameters after so many steps; says how the loss goes.

    Args:
      loss: of (params, key, *batch), a number.
      params: to begin with.
      batches: one for each step.
      steps: of the optimizer.
      learning_rate: its peak; warm-up over 100 steps, then a cosine to 2 % of it.
      ema_decay: of the average, which begins with a shorter memory.
      key: of all noise.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps // 10), steps, learning_rate * 0.02)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=WEIGHT_DECAY))

    @jax.jit
    def step(state, batch, number):
        params, opt_state, ema = state
        value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key, number), *batch)
        updates, opt_state = transform.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(ema_decay, (1 + number) / (10 + number))
        return (params, opt_state, jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params)), value

    state, began, found = (params, transform.init(params), params), time.monotonic(), []
    for number in range(steps):
        state, value = step(state, next(batches), number)
        found.append(float(value))
        if number % 100 == 0 or number == steps - 1:
            tell(f"step {number:5d}  mse {np.mean(found[-100:]):.4f}  {time.monotonic() - began:6.0f} s")
    return state[2]


def flow_times(shift: float, key: jax.Array, count: int) -> jax.Array:
    """Training times [count] of a flow, t = shift s / (1 + (shift - 1) s), s = sigmoid(u), u ~ N(0, 1)."""
    s = jax.nn.sigmoid(jax.random.normal(key, (count,)))
    return shift * s / (1 + (shift - 1) * s)
