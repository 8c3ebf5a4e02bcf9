"""Whether a reward looks at what was asked for: a batch that notes when its prompts, or what comes with them, are read.

A reward that looks at neither judges every image alike, whatever was asked for, and a policy learns to forget the prompt.
Any look counts, a `len(batch.prompts)`, too: what is said of a reward that looks at nothing is certain.
"""

from unigrpo_jax.rewards.protocol import RewardBatch

ASKED = ("prompts", "metadata")


class NotingBatch(RewardBatch):
    """A batch that adds the names in `ASKED` which are read of it to a set; what is made of it notes nothing."""

    def __getattribute__(self, name: str):
        """The attribute, noted."""
        if name in ASKED:
            vars(self).get("_noted", set()).add(name)
        return super().__getattribute__(name)


def noting(batch: RewardBatch, noted: set[str]) -> RewardBatch:
    """The same batch, which adds to `noted` what is read of it."""
    out = object.__new__(NotingBatch)
    vars(out).update(vars(batch), _noted=noted)
    return out


def of_frames(batch: RewardBatch, frames: RewardBatch) -> RewardBatch:
    """A batch made of another one's frames, noting where that one does."""
    noted = vars(batch).get("_noted")
    return frames if noted is None else noting(frames, noted)


def unnoted(batch: RewardBatch) -> RewardBatch:
    """The same batch, which notes nothing."""
    out = object.__new__(RewardBatch)
    vars(out).update({name: value for name, value in vars(batch).items() if name != "_noted"})
    return out
