"""A run that is harmed again and again, beside one that is not; at the end the two must be the same."""

import contextlib
import dataclasses
import pathlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator

from experiments.survival.compare import differences
from experiments.survival.faults import KINDS, Failed, Fault, Skipped, Victim, plan
from experiments.survival.lives import Life, Stage, lines

DISK = "96m"


@dataclasses.dataclass
class Result:
    """All faults, what differs at the end, and how the disk was made full."""

    faults: list[Fault]
    differences: list[str]
    disk: str
    seconds: float

    def passed(self) -> bool:
        """Whether every fault was survived and nothing differs."""
        return not self.differences and not any(fault.trouble for fault in self.faults)


def torture(folder: pathlib.Path, count: int, seed: int, settings: tuple[str, ...], tell: Callable[[str], None]) -> Result:
    """Runs both in `folder`, which must be empty, with `settings` beside theirs; Failed where a life ends by itself."""
    began, rng = time.monotonic(), random.Random(seed)
    stage = Stage(folder, 5 * count + 10, settings)
    straight = folder / "straight"
    life = Life(stage, straight)
    if life.end():
        raise Failed(f"the undisturbed run ended with code {life.end()}: {life.err()[-500:]}")
    tell(f"Undisturbed: {stage.iterations} iterations in {time.monotonic() - began:.0f} s.")
    with _disk(folder) as disk:
        run_dir = (disk or folder) / "run"
        words = f"a tmpfs of {DISK}" if disk else "a limit on the size of files, since mounting is not permitted here"
        victim, faults = Victim(stage, run_dir, rng, disk), []
        for number, kind in enumerate(plan(count, rng), start=1):
            fault = Fault(kind)
            try:
                fault.trouble = KINDS[kind](victim)
            except Skipped as reason:
                fault.skipped = str(reason)
            victim.blamed = fault
            faults.append(fault)
            tell(f"{number}/{count} {kind}: {fault.trouble or fault.skipped or f'at iteration {lines(run_dir)}'}")
        life = victim.start()
        if life.end():
            raise Failed(f"the last life ended with code {life.end()}: {life.err()[-500:]}")
        victim.account()
        return Result(faults, differences(run_dir, straight, stage.iterations), words, time.monotonic() - began)


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A small file system, where that is permitted."""
    place = folder / "disk"
    place.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True
    ).returncode
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", place], check=True)


HEADER = ["fault", "times", "survived", "iterations lost, at most"]


def table(faults: list[Fault]) -> list[list[str]]:
    """A row for each kind of fault that happened, and one for those that could not be made."""
    rows = []
    for kind in (kind for kind in KINDS if any(fault.kind == kind for fault in faults)):
        done = [fault for fault in faults if fault.kind == kind and not fault.skipped]
        reasons = {fault.skipped for fault in faults if fault.kind == kind and fault.skipped}
        survived = sum(fault.trouble is None for fault in done)
        if done:
            rows.append([kind, str(len(done)), str(survived), str(max(fault.lost for fault in done))])
        rows += [[kind, "-", "skipped", reason] for reason in reasons]
    return rows
