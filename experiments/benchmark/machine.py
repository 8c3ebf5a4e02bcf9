"""What the machine can do at best, measured here or, for an accelerator, by its vendor's documents; and what it is."""

import dataclasses
import math
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import seconds
from unigrpo_jax.parallel.chips import CHIPS

MATRICES = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (2048, 512, 1408))
LASTS = 0.2  # seconds of a measurement of a limit
BYTES = 2**28  # of the array that is read for the bandwidth: more than any cache holds
# `device_kind` as JAX gives it, in lower case, to the chip in `parallel.chips`; the first that is part of it counts.
KINDS = {
    "v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p", "tpu v5": "v5p", "v6": "v6e", "tpu7x": "tpu7x", "v4": "v4",
    "a100": "a100", "h100": "h100", "h200": "h200", "b200": "b200",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limit:
    """One limit of a device.

    Attributes:
      what: how it was found.
      work: FLOPs or bytes of one call of `run`; per second where there is none.
      run: does that work; None where the limit is the vendor's number.
    """

    what: str
    work: float
    run: Callable[[], Any] | None

    def rates(self, times: list[float]) -> list[float]:
        """Work per second in each round, from the seconds of `run`; the vendor's number where there are none."""
        return [self.work / t for t in times]


def _best(probes: list[Limit], repeats: int) -> Limit:
    """The fastest probe, so often that it lasts `LASTS`: a single call of a millisecond finds the cores asleep."""
    for probe in probes:
        jax.block_until_ready(probe.run())
    probes = [_lasting(probe) for probe in probes]
    return max(probes, key=lambda probe: max(probe.work / seconds(probe.run) for _ in range(repeats)))


def _lasting(probe: Limit) -> Limit:
    count = math.ceil(LASTS / seconds(probe.run))
    return Limit(probe.what, count * probe.work, lambda: [probe.run() for _ in range(count)])


def matmul_limit(repeats: int = 3, matrices=MATRICES) -> Limit:
    """FLOP/s: the best of a few float32 products of an [m, k] and a [k, n] matrix, or the chip's bfloat16 peak."""
    chip = published(jax.devices()[0])
    if chip is not None:
        return Limit(f"bfloat16 peak ({CHIPS[chip].source})", CHIPS[chip].flops, None)
    product = jax.jit(jnp.matmul)

    def probe(m: int, k: int, n: int) -> Limit:
        a, b = jnp.ones((m, k)), jnp.ones((k, n))
        return Limit(f"float32 product [{m}, {k}] [{k}, {n}]", 2 * m * k * n, lambda: product(a, b))

    return _best([probe(*shape) for shape in matrices], repeats)


def bandwidth_limit(repeats: int = 3, size: int = BYTES) -> Limit:
    """Bytes per second: the better of summing a float32 array and of a matrix-vector product, or the chip's own."""
    chip = published(jax.devices()[0])
    if chip is not None:
        return Limit(f"memory ({CHIPS[chip].source})", CHIPS[chip].bandwidth, None)
    total, product = jax.jit(jnp.sum), jax.jit(jnp.matmul)
    matrix, vector = jnp.ones((size // 4096, 1024)), jnp.ones(1024)
    megabytes = f"{matrix.nbytes / 2**20:.0f} MiB"
    return _best(
        [
            Limit(f"sum of {megabytes} of float32", matrix.nbytes, lambda: total(matrix)),
            Limit(f"matrix of {megabytes} times a vector", matrix.nbytes, lambda: product(matrix, vector)),
        ],
        repeats,
    )


def published(device) -> str | None:
    """The device's name in `unigrpo_jax.parallel.chips`, or None where there is none, as for a CPU."""
    if device.platform == "cpu":
        return None
    kind = device.device_kind.lower()
    return next((name for part, name in KINDS.items() if part in kind), None)


def description() -> dict[str, Any]:
    """What a number of this machine depends on."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    device = jax.devices()[0]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "platform": device.platform,
        "device": device.device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
