"""Checkpoints of a run: orbax writes them in one step, keeps the newest, and restores them onto any mesh."""

import logging

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from unigrpo_jax.config import ConfigError
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.training import storage


class Checkpoints:
    """The checkpoints under a run folder."""

    def __init__(self, folder: storage.Place, keep: int):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it touches
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        newest = ocp.training.preservation_policies.LatestN(keep)
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        place = folder if storage.is_bucket(folder) else folder.resolve()
        self._checkpointer = ocp.training.Checkpointer(place, preservation_policy=newest, save_decision_policy=always)
        self.folder = folder

    def latest(self) -> int | None:
        """Iterations done at the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def steps(self) -> list[int]:
        """Iterations done at each checkpoint that is kept."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint named after the iterations done; nothing where it exists already."""
        step = int(state.step)
        if step != self.latest():
            self._checkpointer.save_pytree(step, state)

    def load(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes, dtypes and shardings of `like`; ConfigError where it does not fit."""
        place = self.folder / str(step)
        try:
            stored, wanted = _shapes(self._checkpointer.metadata(step).metadata), _shapes(like)
            other = [name for name in sorted(stored | wanted) if stored.get(name) != wanted.get(name)]
            if not other:
                return self._checkpointer.load_pytree(step, like)
        except (ValueError, KeyError, OSError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            raise ConfigError(f"the checkpoint {place} cannot be read ({first}); use an earlier one.") from None
        words = lambda shapes: f"has shape {list(shapes[other[0]])}" if other[0] in shapes else "does not exist"
        raise ConfigError(
            f"the checkpoint {place} does not fit this config: {len(other)} arrays differ; {other[0]} {words(stored)} "
            f"in the checkpoint and {words(wanted)} in the config. Use the config and model that the run was made with."
        )

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a tree's arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def abstract(state: TrainState, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """Shapes and dtypes of a state, laid out by one sharding, or as its arrays are."""
    place = lambda x: x.sharding if sharding is None else sharding
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state)
