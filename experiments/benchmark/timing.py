"""Seconds of programs on a machine that others may use at the same time: all in turn, round after round.

A ratio compares two times of the same round, so that what slows the machine down slows both.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of one call, until its result is there."""
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function, one per round, in the order of the rounds.

    Every function is called once before the first round, which compiles and is not counted.  Odd rounds go backwards, so
    that no function always follows the same one.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    out = {name: [] for name in functions}
    for number in range(repeats):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            out[name].append(seconds(functions[name]))
    return out


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of what was measured."""

    median: float
    low: float
    high: float
    times: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


class Compilations:
    """Counts the programs that JAX compiles, or reads from its cache, while the context is open."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self):
        self.count = 0

    def _note(self, event: str, duration: float, **_) -> None:
        self.count += event == self.EVENT

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)
