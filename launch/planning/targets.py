"""`--topology`: which chips, how many, and devices to compile for, without any of them being there.

TPUs are compiled for by libtpu.  There is no CUDA compiler without a GPU, so for GPUs the same mesh is compiled for as many
TPU chips: the partitioner that decides shapes and collectives is the same, the kernels and their scratch memory are not.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
from typing import Any

from launch.planning.compiler import check_fits
from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.parallel.chips import CHIPS, Chip

# Slices that can be rented, all of them accepted by libtpu 0.0.42.1 (which takes any multiples of 2 x 2 and of 2 x 2 x 1).
PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v4": CUBES, "v5e": PLANES, "v5p": CUBES, "v6e": PLANES, "tpu7x": CUBES}
GPU_EXAMPLES = "h100:8 (one node of 8) or h100:8x4 (4 nodes of 8)"
MOST_CHIPS = 2**16
STAND_IN = "v5p"  # the TPU with the most memory for one device that is compiled for instead of GPUs

# There is no TPU to ask about itself, other processes may compile at the same time, and start-up is to be silent.
_LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
           "TPU_MIN_LOG_LEVEL": "3", "TPU_ACCELERATOR_TYPE": "none", "TPU_WORKER_HOSTNAMES": "localhost"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      name: as it was asked for, such as v5p:4x4x4.
      chip: what one of them can do.
      chips: how many.
      devices: JAX's; a v4 or tpu7x chip is two.
      per_node: devices of a node, or of one of several TPU slices; None where all chips are linked alike.
      memory: bytes of one device that programs can use.
    """

    name: str
    chip: Chip
    chips: int
    devices: list[Any]
    per_node: int | None
    memory: int

    @property
    def devices_per_chip(self) -> int:
        """JAX devices on one chip."""
        return len(self.devices) // self.chips


def find_target(name: str) -> Target:
    """The target of a `--topology`; ConfigError says which there are."""
    kind, shape, times = parse(name)
    chip = CHIPS[kind]
    if chip.kind == "gpu":
        per_node, count = int(shape), int(shape) * times
        devices = _tpu_devices(name, STAND_IN, _stand_in_shape(count))
        return Target(name, chip, count, devices, per_node if times > 1 else None, int(chip.memory * 2**30))
    devices = _tpu_devices(name, kind, shape, times)
    chips = len({(getattr(device, "slice_index", 0), *device.coords) for device in devices})
    per_node = len(devices) // times if times > 1 else None
    return Target(name, chip, chips, devices, per_node, int(chip.memory * chips / len(devices) * 2**30))


def parse(name: str) -> tuple[str, str, int]:
    """Chips, the shape of a slice (of GPUs: how many a node has), and how many slices or nodes a `--topology` means.

    ConfigError where it has no such form, or more chips than any machine: the compiler would take all memory for them.
    """
    kind, _, shape = name.partition(":")
    asked = f"topology = {quoted(name)}"
    require(kind in CHIPS, f"{asked}, but it must be one of {', '.join(CHIPS)} and a shape, such as v5p:4x4x4 or "
                           f"{GPU_EXAMPLES}.")  # fmt: skip
    if CHIPS[kind].kind == "gpu":
        match = re.fullmatch("([1-9][0-9]*)(?:x([1-9][0-9]*))?", shape)
        require(match is not None, f"{asked}, but it must be GPUs per node x nodes, such as {GPU_EXAMPLES}.")
    else:
        match = re.fullmatch(r"([1-9][0-9]*(?:x[1-9][0-9]*)+)(?:\*([1-9][0-9]*))?", shape)
        options = ", ".join(SHAPES[kind])
        require(match is not None, f"{asked}, but {kind} needs a shape: {options}; *2 behind it is two such slices.")
    factors = [*match[1].split("x"), match[2] or "1"]
    few = all(len(factor) <= 6 for factor in factors) and math.prod(map(int, factors)) <= MOST_CHIPS
    require(few, f"{asked} has more than {MOST_CHIPS} chips; name a smaller one.")
    return kind, match[1], int(factors[-1])


def _stand_in_shape(count: int) -> str:
    return f"2x2x{count // 4}" if count % 4 == 0 else f"1x1x{count}"


def _tpu_devices(asked: str, kind: str, shape: str, slices: int = 1) -> list[Any]:
    require(importlib.util.find_spec("libtpu") is not None,
            "a plan needs the TPU compiler: pip install -e '.[tpu-plan]'.")  # fmt: skip
    check_fits()
    from jax.experimental import topologies

    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    more = {"chips_per_host_bounds": (1, 1, 1)} if shape.startswith("1x1") else {}
    more |= {"num_slices": slices} if slices > 1 else {}
    try:
        with _silent():
            return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **more).devices
    except Exception as error:  # libtpu's errors have no common class
        first = next(iter(str(error).splitlines()), type(error).__name__).removeprefix("INVALID_ARGUMENT: ")
        known = ", ".join(SHAPES[kind])
        raise ConfigError(f"topology = {quoted(asked)} is none that libtpu knows ({first}); {kind} has {known}.") from None


@contextlib.contextmanager
def _silent():
    """Keeps what libtpu writes to the process's stderr, past Python, unless something raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
