"""What one evaluation of the U-Net costs, by formula; nothing is compiled.

Counted are the products of matrices and the convolutions, 2 operations for each multiply-add.  Each weight of one is used
once for every row that it maps: a pixel of its scale, a token of the text, or the one sample whose time it embeds.  Pixels
see each other and the text whole, so that what the mathematics needs is what dense attention computes.
"""

import math
import re

from unigrpo_jax.models.stable_diffusion.unet import INT8, UNet
from unigrpo_jax.models.work import Evaluation


def evaluation(network: UNet, latents: int, text: int) -> Evaluation:
    """Of one sample.

    Args:
      network: the sizes.
      latents: pixels N of the latent; a quarter of them on each coarser scale.
      text: tokens L of its text.
    """
    matrices = {name: shape for name, shape in network.shapes().items() if len(shape) > 1}
    operations = {name: 2 * math.prod(shape) * rows(network, name, latents, text) for name, shape in matrices.items()}
    summed = kept = scores = products = 0
    for name, (out, width, *_) in matrices.items():
        pixels = rows(network, name, latents, text)
        match re.sub(r".*(?:resnets|attentions|transformer_blocks)\.\d+\.|\.weight$", "", name):
            case "conv1":  # norm before and after its activation, the same of the second one and what it is given
                kept += pixels * (2 * width + 3 * out)
            case "conv2":
                summed += pixels * out
            case "proj_in":  # beside it norm, three norms of the layer, queries and mixed values twice, MLP
                kept += pixels * width * (1 + 1 + 3 + 4 + 4 * 4)
            case "attn1.to_k" | "attn2.to_k":
                seen, looking = pixels, latents // 4 ** scale_of(network, name)
                products += 4 * looking * seen * out
                scores += network.heads * looking * seen
                kept += 2 * seen * out
            case "proj_out":  # each of the layer's two attentions and its MLP
                summed += 3 * pixels * out
    layers = sum(n for name, n in operations.items() if ".resnets." in name or ".attentions." in name)
    return Evaluation(
        layers=layers + products,
        others=sum(operations.values()) - layers,
        weights=sum(map(math.prod, matrices.values())),
        summed=summed,
        kept=kept,
        scores=scores,
        int8=sum(n for name, n in operations.items() if re.fullmatch(INT8, name.removesuffix(".weight"))),
    )


def rows(network: UNet, name: str, latents: int, text: int) -> int:
    """How often the weight of this name is used for one sample."""
    if "time_emb" in name:
        return 1
    if ".attn2.to_k." in name or ".attn2.to_v." in name:
        return text
    return latents // 4 ** scale_of(network, name)


def scale_of(network: UNet, name: str) -> int:
    """The scale, from 0 the finest, on which a module's results lie."""
    last, found = len(network.widths) - 1, re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if found is None:
        return last if name.startswith("mid_block.") else 0
    scale = int(found[2]) if found[1] == "down" else last - int(found[2])
    return scale + (".downsamplers." in name) - (".upsamplers." in name)
