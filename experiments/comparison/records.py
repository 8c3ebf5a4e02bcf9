"""Records of a comparison: one JSON file per arm and seed, written by `execute`, and what pages take from it."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from unigrpo_jax.foreign_files import TABLES, read_json

Record = dict[str, Any]
FIELDS = {
    "study": str, "arm": str, "title": str, "seed": int, "configs": list, "budget": dict, "seconds": dict,
    "evaluations": dict, "curve": list, "held_out": list, "samples": list,
}  # fmt: skip


def read_records(folder: pathlib.Path) -> dict[str, list[Record]]:
    """{arm: its records by seed} of a comparison's folder; ValueError, with the path, where a file is no record."""
    arms: dict[str, list[Record]] = {}
    for path in sorted((folder / "records").glob("*.json")):
        record = read_json(path, TABLES)
        wrong = [
            name for name, kind in FIELDS.items() if not isinstance(record, dict) or not isinstance(record.get(name), kind)
        ]
        if wrong:
            raise ValueError(f"{path} is no record of a comparison ({', '.join(wrong)}); delete it, and it is made again")
        arms.setdefault(record["arm"], []).append(record)
    return {arm: sorted(records, key=lambda r: r["seed"]) for arm, records in arms.items()}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) over seeds.

    Attributes:
      mean: NaN where there is no value.
      std: None of a single value.
    """

    mean: float
    std: float | None

    def words(self, digits: int = 3) -> str:
        """Such as `0.713 ± 0.021`; a dash where there is nothing."""
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


def spread(values: Sequence[float | None]) -> Spread:
    """Of those values that are numbers."""
    known = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not known:
        return Spread(math.nan, None)
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def score(evaluation: str, name: str, category: str = "overall") -> Callable[[Record], float | None]:
    """Reads one number of an evaluation's table; None where a record lacks it."""
    return lambda record: record["evaluations"].get(evaluation, {}).get(name, {}).get(category)


def over_seeds(records: Sequence[Record], points: str, x: str, y: str) -> tuple[list[tuple[float, float]], list, list]:
    """A curve's mean, lowest and highest value over seeds, as points (x, value).

    Args:
      records: of one arm.
      points: `curve` or `held_out`.
      x: `update` or `seconds`; seconds of the seeds are averaged at each update.
      y: metric.
    """
    by_update: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        seen = {p["update"]: (p[x], p[y]) for p in record[points] if isinstance(p.get(y), int | float)}
        for update, point in seen.items():
            by_update.setdefault(update, []).append(point)
    rows = [(statistics.fmean(a for a, _ in found), [b for _, b in found]) for _, found in sorted(by_update.items())]
    return [(a, statistics.fmean(b)) for a, b in rows], [(a, min(b)) for a, b in rows], [(a, max(b)) for a, b in rows]


def last(metric: str, count: int = 10) -> Callable[[Record], float | None]:
    """The mean of a metric over a curve's last points."""

    def read(record: Record) -> float | None:
        known = [p[metric] for p in record["curve"][-count:] if isinstance(p.get(metric), int | float)]
        return statistics.fmean(known) if known else None

    return read


def first_at_least(record: Record, metric: str, value: float) -> float | None:
    """Seconds of training until a held-out metric is first that large; None where it never is."""
    enough = [p["seconds"] for p in record["held_out"] if isinstance(p.get(metric), int | float) and p[metric] >= value]
    return enough[0] if enough else None
