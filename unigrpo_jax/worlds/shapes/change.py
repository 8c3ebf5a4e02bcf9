"""A change of a picture: what an instruction such as `make the circle green` asks for, and which scenes fulfil it.

A change is one of five kinds:

    recolour    what -> colour          in its cell
    move        what -> place           with its colour
    add         what [-> place]         `what.count` more objects
    remove      what
    count       what                    as many more as are missing to `what.count`

`what` is a shape and perhaps a colour: an object is meant where it agrees in all that is named.  A place is a corner or
the center (one cell), a side (`left` is any cell of the left column), or a relation to another object (`left of` is any
cell of a column further left, as in `judge.holds`).

What is right is a function of the change and the scene before it, and total, because a picture that a model has drawn
need not hold what the next instruction speaks of:

  * where several objects are meant, a change of any one of them is right, but not of one that is already as asked while
    another is not; where all are already as asked, nothing is to be changed;
  * where none is meant, a recolour or a move asks for the object as it should be after it (in any free cell, or in the
    place), beside all that was there; a removal asks for nothing;
  * where a relation's other object is missing, or the place has no free cell, an object that is there stays where it is,
    and a new one may stand in any free cell; where the whole grid is full, nothing is to be added;
  * colours and cells that are not named are free.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unigrpo_jax.worlds.shapes.judge import holds
from unigrpo_jax.worlds.shapes.requirement import NUMBERS, Wanted
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, Object, Scene, scene

KINDS = ("recolour", "move", "add", "remove", "count")
SIDES = ("top", "bottom", "left", "right")
SPOTS = ("top-left", "top-right", "bottom-left", "bottom-right", "center")
HELD_OUT_SHARE = 0.15

_SIDE_CELLS = {
    "top": frozenset(CELLS[:3]),
    "bottom": frozenset(CELLS[6:]),
    "left": frozenset(CELLS[::3]),
    "right": frozenset(CELLS[2::3]),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where something is to stand: one of `SPOTS` or `SIDES`, or a relation to the object `of`."""

    where: str
    of: Wanted | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """What an instruction asks for.

    Attributes:
      kind: one of `KINDS`.
      what: the object that is meant; what is added; what is counted, `count` being how many there are then.
      colour: of a recolour, the new one.
      place: of a move and perhaps of an addition; None leaves the cell free.
    """

    kind: str
    what: Wanted
    colour: str | None = None
    place: Place | None = None

    def key(self) -> str:
        """A text that is equal for two changes exactly where they ask for the same."""
        parts = [f"{self.kind}: {self.what.count} {_name(self.what)}", self.colour and f"to {self.colour}"]
        if self.place:
            parts.append(f"at {self.place.where}" + (f" {_name(self.place.of)}" if self.place.of else ""))
        return " ".join(part for part in parts if part)

    def metadata(self) -> dict[str, Any]:
        """JSON-serialisable facts."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Piece:
    """An object that is to appear; colour None is free, and any of the cells is right."""

    shape: str
    colour: str | None
    cells: frozenset[str]

    def fits(self, o: Object) -> bool:
        """Whether an object is this piece."""
        return o.shape == self.shape and self.colour in (None, o.colour) and o.cell in self.cells


@dataclasses.dataclass(frozen=True)
class Goal:
    """A way to be right: objects that stay exactly as they are, pieces that appear, objects that go, and nothing else.

    A recoloured or moved object is neither in `kept` nor in `gone`: its piece stands for it.
    """

    kept: Scene
    new: tuple[Piece, ...] = ()
    gone: Scene = ()


def from_metadata(facts: Mapping[str, Any]) -> Change:
    """The change in a prompt's metadata."""
    place = facts["place"]
    if place is not None:
        place = Place(place["where"], place["of"] and Wanted(**place["of"]))
    return Change(facts["kind"], Wanted(**facts["what"]), facts["colour"], place)


def is_held_out(change: Change) -> bool:
    """Whether a change belongs to the held-out part: its key's SHA-256 is in the lowest `HELD_OUT_SHARE` of all values."""
    return int.from_bytes(hashlib.sha256(change.key().encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def means(what: Wanted, o: Object) -> bool:
    """Whether an object agrees in all that is named."""
    return what.shape == o.shape and what.colour in (None, o.colour)


def cells(place: Place | None, others: Scene) -> frozenset[str]:
    """The cells of a place, taken or not; `others` are the objects that a relation may refer to."""
    if place is None:
        return frozenset(CELLS)
    if place.of is None:
        return _SIDE_CELLS.get(place.where, frozenset({place.where}))
    marks = [o for o in others if means(place.of, o)]
    return frozenset(c for c in CELLS if any(holds(Object("", "", c), place.where, o) for o in marks))


def free_cells(place: Place | None, others: Scene) -> frozenset[str]:
    """The cells of a place that hold none of the others; where there is none, all such cells of the grid."""
    taken = {o.cell for o in others}
    return cells(place, others) - taken or frozenset(CELLS) - taken


def goals(change: Change, before: Scene) -> tuple[Goal, ...]:
    """All ways to do a change rightly upon a scene, by the rules above; at least one."""
    what = change.what
    meant = [o for o in before if means(what, o)]
    if change.kind == "add":
        return (_with(before, Piece(what.shape, what.colour, free_cells(change.place, before)), what.count),)
    if change.kind == "count":
        piece = Piece(what.shape, what.colour, free_cells(None, before))
        return (_with(before, piece, max(0, what.count - len(meant))),)
    if change.kind == "remove":
        return tuple(Goal(without(before, o), gone=(o,)) for o in meant) or (Goal(before),)
    if not meant:
        return (_with(before, Piece(what.shape, change.colour or what.colour, free_cells(change.place, before)), 1),)
    options = []
    for o in meant:
        others = without(before, o)
        where = frozenset({o.cell}) if change.kind == "recolour" else free_cells(change.place, others)
        options.append((o, Goal(others, (Piece(o.shape, change.colour or o.colour, where),))))
    return tuple(goal for o, goal in options if not goal.new[0].fits(o)) or (Goal(before),)


def complete(rng: np.random.Generator, goal: Goal) -> tuple[Scene, Scene]:
    """A random scene that reaches a goal, and those of its objects that are new."""
    new, taken = [], {o.cell for o in goal.kept}
    for piece in goal.new:
        options = [cell for cell in CELLS if cell in piece.cells - taken]
        cell = options[int(rng.random() * len(options))]
        new.append(Object(piece.colour or tuple(COLOURS)[int(rng.random() * len(COLOURS))], piece.shape, cell))
        taken.add(cell)
    return scene(*goal.kept, *new), tuple(new)


def statement(change: Change, before: Scene, new: Scene) -> str:
    """The opening of a thinking: the change, resolved for a scene and for the objects `new` that were chosen.

    `make red circle green`, `move red circle top-left`, `add red circle`, `add two circle`, `remove red circle`, and
    `add nothing` where nothing is to be added.
    """
    what, meant = change.what, [o for o in before if means(change.what, o)]
    name = f"{meant[0].colour} {meant[0].shape}" if len(meant) == 1 else " ".join(filter(None, (what.colour, what.shape)))
    match change.kind:
        case "recolour":
            return f"make {name} {change.colour}"
        case "move":
            return f"move {name} {new[0].cell if new else change.place.where.split()[0]}"
        case "remove":
            return f"remove {name}"
    if len(new) == 1:
        return f"add {new[0].colour} {new[0].shape}"
    return f"add {NUMBERS[len(new)]} {' '.join(filter(None, (what.colour, what.shape)))}" if new else "add nothing"


def without(objects: Scene, o: Object) -> Scene:
    """The other objects."""
    return tuple(other for other in objects if other != o)


def _with(before: Scene, piece: Piece, count: int) -> Goal:
    return Goal(before, (piece,) * min(count, len(CELLS) - len(before)))


def _name(what: Wanted) -> str:
    return f"{what.colour or 'any'} {what.shape}"
