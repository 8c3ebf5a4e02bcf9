"""`student.json` at the root of a model's folder: that the model is a student, which draws in few steps, and of what.

    {"method": "mean_flow", "steps": [1, 2, 4], "second_time": true, "guidance": 4.0, "timestep_shift": 3.0, "teacher": "."}

Its weights lie where a model's do; with a `second_time` they hold the embedder of that, too (`building.second_time`).
"""

import dataclasses
import json
import pathlib
from typing import Literal, get_args

from unigrpo_jax.config import require
from unigrpo_jax.models.folders.settings import read_settings

FILE = "student.json"
Method = Literal["mean_flow", "dmd2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """How a student was made.

    Attributes:
      method: that distilled it: average velocities (arXiv 2505.13447), or distribution matching (2405.14867).
      steps: numbers of transitions that it was made for.
      second_time: whether its network is told where a velocity is to arrive.
      guidance: the teacher's, which the student draws with as it is; 1 is none.
      timestep_shift: of the schedules it was made for; 0 is the family's own.
      teacher: words for the model that it learned from.
    """

    method: Method
    steps: tuple[int, ...]
    second_time: bool
    guidance: float
    timestep_shift: float
    teacher: str


def read(folder: pathlib.Path) -> Student | None:
    """The student that a folder holds, None where there is no such file; ValueError where one is not understood."""
    path = folder / FILE
    if not path.exists():
        return None
    found = read_settings(path, f"{FILE}, the weights and the settings")
    names = [field.name for field in dataclasses.fields(Student)]
    if lost := [name for name in names if name not in found]:
        raise ValueError(f"{path} does not say {', '.join(lost)}; export the student again, or copy the file again.")
    if others := found.besides(set(names)):
        raise ValueError(f"{path} says {others}, which nothing here knows; take it out, or use a newer unigrpo_jax.")
    shift = found.number("timestep_shift", 0.0)
    if shift < 0:
        raise found.error("timestep_shift", "it must be 0 or more")
    return Student(
        method=found.word("method", "", *get_args(Method)),
        steps=found.wholes("steps", ()),
        second_time=found.flag("second_time", False),
        guidance=found.positive("guidance", 1.0),
        timestep_shift=shift,
        teacher=found.text("teacher", ""),
    )


def write(folder: pathlib.Path, student: Student) -> None:
    """Writes it into an existing folder."""
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(student), indent=2) + "\n")


def exported(student: Student | None, two_times: bool) -> Student | None:
    """What an export says of its model; ConfigError where the network has not as many times as that says."""
    require(two_times == (student is not None and student.second_time), "the network has " + (
        f"a second time, and without a {FILE} that says so its folder could not be read; export a distilled model by what "
        "distilled it." if two_times else f"one time, but {FILE} is to say that it has two."))  # fmt: skip
    return student


def read_with_one_time(folder: pathlib.Path, family: str) -> Student | None:
    """As `read`; ConfigError where the student has a second time, too, which networks of the family have no place for."""
    student = read(folder)
    require(student is None or not student.second_time, f"{folder / FILE} says second_time, but networks of {family} have "
            "one time; the file belongs to another model, copy the folder again.")  # fmt: skip
    return student
