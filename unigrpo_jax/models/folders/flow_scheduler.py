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


def read_scheduler(path: pathlib.Path, files: str, stretches: bool = False) -> FlowShift:
    """The shift that a file says; ValueError, in one sentence, where it is none or asks for what is not built.

    A name that is left out has the default of the class: no shift.  `stretches` says whether the last time before the data
    may be told.
    """
    found = read_settings(path, files)
    for name, values in _ONLY.items():
        if name != "shift_terminal" or not stretches:
            found.only(name, *values)
    terminal = found.positive("shift_terminal", 0.1) if "shift_terminal" in found else None
    if terminal is not None and terminal >= 1:
        raise found.error("shift_terminal", "it must be below 1, where the noise is")
    base = found.whole("base_image_seq_len", 256), found.number("base_shift", 0.5)
    largest = found.whole("max_image_seq_len", 4096), found.number("max_shift", 1.15)
    if base[0] == largest[0]:
        raise found.error("max_image_seq_len", "it must be another number than base_image_seq_len")
    static = found.positive("shift", 1.0)
    dynamic = found.flag("use_dynamic_shifting", False)
    return FlowShift(line=(base, largest), terminal=terminal) if dynamic else FlowShift(shift=static, terminal=terminal)
