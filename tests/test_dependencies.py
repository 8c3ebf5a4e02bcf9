"""Dependencies point one way: no circle of files, none of rooms, and nothing below imports what a person runs."""

import ast
import graphlib
import pathlib
import re

import pytest

from unigrpo_jax.models import families

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOPS = ("unigrpo_jax", "experiments", "launch")
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for top in TOPS for path in (ROOT / top).rglob("*.py")}


def imported(name: str) -> set[str]:
    """The files of ours that a file imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {other for other in found if other in FILES} - {name}


def room(name: str) -> str:
    """unigrpo_jax.models for a file below it, the file itself beside the rooms; `experiments` and `launch` are one each."""
    parts = name.split(".")
    return parts[0] if parts[0] != "unigrpo_jax" else ".".join(parts[:2])


IMPORTS = {name: imported(name) for name in FILES}


def test_the_files_make_no_circle():
    assert len(IMPORTS) > 100 and "unigrpo_jax.rewards.protocol" in IMPORTS["unigrpo_jax.worlds.shapes.judge"]
    tuple(graphlib.TopologicalSorter(IMPORTS).static_order())  # CycleError names the circle


def test_the_rooms_make_no_circle():
    rooms = {}
    for name, others in IMPORTS.items():
        rooms.setdefault(room(name), set()).update(room(other) for other in others)
    tuple(graphlib.TopologicalSorter({own: others - {own} for own, others in rooms.items()}).static_order())
    assert rooms["experiments"].isdisjoint({"launch"})


def test_a_circle_is_found():
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(IMPORTS | {"unigrpo_jax.config": {"unigrpo_jax.training.loop"}}).static_order())


BELOW = ("rollout", "learning", "training", "rewards", "worlds", "parallel")


def names_in_code(path: pathlib.Path) -> set[str]:
    """Every name, attribute, argument, import and plain text of a file's code, without docstrings and comments."""
    tree, found = ast.parse(path.read_text()), set()
    alone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    prose = {id(value) for value in alone if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.add(node.value)
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(getattr(node, field, None), str):
                found.add(getattr(node, field))
    return found


def test_no_code_but_that_of_models_names_a_family():
    """What a family can do is asked of its verbs; its name stands in its folder, in presets, in docs and in one list."""
    folders = [ROOT / "unigrpo_jax" / name for name in BELOW] + [ROOT / "launch"]
    paths = [p for folder in folders for p in folder.rglob("*.py")] + list((ROOT / "unigrpo_jax").glob("*.py"))
    pattern = re.compile(r"bagel|flux|stable.?diffusion|hunyuan|skyreels|ltx", re.IGNORECASE)
    named = {(path.name, name) for path in paths for name in names_in_code(path) if pattern.search(name)}
    assert named == {("plan.py", "bagel_7b")}  # the preset that is planned where none is named
    assert pattern.search(" ".join(names_in_code(ROOT / "unigrpo_jax" / "models" / "families.py")))


def test_help_says_what_each_family_can_do():
    words = (ROOT / "experiments" / "generate.py").read_text()
    for name in families.FAMILIES:
        assert re.search(rf"^    {name} +{re.escape(families.family(name).VERBS)}$", words, re.MULTILINE), name
