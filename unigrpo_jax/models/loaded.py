"""What every family's folder gives once it has been found and checked; the weights stay in their files until asked for."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from unigrpo_jax.config import ModelConfig, RolloutConfig
from unigrpo_jax.episode import Thinking, TokenBlock
from unigrpo_jax.models.building.token_cut import NOT_CUT, TokenCut
from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.folders.stored import SHARD_BYTES
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.verbs import Painter, Params


class Codec(Protocol):
    """Between words and what a network reads.

    Attributes:
      guided: whether its texts come with what guidance compares them with.
    """

    guided: bool

    def system(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """Tokens of the block that is read before the prompt; () where there is none."""

    def bucket(self, texts: Iterable[str]) -> int:
        """The smallest `length` that holds them all."""

    def check_lengths(self, texts: Iterable[str], length: int, place: Callable[[int], object] | None = None) -> None:
        """ConfigError names the longest text where it does not fit into `length` tokens; `place` says where one stands."""

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """The words, sorted, that the model does not know."""

    def prepare(self, texts: Iterable[str]) -> None:
        """Does once what is slow: whatever later `prompts` of these texts would have to encode.  Holds few at a time."""

    def prompts(self, texts: Sequence[str], length: int, place: Callable[[int], object] | None = None) -> Any:
        """P texts as a network reads them: a pytree of arrays of the host, batch first; ConfigError as `check_lengths`."""

    def shapes(self, count: int, length: int) -> Any:
        """Shapes and dtypes of `prompts` of so many texts."""

    def thoughts(self, thinking: Any, batch: int) -> list[str]:
        """The words of B thinkings; empty texts where there is none."""


class WordCodec(Codec, Protocol):
    """A thinker's codec, which makes tokens of words, and words of tokens."""

    def ids(self, text: str) -> list[int]:
        """The block of one text."""

    def again(self, tokens_BM, mask_BM, length: int) -> TokenBlock:
        """Blocks [B, length] of B thinkings' words, encoded again."""

    def thinkings(self, texts: Sequence[str], length: int, place: Callable[[int], object] | None = None) -> Thinking:
        """B thinkings as if they had been sampled, [B, length]; ConfigError names the one that does not fit."""


class Autoencoder(Protocol):
    """Between images in [-1, 1] and latents.

    Attributes:
      downsample: image pixels along the side of a latent pixel.
      channels: of a latent.

    One of clips with sound encodes {"video": clips, "audio": sound}, and clips alone; it has the `rate` of the sound that it
    makes, samples per second, and a `sound_form(latents)`, the `SoundForm` of the sound that becomes so many latents.
    """

    downsample: int
    channels: int

    def encode(self, params, image_BHWC, keys_B=None) -> Any:
        """Latents; samples of the posterior where there are keys."""

    def decode(self, params, latent_BHWC) -> Any:
        """Images, not clipped; of clips with sound {"video": clips, "audio": sound}."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter and its shape; {} where there are none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundForm:
    """What the sound of a clip must be to be encoded, which is not always what is made: float32 [samples, channels].

    Attributes:
      samples: how many.
      channels: 1 or 2.
      rate: samples per second.
    """

    samples: int
    channels: int
    rate: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """How a model is used where nobody says otherwise.

    Attributes:
      rollout: {setting of `RolloutConfig`: value} for drawing, its size among them.
      evaluation: {setting of `EvaluationConfig`: value} for drawing.
      answer: system prompt of an answer that is thought about; "" where it gives none.
    """

    rollout: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    answer: str = ""


def as_student(published: Published | None, student: Student | None) -> Published | None:
    """How a student is used: without guidance, in as many steps as it may take, of the schedule that it was made for.

    One of `dmd2` draws as it learned to: its estimate of the data, noised anew at each step.
    """
    if student is None:
        return published
    first = published or Published(rollout={}, evaluation={})
    evaluation = {**first.evaluation, "flow_steps": max(student.steps), "guidance": 1.0}
    rollout = {**first.rollout, "timestep_shift": student.timestep_shift}
    if student.method == "dmd2":
        evaluation["sampler"] = "sde"
        rollout |= {"step_rule": "cps", "noise_level": 1.0}
    return dataclasses.replace(first, rollout=rollout, evaluation=evaluation)


class Loaded(Protocol):
    """A model folder.

    Attributes:
      family: its name, as in `models.families`.
      folder: where it was read.
      config: the settings that it was read with.
      network: the network's verbs.
      autoencoder: between images and latents.
      codec: between words and what the network reads; where only sizes are known, of texts it knows the shapes alone.
      unknown_settings: what its config files hold that nothing here knows, a phrase a file.
      unread_files: names of weights beside those that are read.
      stored_dtype: of its matrices, such as "bfloat16".
      student: how it was distilled, to draw in few steps; None where it was not.
    """

    family: str
    folder: pathlib.Path
    config: ModelConfig
    network: Painter
    autoencoder: Autoencoder
    codec: Codec
    unknown_settings: tuple[str, ...]
    unread_files: tuple[str, ...]
    stored_dtype: str
    student: Student | None

    @property
    def published(self) -> Published | None:
        """How it is used where nobody says otherwise; None for a small model of a world, whose preset says it.

        Of a student it is said by `as_student`.
        """

    def placed(self, hold, attend, frozen: Place | None = None, tokens: TokenCut = NOT_CUT) -> "Loaded":
        """The same with a network for a mesh, and frozen encoders of texts that lie where `frozen` says.

        `hold`, `attend` and `tokens` are the network's, as in `building.computing`.
        """

    def stored_params(self) -> Params:
        """Shapes and dtypes of the parameters that the file holds."""

    def abstract_params(self) -> Params:
        """Shapes and dtypes of all parameters, with those that are fresh where the config asks for such."""

    def with_fresh(self, params: Params) -> Params:
        """The parameters with a new second time and adapters, or as they are where the config asks for none."""

    def adapted_layers(self) -> Mapping[str, int]:
        """How many linear maps of the files each target of adapters hits; {} where there are none."""

    def check_weights(self) -> None:
        """ConfigError that names everything in which the weights do not fit the config; reads headers only."""

    def params(self, place: Place | None = None, wanted: Callable[[str], bool] = lambda path: True) -> Params:
        """Reads the stored weights (none fresh), each parameter laid out by `place`; ConfigError where they do not fit."""

    def autoencoder_params(self, sharding: jax.sharding.Sharding | None = None) -> Mapping[str, jax.Array]:
        """Reads the autoencoder's weights, float32; {} where latents are pixels."""

    def check_image_size(self, rollout: RolloutConfig) -> None:
        """ConfigError where an image, or a clip, of this size cannot be drawn."""

    def checksum(self) -> str:
        """Of the weight files, to recognise the reference after a resume."""

    def export(
        self, params: Mapping[str, np.ndarray], folder: pathlib.Path, dtype: str, shard_bytes: int = SHARD_BYTES,
        student: Student | None = None,
    ) -> list[pathlib.Path]:  # fmt: skip
        """Writes trained parameters, adapters folded in, beside copies of everything else; the files written.

        Args:
          params: trained parameters.
          folder: a new folder.
          dtype: "float32", "float16" or "bfloat16".
          shard_bytes: more than this is written as shards with an index.
          student: how it was distilled; None is how the model that training began with was.
        """


def sound_rate(loaded: Loaded) -> float:
    """Samples per second of the sound that a model makes, the `rate` of its autoencoder; 0 where it makes none."""
    return getattr(loaded.autoencoder, "rate", 0)


def sound_form(network: Painter, autoencoder: Autoencoder, rollout: RolloutConfig) -> SoundForm | None:
    """The form of the sound that belongs to a clip of a run's size; None where a model draws without sound."""
    shape = network.latent_shape(network.grid(*rollout.size))
    return autoencoder.sound_form(shape["audio"][0]) if isinstance(shape, Mapping) and "audio" in shape else None
