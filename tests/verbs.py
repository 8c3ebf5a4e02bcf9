"""What a model does, jitted: equal models and shapes share their programs, and nothing is compiled operation by operation.

Models, autoencoders, grids, lengths, samplers and system prompts are static arguments.
"""

from jax import jit

from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.rollout import dialogue as dialogues
from unigrpo_jax.rollout import drawing, thinking

init = jit(Bagel.init, static_argnums=0)
prefill, decode_token = jit(Bagel.prefill, static_argnums=0), jit(Bagel.decode, static_argnums=0)
text_logits, predict = jit(Bagel.text_logits, static_argnums=0), jit(Bagel.predict, static_argnums=(0, 4))
begin = jit(dialogues.begin, static_argnums=(0, 2, 3))
hear, look = jit(dialogues.hear, static_argnums=0), jit(dialogues.look, static_argnums=0)
think = jit(thinking.think, static_argnums=(0, 4, 5))
denoise = jit(drawing.denoise, static_argnums=(0, 6))
moments = jit(ImageAutoencoder.moments, static_argnums=0)
encode, decode_latent = jit(ImageAutoencoder.encode, static_argnums=0), jit(ImageAutoencoder.decode, static_argnums=0)
