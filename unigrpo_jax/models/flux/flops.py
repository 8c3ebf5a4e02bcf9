"""What one evaluation of the transformer costs, by formula; nothing is compiled.

Counted are the products of matrices, 2 operations for each multiply-add.  Nothing is masked, text and picture see each
other whole, so that what the mathematics needs is what dense attention computes.
"""

import math

from unigrpo_jax.models.building.flat_adapters import linears
from unigrpo_jax.models.flux.transformer import MLP, SINUSOID, FluxTransformer
from unigrpo_jax.models.work import Evaluation


def evaluation(network: FluxTransformer, latents: int, text: int) -> Evaluation:
    """Of one sample.

    Args:
      network: the sizes.
      latents: tokens N of the picture.
      text: tokens L of its text.
    """
    width, tokens, blocks = network.width, latents + text, network.double + network.single
    # Every token meets in a block q, k, v, what follows attention, and both layers of an MLP; a double block has one set of
    # these for each stream.  Modulations are made once a sample.
    maps = 2 * blocks * (4 + 2 * MLP) * width**2 * tokens
    attention = 4 * blocks * width * tokens**2
    modulation = 2 * (network.double * 2 * 6 + network.single * 3) * width**2
    ends = 2 * latents * network.channels + network.text_width * text
    embedders = [SINUSOID, network.pooled_width] + [SINUSOID] * network.guidance
    once = sum(size + width for size in embedders) + 2 * width
    return Evaluation(
        layers=maps + attention + modulation,
        others=2 * width * (ends + once),
        weights=sum(map(math.prod, linears(network).values())),
        # A double block's attention and MLP are summed one after the other, a single one's together.
        summed=(2 * network.double + network.single) * width * tokens,
        # Norms, q, k, v, mixed values, an MLP's inside before and after its activation, and what gates multiply.
        kept=((8 + 2 * MLP) * network.double + (6 + 2 * MLP) * network.single) * width * tokens,
        scores=blocks * network.heads * tokens**2,
    )

