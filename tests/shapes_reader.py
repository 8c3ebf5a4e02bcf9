"""Reads changes of a picture from their words alone, and says which pictures fulfil them; none of the world's own code.

A picture is a dict {cell number 0..8: (colour, shape)}.
"""

import itertools
import re

from tests.scenes import CELLS, COLOURS, SHAPES

FEATURES = {
    "circle": ("without corners", "like a ring"),
    "square": ("with four equal sides", "with four corners"),
    "triangle": ("with three sides", "with three corners"),
    "cross": ("like a plus sign", "with twelve corners"),
}
THINGS = {
    "red": ("blood", "tomato"), "green": ("grass", "leaf"), "blue": ("sky", "ocean"),
    "yellow": ("banana", "lemon"), "white": ("snow", "milk"), "purple": ("grape", "eggplant"),
}  # fmt: skip
SPOTS = ("top-left", "top-right", "bottom-left", "bottom-right", "center")
RELATIONS = {
    "left": ("to the left of", "left of", "west of"), "right": ("to the right of", "right of", "east of"),
    "above": ("above", "over", "north of"), "below": ("below", "under", "south of"),
}  # fmt: skip
OWNED = {
    "a face has noses": 1, "a bird has tails": 1, "a bird has wings": 2, "a person has eyes": 2,
    "a triangle has sides": 3, "a triangle has corners": 3, "a square has corners": 4, "a car has wheels": 4,
}  # fmt: skip
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}

_ANY = lambda words: "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"
_SHAPE = _ANY([*SHAPES, *(s + "s" for s in SHAPES), "crosses", "shapes", "shape", "something"])
_THING = _ANY(itertools.chain(*THINGS.values()))
_PLAIN = rf"(?:the |an? )?(?:{_ANY(COLOURS)} |{_THING} coloured )?{_SHAPE}(?: {_ANY(itertools.chain(*FEATURES.values()))})?"
_NOUN = rf"(?:{_PLAIN})(?: in the colour of (?:the |an? )?{_THING})?"
_RELATION = _ANY(itertools.chain(*RELATIONS.values()))
_MEANT = rf"(?:it|the shape in the {_ANY(SPOTS)}|the shape (?:left of|right of|above|below) {_PLAIN}|{_NOUN})"
_PLACE = rf"(?:(?:to|in|on) the {_ANY([*SPOTS, 'top', 'bottom', 'left', 'right'])}|{_RELATION} {_NOUN})"


def kind(phrase: str) -> tuple[str | None, str | None]:
    """Colour and shape that a noun phrase names or describes, None for what it leaves open."""
    shapes = [s for s in SHAPES if re.search(rf"\b{s}(s|es)?\b", phrase) or any(f in phrase for f in FEATURES[s])]
    colours = [c for c in COLOURS if re.search(rf"\b({c}|{'|'.join(THINGS[c])})\b", phrase)]
    assert len(shapes) <= 1 and len(colours) <= 1, phrase
    return (colours or [None])[0], (shapes or [None])[0]


def read(text: str) -> dict:
    """What an instruction asks for: `kind`, and what belongs to it."""
    text = re.sub("^(now please |now |please )", "", text)
    if match := re.fullmatch(rf"(?:remove|draw the picture without|make a picture without) ({_MEANT})", text):
        return {"kind": "remove", "what": match[1]}
    if match := re.fullmatch(r"(?:add|draw) (.+) until there are (?:as many as (.+)|(two pairs)|(\w+))", text):
        total = OWNED[match[2]] if match[2] else 4 if match[3] else NUMBERS[match[4]]
        return {"kind": "count", "of": kind(match[1]), "total": total}
    if match := re.fullmatch(r"(?:add |draw )?(one|two|three) more (.+)", text):
        return {"kind": "count", "of": kind(match[2]), "more": NUMBERS[match[1]]}
    if match := re.fullmatch(r"add as many (.+) as there are", text):
        return {"kind": "count", "of": kind(match[1]), "double": True}
    if match := re.fullmatch(rf"(?:add|put) ((?:an? |something ).+?)(?: to the picture| in the picture| ({_PLACE}))?", text):
        if re.fullmatch(_NOUN, match[1]):
            return {"kind": "add", "of": kind(match[1]), "place": match[2]}
    if match := re.fullmatch(rf"(?:move|put) ({_MEANT}) ({_PLACE})", text):
        return {"kind": "move", "what": match[1], "place": match[2]}
    match = re.fullmatch(rf"(?:make|paint|draw) ({_MEANT}) (?:in )?({_ANY(COLOURS)})", text) or re.fullmatch(
        rf"(?:make|paint) ({_MEANT}) ((?:in )?the colour of .+|{_THING} coloured)", text
    )
    assert match, text
    return {"kind": "recolour", "what": match[1], "colour": kind(match[2])[0]}


def agrees(wanted, o) -> bool:
    return all(w in (None, x) for w, x in zip(wanted, o, strict=True))


def stands(a: int, relation: str, b: int) -> bool:
    row, column = a // 3 - b // 3, a % 3 - b % 3
    return {"left": column < 0, "right": column > 0, "above": row < 0, "below": row > 0}[relation]


def meant(phrase: str, picture: dict) -> list[int]:
    """The cells of the objects that a phrase means."""
    if match := re.fullmatch(r"the shape in the (.+)", phrase):
        if match[1] in CELLS:
            return [c for c in picture if c == CELLS.index(match[1])]
    if match := re.fullmatch(r"the shape (left|right|above|below)(?: of)? (the .+)", phrase):
        (mark,) = [c for c in picture if agrees(kind(match[2]), picture[c])]
        return [c for c in picture if c != mark and stands(c, match[1], mark)]
    return [c for c in picture if agrees(kind(phrase), picture[c])]


def allowed(place: str | None, picture: dict) -> set[int]:
    """The cells of a place, taken or not; `picture` is that of the other objects."""
    if place is None:
        return set(range(9))
    if match := re.fullmatch(r"(?:to|in|on) the ([a-z-]+)", place):
        sides = {"top": {0, 1, 2}, "bottom": {6, 7, 8}, "left": {0, 3, 6}, "right": {2, 5, 8}}
        return sides.get(match[1]) or {CELLS.index(match[1])}
    name, words = next((n, w) for n, every in RELATIONS.items() for w in every if place.startswith(w + " "))
    (mark,) = meant(place.removeprefix(words + " "), picture)
    return {c for c in range(9) if stands(c, name, mark)}


def fulfils(text: str, before: dict, after: dict) -> bool:
    """Whether one picture is another one with an instruction done and nothing else; the instruction means one thing."""
    asked = read(text)
    new = {c: o for c, o in after.items() if before.get(c) != o}
    lost = {c: o for c, o in before.items() if after.get(c) != o}
    if asked["kind"] in ("add", "count"):
        there = sum(agrees(asked["of"], o) for o in before.values())
        number = asked.get("more") or (asked["total"] - there if "total" in asked else there if "double" in asked else 1)
        cells = allowed(asked.get("place"), before)
        return not lost and len(new) == number and all(agrees(asked["of"], o) and c in cells for c, o in new.items())
    (target,) = meant(asked["what"], before)
    others = {c: o for c, o in before.items() if c != target}
    colour, shape = before[target]
    if asked["kind"] == "remove":
        return after == others
    if asked["kind"] == "recolour":
        return asked["colour"] != colour and after == {**others, target: (asked["colour"], shape)}
    assert target not in allowed(asked["place"], others)
    cells = allowed(asked["place"], others) - set(others)
    return any(after == {**others, c: (colour, shape)} for c in cells)
