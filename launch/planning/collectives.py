"""What a compiled program sends between devices: HLO text -> a table of collectives, with how often each runs.

Bytes are those that one device sends, as a ring does it (R: the whole array, n: the devices of a group):

    all-gather, reduce-scatter, all-to-all    R (n - 1) / n
    all-reduce                                2 R (n - 1) / n
    collective-permute                        R

An instruction inside a loop counts once per round.  A loop's rounds are the compiler's `known_trip_count`, or the constant
that its condition compares the counter with (loops of JAX count from 0 in steps of 1).  Where a condition depends on data,
too (the token loop), the constant is only a bound, and `assumed` says that it was taken.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
         "ragged-all-to-all")  # fmt: skip
_BITS = {"pred": 8, "c64": 64, "c128": 128}
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: one of KINDS.
      sent: bytes that a device sends each time.
      axes: the mesh axes that a group spans, such as ("fsdp",).
      group: devices in a group.
      nodes: whether a group spans several nodes.
      rounds: how often it runs.
      assumed: whether the rounds of a loop around it are a bound.
      where: the operation in the source that it belongs to.
    """

    kind: str
    sent: float
    axes: tuple[str, ...]
    group: int
    nodes: bool
    rounds: int
    assumed: bool
    where: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    shape: str
    opcode: str
    rest: str


def _instruction(line: str) -> _Instruction | None:
    """The type, operation and everything after it; None for a line that is no instruction."""
    head, equals, text = line.partition(" = ")
    if not equals or not re.fullmatch(r"\s+(ROOT )?%?[\w.\-]+", head):
        return None
    if text.startswith("("):  # a tuple's type may hold blanks
        depth = itertools.accumulate((letter == "(") - (letter == ")") for letter in text)
        end = next(number for number, open_ in enumerate(depth, start=1) if not open_)
        shape, text = text[:end], text[end:].lstrip()
    else:
        shape, _, text = text.partition(" ")
    opcode, _, rest = text.partition("(")
    return _Instruction(shape, opcode, rest)


def shape_bytes(shape: str) -> int:
    """Bytes of a type such as `(bf16[2,3]{1,0}, f32[])`."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or "0")[0])
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits
    return -(-total // 8)


def replica_groups(text: str, devices: int) -> np.ndarray:
    """Groups [count, n] of device numbers, of an instruction's attributes; all devices where it names none.

    Three forms are read: lists, `[4,2]<=[2,4]T(1,0)` and `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.

    Raises:
      ValueError: a form that is not known.
    """
    everyone = np.arange(devices)
    found = re.search(r"replica_groups=(.*)", text)
    if found is None or found[1].startswith("{}"):
        return everyone[None]
    value = found[1]
    if value.startswith("{{"):
        lists = re.findall(r"\{([\d,]+)\}", value[: value.index("}}") + 1])
        return np.array([[int(n) for n in group.split(",")] for group in lists])
    if form := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", value):
        return _turned(everyone, form[2], form[3]).reshape([int(n) for n in form[1].split(",")])
    if form := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", value):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", form[1]))
        named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", form[4])
        ids = _turned(everyone, form[2] or str(devices), form[3]).reshape(-1)
        return ids[_named_groups({name: int(n) for name, n in sizes.items()}, named)]
    raise ValueError(f"replica_groups={value[:80]} is a form that is not known.")


def _turned(ids: np.ndarray, sizes: str, order: str | None) -> np.ndarray:
    """Numbers in a box of `sizes`, its axes in another order."""
    box = ids.reshape([int(n) for n in sizes.split(",")])
    return box.transpose([int(n) for n in order.split(",")]) if order else box


def _named_groups(sizes: dict[str, int], named: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Groups along named axes of a row-major mesh; (name, before, size) takes a part of an axis out of its middle."""
    parts: list[tuple[int, bool]] = []  # (size, whether a group runs along it), in the order of the mesh
    for name, whole in sizes.items():
        own = sorted((int(before or 1), int(size or whole)) for n, before, size in named if n == name)
        done = 1
        for before, size in own:
            parts += [(before // done, False), (size, True)]
            done = before * size
        parts.append((whole // done, False))
    ids = np.arange(math.prod(sizes.values())).reshape([size for size, _ in parts])
    inner = [i for i, (_, along) in enumerate(parts) if along]
    outer = [i for i, (_, along) in enumerate(parts) if not along]
    return ids.transpose(outer + inner).reshape(-1, math.prod(parts[i][0] for i in inner))


def _pairs(text: str) -> np.ndarray:
    found = re.search(r"source_target_pairs=(\{\{[\d,{}]*\}\})", text)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    return np.array([[int(a), int(b)] for a, b in pairs]).reshape(-1, 2)


class _Program:
    """The computations of a module, and the walk through those that hold collectives."""

    def __init__(self, text: str, mesh: dict[str, int], per_node: int | None, unknown: int):
        self.mesh, self.per_node, self.unknown = mesh, per_node, unknown
        self.devices = math.prod(mesh.values())
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = None
        lines: list[_Instruction] = []
        for line in text.splitlines():
            if not line.startswith(" ") and (header := _HEADER.fullmatch(line.rstrip())):
                lines = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif instruction := _instruction(line):
                lines.append(instruction)
        if self.entry is None:
            raise ValueError("the text is no HLO module: it has no ENTRY computation.")
        self.counted: set[tuple] = set()
        self._busy: dict[str, bool] = {}

    def busy(self, name: str) -> bool:
        """Whether a computation or one that it calls holds a collective."""
        if name not in self._busy:
            self._busy[name] = False
            self._busy[name] = any(
                _kind(i) is not None or any(self.busy(n) for n in _called(i)) for i in self.computations.get(name, ())
            )
        return self._busy[name]

    def rounds(self, loop: _Instruction) -> tuple[int, bool]:
        """Rounds of a while loop, and whether they are only a bound."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1]), False
        name = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
        condition = self.computations[name]
        limits = {int(c[1]) for i in self._inside(name) if i.opcode == "constant" and re.match(r"[su](32|64)\[\]", i.shape)
                  and (c := re.match(r"(\d+)\)", i.rest))}  # fmt: skip
        limits.discard(0)
        if len(limits) != 1:
            return self.unknown, True
        return limits.pop(), condition[-1].opcode != "compare"

    def _inside(self, name: str) -> Iterator[_Instruction]:
        for instruction in self.computations.get(name, ()):
            yield instruction
            for other in _called(instruction):
                yield from self._inside(other)

    def walk(self, name: str, rounds: int = 1, assumed: bool = False, path: tuple = ()) -> Iterator[Collective]:
        """Every collective that a computation runs, `path` telling loops apart."""
        for number, i in enumerate(self.computations[name]):
            kind = _kind(i)
            if kind is not None:
                # A collective that overlaps with computation stands in several fusions under one channel.
                channel = re.search(r"channel_id=(\d+)", i.rest)
                key = (channel[1] if channel else (name, number), path)
                if key not in self.counted:
                    self.counted.add(key)
                    yield self._collective(kind, i, rounds, assumed, name)
            if i.opcode.endswith(("-update", "-done")):
                continue
            times, bound, here = 1, False, path
            if i.opcode == "while":
                times, bound = self.rounds(i)
                here = (*path, (name, number))
            for other in _called(i):
                if other in self.computations and self.busy(other):
                    yield from self.walk(other, rounds * times, assumed or bound, here)

    def _collective(self, kind: str, i: _Instruction, rounds: int, assumed: bool, inside: str) -> Collective:
        groups = _pairs(i.rest) if kind == "collective-permute" else replica_groups(i.rest, self.devices)
        n = groups.shape[1] if kind != "collective-permute" else 2
        size, started = shape_bytes(i.shape), i.opcode.endswith("-start")
        if kind == "all-gather" and started:  # its type holds the part, too
            size = size * n // (n + 1)
        elif kind == "collective-permute" and started:
            size = shape_bytes(_SHAPE.search(i.shape)[0])
        elif kind == "reduce-scatter":
            size *= n
        scattered = kind == "all-reduce" and inside.startswith("all-reduce-scatter")  # what libtpu calls the fusion of both
        kind = "reduce-scatter" if scattered else kind
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
        place = np.stack(np.unravel_index(groups, tuple(self.mesh.values())), axis=-1)  # [count, n, axes]
        differ = (place != place[:, :1]).any(axis=(0, 1)) if groups.size else []
        where = re.search(r'op_name="([^"]*)"', i.rest)
        return Collective(
            kind=kind,
            sent=size * share,
            axes=tuple(axis for axis, d in zip(self.mesh, differ, strict=False) if d),
            group=n,
            nodes=bool(self.per_node and (groups // self.per_node != groups[:, :1] // self.per_node).any()),
            rounds=rounds,
            assumed=assumed,
            where=where[1] if where else "",
        )


def _kind(i: _Instruction) -> str | None:
    name = i.opcode.removesuffix("-start")
    return name if name in KINDS else None


def _called(i: _Instruction) -> list[str]:
    lists = [name.strip().lstrip("%") for names in _BRANCHES.findall(i.rest) for name in names.split(",")]
    return _CALLED.findall(i.rest) + [name for name in lists if name]


def collectives(text: str, mesh: dict[str, int], unknown: int, per_node: int | None = None) -> list[Collective]:
    """The collectives of a program.

    Args:
      text: `compiled.as_text()`.
      mesh: names and sizes of the mesh that it was compiled for, in order.
      unknown: rounds of a loop whose text tells none.
      per_node: devices of a node, where some groups cross a slower network; None where all links are alike.
    """
    program = _Program(text, mesh, per_node, unknown)
    return list(program.walk(program.entry))


def table(found: Sequence[Collective], phase) -> list[dict]:
    """Sums by kind, axes, phase and group, most bytes first; `phase` names the phase of a collective."""
    rows: dict[tuple, dict] = {}
    for c in found:
        key = (c.kind, "+".join(c.axes) or "none", phase(c), c.group, c.nodes)
        names = ("kind", "axes", "phase", "group", "nodes")
        row = rows.setdefault(key, dict(zip(names, key, strict=True)) | {"times": 0, "bytes": 0, "assumed": False})
        row["times"] += c.rounds
        row["bytes"] += c.rounds * c.sent
        row["assumed"] |= c.assumed
    return sorted(rows.values(), key=lambda row: -row["bytes"])
