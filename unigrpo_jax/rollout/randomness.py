"""Randomness as a function of (seed, step, global sample id, stream, position), and of nothing else.

Neither the mesh, nor the micro-batch size, nor a resume can then change an episode.
"""

import jax

# Streams: independent keys for independent uses within one step; those of round r are STREAMS * r later.
WINDOW, TOKENS, INITIAL_NOISE, STEP_NOISE, PICTURE, FORWARD, TIMES, FIRST = range(8)
STREAMS = 16


def stream_key(seed, step, stream) -> jax.Array:
    """The key of one use of randomness in one iteration; all three may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stream)


def round_keys(seed, step, stream: int, turn, ids_B) -> jax.Array:
    """The keys [B] of one use of randomness in round `turn`, which may be traced, from the episodes' global ids."""
    return sample_keys(stream_key(seed, step, stream + STREAMS * turn), ids_B)


def sample_keys(key: jax.Array, ids_B: jax.Array) -> jax.Array:
    """One key per episode, [B], from the episodes' global ids."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids_B)


def normal(keys_B: jax.Array, position, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [B, *shape]: each episode from its own key, at a position of its stream."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, position), shape))(keys_B)


def normal_like(keys_B: jax.Array, position, latent):
    """Standard normal numbers like a latent: the first modality's are `normal`'s, each further one's have own keys."""
    leaves, structure = jax.tree.flatten(latent)
    own = [keys_B, *(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 2**20 + n) for n in range(1, len(leaves)))]
    return jax.tree.unflatten(structure, [normal(k, position, x.shape[1:]) for k, x in zip(own, leaves, strict=True)])
