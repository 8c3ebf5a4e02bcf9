"""Fuzz that follows the branches of a reader, with atheris; the tests' own fuzz (`fuzzing.py`) follows its grammar.

    pip install atheris
    python -m tests.coverage_fuzz READER [-max_total_time=60] [FOLDER_OF_FIRST_INPUTS]

READER is `config`, `prompts`, `weights`, `metrics` or `judge`; what else is said goes to libFuzzer.  An input that makes a
reader raise anything but its own error ends the program and stands in a file crash-*.
"""

import json
import pathlib
import sys
import tempfile
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["unigrpo_jax"]):
    from unigrpo_jax.config import ConfigError, RunConfig
    from unigrpo_jax.config_checks import check
    from unigrpo_jax.config_json import load_run_config, to_dict
    from unigrpo_jax.foreign_files import parse_json
    from unigrpo_jax.models.folders.stored import StoredTensors
    from unigrpo_jax.rewards.remote_reply import NotJudged, probability_of_yes, says_yes, score
    from unigrpo_jax.training.metrics import read_metrics
    from unigrpo_jax.worlds.world import load_world

FOLDER = pathlib.Path(tempfile.mkdtemp())


def written(name: str, data: bytes) -> pathlib.Path:
    """A file of these bytes."""
    (FOLDER / name).write_bytes(data)
    return FOLDER / name


def config(data: bytes) -> None:
    """A run folder's config.json."""
    check(load_run_config(written("config.json", data)))


def prompts(data: bytes) -> None:
    """A file of prompts, up to its first iterations."""
    load_world([str(written("prompts.jsonl", data))]).train(0).batch(1, 4)


def weights(data: bytes) -> None:
    """A file of weights, every tensor."""
    stored = StoredTensors(written("ema.safetensors", data).parent, "ema")
    for name in stored.names():
        stored.read(name)


def metrics(data: bytes) -> None:
    """A run's metrics."""
    read_metrics(written("metrics.jsonl", data))


def judge(data: bytes) -> None:
    """A remote judge's reply."""
    reply = parse_json(data)
    for read in (probability_of_yes, says_yes, lambda reply: score(reply, 0.0, 10.0)):
        try:
            read(reply)
        except NotJudged:
            pass


ENTRIES = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
READERS: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "config": (config, json.dumps(to_dict(RunConfig())).encode()),
    "prompts": (prompts, b'{"prompt": "two red circles", "category": "counting"}\n'),
    "weights": (weights, len(json.dumps(ENTRIES)).to_bytes(8, "little") + json.dumps(ENTRIES).encode() + bytes(8)),
    "metrics": (metrics, b'{"step": 1, "loss": 0.5}\n'),
    "judge": (judge, b'{"choices": [{"message": {"content": "Score: 7"}, "logprobs": {"content": []}}]}'),
}


def main() -> None:
    """Runs until something is found or the time is over."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"tests.coverage_fuzz: name one of {', '.join(READERS)}.")
    reader, valid = READERS[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        try:
            reader(data)
        except (ConfigError, ValueError):
            pass

    first = FOLDER / "first"
    first.mkdir()
    (first / "valid").write_bytes(valid)
    atheris.Setup([*sys.argv, str(first)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
