"""What `scheduler/scheduler_config.json` says of a flow, as diffusers writes it: how its times are shifted."""

import pathlib

from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.schedule import FlowShift

CLASSES = ("FlowMatchEulerDiscreteScheduler",)
# What would be another flow, or other times, with the values that mean that it is not done.
_ONLY = {
    "_class_name": CLASSES,
    "num_train_timesteps": (1000,),
    "shift_terminal": (),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "time_shift_type": ("exponential",),
    **dict.fromkeys((f"use_{kind}_sigmas" for kind in ("karras", "exponential", "beta", "flow")), (False,)),
}
KNOWN = {*_ONLY, "_diffusers_version", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
          "max_image_seq_len"}  # fmt: skip


def read_scheduler(path: pathlib.Path, files: str) -> FlowShift:
    """The shift that a file says; ValueError, in one sentence, where it is none or asks for what is not built.

    A name that is left out has the default of the class: no shift.
    """
    found = read_settings(path, files)
    for name, values in _ONLY.items():
        found.only(name, *values)
    base = found.whole("base_image_seq_len", 256), found.number("base_shift", 0.5)
    largest = found.whole("max_image_seq_len", 4096), found.number("max_shift", 1.15)
    if base[0] == largest[0]:
        raise found.error("max_image_seq_len", "it must be another number than base_image_seq_len")
    static = found.positive("shift", 1.0)
    return FlowShift(line=(base, largest)) if found.flag("use_dynamic_shifting", False) else FlowShift(shift=static)
