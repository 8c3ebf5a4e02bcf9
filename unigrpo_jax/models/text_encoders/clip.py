"""CLIP (arXiv 2103.00020): a text and an image tower that meet in one space, as transformers' CLIPModel computes it.

Pure functions of nested parameters (`clip_weights`), computed in the parameters' dtype.  Both towers are pre-norm
transformers; the text tower is causal and read out at the text's end, the image tower at a class token before the patches.
Letters: B images or texts, L tokens, N patches plus one, D width, H heads, K head dim, E the common space.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# Configs from before transformers 4.31 give this id, which ends no text; such texts end where their largest id stands.
OLD_EOS = 2

Hold = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One transformer.

    Attributes:
      width: of the residual stream; a multiple of `heads`.
      mlp: width between the two layers of an MLP.
      layers: their number.
      heads: attention heads.
      activation: a name of `ACTIVATIONS`.
      norm_eps: of the layer norms.
    """

    width: int
    mlp: int
    layers: int
    heads: int
    activation: str
    norm_eps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Both towers.

    Attributes:
      text: the text tower.
      vision: the image tower.
      space: E, numbers in an embedding.
      vocabulary: token ids.
      tokens: longest text, including the tokens around it.
      eos: id of the token that ends a text, or `OLD_EOS`.
      image: side of an image in pixels.
      patch: side of a patch in pixels.
    """

    text: TowerConfig
    vision: TowerConfig
    space: int
    vocabulary: int
    tokens: int
    eos: int
    image: int
    patch: int

    @property
    def grid(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are not looked at."""
        return self.image // self.patch


def end_of_text(ids_BL: jax.Array, eos: int) -> jax.Array:
    """Position int [B] at which a text is read out: its first `eos`, or its first largest id where `eos` is OLD_EOS."""
    return jnp.argmax(ids_BL if eos == OLD_EOS else ids_BL == eos, axis=1)


def text_embeddings(params: dict, config: ClipConfig, ids_BL: jax.Array, mask_BL: jax.Array, hold: Hold = lambda x: x):
    """Embeddings [B, E] of length 1.

    Args:
      params: parameters.
      config: sizes.
      ids_BL: int token ids, each text with its end; L is at most config.tokens.
      mask_BL: nonzero where a token is not padding.
      hold: says where a residual stream [B, L, D] lies.
    """
    p = params["text"]
    return _unit(text_states(p, config.text, config.eos, ids_BL, mask_BL, hold)[1] @ p["projection"]["kernel"])


def text_states(p: dict, tower: TowerConfig, eos: int, ids_BL: jax.Array, mask_BL: jax.Array, hold: Hold = lambda x: x):
    """States [B, L, D] after the last norm, and that of each text's end, [B, D], before any projection.

    Args:
      p: parameters of the text tower.
      tower: its sizes.
      eos: id of the token that ends a text, or `OLD_EOS`.
      ids_BL: int token ids.
      mask_BL: nonzero where a token is seen; Stable Diffusion and FLUX let all be seen, padding included.
      hold: says where a residual stream [B, L, D] lies.
    """
    length = ids_BL.shape[1]
    x = p["token_embedding"][ids_BL] + p["position_embedding"][None, :length]
    seen = jnp.tril(jnp.ones((length, length), bool))[None, None] & (mask_BL != 0)[:, None, None]
    x = _norm(_layers(p["layers"], tower, hold(x), seen, hold), p["final_norm"], tower)
    return x, jnp.take_along_axis(x, end_of_text(ids_BL, eos)[:, None, None], axis=1)[:, 0]


def image_embeddings(params: dict, config: ClipConfig, pixels_BHWC: jax.Array, hold: Hold = lambda x: x):
    """Embeddings [B, E] of length 1.

    Args:
      params: parameters.
      config: sizes.
      pixels_BHWC: normalised pixels [B, config.image, config.image, 3] (`clip_images`).
      hold: as in `text_embeddings`.
    """
    p, side, patch = params["vision"], config.grid, config.patch
    pixels = pixels_BHWC[:, : side * patch, : side * patch]
    patches = pixels.reshape(-1, side, patch, side, patch, 3)
    x = jnp.einsum("byhxwc,dchw->byxd", patches, p["patch_embedding"]).reshape(-1, side**2, config.vision.width)
    first = jnp.broadcast_to(p["class_embedding"], (len(x), 1, config.vision.width))
    x = jnp.concatenate([first, x], axis=1) + p["position_embedding"][None]
    x = _layers(p["layers"], config.vision, hold(_norm(x, p["pre_norm"], config.vision)), None, hold)
    return _unit(_norm(x[:, 0], p["post_norm"], config.vision) @ p["projection"]["kernel"])


def logits_per_image(params: dict, image_BE: jax.Array, text_AE: jax.Array) -> jax.Array:
    """Scaled cosines [B, A] of images and texts."""
    return jnp.exp(params["logit_scale"]) * (image_BE @ text_AE.T)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _norm(x: jax.Array, p: dict, tower: TowerConfig) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + tower.norm_eps)
    return x * _along(p["scale"], x) + _along(p["bias"], x)


def _along(p: jax.Array, x: jax.Array) -> jax.Array:
    """`p` with leading axes, so that it meets the last axes of `x`."""
    return p.reshape((1,) * (x.ndim - p.ndim) + p.shape)


def _layers(p: dict, tower: TowerConfig, x_BLD: jax.Array, seen_BHLL: jax.Array | None, hold: Hold) -> jax.Array:
    """All layers over the residual stream; `seen` [B, 1, L, L] says which keys a query sees, None is all."""
    activation = ACTIVATIONS[tower.activation]

    def dense(equation: str, x: jax.Array, p: dict) -> jax.Array:
        y = jnp.einsum(equation, x, p["kernel"])
        return y + _along(p["bias"], y)

    def layer(x, p):
        h = _norm(x, p["norm1"], tower)
        q, k, v = (dense("bld,dhk->blhk", h, p[name]) for name in ("q_proj", "k_proj", "v_proj"))
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k) / math.sqrt(q.shape[-1])  # jax.nn's attention would round to float32
        if seen_BHLL is not None:
            scores = jnp.where(seen_BHLL, scores, jnp.finfo(scores.dtype).min)  # a row that sees nothing stays finite
        attended = jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores), v)
        x = x + dense("blhk,hkd->bld", attended, p["out_proj"])
        h = activation(dense("bld,df->blf", _norm(x, p["norm2"], tower), p["fc1"]))
        return hold(x + dense("blf,fd->bld", h, p["fc2"])), None

    return jax.lax.scan(layer, x_BLD, p)[0]
