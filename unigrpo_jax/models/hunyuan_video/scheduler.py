"""What `scheduler/scheduler_config.json` says of HunyuanVideo's flow: one shift of its times, whatever the size."""

import pathlib

from unigrpo_jax.models.folders import flow_scheduler
from unigrpo_jax.models.folders.flow_scheduler import CLASSES, KNOWN
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.schedule import FlowShift

__all__ = ["CLASSES", "KNOWN", "read_scheduler"]


def read_scheduler(path: pathlib.Path, files: str) -> FlowShift:
    """The shift that a file says; ValueError as `flow_scheduler`, and where it is to depend on a video's size."""
    read_settings(path, files).only("use_dynamic_shifting", False)
    return flow_scheduler.read_scheduler(path, files)
