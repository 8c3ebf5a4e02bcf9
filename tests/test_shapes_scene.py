"""Scenes, plans and drawings: a plan reads back, bad grammar is refused, a picture is the one sketched by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scenes import CELLS, COLOURS, SHAPES, objects, random_scene
from unigrpo_jax.worlds.shapes.drawing import render
from unigrpo_jax.worlds.shapes.scene import Object, parse_plan, plan_text, scene

WORDS = (*SHAPES, *COLOURS, *CELLS, ":", ",", "two", "and", "of")


def test_a_plan_is_worded_as_its_grammar_says():
    plan = plan_text("two red circle", objects("red circle top-left, red circle right"))
    assert plan == "two red circle : red circle top-left , red circle right"


def test_plans_read_back():
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = random_scene(rng, rng.integers(1, 5))
        assert parse_plan(plan_text("anything at all , whatever", drawn)) == drawn


def test_objects_of_a_plan_may_stand_in_any_order():
    expected = (Object("blue", "cross", "top"), Object("red", "circle", "left"), Object("white", "square", "bottom-right"))
    assert parse_plan("x : white square bottom-right , blue cross top , red circle left") == expected


def test_a_plan_needs_no_statement():
    assert parse_plan(": red circle top") == (Object("red", "circle", "top"),)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "red circle", "red circle top", "red circle :", ":", ": ,", "a : red circle", "a : red circle top ,",
        "a : , red circle top", "a : red circle top , , red circle left", "a : red circle top red circle left",
        "a : red circle top : red circle left", "a : circle red top", "a : red circles top", "a : pink circle top",
        "a : red star top", "a : red circle middle", "a : Red circle top", "a : red circle top and red circle left",
        "a : red circle top , blue square top", "a: red circle top", "a : red circle top, blue square left",
        "a : red circle top , blue square", "a : two red circle top", "a : red circle top , blue square left right",
    ],
)  # fmt: skip
def test_bad_grammar_is_no_plan(text):
    assert parse_plan(text) is None


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=16).map(" ".join)))
def test_any_text_parses_or_is_refused_and_never_raises(text):
    planned = parse_plan(text)
    if planned is not None:
        assert len({o.cell for o in planned}) == len(planned) >= 1
        assert [CELLS.index(o.cell) for o in planned] == sorted(CELLS.index(o.cell) for o in planned)
        assert parse_plan(plan_text("", planned)) == planned


def test_two_objects_in_a_cell_are_refused():
    with pytest.raises(ValueError, match="share a cell"):
        scene(Object("red", "circle", "top"), Object("blue", "square", "top"))


def test_cells_have_the_rows_and_columns_of_their_names():
    for cell in CELLS:
        row = 0 if "top" in cell else 2 if "bottom" in cell else 1
        column = 0 if "left" in cell else 2 if "right" in cell else 1
        o = Object("red", "circle", cell)
        assert (o.row, o.column) == (row, column)


def test_pictures_are_those_drawn_by_hand():
    """All 24 rows of one picture, a letter for a colour."""
    picture = """
        ........................
        ..RRRR.....PP...........
        .RR..RR....PP...........
        .R....R...PPPP..........
        .R....R...PPPP..........
        .RR..RR..PPPPPP.........
        ..RRRR...PPPPPP.........
        ........................
        ........................
        ...................GG...
        ...................GG...
        .................GGGGGG.
        .................GGGGGG.
        ...................GG...
        ...................GG...
        ........................
        ........................
        .........WWWWWW.........
        .........WWWWWW.........
        .........WWWWWW.........
        .........WWWWWW.........
        .........WWWWWW.........
        .........WWWWWW.........
        ........................
    """.split()
    rgb = {".": (0, 0, 0), "R": (255, 0, 0), "P": (192, 0, 255), "G": (0, 255, 0), "W": (255, 255, 255)}
    expected = np.array([[rgb[letter] for letter in row] for row in picture], np.uint8)
    drawn = render(objects("red circle top-left, purple triangle top, green cross right, white square bottom"))
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.dtype == np.uint8
