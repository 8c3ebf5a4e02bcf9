"""How a run ends before its time: whatever is raised in an iteration, the state is saved first; signals; silent consoles."""

import contextlib
import functools
import json
import os
import pathlib
import signal
import sys
import time

import pytest

from tests.command import HEADS, REWARD, run_small
from unigrpo_jax.config import ConfigError
from unigrpo_jax.parallel import processes
from unigrpo_jax.rewards.judging import RewardError
from unigrpo_jax.training import iterations, trainer
from unigrpo_jax.training.checkpoint import Checkpoints
from unigrpo_jax.training.console import Console
from unigrpo_jax.training.evaluation import Evaluator
from unigrpo_jax.training.health import Watch
from unigrpo_jax.training.metrics import MetricsWriter, read_metrics
from unigrpo_jax.training.overview import evaluated
from unigrpo_jax.training.stopping import RunStopped, Signals, clause
from unigrpo_jax.training.trainer import Stopwatch, Trainer
from unigrpo_jax.training.watchdog import Watchdog


@pytest.fixture
def small(tiny_model, tmp_path, monkeypatch):
    """Three iterations in `tmp_path/run`, with a sample and an evaluation after each."""
    (tmp_path / "tiny_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("tiny_reward", None)
    settings = ["--iterations", 3, "--checkpoint.every", 100, "--logging.samples-every", 1, "--evaluation.every", 1]
    yield lambda *arguments: run_small(tiny_model, tmp_path / "run", *settings, *HEADS, *arguments)
    sys.modules.pop("tiny_reward", None)


class Broken(Exception):
    """Nobody foresaw it."""


class Wordless(Exception):
    """It cannot even say what it is."""

    def __str__(self):
        raise self


def break_at(monkeypatch, owner, name: str, call: int, after: bool = False, error: BaseException | None = None):
    """The n-th call raises, before it does anything or after it has done all."""
    act, calls = getattr(owner, name), []

    @functools.wraps(act)
    def broken(*arguments, **named):
        calls.append(1)
        if len(calls) != call:
            return act(*arguments, **named)
        if after:
            act(*arguments, **named)
        raise error or Broken("for once")

    monkeypatch.setattr(owner, name, broken)


def saved(run_dir: pathlib.Path) -> list[int]:
    """Iterations done at each checkpoint, all of which are whole."""
    checkpoints = Checkpoints(run_dir / "checkpoints")
    for step in checkpoints.steps():
        checkpoints.facts(step)
    return checkpoints.steps()


PARTS = {  # who, what, which call, and the iterations that are done and saved
    "prompts": (Trainer, "_prompts", 2, 1),
    "rollout's callback": (Stopwatch, "__call__", 2, 1),
    "metrics": (trainer, "statistics", 2, 1),
    "advantages": (trainer.credit, "advantages", 2, 1),
    "update": (Trainer, "learn", 2, 1),
    "evaluation": (Evaluator, "__call__", 3, 2),
    "alarms": (Watch, "look", 2, 2),
    "writer": (MetricsWriter, "write", 2, 2),
    "sampling": (Evaluator, "samples", 2, 2),
    "checkpoint": (Checkpoints, "improves", 3, 2),
}


@pytest.mark.parametrize("part", PARTS)
def test_whatever_is_raised_in_an_iteration_its_state_is_saved_first(small, tmp_path, monkeypatch, part):
    owner, name, call, done = PARTS[part]
    said = []
    monkeypatch.setattr("experiments.run.say", lambda program, error: said.append(error))
    kind = KeyboardInterrupt if part == "metrics" else Broken  # as a library may raise it; nobody pressed a key
    break_at(monkeypatch, owner, name, call, error=kind("for once"))
    outcome = small("--checkpoint.keep-best", 0 if part != "checkpoint" else 1)
    (error,) = said
    assert outcome.code == 1 and type(error) is RunStopped, outcome
    assert "for once" in str(error) and "\n" not in str(error), error
    assert ("after iteration 2" if "evaluat" in part or part == "sampling" else "in iteration 2") in str(error), error
    assert f"the run stopped after iteration {done} with a checkpoint" in str(error)
    cause, chain = error, []
    while cause is not None:
        chain.append(type(cause).__name__)
        cause = cause.__cause__
    assert part == "rollout's callback" or chain[-1] == kind.__name__, chain
    assert "for once" in (tmp_path / "run" / "error.txt").read_text()
    assert saved(tmp_path / "run")[-1] == done
    lines = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert lines == list(range(1, done + 1 - (part in ("writer", "alarms"))))
    assert (tmp_path / "run" / "report.html").exists()


def test_a_reward_that_ends_the_process_does_not(small, tmp_path):
    """SystemExit is no Exception; the episodes are kept, too."""
    (tmp_path / "leaving.py").write_text(
        "import sys\n\ncalls = 0\n\n\ndef score(batch):\n    global calls\n    calls += 1\n"
        "    return sys.exit('enough') if calls == 5 else [0.5] * len(batch.prompts)\n"
    )
    outcome = small("--rewards", "leaving:score")
    assert outcome.code == 1 and "enough" in outcome.err and "in iteration 2; the episodes" in outcome.err, outcome
    assert outcome.err.count("\n") == 1 and saved(tmp_path / "run") == [1]
    assert (tmp_path / "run" / "unjudged" / "000002" / "images.npz").exists()


def test_where_the_state_went_with_the_update_the_newest_checkpoint_is_named(small, tmp_path, monkeypatch):
    settings = ["--iterations", 5, "--checkpoint.every", 2, "--checkpoint.keep-best", 0, "--evaluation.every", 0]
    with monkeypatch.context() as patch:
        break_at(patch, Trainer, "learn", 4, after=True)
        outcome = small(*settings)
    assert outcome.code == 1 and "Broken: for once, in iteration 4; the state went with the update" in outcome.err, outcome
    run_dir = tmp_path / "run"
    newest = f"its newest checkpoint is {run_dir / 'checkpoints' / '2'}"
    assert f"{newest}; the traceback is in {run_dir / 'error.txt'}." in outcome.err
    outcome = small("--resume", *settings)
    assert outcome.code == 0 and "Resuming after iteration 2" in outcome.out, outcome
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_what_only_shows_a_run_may_fail_which_is_told_once(small, tmp_path, monkeypatch):
    def fail(*_):
        raise Broken("for ever")

    for name in ("write_report", "save_samples"):
        monkeypatch.setattr(iterations, name, lambda *_: fail())
    monkeypatch.setattr(Console, "iteration", fail)
    outcome = small()
    assert outcome.code == 0 and saved(tmp_path / "run")[-1] == 3, outcome
    assert outcome.out.count("Broken: for ever") == 2 and outcome.err.count("Broken: for ever") == 1, outcome
    for what in ("report.html", "samples"):
        assert f"{what} failed (Broken: for ever); the run goes on." in outcome.out
    assert outcome.err == "what is printed failed (Broken: for ever); the run goes on.\n"


def test_what_is_raised_in_one_of_several_processes_is_raised_in_all(monkeypatch):
    """Foreseen in its own kind, anything else as one kind; `gather` stands for what the other process says."""
    heard = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)

    def other(says):
        monkeypatch.setattr(processes, "gather", lambda value: heard.append(value) or [value, says])

    def fails():
        raise Broken("here")

    other([None, "None"])
    assert processes.agree_on_errors((ConfigError,), lambda: 5) == 5
    for action in (fails, lambda: sys.exit("here")):
        with pytest.raises(processes.FailedTogether, match="^process 0: (Broken|SystemExit): here$") as caught:
            processes.agree_on_errors((ConfigError, RewardError), action)
        assert "here" in str(caught.value.__cause__)
    other([1, "far away"])
    with pytest.raises(RewardError, match="^process 1: far away$"):
        processes.agree_on_errors((ConfigError, RewardError), lambda: 5)
    other([2, "Broken: far away"])
    with pytest.raises(processes.FailedTogether, match="^process 1: Broken: far away$"):
        processes.agree_on_errors((ConfigError, RewardError), lambda: 5)
    assert heard[-1][0] is None


def test_an_error_of_ours_speaks_for_itself_and_another_with_its_kind():
    assert clause(ConfigError("a = 1 is too much; use 0.")) == "a = 1 is too much; use 0"
    assert clause(ValueError("two\n  lines")) == "ValueError: two" and clause(KeyError()) == "KeyError"
    assert clause(Wordless()) == "Wordless"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_signals_let_the_iteration_end_and_are_given_back(kind):
    said, before = [], signal.signal(kind, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with Signals(said.append) as signals:
            assert signals.told is None
            signal.raise_signal(kind)
            assert signals.told == kind.name and said == ["Finishing this iteration, then saving."]
        assert signal.getsignal(kind) == signal.SIG_DFL
    finally:
        signal.signal(kind, before)


def test_a_hangup_that_is_ignored_as_under_nohup_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(print) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.told is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_console_whose_reader_goes_away_falls_silent():
    """A pipe; what is written after that goes nowhere, also by others and at Python's end."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream, Console(stream) as console:
        console.message("heard")
        assert os.read(reader, 100) == b"heard\n"
        os.close(reader)
        for act in (
            lambda: console.message("x"),
            lambda: console.card("x", [("a", "b")]),
            lambda: console.iteration(1, 2, {"reward/mean": 0.5}),
            lambda: console.table("x", ["a"], [["b"]]),
        ):
            act()
        print("another", file=stream, flush=True)


@pytest.mark.parametrize("closed", [False, True])
def test_a_terminal_that_goes_away_is_not_written_to_again(closed):
    leader, follower = os.openpty()
    stream = open(follower, "w")
    with Console(stream) as console:
        console.iteration(1, 3, {"reward/mean": 0.5})
        os.close(leader)
        if closed:
            stream.close()
        console.iteration(2, 3, {"reward/mean": 0.5})
        console.message("x")
        assert console._quiet
    with contextlib.suppress(OSError):  # what is still in its buffer goes nowhere
        stream.close()


def test_while_rewards_judge_the_watchdog_waits_for_their_retries_too(small, monkeypatch):
    """7 s three times and waits of 1 and 2 s between: the run's own end for a judge that hangs comes first."""
    told = []
    monkeypatch.setattr(Watchdog, "step", lambda self, more=0.0: told.append(more))
    judge = Trainer.judge
    monkeypatch.setattr(Trainer, "judge", lambda *given: told.append("judge") or judge(*given))
    outcome = small("--iterations", 1, "--judging.timeout-seconds", 7, "--judging.retries", 2)
    assert outcome.code == 0, outcome
    (at,) = [place for place, what in enumerate(told) if what == "judge"]
    assert told[at - 1 : at + 2] == [24, "judge", 0] and told.count(24) >= 3  # evaluations before and after, too


def test_a_state_that_is_due_is_saved_before_it_is_judged(small, tmp_path, monkeypatch):
    """Its checkpoint and its line are there meanwhile; both get what the evaluation finds."""
    run_dir, seen, judge = tmp_path / "run", [], Evaluator.__call__

    def watched(self, *given, **named):
        deadline, lines = time.monotonic() + 60, []
        while seen and saved(run_dir)[-1:] != [2 * len(seen)] and time.monotonic() < deadline:
            time.sleep(0.05)
        lines = read_metrics(run_dir / "metrics.jsonl")
        seen.append((saved(run_dir), [line["step"] for line in lines], [name for name in lines[-1] if "eval/" in name])
                    if lines else ())  # fmt: skip
        return judge(self, *given, **named)

    monkeypatch.setattr(Evaluator, "__call__", watched)
    outcome = small("--iterations", 4, "--evaluation.every", 2, "--checkpoint.every", 2)
    assert outcome.code == 0, outcome
    assert seen[0] == () and seen[1] == ([2], [1, 2], [])
    lines = {line["step"]: line for line in read_metrics(run_dir / "metrics.jsonl")}
    assert list(lines) == [1, 2, 3, 4] and "eval/graded" in lines[2]
    assert Checkpoints(run_dir / "checkpoints").facts(2)["evaluation"]["eval/graded"] == lines[2]["eval/graded"]


def test_the_last_evaluation_stands_beside_the_last_checkpoint(small, tmp_path):
    outcome = small("--iterations", 2)
    assert outcome.code == 0, outcome
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["after"]
    facts = Checkpoints(tmp_path / "run" / "checkpoints").facts(2)
    assert facts["evaluation"] and facts["evaluation"] == evaluated(after)
