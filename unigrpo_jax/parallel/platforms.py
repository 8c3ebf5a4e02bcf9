"""Which of JAX's platforms are tried: a TPU only where there may be one.

JAX asks every compiler that is installed for its devices, and libtpu, which also serves to plan for chips that are not
there, writes errors to stderr where it finds none.
"""

import glob

import jax
from jax.extend.backend import register_backend_factory

# What the driver of a TPU shows; programs reach the chips by nothing else.
TPU_NODES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def leave_out_absent_tpu() -> None:
    """Keeps JAX from asking libtpu for devices where this machine has no TPU; before anything asks for JAX's devices.

    Nothing changes where platforms are named (JAX_PLATFORMS) or JAX itself has found a TPU, which names it: what is asked
    for must be there.  Other platforms, and compiling for chips that are not there, stay as they are.
    """
    if not jax.config.jax_platforms and not any(map(glob.glob, TPU_NODES)):
        register_backend_factory("tpu", _absent, priority=300, fail_quietly=True)


def _absent():
    raise RuntimeError(f"this machine has none of a TPU's devices ({', '.join(TPU_NODES)})")
