"""What a reward is: something that turns a batch of finished episodes into named numbers, one per episode.

    def reward(batch: RewardBatch) -> Mapping[str, np.ndarray]: ...

Each named value has shape [B] and is one component; higher is better.  Two values are no numbers:

- NaN, or an infinity: judging this episode failed.  It is asked again, and a group in which it stays so is lost.
- `ABSTAIN`, which is None: the component does not apply to this episode, as one of texts does not where none is asked for.
  `np.where(applies, scores, ABSTAIN)` and `[x if applies else ABSTAIN ...]` say so; masked entries of `np.ma` do, too.
  (Assigned to a place of a float array it becomes NaN, as numpy has it.)  It is not asked again, and the component adds
  nothing to the advantages of that group, all of it.

The images are shown with the original prompt; the thinking is there for tables and for judges of thoughts, not for judging
the image.  A run draws images or clips: `batch.images` or `batch.videos`, and to ask for the other one is an error that says
so; so it is with `batch.audio` where clips have no sound.  A plain function is a reward.  One that says more about itself is
an object with the attributes of `Reward`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import jax  # not at run time: a reward of one's own need not load it

ABSTAIN = None  # no float, so that it cannot be computed with by accident

Cost = Literal["device", "host", "remote"]


class NotDrawn(AttributeError):
    """A reward asks for a medium that the run does not draw; the message says what it draws, without a full stop."""


class NoSound(NotDrawn):
    """A reward asks for the sound of what has none."""


@dataclasses.dataclass(frozen=True, kw_only=True, init=False)
class RewardBatch:
    """Finished episodes as a reward sees them.

    Attributes:
      prompts: B prompt texts.
      metadata: B mappings, as they stood in the prompt source.
      media: what was drawn, {"image": uint8 [B, height, width, 3]} or {"video": uint8 [B, F, height, width, 3]}, and where
        clips have sound after it "audio": float32 [B, S, channels], in [-1, 1] as a rule.
      fps: frames per second of the clips; 0 where images are drawn.
      rate: samples per second of the sound; 0 where there is none.
      thinking: B texts, without special tokens.
      before: uint8 [B, height, width, 3], what the round began from: the picture that came with the prompt, as the model saw
        it, or in a later round the image drawn before; None in a first round without a picture.
      group: int [B], equal for the episodes of one prompt, which are compared with each other; None where nobody says.
        Of several processes each has whole groups where these divide over the processes, else one may hold a part.
    """

    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    thinking: Sequence[str]
    media: Mapping[str, np.ndarray]
    fps: float
    rate: float
    before: np.ndarray | None
    group: np.ndarray | None

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        thinking: Sequence[str],
        images: np.ndarray | None = None,
        videos: np.ndarray | None = None,
        audio: np.ndarray | None = None,
        media: Mapping[str, np.ndarray] | None = None,
        fps: float = 0.0,
        rate: float = 0.0,
        before: np.ndarray | None = None,
        group: np.ndarray | None = None,
    ):
        """`images`, `videos` and `audio` are put into `media`.

        ValueError where there is nothing to see, a clip without its `fps`, or a sound without a clip or its `rate`.
        """
        given = {"image": images, "video": videos, "audio": audio}
        media = dict(media or {}) | {name: x for name, x in given.items() if x is not None}
        media |= {"audio": media.pop("audio")} if "audio" in media else {}  # what is seen comes first
        if not media or ("video" in media) != (fps > 0):
            raise ValueError(f"a batch holds images, or videos and their fps, not {sorted(media)} with fps = {fps}")
        if ("audio" in media) != (rate > 0) or rate > 0 and "video" not in media:
            raise ValueError(f"a batch holds sound with videos and its rate, not {sorted(media)} with rate = {rate}")
        values = (prompts, metadata, thinking, media, fps, rate, before, group)
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def images(self) -> np.ndarray:
        """The images, uint8 [B, height, width, 3]; `NotDrawn` where clips are drawn."""
        if "image" in self.media:
            return self.media["image"]
        raise NotDrawn("asked for batch.images, but this run draws clips: batch.videos, and batch.fps")

    @property
    def videos(self) -> np.ndarray:
        """The clips, uint8 [B, F, height, width, 3]; `NotDrawn` where images are drawn."""
        if "video" in self.media:
            return self.media["video"]
        raise NotDrawn("asked for batch.videos, but this run draws images: batch.images")

    @property
    def audio(self) -> np.ndarray:
        """The sounds of the clips, float32 [B, S, channels]; `NoSound` where there are none."""
        if "audio" in self.media:
            return self.media["audio"]
        raise NoSound("asked for batch.audio, but this run draws no sound")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what was drawn, in pixels."""
        return self.media["video" if "video" in self.media else "image"].shape[-3:-1]

    def take(self, rows: Sequence[int]) -> "RewardBatch":
        """The episodes at these positions."""
        pick, index = lambda values: [values[row] for row in rows], np.asarray(rows, int)
        return RewardBatch(
            prompts=pick(self.prompts),
            metadata=pick(self.metadata),
            media={name: x[index] for name, x in self.media.items()},
            fps=self.fps,
            rate=self.rate,
            thinking=pick(self.thinking),
            before=None if self.before is None else self.before[index],
            group=None if self.group is None else np.asarray(self.group)[index],
        )


RewardFunction = Callable[[RewardBatch], Mapping[str, np.ndarray]]


@runtime_checkable
class Reward(Protocol):
    """A reward that says what it costs.

    Attributes:
      cost: "device" computes in JAX on the accelerators and is never run beside another program; "host" computes on this
        machine's processors; "remote" waits for a server.  A plain function counts as "host".
      identity: text that is the same exactly if the same episode gets the same numbers: names, settings, checksums of
        weights.  "" where nothing like this can be said; then nothing is remembered.
    """

    cost: Cost
    identity: str

    def __call__(self, batch: RewardBatch) -> Mapping[str, np.ndarray]:
        """{component: B numbers, or `ABSTAIN`}; raises what it likes where all of the batch failed."""


@runtime_checkable
class CheckingReward(Protocol):
    """A reward that looks at prompts before anything compiles; a reward may be one beside whatever else it is."""

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError, in one sentence, where it cannot judge images of these prompts."""


@runtime_checkable
class DifferentiableReward(Reward, Protocol):
    """A reward that also has a gradient with respect to the pictures, for training straight through it."""

    def goals(self, metadata: Sequence[Mapping[str, Any]]) -> Any:
        """What B prompts ask for, as a pytree of arrays with leading dimension B; computed on the host."""

    def score(self, goals: Any, images: "jax.Array") -> "jax.Array":
        """Scores, float32 [B], of images float32 [B, H, W, 3] in [0, 1]; what JAX can trace and differentiate."""
