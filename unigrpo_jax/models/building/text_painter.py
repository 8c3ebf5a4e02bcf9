"""What painters share whose parameters are flat and who draw upon the states of a text, which somebody else has read."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from unigrpo_jax.config import LoraConfig, RunConfig
from unigrpo_jax.models.building import attention, flat_adapters, int8
from unigrpo_jax.models.building.computing import Computing, Remat
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.fresh import fresh
from unigrpo_jax.models.building.second_time import check_second_time
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.folders.component import Network
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.work import Evaluation, PainterWork


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPainter:
    """Reading, adapters and fresh parameters; a family says how it predicts.

    Attributes:
      downsample: image pixels along the side of a latent pixel.
      dtype: compute dtype, "float32" or "bfloat16"; norms, softmax, time and outputs are float32 in both.
      remat: what the backward pass recomputes instead of storing it, as `Computing.remat`.
      lora_scale: factor of the adapters' products, alpha / rank; read only where the parameters hold adapters.
      hold: applied to activations before each block, to hold them to their place on a mesh; None leaves them free.
      attend: the attention, with the signature of `attention.xla`.
      tokens: how the tokens of a sample lie over devices, as `Computing.tokens`.
    """

    downsample: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    lora_scale: float = 1.0
    hold: Callable[[jax.Array], jax.Array] | None = None
    attend: Callable[..., jax.Array] = attention.xla
    tokens: TokenCut = NOT_CUT

    thinks: ClassVar[bool] = False
    begins: ClassVar[bool] = False
    needs_picture: ClassVar[bool] = False
    further_passes: ClassVar[bool] = False
    trained_by: ClassVar[MappingProxyType] = MappingProxyType({"denoising": ".*"})
    guidance_renorm: ClassVar[str] = "none"
    float32_paths: ClassVar[str] = ""
    zero_at_start: ClassVar[str]  # modules whose weights `init` leaves at 0
    int8_modules: ClassVar[str]  # linear maps whose weights `in_int8` holds so

    two_times = fresh_time = False

    @property
    def network(self) -> Network:
        """What has the parameters."""
        raise NotImplementedError

    def evaluation(self, latents: int, text: int) -> Evaluation:
        """What one evaluation costs, upon so many tokens of a text."""
        raise NotImplementedError

    @property
    def one_time(self) -> "TextPainter":
        """Itself: it has one time."""
        return self

    @property
    def stored_network(self) -> Network:
        """What of it has parameters in files."""
        return self.network

    def outputs(self, params: Params, x, t_B, grid: tuple[float, ...], condition: TextStates, way: Computing):
        """The network's output, float32, of tokens in the compute dtype; where there are `two_times`, `to_B` comes last."""
        raise NotImplementedError

    def predict(self, params: Params, x, t_B, grid: tuple[float, ...], condition: TextStates, to_B=None) -> Any:
        """The network's output, float32 like x.

        Args:
          params: the parameters; float32 ones are cast to `dtype` where they are used.
          x: latent tokens [B, N, C] at time t, as many as `grid` has, or a pytree of modalities.
          t_B: times in (0, 1], 1 is noise.
          grid: latent tokens (rows, columns), of a clip (frames, rows, columns).
          condition: the text.
          to_B: times in [0, t], of a network with two: the average velocity on the way there; None tells none.

        Raises:
          ValueError: there is no text, or no second time.
        """
        if not condition.states.shape[1]:
            raise ValueError("there is no text to draw upon; guidance needs a codec that encodes the empty text, too.")
        check_second_time(self.two_times, to_B)
        return _predict(self, params, x, t_B, grid, condition, to_B)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32 (`fresh`)."""
        return fresh(self.network, self.zero_at_start, key)

    def empty(self, batch: int) -> TextStates:
        """No text; nothing reads it."""
        return TextStates(states=jnp.zeros((batch, 0, 0)))

    def read(self, params: Params, text: TextStates, condition: TextStates) -> TextStates:
        """The text itself."""
        return text.replace(empty=None)

    def unread(self, params: Params, text: TextStates, condition: TextStates) -> TextStates:
        """The empty text; where the codec did not encode it, as where nothing is guided, the condition as it was."""
        return condition if text.empty is None else text.empty

    def latent_shape(self, grid: tuple[float, ...]) -> Any:
        """(N, C)."""
        return math.prod(grid), self.network.channels

    def adapted(self, params: Params, settings: LoraConfig, key: jax.Array) -> Params:
        """The parameters with fresh adapters; ValueError where a target matches no linear map (`flat_adapters.attach`)."""
        return flat_adapters.attach(self.network, params, settings.rank, settings.targets, key)

    def in_int8(self, params: Params) -> Params:
        """The parameters with the weights of the blocks' linear maps in int8 (`int8`)."""
        return int8.held(params, {f"{name}.weight": (len(shape) - 1,) for name, shape in self.int8_maps().items()})

    def int8_maps(self) -> dict[str, tuple[int, ...]]:
        """{module: shape of its weight} of the linear maps that `in_int8` makes so."""
        maps = flat_adapters.linears(self.network).items()
        return {name: shape for name, shape in maps if re.fullmatch(self.int8_modules, name)}

    def work(self, run: RunConfig, system: int, pictures: bool = False, turns: bool = False) -> PainterWork:
        """What the episodes of a run cost; see `models.work`.  A text has `prompt_tokens` states."""
        latents = math.prod(self.grid(*run.rollout.size))
        each = self.evaluation(latents, run.rollout.prompt_tokens)
        return PainterWork(run=run, latents=latents, each=each, int8_weights=self.int8_weights)

    @property
    def int8_weights(self) -> int:
        """Numbers in the weights that `in_int8` holds so."""
        return sum(map(math.prod, self.int8_maps().values()))

    def hits(self, targets: tuple[str, ...]) -> dict[str, int]:
        """How many linear maps of the file each target of adapters means; ValueError where it is none."""
        return flat_adapters.hits(self.network, targets)

    def _grid(self, height: int, width: int, token: int, multiple: int) -> tuple[int, int]:
        """Tokens of `token` pixels a side; ValueError where a side is no multiple of so many pixels."""
        if height % multiple or width % multiple or min(height, width) <= 0:
            near = [max(1, round(side / multiple)) * multiple for side in (height, width)]
            raise ValueError(
                f"an image of {height} x {width} pixels cannot be drawn: both sides must be multiples of {multiple}; "
                f"use {near[0]} x {near[1]}."
            )
        return height // token, width // token


@functools.partial(jax.jit, static_argnums=(0, 4), inline=True)
def _predict(painter: TextPainter, params: Params, x, t_B, grid: tuple[float, ...], condition: TextStates, to_B):
    """Jitted, so that a program of many passes traces each once for its shapes, and inlined: the same bits."""
    way = Computing(painter.hold, painter.attend, painter.remat, painter.tokens)
    params = flat_adapters.scaled(params, painter.lora_scale)
    x = jax.tree.map(lambda own: own.astype(painter.dtype), x)
    return painter.outputs(params, x, t_B, grid, condition, way, *(() if to_B is None else (to_B,)))
