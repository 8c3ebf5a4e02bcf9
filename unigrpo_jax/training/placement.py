"""What lies on a device all the time, and where it is cut: the table that a run on several devices begins with."""

import dataclasses
import math

import jax

from unigrpo_jax.models import tree
from unigrpo_jax.training.programs import Inputs

HEADER = ["group", "arrays", "shape", "placement", "per device"]


@dataclasses.dataclass(frozen=True)
class Placed:
    """Arrays of one group, shape and placement.

    Attributes:
      group: reasoning, denoising or frozen parameters; optimizer, average, fake score, reference, autoencoder.
      names: paths of the arrays, or what they are.
      shape: of each; () where several shapes are summed up.
      placement: mesh axes of each dimension, "-" where it is not cut.
      bytes: on one device, all arrays together; 0 where they lie on the host.
    """

    group: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    placement: str
    bytes: int

    def cells(self) -> list[str]:
        """A row of a table."""
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        shape = " x ".join(map(str, self.shape)) or "-"
        return [self.group, self.names[0] + more, shape, self.placement, shown_bytes(self.bytes)]


def placement(inputs: Inputs, labels: dict[str, str], shared: bool = True) -> list[Placed]:
    """All that lies on the devices between two iterations.

    Args:
      inputs: shapes and shardings of an iteration's inputs.
      labels: {path: group} of all parameters.
      shared: whether what is frozen of the reference is that of the trained policy.
    """
    own = inputs.state.trained | inputs.frozen
    rows: dict[tuple, list[str]] = {}
    for path, x in own.items():
        rows.setdefault((labels[path], x.shape, axes(x)), []).append(path)
    out = [
        Placed(group, tuple(paths), shape, where, sum(device_bytes(own[path]) for path in paths))
        for (group, shape, where), paths in sorted(rows.items(), key=lambda row: (row[0][0], row[1]))
    ]
    reference = [x for path, x in tree.flatten(inputs.reference).items() if not shared or path not in inputs.frozen]
    like = "as the parameters"
    others = (
        ("optimizer", "two moments of what is trained", inputs.state.opt_state, like),
        ("average", "moving average of what is trained", inputs.state.ema, like),
        ("average", "the policy that samples", inputs.state.old, like),
        ("fake score", "its parameters, and two moments of them", inputs.state.fake, like),
        ("reference", "copy of what is trained" if shared else "the teacher", reference, like),
        ("autoencoder", "its tensors", inputs.autoencoder, "-"),
    )
    for group, name, arrays, where in others:
        arrays = [x for x in jax.tree.leaves(arrays) if x.ndim]
        if arrays and group == "reference" and {x.sharding.memory_kind for x in arrays} == {"pinned_host"}:
            where = "on the host"
        if arrays:
            out.append(Placed(group, (name,), (), where, sum(map(device_bytes, arrays))))
    return out


def device_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array's part on one device; 0 where it lies on the host."""
    if x.sharding.memory_kind == "pinned_host":
        return 0
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def axes(x: jax.ShapeDtypeStruct) -> str:
    """Mesh axes of each dimension, such as "- fsdp tensor"."""
    spec = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
    return " ".join("-" if axis is None else axis if isinstance(axis, str) else "+".join(axis) for axis in spec)


def shown_bytes(count: int) -> str:
    """Such as 3.2 GiB."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"
