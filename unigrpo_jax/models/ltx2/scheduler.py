"""What `scheduler/scheduler_config.json` says of LTX-2's flow: times that are shifted, then stretched to a last one."""

import pathlib

from unigrpo_jax.models.folders import flow_scheduler
from unigrpo_jax.models.folders.flow_scheduler import CLASSES, KNOWN
from unigrpo_jax.models.schedule import FlowShift

__all__ = ["CLASSES", "KNOWN", "read_scheduler"]


def read_scheduler(path: pathlib.Path, files: str) -> FlowShift:
    """The shift that a file says, and the last time before the data; ValueError as `flow_scheduler`."""
    return flow_scheduler.read_scheduler(path, files, stretches=True)
