"""What one evaluation of the transformer costs, by formula; nothing is compiled.

Counted are the products of matrices, 2 operations for each multiply-add.  Texts are seen whole, with the registers that
stand where there would be padding.
"""

import math
import re

from unigrpo_jax.models.building.flat_adapters import linears
from unigrpo_jax.models.ltx2.layers import MLP
from unigrpo_jax.models.ltx2.modulation import OTHER, SINUSOID
from unigrpo_jax.models.ltx2.transformer import HEARD, LTX2Transformer
from unigrpo_jax.models.work import Evaluation


def evaluation(network: LTX2Transformer, video: int, audio: int, text: int, begun: bool = False) -> Evaluation:
    """Of one sample, with both modalities, or the video alone where the sound has no tokens.

    Args:
      network: the sizes.
      video: tokens of the video.
      audio: tokens of the sound.
      text: tokens of each text.
      begun: whether the clip goes on from a picture, so that each of its tokens has a time of its own.
    """
    tokens, inner = {"video": video, "audio": audio}, network.audio.width
    block = maps = once = summed = kept = scores = keys = 0
    names = [name for name, count in tokens.items() if count]
    for name in names:
        branch, other, heard = network.branches[name], network.branches[OTHER[name]].width, tokens[OTHER[name]]
        own, width, meet = tokens[name], branch.width, int(bool(heard))
        # Self attention, queries and output of text attention, and the MLP; keys and values of the text.
        maps += (4 + 2 + 2 * MLP) * width**2 * own + 2 * width**2 * text
        # Queries and output where it takes from the other modality, keys and values of that.
        maps += 2 * width * inner * own * meet + 2 * other * inner * heard
        block += 2 * own * (width * (own + text) + inner * heard)  # scores and mixed values
        if branch.gated:
            block += own * width * (2 * branch.heads + meet * network.audio.heads)
        once += own * 2 * branch.channels * width
        if network.text_width is not None:
            once += text * (network.text_width + width) * width
        each = video if begun and name == "video" else 1
        told = [(branch.rows, each)] + [(4, 1), (1, 1)] * meet + [(2, 1)] * network.texts_told
        once += sum(times * (SINUSOID * width + (1 + parts) * width**2) for parts, times in told)
        summed += (3 + meet) * width * own  # of attentions and an MLP
        # Norms, q, k, v and mixed values, an MLP's inside before and after its activation, what gates multiply, and keys
        # and values of text and of the other modality.
        kept += (11 + 2 * MLP) * width * own + 2 * width * text + 2 * inner * (own + heard) * meet
        scores += own * (branch.heads * (own + text) + network.audio.heads * heard)
        keys += 2 * (width * (own + text) + inner * heard)
    return Evaluation(
        layers=2 * network.layers * (maps + block),
        others=2 * once,
        weights=sum(math.prod(shape) for name, shape in linears(network).items() if audio or not re.fullmatch(HEARD, name)),
        summed=network.layers * summed,
        kept=network.layers * kept,
        scores=network.layers * scores,
        keys=network.layers * keys,
        int8=2 * network.layers * maps,
    )
