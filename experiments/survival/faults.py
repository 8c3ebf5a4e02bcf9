"""What can happen to a run, one function each: it starts a life, does the harm, and says what was wrong with the outcome.

A fault returns None where the run behaved as it must, else a sentence.  It leaves the machine mended, so that the next
life finds what was there before.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

from experiments.survival.lives import Life, Stage, finished, lines, unfinished, whole

RESTART = 75


class Skipped(Exception):
    """This machine does not let a fault be made; the message says why."""


class Failed(RuntimeError):
    """A life ended though nothing happened to it; the message says what it said."""


@dataclasses.dataclass
class Fault:
    """One fault and what came of it.

    Attributes:
      kind: one of KINDS.
      trouble: None where the run survived it as it must; else a sentence.
      lost: iterations that had to be done again.
      skipped: why it could not be made here.
    """

    kind: str
    trouble: str | None = None
    lost: int = 0
    skipped: str | None = None


class Victim:
    """The run that is harmed, and the account of it: each life must resume where its predecessors' files say.

    Attributes:
      run_dir: its folder.
      rng: where all chance comes from.
      startup: seconds that a life takes to where it resumes; a guess, until one was seen.
      disk: a small file system that holds the run folder, or None.
      blamed: the latest fault, to which the next life's losses are due.
      life: the latest life.
    """

    def __init__(self, stage: Stage, run_dir: pathlib.Path, rng: random.Random, disk: pathlib.Path | None):
        self.stage, self.run_dir, self.rng, self.disk = stage, run_dir, rng, disk
        self.startup = 10.0
        self.blamed: Fault | None = None
        self.life: Life | None = None
        self._before: tuple[Fault | None, list[int], list[int], int] = (None, [], [], 0)

    def start(self, clock: bool = False) -> Life:
        """The next life."""
        self.account()
        sound = whole(self.run_dir)
        damaged = [step for step in finished(self.run_dir) if step > max(sound, default=0)]
        self._before = (self.blamed, sound, damaged, lines(self.run_dir))
        self.life = Life(self.stage, self.run_dir, clock)
        return self.life

    def account(self) -> None:
        """Notes where the latest life resumed, and what that means for the fault before it."""
        (fault, sound, damaged, done), life = self._before, self.life
        at = life.resumed_at() if life else None
        if fault is None or at is None:
            return
        fault.lost = max(fault.lost, done - at)
        said = life.out().replace("\n", " ")
        silent = [step for step in damaged if f"checkpoints/{step}:" not in said]
        if at != max(sound, default=0):
            fault.trouble = (
                fault.trouble or f"resumed after iteration {at}, but the newest whole checkpoint was {sound[-1:]}"
            )
        if silent:
            fault.trouble = fault.trouble or f"the damaged checkpoints {silent} were not named"

    def train(self, clock: bool = False) -> Life:
        """A life that has done one to three iterations more than were ever done, at a random moment after."""
        number = lines(self.run_dir) + self.rng.randint(1, 3)
        life = self.start(clock)
        if life.until(lambda: life.resumed_at() is not None):
            self.startup = time.monotonic() - life.began
        if not life.until_line(number) or life.process.poll() is not None:
            raise Failed(f"a life ended with code {life.end()} before iteration {number}: {life.err()[-500:]}")
        time.sleep(self.rng.uniform(0, 0.2))
        return life

    def write(self) -> Life:
        """A life in the middle of writing a checkpoint."""
        life = self.train()
        life.until(lambda: unfinished(self.run_dir), 60)
        time.sleep(self.rng.choice((0, 0.005, 0.02, 0.05)))
        return life

    def newest(self) -> pathlib.Path:
        """The newest checkpoint, of which there is an older one, too."""
        for _ in range(6):
            if len(whole(self.run_dir)) > 1:
                break
            self.train().kill()
        return self.run_dir / "checkpoints" / str(whole(self.run_dir)[-1])


def killed(victim: Victim) -> str | None:
    """SIGKILL at a random moment of training."""
    victim.train().kill()


def killed_writing(victim: Victim) -> str | None:
    """SIGKILL while a checkpoint is being written; what it left shows that it was."""
    for _ in range(3):
        victim.write().kill()
        if unfinished(victim.run_dir):
            return None
    raise Skipped("three kills in a row came when the checkpoint was whole already")


def killed_starting(victim: Victim) -> str | None:
    """SIGKILL at a random moment before the first iteration."""
    life = victim.start()
    time.sleep(victim.rng.uniform(0, victim.startup))
    life.kill()


def told_to_end(victim: Victim, writing: bool = False) -> str | None:
    """SIGTERM, as a preemption sends it."""
    life = victim.write() if writing else victim.train()
    life.process.send_signal(signal.SIGTERM)
    code = life.end()
    if code != RESTART:
        return f"exit code {code}, not {RESTART}: {life.err()[-300:]}"
    done, newest = lines(victim.run_dir), max(whole(victim.run_dir), default=0)
    return None if done == newest else f"iteration {done} was done, but the newest checkpoint is {newest}"


def told_to_end_writing(victim: Victim) -> str | None:
    """SIGTERM while a checkpoint is being written."""
    return told_to_end(victim, writing=True)


def truncated(victim: Victim) -> str | None:
    """A file of the newest checkpoint loses its end."""
    path = _file(victim)
    with path.open("r+b") as file:
        file.truncate(victim.rng.randrange(path.stat().st_size))


def flipped(victim: Victim) -> str | None:
    """One bit of a file of the newest checkpoint changes."""
    path = _file(victim)
    data = bytearray(path.read_bytes())
    data[victim.rng.randrange(len(data))] ^= 1 << victim.rng.randrange(8)
    path.write_bytes(data)


def removed(victim: Victim) -> str | None:
    """A file of the newest checkpoint goes."""
    _file(victim).unlink()


def torn_line(victim: Victim) -> str | None:
    """The last line of metrics.jsonl is cut short."""
    victim.train().kill()
    with (victim.run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "reward/me')


def full_disk(victim: Victim) -> str | None:
    """No byte more can be written."""
    life, before = victim.train(), whole(victim.run_dir)
    ballast = victim.disk / "ballast" if victim.disk else None
    if ballast is not None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
    else:  # a stand-in: files of this process may not grow any more
        resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (1, 1))
    wrong = _stops(victim, life, before)
    if ballast is not None:
        ballast.unlink()
    return wrong


def read_only(victim: Victim) -> str | None:
    """The run folder no longer takes new files; by chattr +i, since permissions do not stop root."""
    life, before = victim.train(), whole(victim.run_dir)
    folders = [str(victim.run_dir), str(victim.run_dir / "checkpoints")]
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", *folders], capture_output=True).returncode:
        life.kill()
        raise Skipped("chattr +i is not permitted here")
    try:
        return _stops(victim, life, before)
    finally:
        subprocess.run(["chattr", "-i", *folders], check=True)


def vanished(victim: Victim) -> str | None:
    """The run folder is moved away."""
    life, before = victim.train(), whole(victim.run_dir)
    away = victim.run_dir.with_name("away")
    os.rename(victim.run_dir, away)
    wrong = _stops(victim, life, None)
    if victim.run_dir.exists():
        shutil.rmtree(victim.run_dir)
        wrong = wrong or "a new run folder appeared in its place"
    os.rename(away, victim.run_dir)
    return wrong or _still(victim, before)


def clock_jump(victim: Victim) -> str | None:
    """time.time() jumps by up to ten years in either direction; then SIGKILL, and the next life has the right time."""
    offset = victim.stage.folder / "clock" / "offset"
    life = victim.train(clock=True)
    offset.write_text(str(victim.rng.randint(-(10**8) * 3, 10**8 * 3)))
    life.until_line(lines(victim.run_dir) + 3)
    life.kill()
    offset.unlink()
    return life.err()[-300:] or None


def _file(victim: Victim) -> pathlib.Path:
    """A random file, not an empty one, of the newest checkpoint after a kill."""
    victim.train().kill()
    paths = sorted(p for p in victim.newest().rglob("*") if p.is_file() and p.stat().st_size)
    return victim.rng.choice(paths)


def _stops(victim: Victim, life: Life, before: list[int] | None) -> str | None:
    """What is wrong with how a life ended whose folder cannot be written."""
    code, words = life.end(), life.err()
    if code != 1 or words.count("\n") != 1 or "cannot be written" not in words:
        return f"exit code {code}, not 1 and one sentence: {words[:4000]}"
    return None if before is None else _still(victim, before)


def _still(victim: Victim, before: list[int]) -> str | None:
    now = whole(victim.run_dir)
    return None if not before or (now and now[-1] >= before[-1]) else f"checkpoint {before[-1]} is gone"


KINDS = {
    "killed": killed,
    "killed while a checkpoint is written": killed_writing,
    "killed while it starts": killed_starting,
    "told to end (SIGTERM)": told_to_end,
    "told to end while a checkpoint is written": told_to_end_writing,
    "newest checkpoint truncated": truncated,
    "one bit of it flipped": flipped,
    "a file of it removed": removed,
    "metrics line torn": torn_line,
    "disk full": full_disk,
    "run folder read-only": read_only,
    "run folder moved away": vanished,
    "clock jumps": clock_jump,
}
KILLS = {name for name in KINDS if name.startswith(("killed", "newest", "one bit", "a file", "metrics", "clock"))}
# In this order, so that few faults are of many kinds; the whole of it holds 24 kills.
ORDER = [
    "killed while a checkpoint is written", "one bit of it flipped", "disk full", "killed", "newest checkpoint truncated",
    "told to end while a checkpoint is written", "killed while it starts", "a file of it removed", "run folder read-only",
    "run folder moved away", "clock jumps", "metrics line torn", "told to end (SIGTERM)",
    *(["killed while a checkpoint is written", "killed"] * 5), "killed while it starts", "killed while it starts",
    "one bit of it flipped", "newest checkpoint truncated", "a file of it removed", "clock jumps",
    "told to end while a checkpoint is written",
]  # fmt: skip


def plan(count: int, rng: random.Random) -> list[str]:
    """Names of `count` faults, in a random order."""
    names = (ORDER * (count // len(ORDER) + 1))[:count]
    rng.shuffle(names)
    return names
