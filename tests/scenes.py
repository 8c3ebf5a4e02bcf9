"""Scenes for the tests of the shapes world, written without its own parser."""

from unigrpo_jax.worlds.shapes.scene import Object, scene

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
CELLS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")


def objects(text: str) -> tuple[Object, ...]:
    """The scene of `red circle top-left, blue square right`."""
    return scene(*(Object(*part.split()) for part in text.split(",") if part.strip()))


def metadata(category: str, *kinds: str, relation: str | None = None) -> dict:
    """Facts of a prompt that wants `count colour shape` each, the colour possibly `any`."""
    split = [kind.split() for kind in kinds]
    return {
        "category": category,
        "objects": [{"shape": s, "colour": None if c == "any" else c, "count": int(n)} for n, c, s in split],
        "relation": relation and {"first": 0, "relation": relation, "second": 1},
    }


def as_dict(scene_) -> dict[int, tuple[str, str]]:
    """{number of the cell: (colour, shape)} of a scene."""
    return {CELLS.index(o.cell): (o.colour, o.shape) for o in scene_}


def random_scene(rng, n: int) -> tuple[Object, ...]:
    """n random objects in random cells."""
    cells = rng.permutation(9)[:n]
    return scene(*(Object(COLOURS[rng.integers(6)], SHAPES[rng.integers(4)], CELLS[i]) for i in cells))
