"""T5's encoder (arXiv 1910.10683, with the gated MLP of version 1.1), as transformers' T5EncoderModel computes it.

Its parameters are the tensors of the file, a flat dict under their own names and in their own layout, but for the blocks,
which are scanned: `encoder.block.layer.0.SelfAttention.q.weight` [layers, out, in] holds those of all blocks.  Dtypes are
those of the parameters; norms and softmax are float32.  Letters: B texts, L tokens, D width, H heads, K head dim.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.flat import Params, Shapes, layer_names, linear, linear_shapes, of_stack, rms_norm
from unigrpo_jax.models.folders.settings import read_settings

BLOCK = "encoder.block"
TABLE = f"{BLOCK}.0.layer.0.SelfAttention.relative_attention_bias.weight"  # of the first block, and read in all


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Encoder:
    """Sizes, and the pass.

    Attributes:
      vocabulary: token ids.
      width: D.
      heads: of attention.
      head_dim: K; heads * K need not be D.
      mlp: width between the layers of an MLP.
      layers: blocks.
      buckets: of distances between tokens.
      farthest: distance from which all are one bucket.
      norm_eps: of the norms.
    """

    vocabulary: int
    width: int
    heads: int
    head_dim: int
    mlp: int
    layers: int
    buckets: int = 32
    farthest: int = 128
    norm_eps: float = 1e-6

    def __call__(self, params: Params, ids_BL, mask_BL=None):
        """States [B, L, D] after the last norm, and those after the embedding and each block, [layers + 1, B, L, D].

        Args:
          params: the parameters.
          ids_BL: int token ids.
          mask_BL: nonzero where a token is seen; None where all are, as FLUX has it, padding included.
        """
        x = params["shared.weight"][ids_BL]
        places = self.bucket(ids_BL.shape[1])
        bias = params[TABLE].astype(jnp.float32)[places].transpose(2, 0, 1)[None]  # [1, H, L, L]
        if mask_BL is not None:
            bias = bias + jnp.where(mask_BL[:, None, None] != 0, 0.0, jnp.finfo(jnp.float32).min)
        blocks = {name: p for name, p in of_stack(params, BLOCK).items() if name.startswith("layer.")}
        block = lambda x, p: (self._block(p, x, bias),) * 2
        x, after = jax.lax.scan(block, x, blocks)
        states = jnp.concatenate([params["shared.weight"][ids_BL][None], after])
        return rms_norm(params, "encoder.final_layer_norm", x, self.norm_eps), states

    def bucket(self, length: int) -> np.ndarray:
        """int [L, L]: which bucket the distance from a query to a key falls into.

        Half of the buckets are for keys behind the query.  Of each half, the first half holds one distance each, the
        others ever more, up to `farthest`: n/2 + floor(ln(r / (n/2)) / ln(farthest / (n/2)) n/2), n being half of all.
        """
        away = np.arange(length)[None] - np.arange(length)[:, None]
        half = self.buckets // 2
        exact = half // 2
        far, one = np.abs(away), np.float32(1)
        wide = np.log(np.maximum(far, 1) / np.float32(exact), dtype=np.float32) / np.log(one * self.farthest / exact)
        wide = np.minimum(exact + (wide * (half - exact)).astype(int), half - 1)
        return np.where(away > 0, half, 0) + np.where(far < exact, far, wide)

    def _block(self, p: Params, x, bias):
        h = rms_norm(p, "layer.0.layer_norm", x, self.norm_eps)
        name = "layer.0.SelfAttention"
        q, k, v = (linear(p, f"{name}.{which}", h).reshape(*h.shape[:2], self.heads, -1) for which in "qkv")
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k, preferred_element_type=jnp.float32) + bias  # not divided by sqrt(K)
        mixed = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores).astype(v.dtype), v)
        x = x + linear(p, f"{name}.o", mixed.reshape(*h.shape[:2], -1))
        h, name = rms_norm(p, "layer.1.layer_norm", x, self.norm_eps), "layer.1.DenseReluDense"
        gate = jax.nn.gelu(linear(p, f"{name}.wi_0", h), approximate=True)
        return x + linear(p, f"{name}.wo", gate * linear(p, f"{name}.wi_1", h))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        if not name.startswith(f"{BLOCK}.layer."):
            return (name,)
        return layer_names(name, BLOCK, self.layers)

    def _shapes(self) -> Shapes:
        yield "shared.weight", (self.vocabulary, self.width)
        yield TABLE, (self.buckets, self.heads)
        yield "encoder.final_layer_norm.weight", (self.width,)
        for name, shape in self._block_shapes():
            yield f"{BLOCK}.{name}", (self.layers, *shape)

    def _block_shapes(self) -> Shapes:
        inner = self.heads * self.head_dim
        for which in "qkv":
            yield from linear_shapes(f"layer.0.SelfAttention.{which}", self.width, inner, bias=False)
        yield from linear_shapes("layer.0.SelfAttention.o", inner, self.width, bias=False)
        for which in ("wi_0", "wi_1"):
            yield from linear_shapes(f"layer.1.DenseReluDense.{which}", self.width, self.mlp, bias=False)
        yield from linear_shapes("layer.1.DenseReluDense.wo", self.mlp, self.width, bias=False)
        for which in ("layer.0", "layer.1"):
            yield f"{which}.layer_norm.weight", (self.width,)


def read_t5(path: pathlib.Path, files: str) -> T5Encoder:
    """The encoder that a `config.json` of transformers describes; `files` says what its folder holds, for messages.

    A name that is left out has the default of the class.  ValueError where the file asks for what is not built.
    """
    found = read_settings(path, files)
    found.only("model_type", "t5")
    projection = "feed_forward_proj"
    if projection not in found:
        raise found.error(projection, "only 'gated-gelu' is built, and without it the class means 'relu'")
    found.only(projection, "gated-gelu")
    buckets = found.whole("relative_attention_num_buckets", 32)
    farthest = found.whole("relative_attention_max_distance", 128)
    if buckets % 4 or farthest <= buckets // 4:
        raise found.error("relative_attention_num_buckets", "it must divide by 4, and a quarter of it be below the farthest")
    return T5Encoder(
        vocabulary=found.whole("vocab_size", 32128),
        width=found.whole("d_model", 512),
        heads=found.whole("num_heads", 8),
        head_dim=found.whole("d_kv", 64),
        mlp=found.whole("d_ff", 2048),
        layers=found.layers("num_layers", 6),
        buckets=buckets,
        farthest=farthest,
        norm_eps=found.positive("layer_norm_epsilon", 1e-6),
    )
