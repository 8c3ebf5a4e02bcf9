"""What a process frees stays with it where programs run on CPU, and only there."""

import glob
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from unigrpo_jax.parallel import host_memory

FAULTS = """
import ctypes, resource, sys, threading
from unigrpo_jax.parallel import host_memory

kept = "keep" in sys.argv and host_memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def use(size=2**28):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)


def twice():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_a_block_of_a_thread_is_paid_for_once(tmp_path):
    """256 MiB, written, freed and written again: no page is asked for a second time."""
    (tmp_path / "faults.py").write_text(FAULTS)

    def again(*arguments):
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        out = subprocess.run(
            [sys.executable, tmp_path / "faults.py", *arguments], env=environment, capture_output=True, text=True, check=True
        )
        kept, faults = out.stdout.split()
        return kept == "True", int(faults)

    if any(glob.glob(pattern) for pattern in host_memory.ACCELERATORS):
        assert again("keep")[0] is False
        return
    kept, faults = again("keep")
    assert kept and faults < 100
    assert again()[1] > 100  # a page is 4 KiB, or 2 MiB where the kernel gives huge ones


def test_a_machine_with_an_accelerator_keeps_its_malloc(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(host_memory, "ACCELERATORS", (str(tmp_path / "nvidia[0-9]*"),))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("malloc was changed"))
    assert host_memory.keep_freed() is False


def test_another_c_library_keeps_its_malloc(monkeypatch):
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("malloc was changed"))
    assert host_memory.keep_freed() is False
