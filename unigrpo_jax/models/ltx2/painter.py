"""LTX-2 as a painter of two modalities: a rectified flow's velocities of a clip's latents and of its sound's, at one time.

A latent is {"video": [B, N, C], "audio": [B, L, A]}, tokens that are latents of the autoencoders; a clip's are [B, frames,
rows, columns, C] there, a sound's are tokens as they are.  A grid is (frames, rows, columns, L, frames per second): how long
a sound is depends on the clip's seconds, and so do the places of both.

A clip may go on from a picture, which is its first latent frame as it is.  The network sees those tokens beside the noisy
ones, clean, at time 0; what it says of them is not read, and nothing is drawn there: a latent that is sampled or learned has
the tokens of all later frames alone.

Without its sound a clip is drawn by the video's branch alone, as if nothing were there to be heard, and a latent is the
video's array itself.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import RunConfig
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.models.building.computing import Computing
from unigrpo_jax.models.building.first_frame import ClipPainter, VideoCondition
from unigrpo_jax.models.building.flat import Params
from unigrpo_jax.models.building.second_time import NAME
from unigrpo_jax.models.building.two_times import TimedPainter
from unigrpo_jax.models.ltx2.axes import AXES
from unigrpo_jax.models.ltx2.flops import evaluation
from unigrpo_jax.models.ltx2.guidance import Deprived, Guidance, Scales
from unigrpo_jax.models.ltx2.transformer import BLOCKS, HEARD, NOTHING, Latents, LTX2Transformer
from unigrpo_jax.models.paths import RECTIFIED
from unigrpo_jax.models.schedule import FlowShift, timesteps
from unigrpo_jax.models.work import PainterWork

Grid = tuple[int, int, int, int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LTX2(ClipPainter, TimedPainter):
    """The verbs of the transformer; texts are `TextStates` with what the connectors say for each modality.

    Attributes:
      transformer: the network.
      shift: of the sampler's times, by tokens of the video, where a run does not say another.
      sound: whether the sound is drawn, too.
    """

    transformer: LTX2Transformer
    shift: FlowShift = FlowShift(line=((1024, 0.95), (4096, 2.05)), terminal=0.1)
    downsample: int = 32
    sound: bool = True

    path, prediction = RECTIFIED, "velocity"
    begins = keeps_first = further_passes = True
    axes: ClassVar = AXES
    # As in diffusion transformers (arXiv 2212.09748): blocks are not modulated, with gates shut, and the output is 0.
    zero_at_start: ClassVar = (
        rf"(?:audio_)?proj_out|.*(?:time_embed|prompt_adaln|scale_shift|_gate)\.linear|.*_table|.*\.{NAME}\.linear_2"
    )

    @property
    def trained_by(self) -> dict[str, str]:
        """What nothing reads without sound is frozen then, so that no decay of weights moves it."""
        return {"denoising": ".*"} if self.sound else {"denoising": rf"(?!{HEARD}).*", "frozen": HEARD}

    @property
    def int8_modules(self) -> str:
        """Linear maps of every token, of what is read."""
        maps = rf"{BLOCKS}\..*(?:attn\d?\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))"
        return maps if self.sound else f"(?!{HEARD}){maps}"

    def outputs(
        self, params: Params, x: Latents, t_B, grid: Grid, condition: VideoCondition, way: Computing, to_B=None
    ):
        """The velocities of what is drawn.

        ValueError where the text says nothing of the sound, or the picture has another size than the clip.
        """
        if self.sound and condition.audio is None:
            raise ValueError("the text has no states for what is heard; encode it with the connectors behind the encoder.")
        (*clip, _, fps), first = grid, condition.first
        self.check_first(first, *clip[1:])
        texts = {"video": condition.states, "audio": condition.audio} if self.sound else {"video": condition.states}
        seen = None if condition.mask is None else dict.fromkeys(texts, condition.mask)
        levels = dict.fromkeys(texts, 1000 * t_B)
        times, gaps = levels, None if to_B is None else dict.fromkeys(texts, 1000 * (t_B - to_B))
        if first is not None:  # which is there already: its time is 0, and so is its gap
            given = np.arange(math.prod(clip)) < first.shape[1]
            drawn = lambda found: found | {"video": jnp.where(given[None], 0, found["video"][:, None])}
            times, gaps = drawn(levels), None if gaps is None else drawn(gaps)
        x = self.whole(x, condition)
        x = x if self.sound else {"video": x}
        without = condition.without if isinstance(condition, Deprived) else NOTHING
        out = self.transformer(params, x, times, texts, tuple(clip), fps, seen, levels, without, way, gaps)
        return self.free(out if self.sound else out["video"], condition)

    def empty(self, batch: int) -> VideoCondition:
        """No text and no picture; nothing reads it."""
        return super().empty(batch).replace(audio=jnp.zeros((batch, 0, 0)))

    def begun(self, condition: VideoCondition, latent_BFHWC) -> VideoCondition:
        """The condition with a picture's latents, of one frame, as the video's first."""
        return condition.replace(first=_video_tokens(latent_BFHWC))

    def free(self, latent: Latents, condition: VideoCondition) -> Latents:
        """Without the tokens of the first frame, where a picture is that."""
        if condition.first is None:
            return latent
        return self._of_video(latent, lambda video: video[:, condition.first.shape[1] :])

    def whole(self, tokens: Latents, condition: VideoCondition) -> Latents:
        """With the picture's tokens before those that were drawn."""
        if condition.first is None:
            return tokens
        before = lambda video: jnp.concatenate([condition.first.astype(video.dtype), video], axis=1)
        return self._of_video(tokens, before)

    def _of_video(self, latent: Latents, change: Callable[[jax.Array], jax.Array]) -> Latents:
        return {**latent, "video": change(latent["video"])} if self.sound else change(latent)

    def grid(self, height: int, width: int, frames: int = 1, fps: float = 24.0) -> Grid:
        """Latents (frames, rows, columns) of the clip, those of its sound (0 where none is drawn), and frames per second.

        ValueError where latents do not fill the clip.
        """
        places = self.transformer.positions
        every, *_ = places.scales
        later, rest = divmod(frames - 1, every)
        if later < 0 or rest:
            near = max(0, round((frames - 1) / every)) * every + 1
            raise ValueError(f"a video of {frames} frames cannot be drawn: their number must be 1 more than a multiple of "
                             f"{every}; use {near}.")  # fmt: skip
        clip = 1 + later, *self._grid(height, width, self.downsample, self.downsample)
        return *clip, places.sounds(frames / fps) if self.sound else 0, float(fps)

    def latent_shape(self, grid: Grid) -> dict[str, tuple[int, int]] | tuple[int, int]:
        """(N, C) of each modality."""
        *clip, sounds, _ = grid
        video = math.prod(clip), self.transformer.video.channels
        return {"video": video, "audio": (sounds, self.transformer.audio.channels)} if self.sound else video

    def to_tokens(self, latent: Latents) -> Latents:
        """Latents of the clip frame by frame and row by row; those of its sound are tokens."""
        return self._of_video(latent, _video_tokens)

    def to_latent(self, tokens: Latents, grid: Grid) -> Latents:
        """Back to [B, frames, rows, columns, C] of the clip."""
        return self._of_video(tokens, lambda video: video.reshape(video.shape[0], *grid[:3], video.shape[-1]))

    def guided_by(self, text: float, interval: tuple[float, float], passes: PassesConfig) -> Guidance:
        """Guidance of both modalities.

        ValueError where the network was not made to go without mixing, has no such block, or draws no sound.
        """
        both = {"mixing": passes.mixing, "other": passes.other, "rescale": passes.rescale}
        video, blocks = Scales(text=text, **both), ()
        if passes.mixing:
            if not self.transformer.perturbed:
                raise ValueError("this network was not made to go without mixing (perturbed_attn of its config is false); "
                                 "leave out mixing and blocks.")  # fmt: skip
            blocks = tuple(self.transformer.mixing(passes.blocks, [True])[:, 0].tolist())
        if self.sound:
            audio = dataclasses.replace(video, text=text if passes.sound is None else passes.sound)
            return Guidance(video=video, audio=audio, unmixed=blocks, interval=interval)
        if passes.sound is not None or passes.other != 1:
            raise ValueError("no sound is drawn (model.sound is off), and sound and other are about that; leave them out.")
        return Guidance(video=video, unmixed=blocks, interval=interval)

    def times(self, steps: int, shift: float, grid: Grid) -> np.ndarray:
        """A sampler's times, float32 [steps + 1]; shift 0 is what `shift` says for this grid, and the terminal time's."""
        return timesteps(steps, shift) if shift else self.shift.times(steps, math.prod(grid[:3]))

    def cuts(self) -> dict[str, dict[str, int]]:
        """Sizes that an axis of a mesh must divide, {axis of the mesh: {what is cut: size}}."""
        return self.transformer.cuts()

    def work(self, run: RunConfig, system: int, pictures: bool = False, turns: bool = False) -> PainterWork:
        """What the episodes of a run cost; see `models.work`.  A text has `prompt_tokens` states for each modality."""
        *clip, sounds, _ = self.grid(*run.rollout.size)
        latents = math.prod(clip)
        each = evaluation(self.transformer, latents, sounds, run.rollout.prompt_tokens, pictures)
        return PainterWork(run=run, latents=latents, each=each, int8_weights=self.int8_weights)


def _video_tokens(latent_BFHWC):
    """[B, N, C], frame by frame and row by row."""
    return latent_BFHWC.reshape(latent_BFHWC.shape[0], -1, latent_BFHWC.shape[-1])
