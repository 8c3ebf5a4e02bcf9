"""The whole of a run: a folder is made or continued, iterated in, and closed with a table and a report."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
from etils import epath

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_json import to_dict
from unigrpo_jax.learning import parameters
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.roll_call import PeersMissing
from unigrpo_jax.training import distilled, storage, student_checks, supervised
from unigrpo_jax.training.checkpoint import Checkpoints, abstract
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.distilled import DistilledEvaluator, DistilledTrainer
from unigrpo_jax.training.evaluation import Evaluator
from unigrpo_jax.training.iterations import Iterations
from unigrpo_jax.training.metrics import MetricsWriter
from unigrpo_jax.training.overview import card, warnings
from unigrpo_jax.training.placement import HEADER, placement
from unigrpo_jax.training.run_folder import (
    check_folder,
    check_same_origin,
    check_same_weights,
    flat,
    origin,
    versions,
    write_json,
)
from unigrpo_jax.training.stopping import JudgeAway, Preempted, RunStopped, StorageFailed
from unigrpo_jax.training.supervised import SupervisedEvaluator, SupervisedTrainer
from unigrpo_jax.training.trainer import Parts, Trainer, build

__all__ = ["JudgeAway", "Preempted", "RunStopped", "StorageFailed", "run"]


def run(config: RunConfig, run_dir: storage.Place, resume: bool = False, allow_changed: Sequence[str] = ()) -> dict:
    """Trains and returns the summary {"before": table, "after": table, ...}.

    With several processes each calls this with the same arguments; the first one writes and prints.

    Args:
      config: the settings.
      run_dir: the run folder; must be new or empty, unless `resume` continues it.  All processes must see the same one.
      resume: continue from the newest whole checkpoint, bit for bit; start where there is none.
      allow_changed: fields that `resume` lets differ, though they change what is learned.

    Raises:
      ConfigError: something cannot work; nothing was written.
      PeersMissing: other processes did not come, or went away.
      RunStopped: something failed, updates stayed non-finite or an alarm rang; a checkpoint was written.
      JudgeAway: a judge that had answered went away for longer than is waited; a checkpoint was written.
      StorageFailed: the run folder could not be written: full, read-only, gone.
      Preempted: SIGTERM or SIGHUP; the iteration was finished and a checkpoint written.
      KeyboardInterrupt: Ctrl-C; the iteration was finished and a checkpoint written.
    """
    run_dir = storage.path(run_dir)
    settings = {name: x for name, x in flat(to_dict(config)).items() if not name.startswith("processes.")}
    told = {"--run-dir": str(run_dir), "--resume": resume, "--allow-changed": list(allow_changed)}
    processes.start(config.processes, settings | versions() | told)
    require(resume or not allow_changed, "--allow-changed is for --resume; a new run takes any settings.")
    with processes.joined():
        return _run(config, run_dir, resume, allow_changed)


def _run(config: RunConfig, run_dir: epath.Path, resume: bool, allow_changed: Sequence[str]) -> dict:
    """What `run` does once the processes have met."""
    taught, distils = config.learning.method == "sft", config.learning.distils
    made = supervised.build if taught else distilled.build if distils else build

    def begin() -> tuple[Parts, bool, dict]:
        parts = made(config)
        return parts, check_folder(run_dir, parts, resume, allow_changed), origin(parts)

    parts, known, began = processes.agree_on_errors((ConfigError,), begin)
    seen = processes.gather(known)
    require(len(set(seen)) == 1, f"only process {seen.index(True) if True in seen else 0} of {len(seen)} finds a run in "
                                 f"{run_dir}; put the run folder on storage that all of them share.")  # fmt: skip
    check_same_origin(processes.gather(began))
    what = (parts.loaded, parts.world, parts.judging, parts.layout, config.logging.samples)
    usual = lambda parts: Evaluator(config.evaluation, config.rollout, *what)
    judge = SupervisedEvaluator if taught else DistilledEvaluator if distils else usual
    evaluator = processes.agree_on_errors((ConfigError,), lambda: judge(parts))
    trainer = (SupervisedTrainer if taught else DistilledTrainer if distils else Trainer)(parts)
    began |= {"versions": versions()}
    facts = {"seed": config.seed, "config": to_dict(config)} | began
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint, facts)
    done, troubles = checkpoints.newest()
    require(done is None or config.iterations >= done,
            f"iterations = {config.iterations}, but {run_dir} has done {done}; use {done} or more.")  # fmt: skip
    if done is not None:
        check_same_weights(checkpoints.folder / str(done), checkpoints.facts(done)["model_sha256"], parts.loaded)
    with contextlib.ExitStack() as opened:
        console = opened.enter_context(Console(quiet=not processes.is_first()))
        processes.agree_on_errors((ConfigError,), trainer.prepare)
        if done is not None:
            fits = lambda: checkpoints.check_fits(done, trainer.inputs().state)
            processes.agree_on_errors((ConfigError,), fits)
        with _nothing_left(run_dir):
            processes.agree_on_errors((ConfigError,), lambda: _prepare(run_dir, checkpoints))
            checkpoints.probe()
            records = lambda: _records(run_dir, config, began, known, done or 0, console.message)
            writer = processes.agree_on_errors((ConfigError,), records)
        if writer is not None:
            opened.enter_context(writer)
        state = trainer.start()
        if done is not None:
            like = abstract(state)
            jax.tree.map(lambda x: x.delete(), state)  # else both would lie there while one is read
            state = processes.agree_on_errors((ConfigError,), lambda: checkpoints.load(done, like))
        trainer.compile()
        loaded = parts.loaded
        labels = parameters.groups(loaded.abstract_params(), config.learning, loaded.network.trained_by)
        places = placement(trainer.inputs(), labels, shared=config.learning.distillation.teacher is None)
        title = f"{'Supervised' if taught else 'Distillation' if distils else 'UniGRPO'}: {config.name}"
        console.card(title, card(parts, run_dir, sum(row.bytes for row in places)))
        if parts.layout.mesh.size > 1:
            console.table("What lies where", HEADER, [row.cells() for row in places])
        told = student_checks.warnings(parts.loaded, config.rollout, config.evaluation, trains=True)
        told += distilled.notes(parts) if distils else []
        for words in (*warnings(config), *told, *troubles):
            console.message(words)
        if done is not None:
            console.message(f"Resuming after iteration {done} from {run_dir / 'checkpoints' / str(done)}.")
            if done:
                parts.judging.go_on()
        elif known:
            console.message("There is no checkpoint to resume from; starting.")
        iterations = Iterations(config, run_dir, trainer, evaluator, checkpoints, console, writer)
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            try:
                with processes.joined():
                    return iterations.run(state, done or 0)
            except PeersMissing:
                stack.pop_all()  # closing would wait for who is gone
                raise
            except StorageFailed:
                if jax.process_count() > 1:
                    stack.pop_all()  # as above: the others' part of a checkpoint waits for ours
                raise
            except OSError as error:
                if error.errno is None:
                    raise
                raise iterations.storage_failed(storage.reason(error)) from error


def _prepare(run_dir: epath.Path, checkpoints: Checkpoints) -> None:
    """In the first process: makes the run folder, and removes what a kill left there."""
    if processes.is_first():
        with _unwritable(run_dir):
            checkpoints.prepare()
            storage.remove_temporary(run_dir)


def _records(
    run_dir: epath.Path, config: RunConfig, began: dict, known: bool, done: int, say: Callable[[str], None]
) -> MetricsWriter | None:
    """In the first process: says in the run folder what the run is, and opens its metrics and the loggers."""
    if not processes.is_first():
        return None

    def describe() -> None:
        write_json(run_dir / "provenance.json", began)
        write_json(run_dir / "config.json", to_dict(config))

    there = {path.name for path in storage.inside(run_dir)}
    try:
        with _unwritable(run_dir):
            if not known:
                describe()
            logging = config.logging
            writer = MetricsWriter(run_dir, done, tensorboard=logging.tensorboard, wandb=logging.wandb, say=say)
            if known:
                describe()
            return writer
    except BaseException:
        for path in storage.inside(run_dir):
            if path.name not in there:
                path.rmtree() if path.is_dir() else path.unlink()
        raise


@contextlib.contextmanager
def _unwritable(run_dir: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({storage.reason(error)}); choose another --run-dir.") from None


@contextlib.contextmanager
def _nothing_left(run_dir: epath.Path) -> Iterator[None]:
    """Where something is raised inside, empty folders that were made for the run go again."""
    folders = [run_dir / "checkpoints", run_dir, *run_dir.parents]
    made = [] if storage.is_bucket(run_dir) else [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made if processes.is_first() else ():
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
