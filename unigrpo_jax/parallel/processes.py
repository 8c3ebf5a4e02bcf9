"""Several processes that work as one program: how they find each other, and what they tell each other while it runs.

One process is the ordinary case, and everything here is then the identity.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from unigrpo_jax.config import ConfigError, ProcessConfig, require
from unigrpo_jax.foreign_text import said
from unigrpo_jax.parallel.roll_call import PeersMissing, roll_call

VARIABLES = ("UNIGRPO_COORDINATOR", "UNIGRPO_PROCESSES", "UNIGRPO_PROCESS")
SHORTEST = 4096  # bytes of a message between processes
PATIENCE = 20.0  # seconds beyond its own time that the first process waits for others' shares
_DAY = 86_400.0  # seconds
# How the messages of a collective or of the coordination service begin when somebody is gone.
_GONE = "UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION"


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among the others.

    Attributes:
      coordinator: host:port of process 0.
      count: number of processes.
      index: which one this is, from 0.
      devices: ids of this machine's devices that are its own; None for all of them.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


def find(config: ProcessConfig, environment: Mapping[str, str] | None = None) -> Place | None:
    """Where this process stands, from flags, our variables, Slurm's, or TPU metadata, in this order; None where it is alone.

    Raises:
      ConfigError: what is said is incomplete or contradicts itself.
      PeersMissing: the host of process 0 did not come in time.
    """
    environment = os.environ if environment is None else environment
    if config.count == 1:
        return None
    given = (config.coordinator, config.count or "", "" if config.index < 0 else config.index)
    names = ("processes.coordinator", "processes.count", "processes.index")
    if not any(value != "" for value in given):
        given, names = tuple(environment.get(name, "") for name in VARIABLES), VARIABLES
    if any(value != "" for value in given):
        missing = [name for name, value in zip(names, given, strict=True) if value == ""]
        require(not missing, f"{', '.join(names)} belong together, but {' and '.join(missing)} is not given.")
        return _checked(*given, names)
    if environment.get("SLURM_STEP_NODELIST") and "SLURM_PROCID" in environment:
        return _slurm(environment)
    return _known_to_jax(config.wait_seconds)


def _checked(coordinator, count, index, names) -> Place | None:
    host, _, port = str(coordinator).rpartition(":")
    require(bool(host) and port.isdigit() and 0 < int(port) < 2**16,
            f"{names[0]} = {coordinator!r}, but it must be host:port of process 0.")  # fmt: skip
    require(str(count).isdigit() and int(count) >= 1, f"{names[1]} = {count!r}, but it must be 1 or more.")
    require(str(index).isdigit() and int(index) < int(count),
            f"{names[2]} = {index!r}, but of {count} processes it must be from 0 to {int(count) - 1}.")  # fmt: skip
    return Place(str(coordinator), int(count), int(index)) if int(count) > 1 else None


def _slurm(environment: Mapping[str, str]) -> Place | None:
    """From `srun`: with one task a node it has all devices, with more each has the one of its local number."""
    try:
        job, count, index, local, nodes = (
            int(environment[f"SLURM_{name}"]) for name in ("JOB_ID", "NTASKS", "PROCID", "LOCALID", "STEP_NUM_NODES")
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"Slurm's variables are incomplete ({error}); start by srun, or set processes.count, "
                          "processes.index and processes.coordinator.") from None  # fmt: skip
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
    require(first is not None, f"SLURM_STEP_NODELIST = {environment['SLURM_STEP_NODELIST']!r} names no node.")
    port = environment.get("JAX_COORDINATOR_PORT", str(61440 + job % 4096))
    host = first[1] + (first[2] or "")
    return Place(f"{host}:{port}", count, index, None if count == nodes else (local,)) if count > 1 else None


def _known_to_jax(wait: int) -> Place | None:
    """TPU slices and MPI, by JAX's own detection; the public `initialize` would wait in silence for who is missing."""
    from jax._src.clusters import ClusterEnv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a package is missing which would ask Kubernetes
        try:
            found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, wait)
        except RuntimeError as error:  # the slice of process 0 has no name or address yet
            raise PeersMissing(f"the other processes were not found within {wait} s ({said(error)})") from error
    address, count, index, devices = found
    if not address or not count or count == 1:
        return None
    return Place(address, count, index, None if devices is None else tuple(devices))


def start(config: ProcessConfig, facts: Mapping[str, Any]) -> None:
    """Meets the other processes and starts `jax.distributed`; nothing where this process is alone.

    Must come before anything asks for JAX's devices.  `facts` must be the same in all processes.

    Raises:
      ConfigError: the environment is incomplete, or processes disagree on a fact.
      PeersMissing: others did not come in time.
    """
    if jax.distributed.is_initialized():
        return
    place = find(config)
    if place is None:
        return
    tell = lambda words: print(words, file=sys.stderr, flush=True)
    roll_call(place.coordinator, place.count, place.index, facts, config.wait_seconds, tell)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM until the run listens itself
    jax.distributed.initialize(
        place.coordinator, place.count, place.index, None if place.devices is None else list(place.devices),
        cluster_detection_method="deactivate", initialization_timeout=config.wait_seconds,
    )  # fmt: skip


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's JSON value, in order; all processes must call it.  Floats come back bit for bit.

    Messages are filled up to a power of two, since each other length would compile a program of its own.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size]))
    padded = np.zeros(max(SHORTEST, 1 << int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.reshape(-1), strict=True)]


def divided(name: str, items: Sequence[Any], act: Callable[[list], list]) -> list[Any]:
    """In the first process what `act` makes of each of its items, in order, every process doing each n-th; [] in others.

    All processes call it, from a thread if they like: they talk through JAX's coordination service, and need no turn among
    the programs that they share.  A process that is gone, or takes more than twice the first one's time and PATIENCE
    seconds, leaves None for its items.

    Args:
      name: of this division; no other has it, before or after.
      items: JSON values; only the first process's count.
      act: gives a JSON value for each item of a list, and must not raise.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return act(list(items))
    from jax._src import distributed

    client = distributed.global_state.client
    give = lambda key, value: client.key_value_set(f"{name}/{key}", json.dumps(value))

    def take(key: str, seconds: float) -> list:
        value = json.loads(client.blocking_key_value_get(f"{name}/{key}", int(1000 * seconds)))
        client.key_value_delete(f"{name}/{key}")
        return value

    if index:
        give(f"values/{index}", act(take(f"items/{index}", _DAY)))
        return []
    for other in range(1, count):
        give(f"items/{other}", list(items[other::count]))
    values, began = [None] * len(items), time.monotonic()
    values[::count] = act(list(items[::count]))
    until = 2 * time.monotonic() - began + PATIENCE
    for other in range(1, count):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            values[other::count] = take(f"values/{other}", max(until - time.monotonic(), 1))
    return values


class FailedTogether(RuntimeError):
    """What one process raised and nobody foresaw, raised in all of them."""


def agree_on_errors(errors: tuple[type[Exception], ...], action: Callable[[], Any]) -> Any:
    """What `action()` returns; where it raises one of `errors` in one process, that error is raised in all.

    All processes must call it; several may fail, and the first one's words are taken.  Of several processes all raise
    FailedTogether where one raises anything else, since they would wait for it.
    """
    failed, result = None, None
    try:
        result = action()
    except (Exception, SystemExit) as error:
        if jax.process_count() == 1:
            raise
        failed = error
    kinds = (*errors, FailedTogether)
    own = None if failed is None else next((i for i, kind in enumerate(errors) if isinstance(failed, kind)), len(errors))
    words = f"{type(failed).__name__}: {said(failed)}" if own == len(errors) else said(failed)
    for index, (number, theirs) in enumerate(gather([own, words])):
        if number is not None:
            raise kinds[number](f"process {index}: {theirs}") from failed
    return result


@contextlib.contextmanager
def joined():
    """Around work with others: what JAX raises when one of them is gone becomes PeersMissing."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of the two depends on where it is noticed
        if jax.process_count() == 1 or not re.match(_GONE, said(error)):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise PeersMissing(f"another process was lost ({first}); --resume continues from the newest checkpoint") from error


def by_process(tree: Any) -> Any:
    """Global arrays that are cut along their first axis, cut so over the same devices in the order of their processes.

    Rows that are neighbours, as those of a group, then lie in one process; neighbours on a mesh may lie in different ones by
    turns.  All processes must call it.
    """

    def move(x: jax.Array) -> jax.Array:
        arranged = list(x.sharding.mesh.devices.flat)
        devices = sorted(arranged, key=lambda device: device.process_index)
        if devices == arranged:
            return x
        parts = len(x) // x.sharding.shard_shape(x.shape)[0]
        mesh = jax.sharding.Mesh(np.reshape(devices, (parts, -1)), ("part", "copy"))
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("part")))

    return jax.tree.map(move, tree)


def own_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a global array that this process answers for, and their numbers; every row belongs to one process.

    Args:
      array: cut along its first axis, or whole; copies are counted once.

    Returns:
      int [R] row numbers, increasing, and the rows [R, ...] on the host.
    """
    shards = [s for s in array.addressable_shards if s.replica_id == 0]
    shards.sort(key=lambda s: s.index[0].start or 0)
    numbers = [np.arange(*s.index[0].indices(array.shape[0])) for s in shards]
    if not shards:
        return np.zeros(0, int), np.zeros((0, *array.shape[1:]), array.dtype)
    return np.concatenate(numbers), np.concatenate([np.asarray(s.data) for s in shards])


def share_rows(rows: np.ndarray, columns: Mapping[str, list], total: int) -> dict[str, list]:
    """All rows of a table of which each process holds some.

    Args:
      rows: numbers of this process's rows.
      columns: {name: JSON values of these rows}; of no meaning in a process without rows.
      total: number of rows of all.

    Returns:
      {name: values of all rows, in order}.

    Raises:
      ValueError: processes name different columns.
    """
    parts = [part for part in gather([rows.tolist(), dict(columns)]) if part[0]]
    out = {name: [None] * total for name in parts[0][1]}
    for numbers, theirs in parts:
        if set(theirs) != set(out):
            raise ValueError(f"processes have different columns: {sorted(out)} and {sorted(theirs)}")
        for name, values in theirs.items():
            for row, value in zip(numbers, values, strict=True):
                out[name][row] = value
    return out


def to_global(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A global array of a value that every process holds whole; each puts its part on its devices."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
