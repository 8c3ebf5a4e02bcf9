"""What a chip can do, by its vendor's documents: one table for TPUs and GPUs.

Bandwidths are decimal bytes per second, memory is what programs can use.  For TPUs that is what libtpu 0.0.42.1 says when a
program does not fit ("exceeds available HBM"); for GPUs 95 % of what the driver reports, as with
XLA_PYTHON_CLIENT_MEM_FRACTION=.95.  `links` are all links of a chip together, one direction: the vendors' "bidirectional"
numbers count both.
"""

import dataclasses
from typing import Literal

GIB = 2**30
_TPU = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
      kind: tpu or gpu.
      flops: peak bfloat16 operations per second, dense.
      int8: the same of int8; None where its vendor says none.
      memory: GiB of a chip that programs can use.
      bandwidth: bytes per second of its memory.
      links: bytes per second that it sends to other chips (ICI, NVLink).
      network: bytes per second that it sends to another node; None where `links` reach every chip.
      source: where the numbers stand.
    """

    kind: Literal["tpu", "gpu"]
    flops: float
    int8: float | None = None
    memory: float
    bandwidth: float
    links: float
    network: float | None = None
    source: str


def _gpu(
    flops: float, int8: float | None, memory: float, bandwidth: float, links: float, network: float, source: str
) -> Chip:
    said = {"memory": memory, "bandwidth": bandwidth, "links": links, "network": network}
    return Chip(kind="gpu", flops=flops, int8=int8, **said, source=f"{_NVIDIA}/{source}")


def _tpu(flops: float, int8: float | None, memory: float, bandwidth: float, links: float, source: str) -> Chip:
    said = {"memory": memory, "bandwidth": bandwidth, "links": links}
    return Chip(kind="tpu", flops=flops, int8=int8, **said, source=f"{_TPU}/{source}")


CHIPS = {
    "v4": _tpu(275e12, 275e12, 30.5, 1200e9, 300e9, "v4; links: half of v5p's, unsourced"),
    "v5e": _tpu(197e12, 393e12, 15.75, 819e9, 200e9, "v5e: 1600 Gbps, 400 GBps bidirectional"),
    "v5p": _tpu(459e12, 918e12, 95.74, 2765e9, 600e9, "v5p: 4800 Gbps, 1200 GBps bidirectional; int8 unsourced"),
    "v6e": _tpu(918e12, 1836e12, 31.25, 1638e9, 400e9, "tpu7x, which compares: 800 GBps bidirectional"),
    "tpu7x": _tpu(2307e12, None, 189.5, 7380e9, 600e9, "tpu7x: 1200 GBps bidirectional"),
    "a100": _gpu(312e12, 624e12, 76.0, 2039e9, 300e9, 25e9, "a100: SXM 80 GB, NVLink 600 GB/s; one 200 Gb/s NIC per GPU"),
    "h100": _gpu(989e12, 1979e12, 75.6, 3350e9, 450e9, 50e9, "h100: SXM, NVLink 900 GB/s; one 400 Gb/s NIC per GPU"),
    "h200": _gpu(989e12, 1979e12, 133.0, 4800e9, 450e9, 50e9, "h200: SXM, NVLink 900 GB/s; one 400 Gb/s NIC per GPU"),
    "b200": _gpu(2250e12, None, 170.0, 8000e9, 900e9, 50e9, "dgx-b200: an eighth; NVLink 1.8 TB/s; 400 Gb/s per GPU"),
}
