"""Whether two runs are the same, bit for bit, in all that no clock measures."""

import json
import pathlib

import numpy as np


def differences(run_dir: pathlib.Path, straight: pathlib.Path, iterations: int) -> list[str]:
    """In words; none where metrics, tables and the last checkpoint's arrays are equal, with one line for each iteration."""
    ours, theirs = _lines(run_dir), _lines(straight)
    steps = [line["step"] for line in ours]
    found = []
    twice = sorted({step for step in steps if steps.count(step) > 1})
    missing = sorted(set(range(1, iterations + 1)) - set(steps))
    found += [f"metrics: iterations {twice} have several lines"] if twice else []
    found += [f"metrics: iterations {missing} have no line"] if missing else []
    found += [] if steps == sorted(steps) else ["metrics: the lines are not in order"]
    expected = {line["step"]: _timeless(line) for line in theirs}
    for line in ours:
        other = expected.get(line["step"], {})
        names = [name for name, value in _timeless(line).items() if value != other.get(name)] or sorted(other.keys() - line)
        found += [f"metrics of iteration {line['step']}: {', '.join(names)}"] if names else []
    tables = [json.loads((folder / "summary.json").read_text()) for folder in (run_dir, straight)]
    found += [f"summary: {name}" for name in ("before", "after") if tables[0][name] != tables[1][name]]
    return found + _other_arrays(run_dir, straight, iterations)


def _other_arrays(run_dir: pathlib.Path, straight: pathlib.Path, step: int) -> list[str]:
    import jax
    from orbax.checkpoint import v1 as ocp

    def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
        place = folder.resolve() / "checkpoints" / str(step)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
        stored = ocp.load(place, jax.tree.map(like, ocp.metadata(place).metadata))
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(stored)}

    ours, theirs = arrays(run_dir), arrays(straight)
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    other = [name for name in sorted(ours | theirs) if name not in ours or name not in theirs]
    other += [name for name in ours.keys() & theirs.keys() if not same(ours[name], theirs[name])]
    return [f"{len(other)} of {len(theirs)} arrays of the last checkpoint, such as {other[0]}"] if other else []


def _lines(run_dir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _timeless(line: dict) -> dict:
    return {k: v for k, v in line.items() if not k.startswith("time/") and not k.endswith("_per_second")}
