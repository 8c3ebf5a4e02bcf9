"""The reward `frames:HOW:REWARD`: clips judged frame by frame, by a reward that judges images.

    frames:mean:clipscore:FOLDER     the mean over all frames
    frames:min:hpsv2:FOLDER          the worst frame
    frames:mean/8:aesthetic:FOLDER   the mean over every 8th frame, from the first one on
    frames:min/8:my_module:score     the worst of every 8th frame

REWARD is written as it stands alone.  Its components are called NAME_mean, NAME_min, NAME_mean_8 and so on, so that several
may stand beside each other.  No frame knows of another one: what this sees of motion is nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.judging import ABSTAINED, WrongMedium, hold_to_protocol
from unigrpo_jax.rewards.load import load_reward
from unigrpo_jax.rewards.noting import of_frames, unnoted
from unigrpo_jax.rewards.protocol import ABSTAIN, CheckingReward, NotDrawn, RewardBatch, RewardFunction

_HOW = re.compile(r"(mean|min)(?:/([1-9][0-9]{0,5}))?")
_ITSELF = ("judge", "frames")  # rewards that are asked about clips as they are


def load(argument: str, config: RunConfig) -> "Frames":
    """The reward `frames:HOW:REWARD`; ConfigError where HOW is none, or REWARD does not judge images one by one."""
    how, _, name = argument.partition(":")
    found = _HOW.fullmatch(how)
    require(found is not None and bool(name), f"rewards: frames:{argument}: it is frames:HOW:REWARD, where HOW is mean or "
            "min, of every 8th frame mean/8 or min/8; such as frames:mean:clipscore:FOLDER.")  # fmt: skip
    known = name.partition(":")[0]
    require(known not in _ITSELF, f"rewards: frames:{argument}: {known} is shown whole clips; give {name} alone"
            f"{', with --judge.frames for how many frames it sees' if known == 'judge' else ''}.")  # fmt: skip
    return Frames(load_reward(name, config), name, found[1], int(found[2] or 1))


class Frames:
    """A reward of images, asked about frames; it costs what that one does, once for each frame."""

    def __init__(self, reward: RewardFunction, name: str, how: str = "mean", every: int = 1):
        """`name` is that of the reward alone; `how` is "mean" or "min", over every `every`-th frame."""
        self._reward, self._how, self._every = reward, how, every
        self._alone, self._prefix = name, f"frames:{how}{f'/{every}' if every > 1 else ''}:"
        self.cost = getattr(reward, "cost", "host")

    @property
    def identity(self) -> str:
        """That of the reward, and how its numbers become one; "" where it has none."""
        own = getattr(self._reward, "identity", "")
        return own and f"{self._prefix} {own}"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError where the reward could not judge images of these prompts."""
        if isinstance(self._reward, CheckingReward):
            self._reward.check(prompts, metadata)

    def __call__(self, batch: RewardBatch) -> dict[str, np.ndarray]:
        """{component: [B]}: NaN where a frame was not judged, `ABSTAIN` where the reward abstains from all of a clip.

        WrongMedium where images are drawn, or the reward judges clips.
        """
        if "video" not in batch.media:
            raise WrongMedium(f"the reward function {self._prefix}{self._alone} judges clips, but this run draws images; "
                              f"leave {self._prefix} out")  # fmt: skip
        given, batch = batch, unnoted(batch)  # only what the reward itself looks at counts
        videos = batch.videos[:, :: self._every]
        size, count = videos.shape[:2]
        rows = [row for row in range(size) for _ in range(count)]
        again = lambda values: None if values is None else np.asarray(values)[rows]
        frames = RewardBatch(
            prompts=[batch.prompts[row] for row in rows],
            metadata=[batch.metadata[row] for row in rows],
            thinking=[batch.thinking[row] for row in rows],
            images=videos.reshape(-1, *videos.shape[2:]),
            before=again(batch.before),
            group=again(batch.group),
        )
        try:
            found = hold_to_protocol(self._reward(of_frames(given, frames)), self._prefix + self._alone, len(rows))
        except NotDrawn:
            words = f"the reward function {self._alone} judges clips as they are; leave {self._prefix} out"
            raise WrongMedium(words) from None
        suffix = f"{self._how}_{self._every}" if self._every > 1 else self._how
        return {f"{name}_{suffix}": self._reduced(x.reshape(size, count)) for name, x in found.items()}

    def _reduced(self, x_BF: np.ndarray) -> np.ndarray:
        """One number a clip, of the frames that the reward applies to."""
        out = np.full(len(x_BF), ABSTAIN, object)
        for row, x in enumerate(x_BF):
            if (applies := x != ABSTAINED).any():
                out[row] = float({"mean": np.mean, "min": np.min}[self._how](x[applies]))
        return out
