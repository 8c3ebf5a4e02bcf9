"""Scenes for the tests of the shapes world, written without its own parser."""

from unigrpo_jax.worlds.shapes.scene import Object, scene

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
CELLS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")


def objects(text: str) -> tuple[Object, ...]:
    """The scene of `red circle top-left, blue square right`."""
    return scene(*(Object(*part.split()) for part in text.split(",") if part.strip()))


def random_scene(rng, n: int) -> tuple[Object, ...]:
    """n random objects in random cells."""
    cells = rng.permutation(9)[:n]
    return scene(*(Object(COLOURS[rng.integers(6)], SHAPES[rng.integers(4)], CELLS[i]) for i in cells))
