"""The loop around it all: a run folder is made or continued, iterated in, and closed with a table and a report."""

import contextlib
import dataclasses
import signal
import time
import traceback
from collections.abc import Callable, Sequence

import jax
from etils import epath

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_json import to_dict
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.roll_call import PeersMissing
from unigrpo_jax.rewards.judging import RewardError
from unigrpo_jax.training import storage
from unigrpo_jax.training.checkpoint import Checkpoints, abstract
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.evaluation import Evaluator
from unigrpo_jax.training.health import Watch
from unigrpo_jax.training.metrics import FILE_NAME, MetricsWriter, read_metrics
from unigrpo_jax.training.overview import card, evaluated, headline, summary_table
from unigrpo_jax.training.placement import HEADER, placement
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.run_folder import check_folder, check_same_weights, flat, save_episodes, versions, write_json
from unigrpo_jax.training.samples import save_samples
from unigrpo_jax.training.summary import read_summary
from unigrpo_jax.training.trainer import Parts, Trainer, build
from unigrpo_jax.training.watchdog import Watchdog

MAX_SKIPPED_IN_ROW = 5
ERROR_FILE = "error.txt"


class RunStopped(RuntimeError):
    """The run cannot go on; what was done is in a checkpoint, and the message says why."""


class Preempted(RunStopped):
    """The run was told to end (SIGTERM, SIGHUP); a checkpoint was written, and `resume` continues."""


class StorageFailed(RunStopped):
    """The run folder cannot be written; the newest whole checkpoint is as it was, and `resume` continues from it."""


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
      RunStopped: the reward failed, updates stayed non-finite or an alarm rang; a checkpoint was written.
      StorageFailed: the run folder could not be written: full, read-only, gone.
      Preempted: SIGTERM or SIGHUP; the iteration was finished and a checkpoint written.
      KeyboardInterrupt: Ctrl-C; the iteration was finished and a checkpoint written.
    """
    run_dir = storage.path(run_dir)
    settings = {name: x for name, x in flat(to_dict(config)).items() if not name.startswith("processes.")}
    told = {"--run-dir": str(run_dir), "--resume": resume, "--allow-changed": list(allow_changed)}
    processes.start(config.processes, settings | versions() | told)
    require(resume or not allow_changed, "--allow-changed is for --resume; a new run takes any settings.")

    def begin() -> tuple[Parts, bool]:
        parts = build(config)
        return parts, check_folder(run_dir, parts, resume, allow_changed)

    parts, known = processes.agree_on_errors((ConfigError,), begin)
    seen = processes.gather(known)
    require(len(set(seen)) == 1, f"only process {seen.index(True) if True in seen else 0} of {len(seen)} finds a run in "
                                 f"{run_dir}; put the run folder on storage that all of them share.")  # fmt: skip
    what = (parts.loaded, parts.world, parts.judging, parts.layout, config.logging.samples)
    evaluator = processes.agree_on_errors((ConfigError,), lambda: Evaluator(config.evaluation, config.rollout, *what))
    trainer = Trainer(parts)
    checksum = parts.loaded.checksum()
    facts = {"seed": config.seed, "model_sha256": checksum, "versions": versions(), "config": to_dict(config)}
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint, facts)
    done, troubles = checkpoints.newest()
    require(done is None or config.iterations >= done,
            f"iterations = {config.iterations}, but {run_dir} has done {done}; use {done} or more.")  # fmt: skip
    if done is not None:
        check_same_weights(checkpoints.folder / str(done), checkpoints.facts(done)["model_sha256"], parts.loaded)
    processes.agree_on_errors((ConfigError,), lambda: _prepare(run_dir, checkpoints))
    checkpoints.probe()
    state = trainer.start()
    if done is not None:
        state = checkpoints.load(done, abstract(state))
    trainer.compile()
    with Console(quiet=not processes.is_first()) as console:
        places = placement(trainer.inputs(), parameters.groups(parts.loaded.abstract_params(), config.learning))
        console.card(f"UniGRPO: {config.name}", card(parts, run_dir, sum(row.bytes for row in places)))
        if parts.layout.mesh.size > 1:
            console.table("What lies where", HEADER, [row.cells() for row in places])
        for words in troubles:
            console.message(words)
        if done is not None:
            console.message(f"Resuming after iteration {done} from {run_dir / 'checkpoints' / str(done)}.")
        elif known:
            console.message("There is no checkpoint to resume from; starting.")
        loop = _Loop(config, run_dir, trainer, evaluator, checkpoints, console, Watchdog(config.processes.hang_seconds))
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            try:
                if processes.is_first():
                    write_json(run_dir / "provenance.json", {"model_sha256": checksum, "versions": versions()})
                    write_json(run_dir / "config.json", to_dict(config))
                with processes.joined():
                    return loop.run(state, done or 0)
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
                raise loop.storage_failed(storage.reason(error)) from error


def _prepare(run_dir: epath.Path, checkpoints: Checkpoints) -> None:
    """In the first process: makes the run folder, and removes what a kill left there."""
    if processes.is_first():
        try:
            checkpoints.prepare()
            storage.remove_temporary(run_dir)
        except OSError as error:
            raise ConfigError(f"{run_dir} cannot be written ({error.strerror}); choose another --run-dir.") from None


@dataclasses.dataclass
class _Loop:
    """One run in progress."""

    config: RunConfig
    run_dir: epath.Path
    trainer: Trainer
    evaluator: Evaluator
    checkpoints: Checkpoints
    console: Console
    watchdog: Watchdog
    signal: str | None = None
    failure: str | None = None

    def run(self, state: TrainState, done: int) -> dict:
        began = time.monotonic()
        total, logging, every = self.config.iterations, self.config.logging, self.config.evaluation.every
        first = processes.is_first()
        summary = processes.gather(self._summary() if first else None)[0]
        settings = to_dict(self.config.evaluation)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.watchdog)
            stack.enter_context(self._signals())
            if not done or summary.get("evaluation") != settings:  # before and after are judged alike
                params = self.trainer.first_params() if done else self.trainer.judged_params(state)
                before = self._judged(state, self.evaluator, params)
                summary = {"before": before.table, "evaluation": settings, "seconds": summary.get("seconds", 0.0)}
                if first:
                    save_samples(self.run_dir, 0, before.samples)
                    write_json(self.run_dir / "summary.json", summary)
                self.console.message(f"Before: {headline(before.table)}")
            self._check_best_metric(summary["before"])
            previous = summary["seconds"] if done else 0.0
            seconds = lambda: round(previous + time.monotonic() - began, 1)
            if first:
                stack.callback(self._report)
                open_writer = MetricsWriter(self.run_dir, done, tensorboard=logging.tensorboard, wandb=logging.wandb)
            writer = stack.enter_context(open_writer) if first else None
            earlier = [line for line in read_metrics(self.run_dir / FILE_NAME) if line["step"] <= done] if first else []
            watch = Watch(self.config.alarms, self.config.learning, earlier)
            for step in range(done, total):
                try:
                    state, metrics = self._iteration(state, step)
                    number, scores, ringing = step + 1, {}, []
                    try:
                        if every and number % every == 0 and number < total:
                            found = self._judged(state, self.evaluator, self.trainer.judged_params(state))
                            scores = evaluated(found.table)
                            metrics |= scores
                    finally:
                        if writer is not None:
                            found, ringing = watch.look(metrics)
                            self._written(writer.write, number, metrics | found)
                    self.console.iteration(number, total, metrics)
                    for words in ringing:
                        self.console.message(f"step {number}: {words}.")
                    rang = processes.gather(ringing)[0] if self.config.alarms.action == "stop" else []
                    if logging.samples_every and number % logging.samples_every == 0 and number < total:
                        samples = self._judged(state, self.evaluator.samples, self.trainer.judged_params(state))
                        if first:
                            self._written(save_samples, self.run_dir, number, samples)
                    told = self._told()
                    best = self.config.checkpoint.keep_best and self.checkpoints.improves(scores)
                    if number % self.config.checkpoint.every == 0 or number == total or told or best or rang:
                        if first:
                            self._written(write_json, self.run_dir / "summary.json", summary | {"seconds": seconds()})
                            self._written(writer.flush)
                        self.checkpoints.save(state, scores)
                    if int(state.skipped_in_row) >= MAX_SKIPPED_IN_ROW:
                        self._save_now(state)
                        raise RunStopped(
                            f"{MAX_SKIPPED_IN_ROW} updates in a row were not finite, so the run stopped after "
                            f"iteration {number} with a checkpoint; lower the learning rates, or see the last metrics."
                        )
                    if rang:
                        self._save_now(state)
                        raise RunStopped(
                            f"{'; '.join(rang)}; so the run stopped after iteration {number} with a checkpoint; --resume "
                            "goes on until another alarm rings."
                        )
                    if told:
                        self._save_now(state)
                        words = f"Stopped after iteration {number}; --resume continues from {self.run_dir / 'checkpoints'}."
                        self.console.message(words)
                        raise KeyboardInterrupt if told == "SIGINT" else Preempted(f"{told} came; a checkpoint was written.")
                    self.watchdog.step()
                except Exception as error:
                    self._stop_for(error, state, step + 1)
                    raise
            after = self._judged(state, self.evaluator, self.trainer.judged_params(state))
            summary = summary | {"after": after.table, "iterations": total, "seconds": seconds()}
            if first:
                save_samples(self.run_dir, total, after.samples)
                write_json(self.run_dir / "summary.json", summary)
            self._save_now(state)
        self._show(summary, self.run_dir / "report.html")
        return summary

    def _judged(self, state: TrainState, judge: Callable, params: dict, *arguments):
        """What `judge` says of weights; where a reward fails or a picture is gone, the run stops with a checkpoint."""
        try:
            return judge(params, self.trainer.autoencoder_params, *arguments)
        except (RewardError, ConfigError) as error:
            self._save_now(state)
            after = f"after iteration {int(state.step)}"
            raise RunStopped(f"{str(error).rstrip('.')}, while held-out prompts were judged {after}.") from error

    def _iteration(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        begin = time.monotonic()
        try:
            episodes, own, times = self.trainer.sample(state, step)
        except ConfigError as error:  # a prompt that was not among those checked at the start
            self._save_now(state)
            raise RunStopped(f"{error} The run stopped after iteration {step} with a checkpoint.") from error
        try:
            advantages, judged = self.trainer.judge(own, times)
        except (RewardError, ConfigError) as error:
            folder = save_episodes(self.run_dir, step + 1, own)
            self._save_now(state)
            reason = str(error).rstrip(".")
            raise RunStopped(f"{reason}; the episodes of iteration {step + 1} are in {folder}.") from error
        state, learned = self.trainer.learn(state, episodes, advantages)
        return state, times | judged | learned | {"time/iteration": time.monotonic() - begin}

    def _stop_for(self, error: Exception, state: TrainState, number: int) -> None:
        """RunStopped with a checkpoint where something unforeseen was raised in iteration `number`; else returns.

        `state` is the newest that is whole.  With several processes the others know nothing of the error, and a checkpoint
        is written by all of them together, so that none is written then.
        """
        known = isinstance(error, RunStopped | PeersMissing | OSError)
        gone = any(x.is_deleted() for x in jax.tree.leaves(state) if isinstance(x, jax.Array))
        if known or gone or jax.process_count() > 1:
            return
        with contextlib.suppress(OSError):
            storage.write_atomically(self.run_dir / ERROR_FILE, "".join(traceback.format_exception(error)).encode())
        self._save_now(state)
        what = f"{type(error).__name__}: {error}".rstrip(". ")
        raise RunStopped(
            f"Iteration {number} raised {what}; the checkpoint after iteration {int(state.step)} is whole, --resume goes on "
            f"from it, and the traceback is in {self.run_dir / ERROR_FILE}."
        ) from error

    def _written(self, write: Callable, *arguments) -> None:
        """Writes; where that fails, all processes stop together when they next tell each other."""
        try:
            write(*arguments)
        except OSError as error:
            self.failure = self.failure or storage.reason(error)

    def _told(self) -> str | None:
        """The signal that one of the processes got; StorageFailed in all where one of them could not write."""
        told = processes.gather([self.signal, self.failure or self.checkpoints.failure()])
        failure = next(filter(None, (failure for _, failure in told)), None)
        if failure:
            raise self.storage_failed(failure)
        return next(filter(None, (name for name, _ in told)), None)

    def _save_now(self, state: TrainState) -> None:
        """Saves the state, where that is not done yet, and waits until the checkpoint is whole."""
        self.checkpoints.save(state)
        self.checkpoints.wait()
        self._told()

    def storage_failed(self, reason: str) -> StorageFailed:
        """The end of a run that cannot be written."""
        self.failure, steps = reason, []
        with contextlib.suppress(OSError):
            steps = self.checkpoints.steps()
        newest = f"its newest checkpoint is {self.checkpoints.folder / str(steps[-1])}" if steps else "it has no checkpoint"
        return StorageFailed(f"{self.run_dir} cannot be written: {reason}; {newest}, --resume goes on when that is mended.")

    def _report(self) -> None:
        if self.failure is None:
            write_report(self.run_dir)

    def _check_best_metric(self, table: dict) -> None:
        wanted, names = self.config.checkpoint.best_metric, list(evaluated(table))
        require(not wanted or wanted in names,
                f"checkpoint.best_metric = {wanted!r}, but the evaluation reports {', '.join(names)}.")  # fmt: skip

    @contextlib.contextmanager
    def _signals(self):
        """SIGINT, SIGTERM and SIGHUP finish the iteration; all processes hear of it at its end.

        Not a SIGHUP that is ignored: whoever started the run with nohup wants it to go on.
        """
        if not _main_thread():
            yield
            return
        kinds = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            kinds.append(signal.SIGHUP)
        handlers = {kind: signal.signal(kind, self._interrupt) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in handlers.items():
                signal.signal(kind, handler)

    def _interrupt(self, number: int, _) -> None:
        """First Ctrl-C: finish the iteration.  Second: stop at once."""
        if self.signal == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        with contextlib.suppress(RuntimeError):  # the signal came while the console was writing
            self.console.message(f"Finishing this iteration, then saving{again}.")

    def _summary(self) -> dict:
        return read_summary(self.run_dir)

    def _show(self, summary: dict, report: epath.Path) -> None:
        header, rows = summary_table(summary["before"], summary["after"])
        self.console.table("Held-out prompts", header, rows)
        self.console.message(f"{summary['seconds']:.0f} s.  Report: {report}")


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
