"""How the requirements of the shapes world are worded: directly, or so that something must be worked out first.

Each function yields (text, indirect) pairs, without the frame ("draw ...") that `prompts` puts around them.  A wording
has at most one indirection, except that a lone coloured object may hide both its shape and its colour.
"""

from collections.abc import Iterator

from unigrpo_jax.worlds.shapes.requirement import NUMBERS, Requirement, Wanted

FRAMES = ("{}", "draw {}", "show {}", "please draw {}", "an image of {}", "a picture with {}")

PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "shape": "shapes"}

# What tells a shape from the other three.
FEATURES = {
    "circle": ("without corners", "like a ring"),
    "square": ("with four equal sides", "with four corners"),
    "triangle": ("with three sides", "with three corners"),
    "cross": ("like a plus sign", "with twelve corners"),
}
# Things of a colour: as a noun, and with the article that it takes.
THINGS = {
    "red": (("blood", "blood"), ("tomato", "a tomato")),
    "green": (("grass", "grass"), ("leaf", "a leaf")),
    "blue": (("sky", "the sky"), ("ocean", "the ocean")),
    "yellow": (("banana", "a banana"), ("lemon", "a lemon")),
    "white": (("snow", "snow"), ("milk", "milk")),
    "purple": (("grape", "a grape"), ("eggplant", "an eggplant")),
}
# What comes in a number: `as many circles as a triangle has sides`.
OWNERS = {
    1: ("a face has noses", "a bird has tails"),
    2: ("a bird has wings", "a person has eyes"),
    3: ("a triangle has sides", "a triangle has corners"),
    4: ("a square has corners", "a car has wheels"),
}
RELATIONS = {
    "left of": (("{a} left of {b}", "{a} to the left of {b}"), ("{a} west of {b}", "{b} with {a} on its left")),
    "right of": (("{a} right of {b}", "{a} to the right of {b}"), ("{a} east of {b}", "{b} with {a} on its right")),
    "above": (("{a} above {b}", "{a} over {b}"), ("{a} north of {b}", "{b} with {a} on top")),
    "below": (("{a} below {b}", "{a} under {b}"), ("{a} south of {b}", "{b} with {a} underneath")),
}


def wordings(requirement: Requirement) -> Iterator[tuple[str, bool]]:
    """All wordings of a requirement, as (text, indirect)."""
    if requirement.category == "counting":
        yield from _countings(requirement.objects[0])
    elif len(requirement.objects) == 1:
        yield from _singles(requirement.objects[0])
    else:
        yield from _pairs(requirement)


def nouns(wanted: Wanted, plural: bool = False) -> Iterator[tuple[str, bool]]:
    """Noun phrases without article or number for one kind of object."""
    shape, thing = (PLURALS[wanted.shape], "shapes") if plural else (wanted.shape, "shape")
    colour = f"{wanted.colour} " if wanted.colour else ""
    yield f"{colour}{shape}", False
    for feature in FEATURES[wanted.shape]:
        yield f"{colour}{thing} {feature}", True
    for noun, thing_name in THINGS.get(wanted.colour, ()):
        yield f"{noun} coloured {shape}", True
        yield f"{shape} in the colour of {thing_name}", True


def with_article(noun: str) -> str:
    """The noun with `a` or `an` in front."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def one(wanted: Wanted) -> Iterator[tuple[str, bool]]:
    """Noun phrases for one object, with article."""
    for noun, indirect in nouns(wanted):
        yield with_article(noun), indirect
    if wanted.colour is None:
        for feature in FEATURES[wanted.shape]:
            yield f"something {feature}", True


def _singles(wanted: Wanted) -> Iterator[tuple[str, bool]]:
    yield from one(wanted)
    for noun, indirect in nouns(wanted):
        yield f"a single {noun}", indirect
    if wanted.colour is None:
        yield f"just a {wanted.shape}", False
        yield f"a {wanted.shape} and nothing else", False
    for feature in FEATURES[wanted.shape]:
        yield f"the {wanted.colour + ' ' if wanted.colour else ''}shape {feature}", True
        for noun, _ in THINGS.get(wanted.colour, ()):
            yield f"{with_article(noun)} coloured shape {feature}", True


def _countings(wanted: Wanted) -> Iterator[tuple[str, bool]]:
    """Counts in words; a count of one only by arithmetic, because directly it is a single object."""
    n = wanted.count
    singular, many = (next(nouns(wanted, plural))[0] for plural in (False, True))

    def times(count: int) -> str:
        return f"{NUMBERS[count]} {singular if count == 1 else many}"

    if n > 1:
        for noun, indirect in nouns(wanted, plural=True):
            yield f"{NUMBERS[n]} {noun}", indirect
        yield f"exactly {NUMBERS[n]} {many}", False
        yield f"a group of {NUMBERS[n]} {many}", False
        yield f"one more than {times(n - 1)}", True
        yield f"{times(n - 1)} and one more", True
        yield f"{NUMBERS[n - 1]} plus one {many}", True
    if n == 2:
        yield f"a pair of {many}", True
    if n == 4:
        yield f"two pairs of {many}", True
    if n <= 3:
        yield f"half of {NUMBERS[2 * n]} {many}", True
    yield f"one fewer than {times(n + 1)}", True
    for owner in OWNERS[n]:
        yield f"as many {many} as {owner}", True


def _pairs(requirement: Requirement) -> Iterator[tuple[str, bool]]:
    """Two objects, joined by `and` or by the relation."""
    first, second = requirement.objects
    if requirement.relation:
        plain, turned = RELATIONS[requirement.relation]
    else:
        plain, turned = ("{a} and {b}", "{a} together with {b}", "both {a} and {b}"), ()
    for a, a_indirect in one(first):
        for b, b_indirect in one(second):
            if not (a_indirect and b_indirect):
                for joined in plain[:1] if a_indirect or b_indirect else plain:
                    yield joined.format(a=a, b=b), a_indirect or b_indirect
            if not (a_indirect or b_indirect):
                for joined in turned:
                    yield joined.format(a=a, b=b), True
