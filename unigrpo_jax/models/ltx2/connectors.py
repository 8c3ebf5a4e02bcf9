"""The connectors of LTX-2: between what Gemma says of a text, all layers of it, and what each branch is drawn upon.

States are normed, flattened and projected (`projected`); then each modality has a small transformer of its own, with places
along the text.  Where it has registers, a text's tokens come first there and padding is replaced by registers, so that
nothing is masked any more; without them padding stays where it is and no token sees it.

Its parameters are those of diffusers' `connectors/`, named as in `transformer`; blocks are stacked.

Letters: B texts, L tokens with the padding, W width of the encoder, S its states (layers + 1), D width of a connector.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import Params, Shapes, layer_names, linear, linear_shapes, of_stack
from unigrpo_jax.models.ltx2.layers import EPS, attention, attention_shapes, feed_forward, feed_forward_shapes, rms
from unigrpo_jax.models.ltx2.rotary import Layout, Turn, turn

RANGE = 8  # of normed states
MODALITIES = ("video", "audio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connector:
    """One modality's transformer.

    Attributes:
      layers: its blocks.
      heads: of attention.
      head_dim: width of a head.
      registers: how many stand, again and again, where there is padding; None where padding is masked instead.
      gated: whether each head's result is gated by the token that asks (LTX-2.3).
    """

    layers: int
    heads: int
    head_dim: int
    registers: int | None
    gated: bool = False

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class LTX2Connectors:
    """Sizes, and the pass.

    Attributes:
      text_width: W.
      states: S.
      video: its connector.
      audio: that of the sound.
      layout: of the planes that rotary embeddings turn.
      positions: tokens along the axis of places.
      theta: base of the rotary angles.
      each: whether each modality has a projection of its own, from states that are normed token by token (LTX-2.3).
      bias: whether what projects has a bias.
    """

    text_width: int
    states: int
    video: Connector
    audio: Connector
    layout: Layout
    positions: int = 4096
    theta: float = 10000.0
    each: bool = False
    bias: bool = False

    def __call__(self, params: Params, states_BLWS, mask_BL, way: Computing = PLAIN):
        """What each modality is drawn upon, {modality: [B, L, D]}, and which of it may be seen, bool [B, L]: all.

        Args:
          params: the parameters.
          states_BLWS: of the encoder: scaled embeddings, then what follows each layer.
          mask_BL: bool, tokens that are no padding, at least one of each text; padding is on the left.
          way: of computing.

        Raises:
          ValueError: the length of the texts is no multiple of the registers.
        """
        mask = jnp.asarray(mask_BL, bool)
        projected = self.projected(params, states_BLWS, mask)
        out = {name: self.connected(params, name, projected[name], mask, way) for name in MODALITIES}
        return out, jnp.ones(mask.shape, bool)

    def projected(self, params: Params, states_BLWS, mask_BL) -> dict[str, jax.Array]:
        """States as each connector takes them, {modality: [B, L, D]}."""
        if self.each:
            flat = _flat(per_token(states_BLWS), mask_BL)
            wide = {name: getattr(self, name).width / self.text_width for name in MODALITIES}
            return {name: linear(params, f"{name}_text_proj_in", flat * wide[name] ** 0.5) for name in MODALITIES}
        one = linear(params, "text_proj_in", _flat(per_layer(states_BLWS, mask_BL), mask_BL))
        return dict.fromkeys(MODALITIES, one)

    def connected(self, params: Params, name: str, x_BLD, mask_BL, way: Computing = PLAIN):
        """What the connector of a modality makes of projected states, [B, L, D]."""
        connector, length, seen = getattr(self, name), x_BLD.shape[1], mask_BL
        if connector.registers is not None:
            if length % connector.registers:
                near = -(-length // connector.registers) * connector.registers
                raise ValueError(f"texts of {length} tokens do not divide over {connector.registers} registers; pad them "
                                 f"to {near}.")  # fmt: skip
            x_BLD = with_registers(x_BLD, mask_BL, params[f"{name}_connector.learnable_registers"])
            seen = None
        own = self.turn(name, length)
        block = way.block(lambda p, x: _block(p, x, connector.heads, own, seen, way), scanned=True)
        stack = of_stack(params, f"{name}_connector.transformer_blocks")
        return rms(jax.lax.scan(lambda x, p: (block(p, x), None), x_BLD, stack)[0])

    def turn(self, name: str, length: int) -> Turn:
        """How the tokens of a connector turn."""
        connector = getattr(self, name)
        places = np.arange(length, dtype=np.float32) / np.float32(self.positions)
        return turn([places], connector.width, self.theta, connector.heads, self.layout)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        for modality in MODALITIES:
            stack = f"{modality}_connector.transformer_blocks"
            if name.startswith(f"{stack}."):
                return layer_names(name, stack, getattr(self, modality).layers)
        return (name,)

    def _shapes(self) -> Shapes:
        flat = self.text_width * self.states
        if not self.each:
            yield from linear_shapes("text_proj_in", flat, self.text_width, self.bias)
        for name in MODALITIES:
            own = getattr(self, name)
            if self.each:
                yield from linear_shapes(f"{name}_text_proj_in", flat, own.width, self.bias)
            if own.registers is not None:
                yield f"{name}_connector.learnable_registers", (own.registers, own.width)
            for inner, shape in _block_shapes(own):
                yield f"{name}_connector.transformer_blocks.{inner}", (own.layers, *shape)


def per_layer(states_BLWS, mask_BL):
    """8 (x - mean) / (largest - smallest), over a text's tokens and the encoder's width, layer by layer."""
    x, real = states_BLWS.astype(jnp.float32), mask_BL[:, :, None, None]
    over = (1, 2)
    count = jnp.sum(mask_BL, axis=1).astype(jnp.float32)[:, None, None, None] * x.shape[2]
    mean = jnp.sum(jnp.where(real, x, 0), over, keepdims=True) / (count + EPS)
    largest = jnp.max(jnp.where(real, x, -jnp.inf), over, keepdims=True)
    smallest = jnp.min(jnp.where(real, x, jnp.inf), over, keepdims=True)
    return (RANGE * ((x - mean) / (largest - smallest + EPS))).astype(states_BLWS.dtype)


def per_token(states_BLWS):
    """x / sqrt(mean(x^2) + eps), over the encoder's width, one token and one layer after the other; as LTX-2.3 norms."""
    x = states_BLWS.astype(jnp.float32)
    return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=2, keepdims=True) + EPS)).astype(states_BLWS.dtype)


def _flat(states_BLWS, mask_BL):
    """[B, L, W S], the layer fastest; 0 at padding."""
    return jnp.where(mask_BL[:, :, None], states_BLWS.reshape(*mask_BL.shape, -1), 0)


def with_registers(x_BLD, mask_BL, registers_RD):
    """A text's tokens in their order, then registers; the one at place j is the (j mod R)-th."""
    length, count = x_BLD.shape[1], jnp.sum(mask_BL, axis=1)
    order = jnp.argsort(~mask_BL, axis=1, stable=True)
    front = jnp.take_along_axis(x_BLD, order[..., None], axis=1)
    filling = jnp.tile(registers_RD.astype(x_BLD.dtype), (length // registers_RD.shape[0], 1))
    return jnp.where((jnp.arange(length)[None] < count[:, None])[..., None], front, filling[None])


def _block(p: Params, x, heads: int, own: Turn, seen_BL, way: Computing):
    """Attention among a text's tokens, and an MLP."""
    h = rms(x)
    x = x + attention(p, "attn1", heads, h, h, way, (own, own), seen_BL)
    return x + feed_forward(p, "ff", rms(x))


def _block_shapes(own: Connector) -> Shapes:
    yield from attention_shapes("attn1", own.heads, own.width, own.width, own.width, own.gated)
    yield from feed_forward_shapes("ff", own.width)
