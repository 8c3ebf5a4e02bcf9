"""How changes of a picture are worded: directly, or so that something must be worked out first.

Each function yields (text, indirect) pairs, without the frame ("please ...") around them.  A wording has at most one
indirection: a described object, a colour told by a thing, a compass point, or a number that is to be reached.
"""

from collections.abc import Iterable, Iterator, Sequence

from unigrpo_jax.worlds.shapes.change import SPOTS, Change
from unigrpo_jax.worlds.shapes.judge import holds
from unigrpo_jax.worlds.shapes.requirement import NUMBERS, OPPOSITE, Wanted
from unigrpo_jax.worlds.shapes.scene import Object
from unigrpo_jax.worlds.shapes.wording import OWNERS, RELATIONS, THINGS, nouns, one

CHANGE_FRAMES = ("{}", "please {}", "now {}", "now please {}")

RECOLOURS = ("make {} {}", "paint {} {}", "draw {} in {}")
THING_RECOLOURS = ("make {} the colour of {}", "paint {} in the colour of {}")
REMOVALS = ("remove {}", "draw the picture without {}", "make a picture without {}")
ADDITIONS = ("add {}", "add {} to the picture", "put {} in the picture")
SPOT_MOVES, SPOT_ADDITIONS = ("move {} to the {}", "put {} in the {}"), ("add {} in the {}", "put {} in the {}")
SIDE_MOVES, SIDE_ADDITIONS = ("move {} to the {}", "put {} on the {}"), ("add {} on the {}", "put {} on the {}")
MORE = ("add {} more {}", "{} more {}", "draw {} more {}")
UNTIL = ("add {} until there are {}", "draw {} until there are {}")
DOUBLED = "add as many {} as there are"

Reference = tuple[str, bool]


def words() -> set[str]:
    """The words of the templates here; those that fill them are the shapes world's own, and `it`."""
    templates = (*CHANGE_FRAMES, *RECOLOURS, *THING_RECOLOURS, *REMOVALS, *ADDITIONS, *SPOT_MOVES, *SPOT_ADDITIONS)
    templates += (*SIDE_MOVES, *SIDE_ADDITIONS, *MORE, *UNTIL, DOUBLED, "it")
    return set(" ".join(templates).split()) - {"{}"}


def references(o: Object, others: Sequence[Object]) -> Iterator[Reference]:
    """Phrases that mean one object of a scene and none of the others; none is yielded where another one is of its kind."""
    yield from kind_references(Wanted(o.shape, o.colour), [Wanted(other.shape, other.colour) for other in others])
    if all(other.colour != o.colour for other in others):
        yield f"the {o.colour} shape", True
        for noun, _ in THINGS[o.colour]:
            yield f"the {noun} coloured shape", True
    if o.cell in SPOTS:
        yield f"the shape in the {o.cell}", True
    for mark in others:
        rest = [other for other in others if other != mark]
        kinds = [Wanted(other.shape, other.colour) for other in (o, *rest)]
        marks = [name for name, hidden in kind_references(Wanted(mark.shape, mark.colour), kinds) if not hidden]
        for relation in OPPOSITE:
            if holds(o, relation, mark) and not any(holds(other, relation, mark) for other in rest):
                yield from ((f"the shape {relation} {name}", True) for name in marks)


def kind_references(kind: Wanted, others: Sequence[Wanted]) -> Iterator[Reference]:
    """Phrases that mean a kind of object and none of the others, of which some colours may be unknown."""
    for what in descriptions(kind, others):
        yield from names(what)


def descriptions(kind: Wanted, others: Sequence[Wanted]) -> list[Wanted]:
    """The shape alone, and the shape with its colour, where that is enough to mean a kind and none of the others."""
    alike = [other for other in others if other.shape == kind.shape]
    enough = [] if alike else [Wanted(kind.shape)]
    if kind.colour and all(other.colour not in (None, kind.colour) for other in alike):
        enough.append(Wanted(kind.shape, kind.colour))
    return enough


def names(what: Wanted) -> Iterator[Reference]:
    """Phrases for what is described, by its shape or by shape and colour."""
    for noun, indirect in nouns(what):
        yield f"the {noun}", indirect


def wordings(
    change: Change, what: Iterable[Reference] = (), of: Iterable[Reference] = (), there: int | None = None
) -> Iterator[Reference]:
    """All wordings of a change.

    Args:
      change: what is asked for.
      what: phrases for the object that is meant, of a recolour, a move and a removal.
      of: phrases for the other object of a place.
      there: of a count, how many there are now; None where that is not known.
    """
    match change.kind:
        case "recolour":
            yield from _recolours(change.colour, what)
        case "move":
            yield from _placed(change, what, of, ("move", "put"), SPOT_MOVES, SIDE_MOVES)
        case "add" if change.place:
            yield from _placed(change, one(change.what), of, ("add", "put"), SPOT_ADDITIONS, SIDE_ADDITIONS)
        case "add":
            for phrase, indirect in one(change.what):
                for template in ADDITIONS:
                    yield template.format(phrase), indirect
        case "remove":
            for reference, indirect in what:
                for template in REMOVALS:
                    yield template.format(reference), indirect
        case "count":
            yield from _counts(change.what, there)


def _recolours(colour: str, what: Iterable[Reference]) -> Iterator[Reference]:
    for reference, indirect in what:
        for template in RECOLOURS:
            yield template.format(reference, colour), indirect
        if not indirect:
            for noun, thing in THINGS[colour]:
                yield f"make {reference} {noun} coloured", True
                for template in THING_RECOLOURS:
                    yield template.format(reference, thing), True


def _placed(change: Change, what, of, verbs, spots, sides) -> Iterator[Reference]:
    """Something to be put in a place; `what` and `of` are phrases, one of the two indirect at most."""
    where, of = change.place.where, list(of)
    for phrase, indirect in what:
        if change.place.of is None:
            for template in spots if where in SPOTS else sides:
                yield template.format(phrase, where), indirect
            continue
        plain, turned = RELATIONS[where]
        for mark, mark_indirect in of:
            if not (indirect and mark_indirect):
                for verb in verbs:
                    for joined in plain:
                        yield f"{verb} {joined.format(a=phrase, b=mark)}", indirect or mark_indirect
                    if not (indirect or mark_indirect):
                        yield f"{verb} {turned[0].format(a=phrase, b=mark)}", True


def _counts(what: Wanted, there: int | None) -> Iterator[Reference]:
    """A number to be reached; or the objects that are missing to it, where it is known how many there are."""
    many = next(nouns(Wanted(what.shape, what.colour), plural=True))[0]
    for template in UNTIL:
        yield template.format(many, NUMBERS[what.count]), True
        for owner in OWNERS[what.count]:
            yield template.format(many, f"as many as {owner}"), True
        if what.count == 4:
            yield template.format(many, "two pairs"), True
    if there is None:
        return
    more = what.count - there
    for noun, indirect in nouns(Wanted(what.shape, what.colour), plural=more > 1):
        for template in MORE:
            yield template.format(NUMBERS[more], noun), indirect
    if more == there:
        yield DOUBLED.format(many), True
