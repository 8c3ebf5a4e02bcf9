"""Checkpoints of a run: orbax writes them while training goes on, and restores them onto any mesh.

`checkpoints/N` holds the state after N iterations, in orbax's files, and a manifest (see `manifest`), which is written when
these are complete and says that the checkpoint is whole.  Older ones go only then, so that a kill at any moment leaves one.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from unigrpo_jax.config import CheckpointConfig, ConfigError
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.parallel import processes
from unigrpo_jax.training import manifest, storage

PROBE = "probe"  # the folder of what is written and read back before a run begins
READ_AGAIN = (1.0, 4.0)  # seconds before a checkpoint that could not be read is read again


class Checkpoints:
    """The checkpoints under a run folder.

    Args:
      folder: where they are.
      config: which are kept; None only reads.
      facts: JSON that each is to carry: seed, config, versions, model_sha256.

    Attributes:
      best: {"metric", "value", "step"} of the best evaluation so far, or None.
    """

    def __init__(
        self, folder: storage.Place, config: CheckpointConfig | None = None, facts: Mapping[str, Any] | None = None
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every file, and errors that it raises, too
        pass_over_late_writes()
        folder = storage.literal(folder)
        self.folder = folder if storage.is_bucket(folder) else folder.resolve()
        self.best: dict[str, Any] | None = None
        self._config, self._facts = config, dict(facts or {})
        self._damaged: set[int] = set()
        self._unread: set[int] = set()  # that storage did not give when it was asked; they may be whole
        self._complained = False
        self._saved: int | None = None
        self._failure: str | None = None
        self._writing: Future | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._identity: os.stat_result | None = None

    def steps(self) -> list[int]:
        """Iterations done at each checkpoint that was finished."""
        return [step for step in self._numbered() if (self.folder / str(step) / manifest.FILE_NAME).exists()]

    def facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself; ConfigError, also where its files are not those that were written.

        Several processes call it together; each reads a share of the files.
        """
        words = None if step == self._saved else self._damage(step)
        if words:
            raise ConfigError(f"the checkpoint {self.folder / str(step)} is damaged ({words}); use another one.")
        return manifest.read(self.folder / str(step))

    def newest(self) -> tuple[int | None, list[str]]:
        """Iterations done at the newest whole checkpoint, or None, and what is wrong with each newer one, in sentences.

        Several processes call it together, and ask about what the first one sees: storage may show others less.

        Raises:
          ConfigError: there are checkpoints that were finished, but none of them is whole.
        """
        troubles = []
        for step in reversed(processes.gather(self._numbered() if processes.is_first() else [])[0]):
            words = self._damage(step)
            if words is None:
                self._saved, self.best = step, self._comparable(manifest.read(self.folder / str(step))).get("best")
                return step, troubles
            troubles.append(f"Skipping the checkpoint {self.folder / str(step)}: {words}.")
        if any(processes.gather(bool(self.steps()))):  # a kill leaves any number that were not finished
            raise ConfigError(f"none of the {len(troubles)} checkpoints in {self.folder} is whole (the oldest: {words}); "
                              "put a whole one there, or use another --run-dir.")  # fmt: skip
        return None, troubles

    def prepare(self) -> None:
        """Makes the folder and removes what a kill left in it; one process calls it, before any saves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        self._remove_probe()
        self._identity = None if storage.is_bucket(self.folder) else os.stat(self.folder)

    def probe(self) -> None:
        """Writes a few numbers as checkpoints are written, and reads them back; all processes call it, after `prepare`.

        Raises:
          ConfigError: what is saved in this folder could not be restored.
        """
        place, numbers = self.folder / PROBE, np.arange(16, dtype=np.float32)
        words = None
        try:
            ocp.save_async(place, {"numbers": numbers}, overwrite=True).result()
            if processes.is_first():
                manifest.write(place, {})
                manifest.check(place, manifest.read(place)["files"])
            if not np.array_equal(ocp.load(place, {"numbers": np.zeros_like(numbers)})["numbers"], numbers):
                words = "other numbers were read than were written"
        except Exception as error:  # as in `save`
            words = self._reason(error)
        if processes.is_first():
            try:
                self._remove_probe()
            except Exception as error:  # as in `save`
                words = words or f"what was written cannot be removed: {self._reason(error)}"
        if (words := next(filter(None, processes.gather(words)), None)) is not None:
            raise ConfigError(f"checkpoints in {self.folder} could not be read back ({words}); use another --run-dir.")

    def improves(self, scores: Mapping[str, float]) -> bool:
        """Whether an evaluation is the best so far; `save` notes it.  The best by another metric is none."""
        metric = self._metric(scores)
        value, best = worth(metric, scores.get(metric)), self.best
        return value is not None and (best is None or best["metric"] != metric or value > worth(metric, best["value"]))

    def save(self, state: TrainState, scores: Mapping[str, float] | None = None) -> None:
        """Starts to write a checkpoint named after the iterations done; waits only for the one before.

        All processes call it.  The arrays have been copied when it returns, so that they may be donated.  `scores` are those
        of an evaluation of this state.  What goes wrong is told by `failure`; of a state that is saved already, scores alone
        are written.
        """
        step, scores = int(state.step), dict(scores or {})
        self.wait()
        if processes.is_first() and step != self._saved:
            with contextlib.suppress(Exception):  # a damaged one; orbax says what hinders
                (self.folder / str(step)).rmtree(missing_ok=True)
        self._failure = next(filter(None, processes.gather(self._failure)), None)  # else some would wait in orbax for others
        if self._failure or (step == self._saved and not scores):
            return
        if self.improves(scores):
            metric = self._metric(scores)
            self.best = {"metric": metric, "value": scores[metric], "step": step}
        facts = {"step": step, **self._facts, "evaluation": scores, "best": self.best}
        if step == self._saved:
            self._describe(step, facts)
            return
        try:
            self._check_folder()
            response = ocp.save_async(self.folder / str(step), state, overwrite=True)
        except Exception as error:  # orbax passes on what the store's client raises
            self._failure = self._words(step, error)
            return
        self._saved = step
        self._executor = self._executor or ThreadPoolExecutor(1)
        self._writing = self._executor.submit(self._finish, step, response, facts)

    def failure(self) -> str | None:
        """Why a checkpoint could not be written, as soon as it is known."""
        return self._failure

    def wait(self) -> None:
        """Until what is being written is whole, or has failed."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def check_fits(self, step: int, like: TrainState) -> None:
        """ConfigError where a checkpoint has not the arrays of `like`; nothing but its description is read."""
        with self._readable(step) as place:
            stored, wanted = _shapes(ocp.metadata(place).metadata), _shapes(like)
        other = [name for name in sorted(stored | wanted) if stored.get(name) != wanted.get(name)]
        words = lambda shapes: f"has shape {list(shapes[other[0]])}" if other[0] in shapes else "does not exist"
        if other:
            raise ConfigError(
                f"the checkpoint {place} does not fit this config: {len(other)} arrays differ; {other[0]} {words(stored)} "
                f"in the checkpoint and {words(wanted)} in the config. Use the config and model that the run was made with."
            )

    def load(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes, dtypes and shardings of `like`; ConfigError where it does not fit."""
        self.check_fits(step, like)
        with self._readable(step) as place:
            return like.replace(**ocp.load(place, _parts(place, like)))

    def load_judged(self, step: int, like: TrainState) -> dict[str, jax.Array]:
        """As `load`, of the weights that are judged alone: {path: weight}.  Nothing else comes into memory."""
        self.check_fits(step, like)
        with self._readable(step) as place:
            parts = _parts(place, like)
            left_out = jax.tree.map(lambda _: ocp.PLACEHOLDER, parts)
            return ocp.load(place, left_out | {like.judged: parts[like.judged]})[like.judged]

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[epath.Path]:
        """The place of a checkpoint; ConfigError where reading it fails."""
        place = self.folder / str(step)
        try:
            yield place
        except (ValueError, KeyError, OSError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            raise ConfigError(f"the checkpoint {place} cannot be read ({first}); use an earlier one.") from None

    def close(self) -> None:
        """Waits for what is being written."""
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _finish(self, step: int, response: ocp.AsyncResponse, facts: dict[str, Any]) -> None:
        """Waits for orbax's files, describes them, each process having read a share, and removes what need not be kept."""
        place, names = self.folder / str(step), []
        try:
            response.result()
            if processes.is_first():
                self._check_folder()
                names = manifest.names(place)
        except Exception as error:  # as in `save`
            self._failed(step, error)
        found = processes.divided(f"{place}", names, lambda own: manifest.digests(place, own))
        if names:
            self._describe(step, facts, dict(zip(names, found, strict=True)))

    def _describe(self, step: int, facts: dict[str, Any], files: Mapping[str, list | None] | None = None) -> None:
        """Says in the first process what a checkpoint is, with the digests that are known; removes what is not kept."""
        if not processes.is_first():
            return
        try:
            self._check_folder()
            place = self.folder / str(step)
            manifest.write(place, facts, files or manifest.read(place)["files"])
            self._damaged.discard(step)
            self._unread.discard(step)
        except Exception as error:  # as in `save`
            self._failed(step, error)
            return
        try:
            self._remove_all_but(kept(self._scores(), self._config) | self._unread)
        except Exception as error:  # as in `save`; the next save tries again
            if not self._complained:
                tell(f"A checkpoint in {self.folder} that is not kept could not be removed ({self._reason(error)}); that is "
                     "tried again at each save.", sys.stderr)  # fmt: skip
            self._complained = True

    def _failed(self, step: int, error: Exception) -> None:
        self._failure = self._words(step, error)
        if processes.is_first():
            with contextlib.suppress(OSError):
                self._remove_unfinished()  # on a full disk they would be in the way
                self._remove_debris()

    def _numbered(self) -> list[int]:
        found = storage.inside(self.folder)
        return sorted(int(path.name) for path in found if path.name.isdigit() and path.is_dir())

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, in the words of the first process that found something.

        What storage does not give is asked for again; a checkpoint that could not be read is left out, and never removed.
        """
        folder, words, read = self.folder / str(step), None, True
        for pause in (*READ_AGAIN, None):
            try:
                manifest.check(folder, manifest.read(folder)["files"], (jax.process_index(), jax.process_count()))
                words, read = None, True
            except manifest.Damaged as error:
                words, read = str(error), True
            except Exception as error:  # as in `save`
                words, read = self._reason(error), False
            if read or pause is None:
                break
            time.sleep(pause)
        found = processes.gather([words, read])
        if any(words for words, _ in found):
            (self._damaged if all(read for _, read in found) else self._unread).add(step)
        return next((words for words, _ in found if words), None)

    def _comparable(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record, where its evaluations are the same as ours; else nothing."""
        settings = lambda facts: facts.get("config", {}).get("evaluation")
        return record if settings(record) == settings(self._facts) else {}

    def _scores(self) -> dict[int, float | None]:
        """{iterations done: score or None} of the whole checkpoints."""
        found = {}
        for step in self._numbered():
            try:
                record = manifest.read(self.folder / str(step))
            except manifest.Damaged:
                continue
            scores = self._comparable(record).get("evaluation", {})
            metric = self._metric(scores)
            found[step] = worth(metric, scores.get(metric))
        return {step: score for step, score in found.items() if step not in self._damaged | self._unread}

    def _metric(self, scores: Mapping[str, float]) -> str:
        return self._config.best_metric or next(iter(scores), "")

    def _remove_all_but(self, steps: set[int]) -> None:
        for step in set(self._numbered()) - steps:
            (self.folder / str(step) / manifest.FILE_NAME).unlink(missing_ok=True)  # no longer whole, from here on
            (self.folder / str(step)).rmtree()

    def _remove_unfinished(self) -> None:
        """What orbax had not yet given its name, and what has no manifest yet."""
        for path in storage.inside(self.folder):
            if re.match(rf"(\d+|{PROBE})\.orbax-checkpoint-tmp", path.name):
                path.rmtree()
        for step in self._numbered():
            names = [path.name for path in storage.inside(self.folder / str(step))]  # raises where they cannot be told
            if manifest.FILE_NAME not in names:
                (self.folder / str(step)).rmtree()

    def _remove_probe(self) -> None:
        if (self.folder / PROBE).exists():
            (self.folder / PROBE).rmtree()

    def _check_folder(self) -> None:
        """OSError where the folder is gone, or another one is there, made by the store's client for what it still writes."""
        if storage.is_bucket(self.folder):
            return  # whose folders come and go with what lies in them
        if self._identity is None and not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        if self._identity is not None and not os.path.samestat(os.stat(self.folder), self._identity):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))

    def _remove_debris(self) -> None:
        """That new folder, of a run folder that went away while a checkpoint was written."""
        if self._identity is not None and not os.path.samestat(os.stat(self.folder), self._identity):
            self._remove_all_but(set())
            os.rmdir(self.folder)
            os.rmdir(self.folder.parent)

    def _words(self, step: int, error: Exception) -> str:
        """One clause of what hindered a checkpoint."""
        return f"the checkpoint {self.folder / str(step)} could not be written ({self._reason(error)})"

    def _reason(self, error: Exception) -> str:
        code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore writes it
        known = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        return known or first


def pass_over_late_writes() -> None:
    """Lets Python say nothing of a write that ends after the save that it belonged to has failed.

    Where one file of a checkpoint cannot be written, orbax closes its event loop while the store's threads write the others;
    each then fails to report to that loop, and Python would print its traceback, though the save's own error is told.
    """
    before = sys.unraisablehook
    if getattr(before, "passes_over", False):
        return

    def hook(found) -> None:
        where = found.exc_traceback.tb_frame.f_code.co_name if found.exc_traceback else ""  # uvloop's are dotted
        if isinstance(found.exc_value, RuntimeError) and where.rpartition(".")[2] == "call_soon_threadsafe":
            return
        before(found)

    hook.passes_over = True
    sys.unraisablehook = hook


def worth(metric: str, value: float | None) -> float | None:
    """A score of which more is better: that of a loss is its negative."""
    return -value if value is not None and metric.endswith("loss") else value


def kept(scores: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Which checkpoints stay, of {iterations done: score or None}: the newest, the best, and every so many iterations."""
    newest = sorted(scores)[-config.keep :]
    best = sorted((step for step, score in scores.items() if score is not None), key=lambda step: (-scores[step], step))
    regular = [step for step in scores if config.keep_every and step % config.keep_every == 0]
    return {*newest, *best[: config.keep_best], *regular}


def _parts(place: epath.Path, like: TrainState) -> dict[str, Any]:
    """The parts of a state that a checkpoint knows: one from before some part that may be None lacks its name."""
    known = ocp.metadata(place).metadata
    return {name: getattr(like, name) for name in like.__dataclass_fields__ if name in known}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a tree's arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def abstract(state: TrainState, sharding: jax.sharding.Sharding | None = None) -> TrainState:
    """Shapes and dtypes of a state, laid out by one sharding, or as its arrays are."""
    place = lambda x: x.sharding if sharding is None else sharding
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state)
