"""What becomes of an episode that holds a number that is not finite.

One such episode would make the loss of the whole batch NaN, also with advantage 0, since 0 * NaN is NaN.  So it leaves the
rollout blank: an empty prompt, no thinking, latents of 0 (a given picture's, too), and `Drawing.finite` False.  The
objective gives a blank episode no part in any loss; the trainer gives its group advantage 0, as it does where no reward
judged an episode.
"""

import jax
import jax.numpy as jnp

from unigrpo_jax.episode import Drawing, Episodes, Thinking, TokenBlock


def finite_rows(x) -> jax.Array:
    """Whether all numbers of each row are finite, bool [B]; a row without numbers is."""
    return jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def blank(episodes: Episodes, stop: int | None) -> Episodes:
    """The episodes with those blank that are not finite; the others keep every bit.

    Args:
      episodes: as sampled; each drawing's `finite` says what its own arrays do not show (last latent, image).
      stop: token that ends a text block; a blank prompt is nothing else.  None where prompts are no tokens, but numbers.
    """
    known = [s.finite for s in episodes.drawings]
    known += [finite_rows(s.log_probs) for s in episodes.segments if isinstance(s, Thinking)]
    finite_B = jnp.all(jnp.stack(known), axis=0)
    pick = lambda x, other: jnp.where(finite_B.reshape(-1, *(1,) * (x.ndim - 1)), x, other)

    def segment(s):
        if isinstance(s, Thinking):
            return s.replace(tokens=pick(s.tokens, stop), mask=pick(s.mask, False), log_probs=pick(s.log_probs, 0.0))
        if not isinstance(s, Drawing):
            return s
        zero = lambda tree: jax.tree.map(lambda x: pick(x, 0.0), tree)
        return s.replace(x=zero(s.x), noise=zero(s.noise), mean=zero(s.mean), latent=zero(s.latent), finite=finite_B)

    prompt = episodes.prompt
    if isinstance(prompt, TokenBlock):
        last = jnp.arange(prompt.tokens.shape[1])[None] == prompt.tokens.shape[1] - 1
        prompt = TokenBlock(tokens=pick(prompt.tokens, stop), valid=pick(prompt.valid, last))
    else:
        # Its mask stays: of a text without a token a network would take a mean over nothing.
        prompt = jax.tree.map(lambda x: x if x.dtype == bool else pick(x, jnp.zeros((), x.dtype)), prompt)
    return episodes.replace(
        prompt=prompt,
        segments=tuple(segment(s) for s in episodes.segments),
        picture=jax.tree.map(lambda x: pick(x, 0.0), episodes.picture),
    )
