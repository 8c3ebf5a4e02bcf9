"""`summary.json`: the scores of a run before and after training, and what they took."""

from typing import Any

from etils import epath

from unigrpo_jax.foreign_files import TABLES, read_json

FILE_NAME = "summary.json"


def read_summary(run_dir: epath.Path) -> dict[str, Any]:
    """What a run folder's summary holds; {} where there is none, ValueError where it is none.

    "before" and "after", where they are there, are {score: {category: number}}.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return {}
    found = read_json(path, TABLES)
    good = isinstance(found, dict) and all(_is_table(found.get(side, {})) for side in ("before", "after"))
    if not good or not _is_number(found.get("seconds", 0)):
        raise ValueError(f"{path} is no summary of a run")
    return found


def _is_table(table: Any) -> bool:
    rows = table.values() if isinstance(table, dict) else [None]
    return all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not abs(value) > 1e100  # NaN: nothing was judged
