"""The TPU slices that exist: topology, chips, hosts, and what Cloud TPU and GKE call them.

A slice is written `GENERATION:TOPOLOGY`, such as v5p:4x4x4; Cloud TPU's accelerator types, such as v5p-128, are understood,
too. The number of an accelerator type counts TensorCores in v4 and v5p (two on a chip) and chips in v5e and v6e.

Sources: the configuration pages of Cloud TPU (cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e) and of GKE
(cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), runtime versions from cloud.google.com/tpu/docs/runtimes, and,
for the topology that Cloud TPU gives an accelerator type, the table of github.com/AI-Hypercomputer/xpk
(src/xpk/core/system_characteristics.py).  A host has four chips; one chip and the 2x4 of v5e and v6e are one host each, the
latter with eight (on GKE: machine types ct5lp-hightpu-8t and ct6e-standard-8t).
"""

import dataclasses
import difflib
import math
import re

from unigrpo_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Slice:
    """One kind of TPU slice.

    Attributes:
      generation: v4, v5e, v5p or v6e.
      topology: chips along each dimension of the interconnect, such as 4x4x4.
      accelerator_type: what Cloud TPU calls it, such as v5p-128.
      runtime_version: image of its hosts that JAX runs on.
      gke_accelerator: value of GKE's node label cloud.google.com/gke-tpu-accelerator.
    """

    generation: str
    topology: str
    accelerator_type: str
    runtime_version: str
    gke_accelerator: str

    @property
    def name(self) -> str:
        """Such as v5p:4x4x4."""
        return f"{self.generation}:{self.topology}"

    @property
    def chips(self) -> int:
        """Chips of the slice; JAX sees one device for each."""
        return _chips(self.topology)

    @property
    def chips_per_host(self) -> int:
        """Chips that one host, and so one process, holds."""
        return {"1x1": 1, "2x4": 8}.get(self.topology, 4)

    @property
    def hosts(self) -> int:
        """Hosts of the slice; each runs one process."""
        return self.chips // self.chips_per_host


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.split("x")))


_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
# generation: (prefix of the accelerator type, what it counts per chip, runtime version, GKE's accelerator, topologies)
_TABLE = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice",
           "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", _FLAT),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice",
            "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 4x4x20 4x8x12 4x4x28 8x8x8 4x12x12 4x8x20 4x4x44 8x8x12 "
            "4x8x28 8x8x16 8x12x12 8x8x20 8x12x16 12x12x12 8x16x16 12x12x16 8x16x20 12x16x16 12x16x20 16x16x16 16x16x20 "
            "16x16x24"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", _FLAT),
}  # fmt: skip

SLICES = {
    f"{generation}:{topology}": Slice(generation, topology, f"{prefix}-{cores * _chips(topology)}", runtime, gke)
    for generation, (prefix, cores, runtime, gke, topologies) in _TABLE.items()
    for topology in topologies.split()
}
_BY_TYPE = {one.accelerator_type: one for one in SLICES.values()}


def find(name: str) -> Slice:
    """The slice of that name or accelerator type.

    Raises:
      ConfigError: there is none; the message names the nearest that exist.
    """
    if name in SLICES or name in _BY_TYPE:
        return SLICES.get(name) or _BY_TYPE[name]
    raise ConfigError(f"slice = {name!r} is none that is known; {_nearest(name)}.")


def _nearest(name: str) -> str:
    """The slices of the same generation just below and above in chips, or those that are spelt alike."""
    generation, _, size = re.sub("^v5litepod", "v5e", name).replace("-", ":", 1).partition(":")
    if generation in _TABLE and re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", size):
        chips = _chips(size) / (_TABLE[generation][1] if "x" not in size else 1)
        same = [one for one in SLICES.values() if one.generation == generation]
        near = [max((s for s in same if s.chips <= chips), key=lambda s: s.chips, default=None),
                min((s for s in same if s.chips > chips), key=lambda s: s.chips, default=None)]  # fmt: skip
        return "the nearest are " + " and ".join(f"{s.name} ({s.chips} chips, {s.accelerator_type})" for s in near if s)
    alike = difflib.get_close_matches(name, [*SLICES, *_BY_TYPE], 3)
    return f"did you mean {' or '.join(alike)}?"[:-1] if alike else f"there are {', '.join(_TABLE)}, such as v5p:4x4x4"
