"""What a run folder says about its run, and whether a run may go on in it."""

import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

import unigrpo_jax
from unigrpo_jax.config import ConfigError, LearningConfig, RunConfig, require
from unigrpo_jax.config_json import load_run_config, settled, to_dict
from unigrpo_jax.foreign_files import named, read_json
from unigrpo_jax.models.loaded import Loaded
from unigrpo_jax.training import storage
from unigrpo_jax.training.checkpoint import PROBE
from unigrpo_jax.training.metrics import read_metrics
from unigrpo_jax.training.storage import write_atomically
from unigrpo_jax.training.summary import read_summary
from unigrpo_jax.training.trainer import OwnEpisodes, Parts
from unigrpo_jax.worlds.source import file_of
from unigrpo_jax.worlds.world import SHAPES

# Fields and whole sections that a resume may change: they decide how long, how closely and where, not what is learned.
FREE_FIELDS = (
    "name", "iterations", "devices", "mesh", "processes", "evaluation", "checkpoint", "logging", "alarms",
    "model.embeddings",
) + tuple(
    f"judge.{name}"
    for name in ("url", "hosts", "allow_http", "key_variable", "concurrency", "connect_seconds", "read_seconds",
                 "total_seconds", "retries", "backoff_seconds", "retry_after_seconds")
)  # fmt: skip
_MAPPINGS = {field.name for field in dataclasses.fields(LearningConfig) if field.default_factory is dict}  # one setting each


def write_json(path: epath.Path, data: dict) -> None:
    """Writes JSON in one step."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def save_episodes(run_dir: epath.Path, step: int, own: OwnEpisodes) -> epath.Path:
    """Writes this process's episodes of an iteration that could not be judged: images.npz or videos.npz; episodes.json."""
    folder = run_dir / "unjudged" / f"{step:06d}"
    if jax.process_count() > 1:
        folder /= f"process-{jax.process_index()}"
    folder.mkdir(parents=True, exist_ok=True)
    batch = own.batch
    buffer, given = io.BytesIO(), {} if batch.before is None else {"before": batch.before}
    given |= {name: np.array(x) for name, x in (("fps", batch.fps), ("rate", batch.rate)) if x}
    drawn = {medium if medium == "audio" else f"{medium}s": x for medium, x in batch.media.items()}
    np.savez_compressed(buffer, **drawn, episodes=own.rows, **given)
    write_atomically(folder / f"{'videos' if 'videos' in drawn else 'images'}.npz", buffer.getvalue())
    texts = [{"prompt": p, "metadata": dict(m), "thinking": t}
             for p, m, t in zip(batch.prompts, batch.metadata, batch.thinking, strict=True)]  # fmt: skip
    write_atomically(folder / "episodes.json", json.dumps(texts, indent=1).encode())
    return folder


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    import flax
    import optax

    return {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__,
            "optax": optax.__version__, "unigrpo_jax": unigrpo_jax.__version__, "code": code_hash()}  # fmt: skip


def code_hash() -> str:
    """Twelve hexadecimal digits that tell two states of the package's source files apart."""
    folder, digest = pathlib.Path(unigrpo_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def check_folder(run_dir: epath.Path, parts: Parts, resume: bool, allow_changed: Sequence[str] = ()) -> bool:
    """Whether the folder holds a run that this one continues; ConfigError where it holds one that it cannot.

    `allow_changed` names fields or sections that may differ from that run's, though they change what is learned.
    """
    record, config = run_dir / "config.json", parts.config
    require(not config.logging.tensorboard or not storage.is_bucket(run_dir),
            f"logging.tensorboard writes to a disk, but {run_dir} is a bucket; use logging.wandb.")  # fmt: skip
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is a file; give --run-dir a new folder.")
    if not record.exists():
        if run_dir.exists() and not _hardly_begun(run_dir):
            raise ConfigError(f"{run_dir} is not empty and holds no run; give --run-dir a new folder.")
        return False
    if not resume:
        raise ConfigError(f"{run_dir} already holds a run; continue it with --resume, or choose --run-dir or --name.")
    earlier, now = flat(to_dict(load_run_config(record))), flat(to_dict(settled(config)))
    fields = FREE_FIELDS + known_fields(allow_changed, now)
    free = lambda name: name.startswith(tuple(f"{field}." for field in fields)) or name in fields
    changed = [name for name in now if not free(name) and now[name] != earlier.get(name)]
    if changed:
        lines = ", ".join(f"{name} = {now[name]} (was {earlier.get(name)})" for name in changed)
        raise ConfigError(f"{run_dir} was made with another config: {lines}; use its settings, another --run-dir, or "
                          f"--allow-changed {' '.join(changed)}.")  # fmt: skip
    known = provenance(run_dir)
    check_same_weights(run_dir, known["model_sha256"], parts.loaded)
    for field, files in read_files(config).items():
        before = known.get("files", {}).get(field, {})  # {} in a run that began before they were kept
        others = [name for name, digest in files.items() if before.get(name, digest) != digest]
        require(not others or field in fields,
                f"{run_dir} began with another {' and '.join(others)} ({field}) than there is now; restore it, use another "
                f"--run-dir, or --allow-changed {field}.")  # fmt: skip
    if parts.teacher is not None:  # which is none in a run that began before its checksum was kept
        check_same_weights(run_dir, known.get("teacher_sha256"), parts.teacher, "as the teacher")
    try:
        read_metrics(run_dir / "metrics.jsonl")
    except ValueError as error:
        raise ConfigError(f"{error}; remove that line, or use another --run-dir.") from None
    try:
        found = read_summary(run_dir)
    except ValueError as error:
        raise ConfigError(f"{error}; restore it, or use another --run-dir.") from None
    require(not found or found.keys() >= {"before", "seconds"},
            f"{run_dir / 'summary.json'} is no summary of a run; restore it, or use another --run-dir.")  # fmt: skip
    return True


def known_fields(names: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of fields or sections as the config writes them; ConfigError where there is no such one."""
    fields = {part for name in settings for part in itertools.accumulate(name.split("."), lambda a, b: f"{a}.{b}")}
    found = tuple(name.replace("-", "_") for name in names)
    for name in found:
        near = difflib.get_close_matches(name, fields, 1)
        hint = f"did you mean {near[0]}?" if near else "see --help."
        require(name in fields, f"--allow-changed {name}: no setting is called so; {hint}")
    return found


def _hardly_begun(run_dir: epath.Path) -> bool:
    """Whether there is nothing but what a kill leaves before a run has written its config."""
    names = {path.name for path in storage.inside(run_dir) if not re.fullmatch(r"\..*\.tmp", path.name)}
    probed = all(path.name.startswith(PROBE) for path in storage.inside(run_dir / "checkpoints"))
    return probed and names <= {"checkpoints", "provenance.json"}


def origin(parts: Parts) -> dict[str, str]:
    """Checksums of what a run starts from: its weights, those of a teacher that was named, and the files it learns from."""
    taught = {} if parts.teacher is None else {"teacher_sha256": parts.teacher.checksum()}
    files = {field: found for field, found in read_files(parts.config).items() if found}
    return {"model_sha256": parts.loaded.checksum()} | taught | ({"files": files} if files else {})


def check_same_origin(origins: Sequence[dict[str, Any]]) -> None:
    """ConfigError where a process starts from another `origin` than process 0; they stand in the order of the processes."""
    weights = {"model_sha256": "the weights (model.path)", "teacher_sha256": "those of learning.distillation.teacher"}
    first, *others = (
        {words: own.get(name) for name, words in weights.items()}
        | {f"{name} ({field})": digest for field, files in own.get("files", {}).items() for name, digest in files.items()}
        for own in origins
    )
    for index, own in enumerate(others, 1):
        differ = [words for words in first if own.get(words) != first[words]]
        require(not differ, f"process {index} and process 0 differ in {' and '.join(differ)}; give all processes the same "
                            "files.")  # fmt: skip


def read_files(config: RunConfig) -> dict[str, dict[str, str]]:
    """{field: {name: SHA-256}} of the files of prompts and examples that a config learns from."""
    prompts = () if config.learning.method == "sft" else config.prompts  # which are judged on alone
    paths = {"prompts": {name: file_of(name) for name in prompts if name not in SHAPES}}
    paths["data"] = {config.data: named(config.data, "--data")} if config.data else {}
    return {field: {name: _sha256(path) for name, path in own.items() if path} for field, own in paths.items()}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(run_dir: epath.Path) -> dict[str, Any]:
    """What a run started from: `origin`, and versions."""
    path = run_dir / "provenance.json"
    try:
        found = read_json(path)
        found["model_sha256"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is missing or damaged; restore it, or use another run.") from None


USE = "for all that is not trained and as the reference"


def check_same_weights(place: epath.Path, checksum: str | None, loaded: Loaded, use: str = USE) -> None:
    """ConfigError where a folder no longer holds the weights that the run or checkpoint at `place` started with.

    Args:
      place: for the message.
      checksum: of the weights then; None where it was not kept, which passes.
      loaded: the folder now.
      use: what they are needed for.
    """
    if checksum is not None and checksum != loaded.checksum():
        raise ConfigError(
            f"{place} started from other weights than those in {loaded.folder} now, which it needs {use}; restore them or "
            "use another run folder."
        )


def flat(data: dict, prefix: str = "") -> dict:
    """{"a.b": value} of nested dicts."""
    out = {}
    for name, value in data.items():
        inner = isinstance(value, dict) and name not in _MAPPINGS
        out |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return out
