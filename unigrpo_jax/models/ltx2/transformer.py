"""The transformer of LTX-2: video and sound in two branches, which attend to each other in every block.

A block's steps, each for both branches: attention among a branch's own tokens; attention to its text; attention to the other
branch, both directions from states as they were before either; an MLP.  Times modulate all of them but the second
(`modulation`), and the clock that both share turns queries and keys of the third (`positions`).

Its parameters are the tensors of diffusers' `transformer/`, a flat dict under their own names and in their own layout, but
for the blocks, which are scanned: `transformer_blocks.attn1.to_q.weight` [layers, out, in] holds those of all
`transformer_blocks.N.attn1.to_q.weight`.  It computes in the dtype of its input; time, angles, norms, softmax are float32.

On a mesh that cuts tokens both modalities and both texts are cut alike, each filled up to equal parts (`token_cut`), and so
are L and N in the blocks.

Letters: B samples, L text tokens, N tokens of a modality, C numbers in one, D a branch's width, H heads.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import Params, Shapes, layer_names, linear, of_stack
from unigrpo_jax.models.ltx2.branch import Branch, Given
from unigrpo_jax.models.ltx2.layers import MLP, attention, attention_shapes, rms
from unigrpo_jax.models.ltx2.modulation import OTHER, CrossTimes, parts, said_of
from unigrpo_jax.models.ltx2.positions import Positions
from unigrpo_jax.models.ltx2.rotary import Layout, turn

BLOCKS = "transformer_blocks"
MEET = {"video": "audio_to_video_attn", "audio": "video_to_audio_attn"}  # by who takes
# Parameters that nothing reads where there is no sound.
HEARD = rf"(?:{BLOCKS}\.)?(?:audio_|av_cross_attn_|video_to_audio_|video_a2v_).*"

Modality = Literal["video", "audio"]
Latents = Mapping[Modality, Any]


@flax.struct.dataclass
class Without:
    """What samples of a batch go without, which guidance compares with (`guidance`); None is nothing.

    Attributes:
      other: bool [B], samples whose modalities do not attend to each other.
      mixing: bool [layers, B], samples whose tokens keep their own values in the self attentions of a block.
    """

    other: Any = None
    mixing: Any = None


NOTHING = Without()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LTX2Transformer:
    """Sizes, and the pass.

    Attributes:
      video: branch of the video.
      audio: that of the sound, whose width is that of the attentions in which they meet.
      layers: blocks.
      text_width: of the texts' states; None where they come in each branch's width.
      layout: of the planes that rotary embeddings turn.
      gate_factor: of the time that says the gates between modalities.
      theta: base of the rotary angles.
      positions: of tokens.
      perturbed: whether it was made to be compared with itself without mixing.
      cross_times: whose time says how modalities meet.
      second_time: whether each modality is told where its velocities are to arrive, as `building.second_time` has it.
    """

    video: Branch
    audio: Branch
    layers: int
    text_width: int | None
    layout: Layout
    gate_factor: float
    theta: float = 10000.0
    positions: Positions = Positions()
    perturbed: bool = False
    cross_times: CrossTimes = "other"
    second_time: bool = False

    @property
    def branches(self) -> dict[str, Branch]:
        """Both, by modality."""
        return {branch.modality: branch for branch in (self.video, self.audio)}

    @property
    def texts_told(self) -> bool:
        """Whether noise levels modulate the texts."""
        return self.video.times_text or self.audio.times_text

    def __call__(
        self,
        params: Params,
        x: Latents,
        times: Latents,
        texts: Latents,
        grid: tuple[int, int, int],
        fps: float,
        seen: Latents | None = None,
        sigmas: Latents | None = None,
        without: Without = NOTHING,
        way: Computing = PLAIN,
        gaps: Latents | None = None,
    ) -> dict[str, jax.Array]:
        """Velocities v = noise - data, float32 [B, N, C] of each modality that is there; one may be absent.

        Args:
          params: the parameters.
          x: latent tokens [B, N, C]; those of the video frame by frame and row by row.
          times: 1000 times the flow's, from 1000 for noise to 0: [B], or [B, N] for each token.
          texts: states [B, L, text_width], or of a branch's width where `text_width` is None.
          grid: latents of the video (frames, rows, columns).
          fps: frames per second.
          seen: bool [B, L], tokens of the texts that are no padding, at least one; None where all are.
          sigmas: [B], 1000 times the noise level of each sample as a whole, which a modality tells the other, and its text;
            None is `times`, where those are [B].
          without: what samples go without.
          way: of computing.
          gaps: as `times`, those minus the times of arrival, where there is a `second_time`; None leaves them out.

        Raises:
          ValueError: an array does not fit, or the network cannot do it.
        """
        self._check(x, times, grid, without)
        cut = way.tokens
        times = {name: jnp.asarray(times[name], jnp.float32) for name in x}
        sigmas = {name: self._sigma(name, times, sigmas) for name in x}
        by_token = lambda found: {n: cut.entering(t) if t.ndim == 2 else t[:, None] for n, t in found.items()}
        times, gaps = by_token(times), None if gaps is None else by_token(gaps)
        dtype = next(iter(x.values())).dtype
        turns = self.turns(x, x["audio"].shape[1] if "audio" in x else 0, grid, fps)
        given = {
            name: Given(
                text=way.held(self.text(params, name, cut.entering(texts[name].astype(dtype)))),
                seen=cut.seen(texts[name], None if seen is None else seen[name]),
                said=said_of(params, name, times, sigmas, self.cross_times, self.gate_factor, dtype, way, gaps),
                turn=turns[name][0].cut(cut),
                cross_turn=None if turns[name][1] is None else turns[name][1].cut(cut),
                own=cut.seen(x[name]),
            )
            for name in x
        }
        names = tuple(x)
        block = way.block(
            lambda p, *streams: tuple(self.block(p, dict(zip(names, streams, strict=True)), given, way, without).values()),
            scanned=True,
        )
        h = tuple(linear(params, f"{self.branches[name].prefix}proj_in", cut.entering(x[name])) for name in names)
        stack = of_stack(params, BLOCKS), without.mixing
        h, _ = jax.lax.scan(lambda h, p: (block(p, *h), None), h, stack)
        outputs = (self.branches[name].output(params, own, given[name].said.end) for name, own in zip(names, h, strict=True))
        return {name: cut.leaving(out, x[name].shape[1]) for name, out in zip(names, outputs, strict=True)}

    def block(self, stack, h: Latents, given: Mapping[str, Given], way: Computing = PLAIN, without: Without = NOTHING):
        """One block, of both branches or of one.

        Args:
          stack: the block's parameters, and its row of `Without.mixing` or None.
          h: tokens [B, N, D].
          given: what every block is given.
          way: of computing.
          without: of which `other` is read.
        """
        p, unmixed = stack
        h = {name: self.branches[name].alone(p, x, given[name], way, unmixed) for name, x in h.items()}
        if len(h) == 2:
            taken = self.taken(p, h, given, way)
            if without.other is not None:
                taken = {name: jnp.where(without.other[:, None, None], 0, x) for name, x in taken.items()}
            h = {name: x + taken[name] for name, x in h.items()}
        return {name: self.branches[name].thought_over(p, x, given[name]) for name, x in h.items()}

    def taken(self, p: Params, h: Latents, given: Mapping[str, Given], way: Computing = PLAIN) -> dict[str, jax.Array]:
        """What each modality takes from the other, gated; both read the same states."""
        normed = {name: rms(x) for name, x in h.items()}
        scaled: dict[str, list] = {}
        gates = {}
        for name in h:
            table = p[f"{name}_a2v_cross_attn_scale_shift_table"]
            scale, shift, scale_back, shift_back = parts(table[:4], given[name].said.cross)
            scaled[name] = [normed[name] * (1 + scale) + shift, normed[name] * (1 + scale_back) + shift_back]
            (gates[name],) = parts(table[4:], given[name].said.gate)
        out = {}
        for direction, name in enumerate(("video", "audio")):  # sound to video first, as the tables have it
            turns = (given[name].cross_turn, given[OTHER[name]].cross_turn)
            query, context = scaled[name][direction], scaled[OTHER[name]][direction]
            seen = given[OTHER[name]].own
            out[name] = gates[name] * attention(p, MEET[name], self.audio.heads, query, context, way, turns, seen)
        return out

    def text(self, params: Params, modality: str, states):
        """A text in the branch's width."""
        if self.text_width is None:
            return states
        name = f"{self.branches[modality].prefix}caption_projection"
        return linear(params, f"{name}.linear_2", jax.nn.gelu(linear(params, f"{name}.linear_1", states), approximate=True))

    def turns(self, names: Collection[str], sounds: int, grid: tuple[int, int, int], fps: float):
        """How tokens turn, {modality: (among themselves, where modalities meet or None)}, of the modalities in `names`."""
        make = lambda places, branch: turn(places, branch.width, self.theta, branch.heads, self.layout)
        out = {}
        if "video" in names:
            out["video"] = make(self.positions.video_places(grid, fps), self.video), None
        if "audio" in names:
            out["audio"] = make(self.positions.sound_places(sounds), self.audio), None
        if len(out) == 2:
            frames, own = (make([places], self.audio) for places in self.positions.shared_places(grid, fps, sounds))
            each = lambda table: jnp.repeat(table, grid[1] * grid[2], axis=0)
            tokens = dataclasses.replace(frames, cos=each(frames.cos), sin=each(frames.sin))
            out = {"video": (out["video"][0], tokens), "audio": (out["audio"][0], own)}
        return out

    def mixing(self, blocks: Sequence[int], samples) -> np.ndarray:
        """`Without.mixing` of these blocks and of the samples that are true in `samples`, bool [B]; ValueError as a call."""
        wrong = [block for block in blocks if not 0 <= block < self.layers]
        if wrong:
            raise ValueError(f"there is no block {wrong[0]} to leave unmixed; the network has 0 to {self.layers - 1}.")
        return np.isin(np.arange(self.layers), list(blocks))[:, None] & np.asarray(samples, bool)[None]

    def _sigma(self, name: str, times: Latents, sigmas: Latents | None):
        """[B, 1]; where nobody says it and tokens have times of their own, None, if nothing reads it."""
        if sigmas is not None:
            return jnp.asarray(sigmas[name], jnp.float32)[:, None]
        if times[name].ndim == 1:
            return times[name][:, None]
        if self.texts_told or (self.cross_times != "own" and len(times) == 2):
            raise ValueError(f"{name} has a time for each token, and the network asks for one of each sample, too; give "
                             "sigmas.")  # fmt: skip
        return None

    def _check(self, x: Latents, times: Latents, grid: tuple[int, int, int], without: Without) -> None:
        if not x or not set(x) <= set(self.branches):
            raise ValueError(f"latents of {' and '.join(map(str, x)) or 'nothing'} cannot be denoised; give those of "
                             "video, of audio or of both.")  # fmt: skip
        if "video" in x and x["video"].shape[1] != math.prod(grid):
            raise ValueError(f"the video has {x['video'].shape[1]} tokens, but a grid of {' x '.join(map(str, grid))} has "
                             f"{math.prod(grid)}.")  # fmt: skip
        for name, own in x.items():
            if times[name].shape not in (own.shape[:1], own.shape[:2]):
                raise ValueError(f"times of {name} have the shape {times[name].shape}; give one for each sample, "
                                 f"{own.shape[:1]}, or for each token, {own.shape[:2]}.")  # fmt: skip
        if without.mixing is not None and not self.perturbed:
            raise ValueError("this network was not made to go without mixing (perturbed_attn of its config is false); "
                             "sample without that guidance.")  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return dict(self._shapes())

    def stored_names(self, name: str) -> tuple[str, ...]:
        """The file's names of a parameter, one per layer where it is scanned."""
        return layer_names(name, BLOCKS, self.layers) if name.startswith(f"{BLOCKS}.") else (name,)

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        both = self.branches.items()
        return {
            "fsdp": {f"width of {name}": branch.width for name, branch in both},
            "sequence": {},
            "tensor": {f"heads of {name}": branch.heads for name, branch in both}
            | {f"MLP of {name}": MLP * branch.width for name, branch in both},
        }

    def _shapes(self) -> Shapes:
        for branch in self.branches.values():
            yield from branch.outer_shapes(self.text_width, self.texts_told, self.second_time)
        yield from ((f"{BLOCKS}.{name}", (self.layers, *shape)) for name, shape in self._block_shapes())

    def _block_shapes(self) -> Shapes:
        inner = self.audio.width
        for name, branch in self.branches.items():
            yield from branch.block_shapes(self.texts_told)
            other = self.branches[OTHER[name]].width
            yield from attention_shapes(MEET[name], self.audio.heads, inner, branch.width, other, branch.gated)
