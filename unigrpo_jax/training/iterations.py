"""The iterations of a run, and what is due after each: a list of small parts that know themselves when they have to act.

Whatever is raised here, by whomever, the newest state is saved before the run ends.  What shows a run and holds nothing of
it, the terminal, samples and the report, may fail: that is told once, and the run goes on.
"""

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.config_json import to_dict
from unigrpo_jax.foreign_text import tell
from unigrpo_jax.learning.update import TrainState
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.roll_call import PeersMissing
from unigrpo_jax.rewards.judging import Away, Left, RewardError
from unigrpo_jax.training import storage
from unigrpo_jax.training.checkpoint import Checkpoints
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.evaluation import Evaluator, Judged
from unigrpo_jax.training.health import Watch
from unigrpo_jax.training.metrics import FILE_NAME, MetricsWriter, read_metrics
from unigrpo_jax.training.overview import blind, drift_table, drifted, evaluated, headline, summary_table
from unigrpo_jax.training.recorded_run import SPLITS
from unigrpo_jax.training.report import write_report
from unigrpo_jax.training.resampling import collect
from unigrpo_jax.training.run_folder import save_episodes, write_json
from unigrpo_jax.training.samples import Sample, save_samples
from unigrpo_jax.training.stopping import JudgeAway, Preempted, RunStopped, Signals, StorageFailed, clause
from unigrpo_jax.training.summary import read_summary
from unigrpo_jax.training.trainer import Trainer
from unigrpo_jax.training.watchdog import Watchdog

MAX_SKIPPED_IN_ROW = 5
ERROR_FILE = "error.txt"
REPORT_SHARE, REPORT_QUICK = 0.02, 1.0  # of the time since the last one; seconds
ENDS = {Away: JudgeAway, Left: Preempted}  # how a run ends that ends by these; by all else it is stopped


@dataclasses.dataclass
class Done:
    """What is known of the iteration that was just done.

    Attributes:
      number: how many are done.
      metrics: its line, without alarms.
      table: of an evaluation after it; {} where there was none.
      ringing: sentences of the alarms that ring, in the first process.
      shown: there is something new to see in the report.
      recorded: the line is written.
      later: numbers that came when it was.
      told: the signal that one of the processes got; with one, evaluation and samples are left out.
      rang: sentences of the alarms that end the run.
    """

    number: int
    metrics: dict[str, Any]
    table: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    ringing: list[str] = dataclasses.field(default_factory=list)
    shown: bool = False
    recorded: bool = False
    later: dict[str, Any] = dataclasses.field(default_factory=dict)
    told: str | None = None
    rang: list[str] = dataclasses.field(default_factory=list)


class Iterations:
    """The iterations of one run in progress; `writer` is the first process's, and None in the others."""

    def __init__(
        self, config: RunConfig, run_dir: epath.Path, trainer: Trainer, evaluator: Evaluator, checkpoints: Checkpoints,
        console: Console, writer: MetricsWriter | None,
    ):  # fmt: skip
        self._config, self._run_dir, self._trainer, self._evaluator = config, run_dir, trainer, evaluator
        self._checkpoints, self._console, self._writer = checkpoints, console, writer
        self._watchdog = Watchdog(config.processes.hang_seconds)
        rounds = max(config.rollout.rounds, config.evaluation.rounds)
        self._patience = rounds * trainer.parts.judging.longest_seconds
        evaluator.alive = lambda: self._watchdog.step(self._patience)
        self._signals = Signals(lambda words: self._show(console.message, words))
        trainer.parts.judging.told = lambda: self._signals.told if self._signals.told != "SIGINT" else None
        self._state: TrainState | None = None  # the newest
        self._done: Done | None = None
        self._summary: dict[str, Any] = {}
        self._failure: str | None = None  # why the run folder cannot be written
        self._broken: Exception | None = None  # what else was raised where only one process works
        self._complained: set[str] = set()
        self._note = ""
        self._reported, self._report_took = time.monotonic(), 0.0
        self.parts: tuple[Callable[[Done], None], ...] = (
            self._hear, self._evaluate, self._record, self._tell, self._sample, self._report, self._agree, self._save,
            self._stop,
        )  # fmt: skip

    def run(self, state: TrainState, done: int) -> dict[str, Any]:
        """Goes from iteration `done` to the last one, judges before and after, and returns the summary."""
        self._state, total = state, self._config.iterations
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watchdog)
            stack.enter_context(self._signals)
            if self._writer is not None:
                stack.callback(lambda: self._failure or self._show(write_report, self._run_dir))
                stack.enter_context(self._writer)
            self._begin(done)
            for step in range(done, total):
                with self._kept(lambda step=step: f"in iteration {step + 1}"):
                    self._done = self._iterate(step)
                    for part in self.parts:
                        part(self._done)
                self._watchdog.step()
            with self._kept(lambda: "after the last iteration"):
                after = self._held_out()
                self._summary |= {"after": after.table, "iterations": total, "seconds": self._seconds()}
                self._write_samples(total, after.samples)
                self._log_table(total, after.table)
                self._alone(write_json, self._run_dir / "summary.json", self._summary)
                self._save_now(evaluated(after.table) if self._config.evaluation.every else {})
        header, rows = summary_table(self._summary["before"], self._summary["after"])
        if rows:
            self._show(self._console.table, SPLITS[self._config.evaluation.split], header, rows)
        if after.drift:
            title = "Drift of the predictions from the reference, by time"
            self._show(self._console.table, title, *drift_table(after.drift))
        words = f"{self._summary['seconds']:.0f} s.  Report: {self._run_dir / 'report.html'}"
        self._show(self._console.message, words)
        return self._summary

    # --- before ---------------------------------------------------------------------------------------------------------

    def _begin(self, done: int) -> None:
        """Judges the start, where that is not known, and reads what a run that is continued has written."""
        began, settings = time.monotonic(), to_dict(self._config.evaluation)
        summary = processes.gather(read_summary(self._run_dir) if self._writer else None)[0]
        previous = summary.get("seconds", 0.0)
        if not done or summary.get("evaluation") != settings:  # before and after are judged alike
            params = self._trainer.first_params() if done else None
            before = self._judged(self._evaluator, params)
            summary = {"before": before.table, "evaluation": settings, "seconds": previous}
            self._write_samples(0, before.samples)
            self._log_table(0, before.table)
            self._alone(write_json, self._run_dir / "summary.json", summary)
            self._show(self._console.message, f"Before: {headline(before.table) or 'nothing judges the images'}")
            self._tell_of_blind_rewards()
            self._alone(self._show, write_report, self._run_dir)
        wanted, names = self._config.checkpoint.best_metric, list(evaluated(summary["before"]))
        require(not wanted or wanted in names,
                f"checkpoint.best_metric = {wanted!r}, but the evaluation reports {', '.join(names)}; name one of "
                "them, and --resume.")  # fmt: skip
        self._summary = summary
        self._seconds = lambda: round((previous if done else 0.0) + time.monotonic() - began, 1)
        lines = read_metrics(self._run_dir / FILE_NAME) if self._writer else []
        earlier = [line for line in lines if line["step"] <= done]
        self._watch = Watch(self._config.alarms, self._config.learning, earlier)
        if done and processes.gather(not any(name.startswith("eval/") for name in (earlier or [{}])[-1]))[0]:
            self._make_up(Done(done, {}))

    def _make_up(self, done: Done) -> None:
        """Judges the state that a run is continued from, where a signal let it end before that."""
        self._evaluate(done)
        if done.table:
            self._alone(lambda: self._writer.amend(done.metrics))
            self._checkpoints.save(self._state, evaluated(done.table))

    # --- an iteration ---------------------------------------------------------------------------------------------------

    def _iterate(self, step: int) -> Done:
        begin = time.monotonic()
        self._note = ""

        def judge(own, times):
            self._watchdog.step(self._patience)
            try:
                found = self._trainer.judge(own, times)
                self._watchdog.step()
                return found
            except Left:
                raise
            except (Exception, SystemExit):
                folder = self._written(save_episodes, self._run_dir, step + 1, own)
                self._note = f"; the episodes of iteration {step + 1} are in {folder}" if folder else ""
                raise

        episodes, advantages, found = collect(self._trainer, self._state, step, judge)
        self._state, learned = self._trainer.learn(self._state, episodes, advantages)
        return Done(step + 1, found | learned | {"time/iteration": time.monotonic() - begin})

    # --- what is due after an iteration, in this order --------------------------------------------------------------------

    def _hear(self, done: Done) -> None:
        done.told = next(filter(None, processes.gather(self._signals.told)), None)

    def _is_due(self, every: int, done: Done) -> bool:
        return bool(every) and done.number % every == 0 and done.number < self._config.iterations and not done.told

    def _evaluate(self, done: Done) -> None:
        if self._is_due(self._config.evaluation.every, done):
            if done.number % self._config.checkpoint.every == 0:  # to judge may take long, and not hear that it is to end
                self._record(done)
                self._keep()
            found = self._held_out()
            done.table, done.shown = found.table, True
            done.later = evaluated(done.table) | drifted(found.drift)
            done.metrics |= done.later
            self._log_table(done.number, done.table)

    def _record(self, done: Done) -> None:
        if done.recorded:
            if done.later:
                self._alone(lambda: self._writer.amend(done.later))
            return
        done.recorded = True

        def write() -> None:
            found, done.ringing = self._watch.look(done.metrics)
            self._writer.write(done.number, done.metrics | found)

        self._alone(write)

    def _tell(self, done: Done) -> None:
        self._show(self._console.iteration, done.number, self._config.iterations, done.metrics)
        self._tell_of_blind_rewards()
        for words in done.ringing:
            self._show(self._console.message, f"step {done.number}: {words}.")

    def _sample(self, done: Done) -> None:
        if self._is_due(self._config.logging.samples_every, done):
            self._write_samples(done.number, self._judged(self._evaluator.samples))
            done.shown = True

    def _report(self, done: Done) -> None:
        """Not where it would take more than `REPORT_SHARE` of the time, as after many iterations."""
        began = time.monotonic()
        quick = self._report_took < max(REPORT_SHARE * (began - self._reported), REPORT_QUICK)
        if done.shown and quick:
            self._alone(self._show, write_report, self._run_dir)
            self._reported = time.monotonic()
            self._report_took = self._reported - began

    def _agree(self, done: Done) -> None:
        done.rang = processes.gather(done.ringing)[0] if self._config.alarms.action == "stop" else []
        later = self._agreed()
        done.told = done.told or later

    def _save(self, done: Done) -> None:
        scores, config = evaluated(done.table), self._config.checkpoint
        best = config.keep_best and self._checkpoints.improves(scores)
        last = done.number == self._config.iterations
        if done.number % config.every == 0 or last or best or done.told or done.rang:
            self._keep(scores)

    def _stop(self, done: Done) -> None:
        """RunStopped or KeyboardInterrupt where the run is not to go on."""
        after = f"the run stopped after iteration {done.number} with a checkpoint"
        if int(self._state.skipped_in_row) >= MAX_SKIPPED_IN_ROW:
            self._save_now()
            raise RunStopped(f"{MAX_SKIPPED_IN_ROW} updates in a row were not finite, so {after}; lower the learning rates, "
                             "or see the last metrics.")  # fmt: skip
        if done.rang:
            self._save_now()
            raise RunStopped(f"{'; '.join(done.rang)}; so {after}; --resume goes on until another alarm rings.")
        if done.told:
            self._save_now()
            words = f"Stopped after iteration {done.number}; --resume continues from {self._run_dir / 'checkpoints'}."
            self._show(self._console.message, words)
            raise KeyboardInterrupt if done.told == "SIGINT" else Preempted(f"{done.told} came; a checkpoint was written.")

    def _tell_of_blind_rewards(self) -> None:
        """Once, when rewards have judged for the first time, that none of them looks at what was asked for."""
        words = blind(self._config, self._trainer.parts.judging)
        if words and words not in self._complained:
            self._complained.add(words)
            self._show(self._console.message, words)

    # --- what they share ------------------------------------------------------------------------------------------------

    def _keep(self, scores: dict[str, float] | None = None) -> None:
        """Starts to save the state, or writes its scores where it is saved, after all that belongs to it."""
        self._alone(write_json, self._run_dir / "summary.json", self._summary | {"seconds": self._seconds()})
        self._alone(lambda: self._writer.flush())
        self._checkpoints.save(self._state, scores)

    def _judged(self, judge: Callable, params: dict | None = None):
        """What `judge` says of the newest weights, or of others."""
        params = self._trainer.judged_params(self._state) if params is None else params
        with self._kept(lambda: f"while held-out prompts were judged after iteration {int(self._state.step)}"):
            found = judge(params, self._trainer.autoencoder_params)
        self._watchdog.step()
        return found

    def _held_out(self) -> Judged:
        """What the evaluation finds of the newest weights; how far they drifted is noted in the summary."""
        reference = self._trainer.kept_reference()
        found = self._judged(lambda *given: self._evaluator(*given, reference))
        self._summary.pop("drift", None)
        self._summary |= {"drift": found.drift} if found.drift else {}
        return found

    def _write_samples(self, step: int, samples: list[Sample]) -> None:
        self._alone(self._show, save_samples, self._run_dir, step, samples)
        self._alone(lambda: self._writer.samples(step, samples))

    def _log_table(self, step: int, table: dict) -> None:
        self._alone(lambda: self._writer.table(step, table, self._config.evaluation.split))

    def _alone(self, act: Callable, *arguments) -> None:
        """What only the first process does; what it raises ends the run when all next tell each other."""
        if self._writer is not None:
            self._written(act, *arguments)

    def _written(self, act: Callable, *arguments) -> Any:
        try:
            return act(*arguments)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                self._failure = self._failure or storage.reason(error)
            else:
                self._broken = self._broken or error
            return None

    def _show(self, act: Callable, *arguments) -> None:
        """What only shows the run: where it fails, that is told once for each place."""
        try:
            act(*arguments)
        except Exception as error:
            place = {write_report: "report.html", save_samples: "samples"}.get(act, "what is printed")
            if place in self._complained:
                return
            self._complained.add(place)
            words = f"{place} failed ({clause(error)}); the run goes on."
            with contextlib.suppress(Exception):
                tell(words, sys.stderr) if place == "what is printed" else self._console.message(words)

    def _agreed(self) -> str | None:
        """The signal that one of the processes got.

        What one of them could not write, or what else it raised while the others waited, is raised in all.
        """
        broken = self._broken and clause(self._broken)
        told = processes.gather([self._signals.told, self._failure or self._checkpoints.failure(), broken])
        signals, failures, errors = (next(filter(None, found), None) for found in zip(*told, strict=True))
        if failures:
            raise self.storage_failed(failures)
        if errors:
            cause, self._broken = self._broken, None
            if jax.process_count() == 1:
                raise cause
            raise processes.FailedTogether(errors) from cause
        return signals

    def _save_now(self, scores: dict[str, float] | None = None) -> None:
        """Saves the state, or its scores alone where it is saved, and waits until the checkpoint is whole."""
        self._checkpoints.save(self._state, scores)
        self._checkpoints.wait()
        self._agreed()

    def storage_failed(self, reason: str) -> StorageFailed:
        """The end of a run that cannot be written."""
        self._failure, newest = reason, self._newest()
        return StorageFailed(f"{self._run_dir} cannot be written: {reason}; {newest}, --resume goes on when that is mended.")

    def _newest(self) -> str:
        steps = []
        with contextlib.suppress(OSError):
            steps = self._checkpoints.steps()
        return f"its newest checkpoint is {self._checkpoints.folder / str(steps[-1])}" if steps else "it has no checkpoint"

    @contextlib.contextmanager
    def _kept(self, when: Callable[[], str]) -> Iterator[None]:
        """Whatever is raised inside, the newest state is saved, and the run ends with a sentence that says `when`.

        Several processes save together, so they do it for what all of them raise; one that fails alone in a program
        that they share ends, the others notice, and the newest checkpoint counts.
        """
        try:
            with processes.joined():
                yield
        except (RunStopped, PeersMissing):
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self._signals.told == "SIGINT":
                raise  # a person's, who does not want to wait
            shared = (RewardError, ConfigError, processes.FailedTogether)
            if jax.process_count() > 1 and not isinstance(error, shared):
                raise
            where = ""
            if not isinstance(error, shared) or error.__cause__ is not None:  # of a reward's own failure, too
                where = f"; the traceback is in {self._run_dir / ERROR_FILE}"
                stacks = traceback.format_exc().encode()
                self._alone(storage.write_atomically, self._run_dir / ERROR_FILE, stacks)
            kind = next((kind for of, kind in ENDS.items() if isinstance(error, of)), RunStopped)
            raise kind(f"{clause(error)}, {when()}{self._note}; {self._rescued()}{where}.") from error

    def _rescued(self) -> str:
        """Saves what there is; says what."""
        if self._done is not None and not self._done.recorded and self._done.number == self._number():
            self._record(self._done)
        if self._number() is None:
            self._checkpoints.wait()
            return f"the state went with the update that failed, and {self._newest()}"
        self._broken = None  # it is what ends the run, or comes after that
        self._save_now()
        return f"the run stopped after iteration {self._number()} with a checkpoint"

    def _number(self) -> int | None:
        """Iterations that the newest state has behind it; None where an update that failed has used it up."""
        leaves = jax.tree.leaves(self._state)
        try:
            return None if any(x.is_deleted() for x in leaves) else int(jax.block_until_ready(self._state).step)
        except jax.errors.JaxRuntimeError:
            return None
