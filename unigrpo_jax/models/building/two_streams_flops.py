"""What one evaluation of `two_streams` costs, by formula; nothing is compiled.

Counted are the products of matrices, 2 operations for each multiply-add.  Text and latents see each other whole; padding of
a text that nothing sees is computed all the same, so that what the mathematics needs is taken for what dense attention
computes.
"""

import math

from unigrpo_jax.models.building.flat_adapters import linears
from unigrpo_jax.models.building.two_streams import MLP, SINUSOID, TwoStreams
from unigrpo_jax.models.work import Evaluation


def evaluation(network: TwoStreams, latents: int, text: int, entrance: int) -> Evaluation:
    """Of one sample.

    Args:
      network: the sizes.
      latents: tokens N.
      text: tokens L of its text.
      entrance: multiply-adds of what comes before the blocks, for each number of their width.
    """
    width, tokens, blocks = network.width, latents + text, network.double + network.single
    # Every token meets in a block q, k, v, what follows attention, and both layers of an MLP; a double block has one set of
    # these for each stream.  Modulations are made once a sample.
    maps = 2 * blocks * (4 + 2 * MLP) * width**2 * tokens
    attention = 4 * blocks * width * tokens**2
    modulation = 2 * (network.double * 2 * 6 + network.single * 3) * width**2
    once = told(width, network.pooled_width, network.guidance) + 2 * width
    return Evaluation(
        layers=maps + attention + modulation,
        others=2 * width * (entrance + latents * network.channels + once),
        weights=sum(map(math.prod, linears(network).values())),
        # A double block's attention and MLP are summed one after the other, a single one's together.
        summed=(2 * network.double + network.single) * width * tokens,
        # Norms, q, k, v, mixed values, an MLP's inside before and after its activation, and what gates multiply.
        kept=((8 + 2 * MLP) * network.double + (6 + 2 * MLP) * network.single) * width * tokens,
        scores=blocks * network.heads * tokens**2,
        keys=blocks * 2 * width * tokens,
        int8=maps,
    )


def told(width: int, pooled_width: int, guidance: bool) -> int:
    """Multiply-adds of `two_streams.told` for one sample, for each number of its width."""
    return sum(size + width for size in [SINUSOID, pooled_width] + [SINUSOID] * guidance)
