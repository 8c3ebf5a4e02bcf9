"""What `scheduler/scheduler_config.json` says of FLUX's flow; the defaults are FLUX.1-schnell's."""

from unigrpo_jax.models.folders.flow_scheduler import CLASSES, KNOWN, read_scheduler

__all__ = ["CLASSES", "KNOWN", "read_scheduler"]
