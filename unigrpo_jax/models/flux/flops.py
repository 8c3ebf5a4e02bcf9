"""What one evaluation of the transformer costs, by formula (`building.two_streams_flops`)."""

from unigrpo_jax.models.building import two_streams_flops
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.work import Evaluation


def evaluation(network: FluxTransformer, latents: int, text: int) -> Evaluation:
    """Of one sample.

    Args:
      network: the sizes.
      latents: tokens N of the picture.
      text: tokens L of its text.
    """
    entrance = latents * network.channels + network.text_width * text
    return two_streams_flops.evaluation(network, latents, text, entrance)
