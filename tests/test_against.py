"""Another program beside ours: who is measured when, which rounds count, and what a command may print."""

import itertools
import json
import shlex
import sys
import types

import jax.numpy as jnp
import pytest

from experiments.benchmark import against, workload
from tests.command import command
from unigrpo_jax.config import ConfigError


def saying(*lines: str) -> str:
    """A command that prints these lines."""
    return shlex.join([sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n')", *lines])


def test_programs_take_turns_and_busy_rounds_are_thrown_away():
    """Round by round: ours is measured first in even rounds, last in odd ones; the third, at 3 %, does not count."""
    calls, numbers = [], itertools.count(1)
    shares = iter([0.0, 0.02, 0.0, 0.01, 0.03, 0.0, 0.0, 0.0])

    def program(name):
        return lambda: calls.append(name) or {"update": float(next(numbers))}

    found = against.pair(program("o"), program("t"), 3, watch=lambda program: (program(), next(shares)))
    assert "".join(calls) == "ot" + "to" + "ot" + "to"
    assert found == against.Pairing({"update": [1, 4, 8]}, {"update": [2, 3, 7]}, 1)


def test_a_machine_that_is_never_quiet_is_one_sentence():
    program = lambda: {"update": 1.0}
    shares = itertools.cycle([0.0, 0.5])
    with pytest.raises(ConfigError, match="0 of 6 rounds were quiet, 2 are asked for; .* up to 50% of the cores"):
        against.pair(program, program, 2, watch=lambda program: (program(), next(shares)))


def test_a_command_prints_the_same_numbers_in_every_round():
    given = iter([{"update": 1.0}, {"update": 1.0, "flow": 2.0}])
    mine = lambda: dict.fromkeys(against.UNITS, 1.0)
    with pytest.raises(ConfigError, match="other numbers in one round"):
        against.pair(mine, lambda: next(given), 2, watch=lambda program: (program(), 0.0))


def test_processor_time_is_read_without_idling_and_without_counting_guests_twice(monkeypatch):
    """user 100, nice 20, system 30, idle 4000, iowait 500, irq 6, softirq 7, steal 80, guest 90 and 10; 100 a second."""
    monkeypatch.setattr(against.os, "sysconf", lambda name: 100)
    assert against.busy_seconds("cpu  100 20 30 4000 500 6 7 80 90 10\ncpu0 1 2 3\n") == pytest.approx(2.43)


def test_a_program_and_its_children_are_not_others(monkeypatch, tmp_path):
    """In 10 s on 4 cores 12 s are taken, 3 + 1 + 5 + 2 of them by the program and its children: 1 / 40 is others'."""
    stat = tmp_path / "stat"
    stat.write_text("cpu 0 0 0 0 0 0 0 0\n")
    times = types.SimpleNamespace(user=0.0, system=0.0, children_user=0.0, children_system=0.0)
    monkeypatch.setattr(against, "STAT", stat)
    monkeypatch.setattr(against.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(against.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(against.os, "times", lambda: times)
    monkeypatch.setattr(against.time, "perf_counter", itertools.count(0, 10).__next__)

    def program():
        stat.write_text("cpu 1000 0 200 7 0 0 0 0\n")
        times.user, times.system, times.children_user, times.children_system = 3.0, 1.0, 5.0, 2.0
        return {"update": 1.0}

    found, share = against.watched(program)
    assert found == {"update": 1.0} and share == pytest.approx(1 / 40)


def test_rates_and_seconds_are_compared_as_speeds():
    mine, other = {"decode": [30.0, 20.0], "update": [2.0, 2.0]}, {"decode": [20.0, 10.0], "update": [3.0, 1.0]}
    found = against.Pairing(mine, other, 1)
    value = {row.name: row.value.median for row in against.rows(found)}
    assert value["decode, ours over theirs"] == (1.5 + 2) / 2 and value["update, ours over theirs"] == (1.5 + 0.5) / 2
    assert (value["decode, ours"], value["update, theirs"], value["rounds thrown away"]) == (25, 2, 1)


def test_the_median_of_a_commands_lines_counts_and_other_words_are_passed_over():
    text = 'loading {1}\n{"decode": 3, "flow": 1.5}\n\n{"decode": 1}\n {"decode": 2.5}\n'
    assert against.read(text) == {"decode": 2.5, "flow": 1.5}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "printed no JSON line"),
        ("{}", "printed no JSON line"),
        ('{"decode": 1', "no JSON"),
        ('{"speed": 1}', "called 'speed'"),
        ('{"decode": 0}', "'0' for decode"),
        ('{"decode": NaN}', "'nan' for decode"),
        ('{"decode": Infinity}', "'inf' for decode"),
        ('{"decode": 1' + 400 * "0" + "}", "for decode"),
        ('{"decode": "9"}', "'9' for decode"),
        ('{"decode": true}', "'True' for decode"),
        ('{"decode": null}', "'None' for decode"),
        ('{"decode": [1]}', "for decode"),
    ],
)
def test_what_a_command_prints_wrongly_is_one_sentence(line, words):
    with pytest.raises(ConfigError, match=words):
        against.read(line)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--against", "no-such-program"], ["no-such-program", "cannot be run"]),
        (["--against", ""], ["names no command"]),
        (["--against", "echo 'x"], ["No closing quotation"]),
        (["--against", shlex.join([sys.executable, "-c", "raise SystemExit('out of luck')"])], ["code 1", "out of luck"]),
        (["--against", "true"], ["printed no JSON line"]),
        (["--against", "true", "--sizes", "tiny", "middle"], ["one size, not 2"]),
        (["--against", "true", "--sizes", "huge"], ["huge", "window"]),
        (["--against", "true", "--tables", "speed"], ["leave --tables"]),
        (["--against", "true", "--pictures"], ["leave --tables and --pictures out"]),
    ],
)
def test_a_command_that_cannot_be_paired_is_one_sentence(given, words, monkeypatch):
    monkeypatch.setitem(workload.SIZES, "window", lambda: None)
    outcome = command("experiments.bench", *given)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def test_the_command_prints_both_and_the_ratio(monkeypatch, tmp_path):
    monkeypatch.setitem(workload.SIZES, "window", lambda: None)
    monkeypatch.setattr(against, "ours", lambda workload: lambda: dict.fromkeys(against.UNITS, 6.0))
    monkeypatch.setattr(against, "BUSY", float("inf"))
    outcome = command("experiments.bench", "--against", saying('{"decode": 4, "update": 9}'), "--repeats", 2,
                      "--json", tmp_path / "found.json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert {(row["size"], row["table"]) for row in found} == {("window", "against")}
    value = {row["name"]: row["value"]["median"] for row in found}
    assert value["decode, ours over theirs"] == value["update, ours over theirs"] == 1.5
    assert "update, theirs" in outcome.out and "window: against" in outcome.out


def test_ours_counts_tokens_and_images_per_second(monkeypatch):
    """7 tokens; 8 episodes of 15 steps; an iteration is the rollout and then the update; every call takes 2 s."""
    called = []
    note = lambda name: lambda: called.append(name) or jnp.zeros(())
    parts = types.SimpleNamespace(think=note("think"), draw=note("draw"),
                                  thought=(types.SimpleNamespace(mask=jnp.arange(12) < 7), None))  # fmt: skip
    config = types.SimpleNamespace(episodes=8, rollout=types.SimpleNamespace(flow_steps=15))
    load = types.SimpleNamespace(config=config, parts=lambda: parts, updater=lambda: note("update"), sample=note("sample"))
    monkeypatch.setattr(against, "seconds", lambda function: function() * 0 + 2.0)
    program = against.ours(load)
    called.clear()
    assert program() == {"decode": 3.5, "flow": 60.0, "update": 2.0, "iteration": 2.0}
    assert called == ["think", "draw", "update", "sample", "update"]
