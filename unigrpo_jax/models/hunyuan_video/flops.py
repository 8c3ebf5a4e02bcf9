"""What one evaluation of the transformer costs, by formula: `building.two_streams_flops`, and the text's refiner."""

import dataclasses

from unigrpo_jax.models.building import two_streams_flops
from unigrpo_jax.models.hunyuan_video.transformer import MLP, HunyuanVideoTransformer
from unigrpo_jax.models.work import Evaluation


def evaluation(network: HunyuanVideoTransformer, latents: int, text: int) -> Evaluation:
    """Of one sample.

    Args:
      network: the sizes.
      latents: tokens N of the video.
      text: tokens L of its text, with the padding.
    """
    width, refiner = network.width, network.refiner
    entrance = latents * network.inputs + network.text_width * text
    entrance += two_streams_flops.told(width, network.text_width, guidance=False)
    each = two_streams_flops.evaluation(network, latents, text, entrance)
    # The same maps and activations as in a stream of a double block; the condition says two gates.
    maps = 2 * (4 + 2 * MLP) * width**2 * text
    return dataclasses.replace(
        each,
        layers=each.layers + refiner * (maps + 4 * width * text**2 + 2 * 2 * width**2),
        weights=each.weights + network.inputs * width,
        summed=each.summed + refiner * 2 * width * text,
        kept=each.kept + refiner * (8 + 2 * MLP) * width * text,
        scores=each.scores + refiner * network.heads * text**2,
    )
