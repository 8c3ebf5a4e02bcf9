"""Gemma 3's decoder (arXiv 2503.19786), as transformers' Gemma3TextModel computes it, for the states behind all its layers.

    x = sqrt(D) embedding                                   each norm: x / sqrt(mean(x^2) + eps) (1 + w), float32
    x = x + norm(attention(norm(x)))                        queries and keys are normed for each head, and then turned
    x = x + norm(down(gelu(gate(h)) * up(h))), h = norm(x)

A layer either sees all tokens before ("full_attention") or the nearest of them ("sliding_attention"); each type turns its
heads by angles of its own.  Parameters are the tensors of the file, a flat dict under their own names, but for the layers,
which are scanned: `PREFIX.layers.mlp.up_proj.weight` [layers, out, in] holds those of all.  Dtypes are those of the
parameters; norms, angles and softmax are float32.  Letters: B texts, L tokens, D width, H heads, K head dim.
"""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.flat import Params, Shapes, layer_names, of_stack
from unigrpo_jax.models.building.rotary import rotary_table
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.rope_settings import FULL, SLIDING, Rope, layer_rope
from unigrpo_jax.models.folders.settings import Settings, read_settings
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.models.text_encoders import decoder

EMBEDDING = "embed_tokens.weight"
# What stands before a name: of the whole model as transformers 4 and 5 write it, of it without its head, of the language
# model alone, and of that without its head.
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.", "")
# What sees pictures and what says the next token; the latter is the embedding once more where it is there at all.
UNREAD = r"(?:model\.)?(vision_tower|multi_modal_projector)\..+|(?:language_model\.)?(lm_head)\.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma:
    """Sizes, and the pass.

    Attributes:
      vocabulary: token ids.
      width: D.
      heads: H, of queries.
      kv_heads: of keys and values, each of which H / kv_heads heads of queries share.
      head_dim: K, even; heads * K need not be D.
      mlp: width between the layers of an MLP.
      full: of each layer, whether it sees all tokens before, or the nearest.
      window: how many tokens the latter sees, with the token itself.
      scale: of the scores.
      rope: angles of the layers that see all.
      near_rope: of those that see the nearest.
      norm_eps: of the norms.
      prefix: of the names of parameters, as the file has it.
    """

    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    full: tuple[bool, ...]
    window: int
    scale: float
    rope: Rope
    near_rope: Rope
    norm_eps: float
    prefix: str = PREFIXES[0]

    def __call__(self, params: Params, ids_BL, mask_BL):
        """States [B, L, D, layers + 1]: of the embedding, after each layer but the last, and of the last after the norm.

        A token's place is its column, padding before it counted, as in transformers.

        Args:
          params: the parameters.
          ids_BL: int token ids.
          mask_BL: nonzero where a token is no padding, on whichever side; the states of padding mean nothing.
        """
        embedding = params[f"{self.prefix}{EMBEDDING}"]
        x = embedding[ids_BL] * jnp.asarray(self.width**0.5, embedding.dtype)  # bfloat16 rounds the root, too
        back = decoder.steps_back(ids_BL.shape[1])
        every = (mask_BL != 0)[:, None] & (back >= 0)[None]
        near = every & (back < self.window)[None]
        turns = self._turns(ids_BL.shape[1], self.rope), self._turns(ids_BL.shape[1], self.near_rope)

        def layer(x, given):
            p, full = given
            rotary = jax.tree.map(lambda *pair: jnp.where(full, *pair), *turns)
            return self._layer(p, x, rotary, jnp.where(full, every, near)), x

        last, before = jax.lax.scan(layer, x, (of_stack(params, self._stack), np.array(self.full)))
        last = self._norm(params, f"{self.prefix}norm", last)
        return jnp.moveaxis(jnp.concatenate([before, last[None]]), 0, -1)

    def _turns(self, length: int, rope: Rope) -> decoder.Rotary:
        return rotary_table(jnp.arange(length, dtype=jnp.float32)[None] / rope.factor, self.head_dim, rope.theta)

    def _layer(self, p: Params, x, rotary: decoder.Rotary, seen_BLM):
        norm = functools.partial(self._norm, p)
        mixed = decoder.attention(p, norm("input_layernorm", x), self.head_dim, rotary, seen_BLM, self.scale, norm)
        x = x + norm("post_attention_layernorm", mixed)
        gelu = functools.partial(jax.nn.gelu, approximate=True)
        return x + norm("post_feedforward_layernorm", decoder.gated_mlp(p, norm("pre_feedforward_layernorm", x), gelu))

    def _norm(self, p: Params, name: str, x):
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.norm_eps)
        return (h * (1 + jnp.broadcast_to(p[f"{name}.weight"].astype(jnp.float32), h.shape))).astype(x.dtype)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        return layer_names(name, self._stack, len(self.full)) if name.startswith(f"{self._stack}.") else (name,)

    @property
    def _stack(self) -> str:
        return f"{self.prefix}layers"

    def _shapes(self) -> Shapes:
        yield f"{self.prefix}{EMBEDDING}", (self.vocabulary, self.width)
        yield f"{self.prefix}norm.weight", (self.width,)
        for name, shape in self._layer_shapes():
            yield f"{self._stack}.{name}", (len(self.full), *shape)

    def _layer_shapes(self) -> Shapes:
        yield from decoder.matrix_shapes(self.width, self.heads, self.kv_heads, self.head_dim, self.mlp)
        for which in "qk":
            yield f"self_attn.{which}_norm.weight", (self.head_dim,)
        for which in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{which}_layernorm.weight", (self.width,)


def read_gemma(path: pathlib.Path, files: str) -> Gemma:
    """The decoder that a `config.json` of transformers describes; `files` says what its folder holds, for messages.

    The file is of the whole model (Gemma3ForConditionalGeneration, the decoder under `text_config`) or of the language model
    (Gemma3ForCausalLM, Gemma3TextModel).  A name that is left out has the default of the class.  ValueError where the file
    asks for what is not built.
    """
    found = read_settings(path, files)
    likely = "gemma3" if "text_config" in found else "gemma3_text"
    if found.word("model_type", likely, "gemma3", "gemma3_text") == "gemma3":
        if "text_config" not in found:
            raise found.error("text_config", "a model of type 'gemma3' has its language model there")
        found = found.part("text_config")
        found.only("model_type", "gemma3_text")
    found.only("hidden_activation", "gelu_pytorch_tanh")
    found.only("attn_logit_softcapping")
    for name in ("attention_bias", "use_bidirectional_attention"):
        found.only(name, False)
    heads, kv_heads = found.whole("num_attention_heads", 8), found.whole("num_key_value_heads", 4)
    head_dim = found.whole("head_dim", 256)
    decoder.check_heads(found, heads, kv_heads, head_dim)
    full = _full(found)
    if "sliding_window" in found.nulls and not all(full):
        raise found.error("sliding_window", f"layers of {SLIDING} need a number of tokens")
    return Gemma(
        vocabulary=found.whole("vocab_size", 262208),
        width=found.whole("hidden_size", 2304),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=found.whole("intermediate_size", 9216),
        full=full,
        window=found.whole("sliding_window", 4096),
        scale=found.positive("query_pre_attn_scalar", 256) ** -0.5,
        rope=layer_rope(found, FULL, 1e6),
        near_rope=layer_rope(found, SLIDING, 1e4),
        norm_eps=found.positive("rms_norm_eps", 1e-6),
    )


def _full(found: Settings) -> tuple[bool, ...]:
    """Of each layer, whether it sees all: as `layer_types` says, or else every so many-th of `sliding_window_pattern`."""
    layers = found.layers("num_hidden_layers", 26)
    every = found.whole("sliding_window_pattern", 6)
    if "layer_types" not in found:
        return tuple((layer + 1) % every == 0 for layer in range(layers))
    types = found.words("layer_types", (), FULL, SLIDING)
    if len(types) != layers:
        raise found.error("layer_types", f"it must name one type for each of num_hidden_layers = {layers}")
    return tuple(kind == FULL for kind in types)


def open_gemma_weights(folder: pathlib.Path, network: Gemma) -> tuple[Gemma, StoredTensors]:
    """The network with the prefix that a folder's weights have, and these; ValueError as `component.open_weights`."""
    names = StoredTensors(folder, component.TRANSFORMERS).names()
    found = [prefix for prefix in PREFIXES if f"{prefix}{EMBEDDING}" in names]
    network = dataclasses.replace(network, prefix=found[0] if found else PREFIXES[0])
    return network, component.open_weights(folder, component.TRANSFORMERS, network, UNREAD)


def unread_parts(weights: StoredTensors) -> tuple[str, ...]:
    """The parts of the whole model that a file holds and that are no part of the decoder, such as "vision_tower"."""
    found = (re.fullmatch(UNREAD, name) for name in weights.names())
    return tuple(sorted({match[1] or match[2] for match in found if match}))
