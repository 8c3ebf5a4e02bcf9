"""What a prompt of the shapes world requires, and its forms: metadata, key, and the statement that opens a thinking."""

import dataclasses
from collections.abc import Mapping
from typing import Any

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """`count` objects of one shape; colour None leaves the colour of each free."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Requirement:
    """The objects that an image must show, no more and no fewer.

    Attributes:
      category: one of GenEval's six.
      objects: what must be there.
      relation: how the first of `objects` stands to the second: "left of" and "right of" compare columns, "above" and
        "below" compare rows, strictly; None where there is no such condition.
    """

    category: str
    objects: tuple[Wanted, ...]
    relation: str | None = None

    def facts(self) -> str:
        """A text that is equal for two requirements exactly where the same images fulfil them."""
        objects, relation = self.objects, self.relation
        if relation in ("right of", "below"):
            objects, relation = (objects[1], objects[0], *objects[2:]), OPPOSITE[relation]
        names = [f"{wanted.count} {wanted.colour or 'any'} {wanted.shape}" for wanted in objects]
        return f" {relation} ".join(names) if relation else " and ".join(sorted(names))

    def statement(self) -> str:
        """The opening of a thinking, such as `two red circle` or `circle left of square`."""
        names = []
        for wanted in self.objects:
            counted = self.category == "counting" or wanted.count > 1
            words = [NUMBERS[wanted.count] if counted else None, wanted.colour, wanted.shape]
            names.append(" ".join(word for word in words if word))
        if self.relation:
            names = [f"{names[0]} {self.relation} {names[1]}", *names[2:]]
        return " and ".join(names)

    def metadata(self, *, indirect: bool) -> dict[str, Any]:
        """The JSON-serialisable facts of a prompt with this requirement."""
        return {
            "category": self.category,
            "indirect": indirect,
            "objects": [{"shape": w.shape, "colour": w.colour, "count": w.count} for w in self.objects],
            "relation": {"first": 0, "relation": self.relation, "second": 1} if self.relation else None,
            "key": f"{self.category}: {self.facts()}",
        }


def from_metadata(metadata: Mapping[str, Any]) -> Requirement:
    """The requirement in a prompt's metadata."""
    objects = tuple(Wanted(o["shape"], o["colour"], o["count"]) for o in metadata["objects"])
    relation = metadata["relation"]
    if relation is None:
        return Requirement(metadata["category"], objects)
    pair = objects[relation["first"]], objects[relation["second"]]
    return Requirement(metadata["category"], pair, relation["relation"])
