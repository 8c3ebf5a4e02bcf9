"""Freed memory of a process that computes on CPU stays with it, so that the next call of a program finds its pages.

XLA allocates a program's temporaries when it is called and frees them when it is done.  glibc gives such large blocks back
to the kernel, which clears every page of 4 KiB again when the next call touches it: a quarter of an update's processor
time.  Kept, they are paid for once.  The process then holds what its largest program took, as it would in every iteration.
"""

import ctypes
import glob
import platform

# glibc's malloc.h.  All blocks come from the one heap that grows in place, which is never cut back; threads, those that run
# programs among them, share it, since heaps of their own are too small for large blocks.
OPTIONS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
# Device files of NVIDIA and AMD GPUs and of TPUs: where there is one, programs run there and host memory is not theirs.
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def keep_freed() -> bool:
    """Lets malloc keep what is freed, if this is glibc and shows no accelerator; says whether it does.

    To be called before JAX starts its threads, hence before anything can ask it what its devices are.
    """
    if platform.libc_ver()[0] != "glibc" or any(glob.glob(pattern) for pattern in ACCELERATORS):
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(*option) for option in OPTIONS.values()])
