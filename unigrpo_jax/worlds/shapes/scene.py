"""A scene of the shapes world, and its plan: the text that names every object and its place.

A scene is a tuple of objects in distinct cells of a 3x3 grid, in reading order.  A plan is the thinking of an episode:
what the prompt asks for, resolved, then a colon, then the objects, always in singular words, each word one token:

    two red circle : red circle top-left , red circle right
"""

import dataclasses

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
    "purple": (192, 0, 255),
}
CELLS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
MAX_OBJECTS = 4
MAX_THINKING_WORDS = 23

_CELL_INDEX = {cell: i for i, cell in enumerate(CELLS)}


@dataclasses.dataclass(frozen=True)
class Object:
    """One shape of one colour in one cell."""

    colour: str
    shape: str
    cell: str

    @property
    def index(self) -> int:
        """Place of the cell in reading order, 0..8."""
        return _CELL_INDEX[self.cell]

    @property
    def row(self) -> int:
        """Row of the cell, 0 at the top."""
        return self.index // 3

    @property
    def column(self) -> int:
        """Column of the cell, 0 at the left."""
        return self.index % 3


Scene = tuple[Object, ...]


def scene(*objects: Object) -> Scene:
    """The objects in reading order; a cell holds at most one."""
    if len({o.cell for o in objects}) != len(objects):
        raise ValueError(f"scene: two objects share a cell in {objects}; give each its own")
    return tuple(sorted(objects, key=lambda o: o.index))


def plan_text(statement: str, objects: Scene) -> str:
    """The thinking for a scene: `statement : colour shape cell , colour shape cell`."""
    return f"{statement} : {objects_text(objects)}"


def objects_text(objects: Scene) -> str:
    """The objects of a plan: `colour shape cell , colour shape cell`, empty for none."""
    return " , ".join(f"{o.colour} {o.shape} {o.cell}" for o in objects)


def parse_plan(text: str) -> Scene | None:
    """The scene that a thinking plans; None where what follows the first colon is no list of objects in distinct cells.

    The statement before the colon is not read.  Objects may stand in any order; the scene comes back in reading order.
    """
    words = text.split()
    if ":" not in words:
        return None
    words = words[words.index(":") + 1 :]
    if len(words) % 4 != 3 or any(word != "," for word in words[3::4]):
        return None
    objects = [Object(*words[i : i + 3]) for i in range(0, len(words), 4)]
    known = all(o.colour in COLOURS and o.shape in SHAPES and o.cell in _CELL_INDEX for o in objects)
    if not known or len({o.cell for o in objects}) != len(objects):
        return None
    return scene(*objects)
