"""Llama's decoder (arXiv 2302.13971), as transformers' LlamaModel computes it, for the states of one of its layers.

Its parameters are the tensors of the file, a flat dict under their own names and in their own layout, but for the layers,
which are scanned: `layers.self_attn.q_proj.weight` [layers, out, in] holds those of all layers.  Dtypes are those of the
parameters; norms, angles and softmax are float32.  Letters: B texts, L tokens, D width, H heads, K head dim.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.flat import Params, Shapes, layer_names, of_stack, rms_norm
from unigrpo_jax.models.building.rotary import rotary_table
from unigrpo_jax.models.folders.rope_settings import rope_theta
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.text_encoders import decoder

LAYERS = "layers"
BUFFERS = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # which files from before transformers 4.32 hold
THETA = 1e4  # of the rotary angles where the file does not say; Llama 3's does: 500000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama:
    """Sizes, and the pass.

    Attributes:
      vocabulary: token ids.
      width: D.
      heads: H, of queries.
      kv_heads: of keys and values, each of which H / kv_heads heads of queries share.
      head_dim: K, even; heads * K need not be D.
      mlp: width between the layers of an MLP.
      layers: of the decoder.
      theta: base of the rotary angles.
      norm_eps: of the norms.
    """

    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    layers: int
    theta: float
    norm_eps: float

    def __call__(self, params: Params, ids_BL, mask_BL):
        """States [B, L, D] after the last layer, and those after the embedding and each layer, [layers + 1, B, L, D].

        Neither went through the norm behind the last layer, `norm`.

        Args:
          params: the parameters.
          ids_BL: int token ids.
          mask_BL: nonzero where a token is no padding; a token sees itself and those before it that are none.
        """
        length = ids_BL.shape[1]
        x = params["embed_tokens.weight"][ids_BL]
        rotary = rotary_table(jnp.arange(length)[None], self.head_dim, self.theta)
        seen = (mask_BL != 0)[:, None] & (decoder.steps_back(length) >= 0)[None]
        layer = lambda x, p: (self._layer(p, x, rotary, seen),) * 2
        last, after = jax.lax.scan(layer, x, of_stack(params, LAYERS))
        return last, jnp.concatenate([x[None], after])

    def _layer(self, p: Params, x, rotary: decoder.Rotary, seen_BLM):
        h = rms_norm(p, "input_layernorm", x, self.norm_eps)
        x = x + decoder.attention(p, h, self.head_dim, rotary, seen_BLM, self.head_dim**-0.5)
        h = rms_norm(p, "post_attention_layernorm", x, self.norm_eps)
        return x + decoder.gated_mlp(p, h, jax.nn.silu)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        return layer_names(name, LAYERS, self.layers) if name.startswith(f"{LAYERS}.") else (name,)

    def _shapes(self) -> Shapes:
        yield "embed_tokens.weight", (self.vocabulary, self.width)
        yield "norm.weight", (self.width,)
        for name, shape in self._layer_shapes():
            yield f"{LAYERS}.{name}", (self.layers, *shape)

    def _layer_shapes(self) -> Shapes:
        yield from decoder.matrix_shapes(self.width, self.heads, self.kv_heads, self.head_dim, self.mlp)
        for which in ("input", "post_attention"):
            yield f"{which}_layernorm.weight", (self.width,)


def read_llama(path: pathlib.Path, files: str) -> Llama:
    """The decoder that a `config.json` of transformers describes; `files` says what its folder holds, for messages.

    A name that is left out has the default of the class.  ValueError where the file asks for what is not built.
    """
    found = read_settings(path, files)
    found.only("model_type", "llama")
    found.only("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        found.only(name, False)
    width, heads = found.whole("hidden_size", 4096), found.whole("num_attention_heads", 32)
    kv_heads = found.whole("num_key_value_heads", heads)
    if "head_dim" not in found and width % heads:
        raise found.error("num_attention_heads", f"it must divide hidden_size = {width}")
    head_dim = found.whole("head_dim", width // heads)
    decoder.check_heads(found, heads, kv_heads, head_dim)
    return Llama(
        vocabulary=found.whole("vocab_size", 32000),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=found.whole("intermediate_size", 11008),
        layers=found.layers("num_hidden_layers", 32),
        theta=rope_theta(found, THETA),
        norm_eps=found.positive("rms_norm_eps", 1e-6),
    )
