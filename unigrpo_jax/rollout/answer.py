"""A question about a picture, answered in words: the picture through the vision encoder, the question, then text."""

import jax
import numpy as np

from unigrpo_jax.models.loaded import WordCodec
from unigrpo_jax.models.verbs import Thinker
from unigrpo_jax.rollout import dialogue as dialogues
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.thinking import TokenSampler, think


def answer(
    model: Thinker, params, codec: WordCodec, patches, question: str, system: str, length: int, temperature: float, seed: int
) -> str:
    """The model's words.

    Args:
      model: the network.
      params: its parameters.
      codec: its words.
      patches: float32 [1, rows, columns, patch_width], the picture.
      question: what is asked.
      system: system prompt; none where it is empty.
      length: largest number of tokens.
      temperature: 0 is greedy.
      seed: of the tokens.
    """
    block = codec.prompts([question], len(codec.ids(question)))
    opening = tuple(codec.ids(system)) if system else ()

    @jax.jit
    def run(params, patches, block):
        dialogue = dialogues.begin(model, params, opening, 1)
        dialogue = dialogues.hear(model, params, dialogues.look(model, params, dialogue, patches=patches), block)
        keys = randomness.sample_keys(randomness.stream_key(seed, 0, randomness.TOKENS), np.arange(1))
        return think(model, params, dialogue.full, keys, length, TokenSampler(temperature=temperature))[0]

    return codec.thoughts(run(params, patches, block), 1)[0]
