"""A small training run as real processes: each life is `experiments.run --resume`, watched through its files alone."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

EVERY = 2  # iterations between checkpoints
SETTINGS = f"""
    --devices 1 --rewards experiments.survival.reward:score --rollout.prompts-per-iteration 2
    --learning.group-size 2 --rollout.thinking-tokens 2 --rollout.flow-steps 2 --rollout.window-size 1
    --rollout.window-range 0 1 --evaluation.prompts 2 --evaluation.batch 2 --evaluation.flow-steps 1 --evaluation.every 5
    --evaluation.no-thinking
    --learning.reasoning-lr 1e-3 --learning.denoising-lr 1e-3 --learning.ema-decay 0.9
    --logging.samples-every 0 --logging.samples 1 --checkpoint.every {EVERY} --checkpoint.keep 3
""".split()
DRAWS = ("--model.family", "", "--rollout.no-thinking", "--rollout.timestep-shift", "0")  # of a model that only draws
CLIPS = (*DRAWS, "--rollout.image-height", "32", "--rollout.image-width", "32", "--rollout.frames", "5",
         "--rewards", "frames:mean:experiments.survival.reward:score")  # fmt: skip  # of one that draws clips
HEADS = ("--learning.frozen", "layers", "embed", "time_embedder", "vae2llm")  # the heads alone are trained: it starts sooner
PROMPTS = "circle square cross star moon sun tree house".split()
PATIENCE = 300.0  # seconds that a life may take for what it is waited for
CLOCK = """
import os, time
_time, _time_ns, _offset = time.time, time.time_ns, os.environ["SURVIVAL_CLOCK"]

def _jump():
    try:
        with open(_offset) as file:
            return int(file.read() or 0)
    except OSError:
        return 0

time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + _jump() * 10**9
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What all lives share: a folder with prompts, a compile cache and the clock's hook, how long the run is, and settings
    of its own."""

    folder: pathlib.Path
    iterations: int
    settings: tuple[str, ...] = ()

    def __post_init__(self):
        clock = self.folder / "clock"
        clock.mkdir(parents=True, exist_ok=True)
        (clock / "sitecustomize.py").write_text(CLOCK)
        lines = [json.dumps({"prompt": f"a {word}"}) for word in PROMPTS]
        (self.folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")

    def command(self, run_dir: pathlib.Path) -> list[str]:
        """The command line of one life."""
        own = ["--prompts", self.folder / "prompts.jsonl", "--iterations", self.iterations, "--run-dir", run_dir, "--resume"]
        return [sys.executable, "-m", "experiments.run", "smoke", *SETTINGS, *self.settings, *map(str, own)]

    def environment(self, clock: bool) -> dict[str, str]:
        """Variables of one life; with `clock`, time.time() jumps by the seconds in the file that SURVIVAL_CLOCK names."""
        root = pathlib.Path(__file__).resolve().parent.parent.parent
        places = [*([str(self.folder / "clock")] if clock else []), str(root), os.environ.get("PYTHONPATH", "")]
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(self.folder / "compiled"))
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, places)), "SURVIVAL_CLOCK": str(self.folder / "clock" / "offset"),
            "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip


class Life:
    """One process of the run."""

    def __init__(self, stage: Stage, run_dir: pathlib.Path, clock: bool = False):
        self.run_dir, self._out, self._err = run_dir, stage.folder / "out.txt", stage.folder / "err.txt"
        self.began = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(stage.command(run_dir), env=stage.environment(clock), stdout=out, stderr=err)

    def until(self, happened: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Waits for something; False where the process ends or the time is over before."""
        end = time.monotonic() + patience
        while not happened():
            if self.process.poll() is not None or time.monotonic() > end:
                return happened()
            time.sleep(0.002)
        return True

    def until_line(self, number: int) -> bool:
        """Waits until it has resumed, and the iteration `number` has its line in metrics.jsonl."""
        return self.until(lambda: self.resumed_at() is not None) and self.until(lambda: lines(self.run_dir) >= number)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Its exit code; it is killed where it does not end by itself."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def resumed_at(self) -> int | None:
        """The iteration after which it said to resume, 0 for a start; None where it has not said."""
        text = self.out().replace("\n", " ")
        found = re.search(r"Resuming after iteration (\d+)", text)
        if found:
            return int(found[1])
        return 0 if "starting." in text or "Before:" in text else None

    def out(self) -> str:
        """What it printed."""
        return self._out.read_text(errors="replace")

    def err(self) -> str:
        """What it complained of."""
        return self._err.read_text(errors="replace")


def lines(run_dir: pathlib.Path) -> int:
    """Whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unfinished(run_dir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written, or was when the process died."""
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return any(not name.isdigit() or not (folder / name / "manifest.json").exists() for name in names)


def finished(run_dir: pathlib.Path) -> list[int]:
    """Checkpoints that have a manifest, whatever it says."""
    return [int(p.name) for p in _numbered(run_dir) if (p / "manifest.json").exists()]


def whole(run_dir: pathlib.Path) -> list[int]:
    """Checkpoints whose files are those of their manifest, by this program's own reading."""
    return [int(p.name) for p in _numbered(run_dir) if _is_whole(p)]


def _numbered(run_dir: pathlib.Path) -> list[pathlib.Path]:
    folder = run_dir / "checkpoints"
    paths = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(paths, key=lambda p: int(p.name))


def _is_whole(folder: pathlib.Path) -> bool:
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, (_, digest) in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
