"""Guidance of LTX-2: a modality's estimate of the data is pushed away from those of poorer passes, each push with a scale.

With x0 = x - t v, at time t of a rectified flow:

    x0' = x0 + (text - 1) (x0 - x0 upon the empty text)                classifier-free guidance (arXiv 2207.12598)
             + mixing (x0 - x0 without mixing in some blocks)          spatio-temporal guidance (arXiv 2411.18664)
             + (other - 1) (x0 - x0 that hears nothing of the other modality)
    x0' <- x0' (rescale std(x0) / std(x0') + 1 - rescale)              (arXiv 2305.08891), where rescale > 0
    v'  = (x - x0') / t

The standard deviations are those of what is drawn of a sample's modality, all tokens and channels, with n - 1.
`transformer.Without` says how the poorer passes are asked for.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.first_frame import VideoCondition
from unigrpo_jax.models.ltx2.transformer import Without


@flax.struct.dataclass
class Deprived(VideoCondition):
    """A condition upon which samples go without something; it lives within one step of a sampler, and is not repeated.

    Attributes:
      without: what.
    """

    without: Any = None


def deprived(condition: VideoCondition, without: Without) -> Deprived:
    """The same condition, upon which samples go without something."""
    fields = {field.name: getattr(condition, field.name) for field in dataclasses.fields(condition)}
    return Deprived(**fields, without=without)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scales:
    """Of one modality; a default is no guidance of that kind.

    Attributes:
      text: of the text.
      mixing: of mixing in self attention.
      other: of the other modality.
      rescale: how much of the estimate's standard deviation is kept, from 0 to 1.
    """

    text: float = 1.0
    mixing: float = 0.0
    other: float = 1.0
    rescale: float = 0.0

    def apply(self, x_BNC, t, v_BNC, v_text=None, v_unmixed=None, v_alone=None) -> jax.Array:
        """The guided velocity, float32 [B, N, C].

        Args:
          x_BNC: latent tokens at time t.
          t: the time, in (0, 1].
          v_BNC: the network's velocity.
          v_text: upon the empty text; each of these three is read where its scale says so (`Guidance.passes`).
          v_unmixed: without mixing.
          v_alone: without the other modality.
        """
        x, t = x_BNC.astype(jnp.float32), jnp.asarray(t, jnp.float32)
        data = lambda v: x - t * v.astype(jnp.float32)
        x0 = guided = data(v_BNC)
        for scale, v in ((self.text - 1, v_text), (self.mixing, v_unmixed), (self.other - 1, v_alone)):
            if scale:
                guided = guided + scale * (x0 - data(v))
        if self.rescale > 0:
            guided = self.rescale * (guided * (_std(x0) / _std(guided))) + (1 - self.rescale) * guided
        return (x - guided) / t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Of both modalities.

    Attributes:
      video: scales of the video.
      audio: those of the sound; none of them where no sound is drawn.
      unmixed: for each block, whether the pass without mixing leaves it unmixed.
      interval: guidance acts where interval[0] < t <= interval[1], t after the shift.
    """

    video: Scales = Scales()
    audio: Scales = Scales()
    unmixed: tuple[bool, ...] = ()
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def passes(self) -> tuple[str, ...]:
        """Which poorer passes a step needs, of "text", "unmixed" and "alone"."""
        both = (self.video, self.audio)
        asked = {"text": any(s.text != 1 for s in both), "unmixed": any(s.mixing for s in both),
                 "alone": any(s.other != 1 for s in both)}  # fmt: skip
        return tuple(name for name, needed in asked.items() if needed)

    @property
    def active(self) -> bool:
        """Whether another pass is needed."""
        return bool(self.passes)

    def acts(self, t) -> jax.Array:
        """Whether t lies in the interval."""
        low, high = self.interval
        return (t > low) & (t <= high)

    def guided(self, predict, x, t, output, condition: VideoCondition, others) -> Any:
        """The guided velocity, as `building.guidance.Guiding` says; x is the video's array where no sound is drawn."""
        samples = jnp.ones(jax.tree.leaves(x)[0].shape[0], bool)
        poorer = {
            "text": lambda: others[0],
            "unmixed": lambda: deprived(condition, Without(mixing=jnp.asarray(self.unmixed)[:, None] & samples[None])),
            "alone": lambda: deprived(condition, Without(other=samples)),
        }
        named = lambda latent: latent if isinstance(latent, Mapping) else {"video": latent}
        found = self.apply(named(x), t, named(output), **{name: named(predict(poorer[name]())) for name in self.passes})
        return found if isinstance(x, Mapping) else found["video"]

    def apply(self, x: Mapping[str, jax.Array], t, v: Mapping[str, jax.Array], **poorer: Mapping[str, jax.Array]):
        """The guided velocity of each modality; `poorer` is {pass: velocities} of `passes`."""
        return {
            name: getattr(self, name).apply(x[name], t, v[name], *(poorer[which][name] if which in poorer else None
                                                                   for which in ("text", "unmixed", "alone")))
            for name in v
        }  # fmt: skip


def _std(x_BNC):
    return jnp.std(x_BNC, axis=(1, 2), keepdims=True, ddof=1)
