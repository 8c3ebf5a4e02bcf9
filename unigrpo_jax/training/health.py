"""Alarms: what a run's own metrics say of its health, so that a long run that goes wrong is noticed, or stopped.

Everything here is a function of the metrics written so far and of the settings `alarms`, so that a run that was stopped and
continued, which reads its metrics again, rings when it would have rung without the stop.

Words: K is `alarms.compared`.  *Now* is the last K iterations, *start* the run's first K; a level is the mean over K
iterations, without those where the metric is missing or was not finite.  Nothing rings before 2 K iterations, so that now
and start are apart, and nothing where a level has fewer than half of its K values.

| alarm | rings where |
|---|---|
| entropy | now's `text/entropy` < `entropy_floor` x start's |
| image | now's `image/edge_density`, `image/colour_entropy` or `video/frame_difference` is outside `image_range` x start's |
| grid | now's median of `image/grid_energy` > start's + `grid_energy`, and above `image_range` x start's |
| truncated | now's `text/truncated_share` > `truncated_share` |
| repeated | now's `text/repeated_share` > `repeated_share` |
| ratio | now's median of `text/ratio_max` > `text_ratio` or of `text/ratio_min` < 1 / `text_ratio`; each flow's alike |
| skipped | in more than `skipped_share` of now's iterations an update was skipped |
| dropped | now's `reward/failed_share` > `dropped_share` |
| hacking | the reward that is trained rose, while something that it should serve fell |

**hacking** looks at a window, the last `window` iterations (all of them in a shorter run).  For a metric let a and b be the
values of the window's first and last K iterations, and

    t = (mean(b) - mean(a)) / sqrt(var(a) / |a| + var(b) / |b|),        var with the divisor n - 1,

the change in units of its standard error (Welch's t).  It rings where t >= `sigmas` for `reward/mean`, the weighted
reward, and for some second judge t <= -`sigmas` and mean(b) <= mean(a) - `fall` |mean(a)|.  Its fall must be significant,
as noise is not, and large, as a small drift is not.  Second judges are the statistics of the alarm `image`, the scores of
the world's own judge (`judge/*`), and the rewards of weight 0 (`reward/NAME/mean`).

What rings is `alarm/NAME` = 1 in its iteration's line.  It is told, and with `action` stop ends the run, where it did
not ring in the K iterations before.  A run that collapses within its first K iterations has no other start to
be compared with.
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from unigrpo_jax.config import AlarmsConfig, LearningConfig

Line = Mapping[str, Any]
MEANINGS = {
    "entropy": "the thinking has lost its variety",
    "image": "what is drawn became much flatter, stiller or noisier than it was",
    "grid": "the background shows the grid of the latent tokens",
    "truncated": "the thinking is cut at its maximum",
    "repeated": "the thinking says the same again and again",
    "ratio": "the policy moves far within one iteration",
    "skipped": "updates are not finite",
    "dropped": "groups are lost, not judged or not finite",
    "hacking": "the reward rises while the images or a second judge fall",
}
IMAGE = ("image/edge_density", "image/colour_entropy")
CLIP = ("video/frame_difference",)  # beside them, where clips are drawn


def alarms(history: Sequence[Line], config: AlarmsConfig, learning: LearningConfig) -> dict[str, str]:
    """What rings after the last line of a history.

    Args:
      history: lines of metrics by increasing step, from the run's first iteration on.
      config: the bounds.
      learning: says which rewards have weight 0.

    Returns:
      {alarm: one sentence}; empty where all is well.
    """
    count = config.compared
    if config.action == "off" or len(history) < 2 * count:
        return {}
    start, now = history[:count], history[-count:]
    level = lambda name, lines: _mean(_values(lines, name, count))
    rings = {}

    def ring(name: str, sentence: str) -> None:
        rings[name] = f"{rings[name]}; {sentence}" if name in rings else sentence

    was, entropy = level("text/entropy", start), level("text/entropy", now)
    if was > 0 and entropy < config.entropy_floor * was:
        ring("entropy", f"text/entropy fell from {was:.3g} to {entropy:.3g}")
    low, high = config.image_range
    for name in (*IMAGE, *CLIP):
        was, is_ = level(name, start), level(name, now)
        if was > 0 and (is_ < low * was or is_ > high * was):
            ring("image", f"{name} went from {was:.3g} to {is_:.3g}")
    first, last = (_values(lines, "image/grid_energy", count) for lines in (start, now))
    was, is_ = _median(first), _median(last)  # a few first steps, which Adam takes at its full rate, may show one
    if first and is_ > max(config.image_range[1] * was, was + config.grid_energy):
        ring("grid", f"image/grid_energy rose from {was:.3g} to {is_:.3g}")
    truncated = level("text/truncated_share", now)
    if truncated > config.truncated_share:
        ring("truncated", f"{truncated:.0%} of the thinking is cut at its maximum")
    repeated = level("text/repeated_share", now)
    if repeated > config.repeated_share:
        ring("repeated", f"{repeated:.0%} of the thinking was said before")
    drawn = {match[1] for line in now for name in line if (match := re.fullmatch(r"(flow(?:_\w+)?)/ratio_min", name))}
    for phase, bound in (("text", config.text_ratio), *((phase, config.flow_ratio) for phase in sorted(drawn))):
        low, high = (_values(now, f"{phase}/ratio_{end}", count) for end in ("min", "max"))
        if max(_median([-_log(ratio) for ratio in low]), _median([_log(ratio) for ratio in high])) > math.log(bound):
            ring("ratio", f"{phase} ratios reach {min(low):.3g} to {max(high):.3g}")
    skipped = sum(value > 0 for value in _values(now, "update/skipped", count))
    if skipped > config.skipped_share * count:
        ring("skipped", f"{skipped} of the last {count} iterations skipped an update that was not finite")
    dropped = level("reward/failed_share", now)
    if dropped > config.dropped_share:
        ring("dropped", f"{dropped:.0%} of the groups were dropped, not judged or not finite")
    if fallen := hacked(history, config, second_judges(history[-1], learning)):
        ring("hacking", f"the reward rises while {'; '.join(fallen)}")
    return rings


def second_judges(line: Line, learning: LearningConfig) -> list[str]:
    """Metrics of a line that the reward should serve and is not."""
    unweighted = [f"reward/{name}/mean" for name, weight in learning.reward_weights.items() if weight == 0]
    return [name for name in line if name in (*IMAGE, *CLIP) or name.startswith("judge/") or name in unweighted]


def hacked(history: Sequence[Line], config: AlarmsConfig, judges: Sequence[str]) -> list[str]:
    """What fell while the reward rose, in words, by the rule above."""
    count = config.compared
    window = history[-config.window :]
    ends = lambda name: (_values(window[:count], name, count), _values(window[-count:], name, count))
    if not welch(*ends("reward/mean")) >= config.sigmas:
        return []
    fallen = []
    for name in judges:
        first, last = ends(name)
        was, is_ = _mean(first), _mean(last)
        if welch(first, last) <= -config.sigmas and is_ <= was - config.fall * abs(was):
            fallen.append(f"{name} falls from {was:.3g} to {is_:.3g}")
    return fallen


def welch(first: Sequence[float], last: Sequence[float]) -> float:
    """(mean(last) - mean(first)) in units of its standard error; NaN where either has less than two values."""
    if min(len(first), len(last)) < 2:
        return math.nan
    change = statistics.fmean(last) - statistics.fmean(first)
    error = math.sqrt(statistics.variance(first) / len(first) + statistics.variance(last) / len(last))
    if error == 0:
        return math.copysign(math.inf, change) if change else 0.0
    return change / error


class Watch:
    """The history of a run in progress, and which of its alarms have been told.

    Args:
      config: the bounds.
      learning: says which rewards have weight 0.
      earlier: lines of the iterations that were done before a resume.
    """

    def __init__(self, config: AlarmsConfig, learning: LearningConfig, earlier: Sequence[Line] = ()):
        self._config, self._learning, self._history = config, learning, self._read(earlier, config)

    @staticmethod
    def _read(lines: Sequence[Line], config: AlarmsConfig) -> list[Line]:
        """Those that alarms look at: the first K, and the last ones."""
        count = config.compared
        return [*lines[:count], *lines[count:][-max(config.window, 2 * count) :]]

    def look(self, metrics: Line) -> tuple[dict[str, int], list[str]]:
        """Adds an iteration: {"alarm/NAME": 1} of all that rings, and sentences of what did not ring in the last K."""
        recent = self._history[-self._config.compared :]
        rings = alarms([*self._history, metrics], self._config, self._learning)
        found = {f"alarm/{name}": 1 for name in rings}
        self._history = self._read([*self._history, {**metrics, **found}], self._config)
        new = [name for name in rings if not any(line.get(f"alarm/{name}") for line in recent)]
        return found, [f"alarm {name}: {rings[name]}" for name in new]


def _values(lines: Sequence[Line], name: str, count: int) -> list[float]:
    """The finite values; none where they are fewer than half of `count`."""
    values = [line.get(name) for line in lines]
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    return finite if len(finite) >= count / 2 else []


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else -math.inf


def _mean(values: Sequence[float]) -> float:
    """NaN of nothing, which is neither above nor below a bound."""
    return statistics.fmean(values) if values else math.nan


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf
