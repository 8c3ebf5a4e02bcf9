"""The tokens of one sample over several devices: how two streams of them are filled up, joined and parted again.

Each device holds an equal part of the text and of the latents, and of both as one sequence its text before its latents, so
that joining and parting move nothing between devices.  What a token gets does not depend on the order of the others, but it
must not see what was filled up: that is the zeros of a mask which is filled up likewise.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TokenCut:
    """The cut.

    Attributes:
      parts: devices that the tokens of a sample are cut over; with 1 nothing is filled up, and text comes before latents.
      hold: applied to tokens [B, n, ...], n a multiple of `parts`, to hold each part to its device.
      whole: applied to tokens [B, n, ...] that each device is to have all of.
    """

    parts: int = 1
    hold: Callable[[jax.Array], jax.Array] = lambda x: x
    whole: Callable[[jax.Array], jax.Array] = lambda x: x

    def filled(self, x):
        """Tokens [B, n, ...] with as many zeros behind them as make a multiple of `parts`."""
        more = -x.shape[1] % self.parts
        return jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2)) if more else x

    def entering(self, x):
        """Tokens [B, n, ...], filled up and each at its device."""
        return self.hold(self.filled(x))

    def seen(self, x, seen_BN=None):
        """Which tokens of x [B, n, ...] others see once it is filled up, bool; None is all, of x as of what comes out."""
        if seen_BN is None and x.shape[1] % self.parts == 0:
            return None
        return self.filled(jnp.ones(x.shape[:2], bool) if seen_BN is None else seen_BN)

    def leaving(self, x, tokens: int):
        """The first `tokens` of a stream, all on each device; gradients go back to each token's own."""
        return x if self.parts == 1 else self.whole(self.hold(x))[:, :tokens]

    def joined(self, text, latents):
        """Two streams [B, l, ...] and [B, n, ...], both multiples of `parts`, as one sequence [B, l + n, ...]."""
        if self.parts == 1:
            return jnp.concatenate([text, latents], axis=1)
        both = jnp.concatenate([self._each(text), self._each(latents)], axis=2)
        return both.reshape(both.shape[0], -1, *both.shape[3:])

    def parted(self, both, length: int):
        """The two streams of `joined`, `length` tokens of text."""
        if self.parts == 1:
            return both[:, :length], both[:, length:]
        each, own = self._each(both), length // self.parts
        flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
        return flat(each[:, :, :own]), flat(each[:, :, own:])

    def of_both(self, table, length: int):
        """A table [l + n, ...] of the text's `length` tokens and the latents', in the order of `joined`, at its devices."""
        if self.parts == 1:
            return table
        return self.hold(self.joined(table[None, :length], self.filled(table[None, length:])))[0]

    def _each(self, x):
        """What each device holds, [B, parts, n / parts, ...]."""
        return x.reshape(x.shape[0], self.parts, -1, *x.shape[2:])


NOT_CUT = TokenCut()
