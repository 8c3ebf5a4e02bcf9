"""How motions are worded: of objects that are to be made, and of objects that a given picture shows.

A motion is a template over verbs, such as `{move} to the left`, which becomes a sentence (`a red circle moves to the left`),
what a clip is of (`a video of a red circle moving to the left`), or an order (`make the red circle move to the left`).
"""

from collections.abc import Iterator, Sequence

from unigrpo_jax.worlds.motion.requirement import Actor, Motion, MotionRequirement
from unigrpo_jax.worlds.shapes.requirement import Wanted
from unigrpo_jax.worlds.shapes.wording import with_article

FRAMES = ("a video of {}", "a clip of {}", "show {}")
ORDERS = ("make {} {}", "let {} {}")

WAYS = {
    "left": ("to the left", "leftwards", "from right to left"),
    "right": ("to the right", "rightwards", "from left to right"),
    "up": ("up", "upwards", "from bottom to top"),
    "down": ("down", "downwards", "from top to bottom"),
}
WALLS = {"left": "left wall", "right": "right wall", "up": "top wall", "down": "bottom wall"}
# Where the first of two that meet comes from, and where the second.
SIDES = {
    "right": (("from the left", "from the right"), ("on the left", "on the right")),
    "left": (("from the right", "from the left"), ("on the right", "on the left")),
    "down": (("from the top", "from the bottom"), ("at the top", "at the bottom")),
    "up": (("from the bottom", "from the top"), ("at the bottom", "at the top")),
}
SLOW_AND_FAST = {"slow": (("slowly",), ("at a slow pace",)), "fast": (("quickly",), ("at high speed",))}
MOVES = ("{move}", "{glide}", "{slide}")
MEETINGS = ("{meet} and {bounce} apart", "{move} towards each other and {bounce} apart", "{collide} and {turn} back")

_VERBS = {
    "move": ("moves", "moving"), "glide": ("glides", "gliding"), "slide": ("slides", "sliding"),
    "bounce": ("bounces", "bouncing"), "come": ("comes", "coming"), "stop": ("stops", "stopping"),
    "stay": ("stays", "staying"), "meet": ("meets", "meeting"), "collide": ("collides", "colliding"),
    "turn": ("turns", "turning"),
}  # fmt: skip
_BASE = {verb: verb for verb in _VERBS}
_FINITE = {verb: forms[0] for verb, forms in _VERBS.items()}
_PARTICIPLE = {verb: forms[1] for verb, forms in _VERBS.items()}


def wordings(requirement: MotionRequirement) -> Iterator[str]:
    """All texts that ask for a clip which fulfils a requirement."""
    names = [_a(actor.what) for actor in requirement.actors]
    if requirement.category == "meeting":
        for first, second in SIDES[requirement.actors[0].motion.direction]:
            both = f"{names[0]} {first} and {names[1]} {second}"
            for template in MEETINGS:
                yield f"{both} {template.format_map(_BASE)}"
                yield from (frame.format(f"{both} {template.format_map(_PARTICIPLE)}") for frame in FRAMES)
        return
    for templates in _together(requirement.actors):
        yield from _joined(names, templates, _FINITE)
        for text in _joined(names, templates, _PARTICIPLE):
            yield from (frame.format(text) for frame in FRAMES)


def orders(requirement: MotionRequirement, names: Sequence[str]) -> Iterator[str]:
    """All texts that ask for a motion of what a picture shows; `names` are phrases for the objects, such as `the circle`.

    Where one of two objects moves, what is said is that one's motion alone, or also that the other stays still.
    """
    if requirement.category == "meeting":
        both = " and ".join(names)
        for template in MEETINGS:
            yield f"{both} {template.format_map(_BASE)}"
            yield from (order.format(both, template.format_map(_BASE)) for order in ORDERS)
        return
    moving = [i for i, actor in enumerate(requirement.actors) if actor.motion.course != "still"]
    if len(moving) == 1:
        name = names[moving[0]]
        for template in motions(requirement.actors[moving[0]].motion):
            yield f"{name} {template.format_map(_FINITE)}"
            yield from (order.format(name, template.format_map(_BASE)) for order in ORDERS)
    if len(names) > 1:
        for templates in _together(requirement.actors):
            yield from _joined(names, templates, _FINITE)


def motions(motion: Motion) -> Iterator[str]:
    """Templates over verbs for one object's motion."""
    match motion.course:
        case "still":
            yield "{stay} still"
        case "straight" if motion.direction is None:
            for verb in MOVES:
                yield f"{verb} in a straight line"
                yield f"{verb} straight on"
        case "straight":
            before, after = SLOW_AND_FAST[motion.pace] if motion.pace else (("",), ())
            for verb in MOVES:
                for way in WAYS[motion.direction]:
                    yield from (f"{verb} {pace} {way}".replace("  ", " ") for pace in before)
                    yield from (f"{verb} {way} {pace}" for pace in after)
        case "bounce":
            wall = WALLS[motion.direction]
            yield f"{{bounce}} off the {wall}"
            for verb in MOVES:
                yield f"{verb} to the {wall} and {{bounce}} off"
                yield f"{verb} {WAYS[motion.direction][0]} and {{bounce}} off the wall"
                yield f"{verb} to the {wall} and {{come}} back"
        case "stop":
            for verb in MOVES:
                yield f"{verb} to the {WALLS[motion.direction]} and {{stop}} there"
                yield f"{verb} {WAYS[motion.direction][0]} and {{stop}} at the wall"
                yield f"{verb} to the {WALLS[motion.direction]} and {{stay}} there"


def _together(actors: Sequence[Actor]) -> Iterator[tuple[str, ...]]:
    """A template for each object; of two, the same verb for both."""
    if len(actors) == 1:
        yield from ((template,) for template in motions(actors[0].motion))
        return
    for verb in (*MOVES, "{bounce}"):
        first, second = ([t for t in motions(a.motion) if a.motion.course == "still" or t.startswith(verb)] for a in actors)
        for i in range(max(len(first), len(second)) if first and second else 0):
            yield first[i % len(first)], second[i % len(second)]


def _joined(names: Sequence[str], templates: Sequence[str], verbs: dict[str, str]) -> Iterator[str]:
    parts = [f"{name} {template.format_map(verbs)}" for name, template in zip(names, templates, strict=True)]
    joints = (" and ", " while ") if len(parts) > 1 and verbs is _FINITE else (" and ",)
    yield from (joint.join(parts) for joint in joints)


def _a(what: Wanted) -> str:
    return with_article(f"{what.colour} {what.shape}" if what.colour else what.shape)
