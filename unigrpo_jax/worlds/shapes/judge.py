"""Judges what an image shows, or what a plan says, against what the prompt requires.

Exact is GenEval's correctness: the objects are those required, with the colours that are named, in the relation that is
named, and there is nothing else, neither extra nor unclear.

Graded is 1 where exact and else `PARTIAL` * s with

    m = (sum of pair scores under the best matching) / max(required, found + unclear)
    s = m                       without a relation
    s = 0.75 * m + 0.25 * r     with one; r is 1 where a found pair of the right kinds stands in the relation, else 0

and a required and a found object score 0.2 for being there, 0.5 more for the right shape, 0.3 more for the right colour
(a free colour counts as right where the shape is).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.worlds.shapes.checker import Findings, find_objects_batch
from unigrpo_jax.worlds.shapes.requirement import Wanted, from_metadata
from unigrpo_jax.worlds.shapes.scene import Object, parse_plan

PARTIAL = 0.8


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judgement: exactly right or not, a grade in [0, 1], and the reason in words."""

    exact: bool
    graded: float
    reason: str


def holds(first: Object, relation: str, second: Object) -> bool:
    """Whether two objects stand in a relation, strictly."""
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[relation]


def judge(findings: Findings, metadata: Mapping[str, Any]) -> Verdict:
    """Judges findings by the formula above."""
    requirement = from_metadata(metadata)
    required = [wanted for wanted in requirement.objects for _ in range(wanted.count)]
    found = findings.objects
    scores = np.array([[_score(wanted, o) for o in found] for wanted in required]).reshape(len(required), len(found))
    rows, columns = linear_sum_assignment(scores, maximize=True)
    related = requirement.relation is None or any(
        _score(requirement.objects[0], a) == _score(requirement.objects[1], b) == 1
        and holds(a, requirement.relation, b)
        for a in found
        for b in found
        if a is not b
    )

    right = {i: j for i, j in zip(rows, columns, strict=True) if scores[i, j] == 1}
    faults = [f"missing: {_name(wanted)}" for i, wanted in enumerate(required) if i not in right]
    faults += [f"extra: {o.colour} {o.shape}" for j, o in enumerate(found) if j not in right.values()]
    faults += [f"unclear cell: {cell}" for cell in findings.unclear]
    if not faults and not related:
        faults = [f"not {requirement.relation}"]
    if not faults:
        return Verdict(True, 1.0, "right")

    share = scores[rows, columns].sum() / max(len(required), len(found) + len(findings.unclear))
    partial = share if requirement.relation is None else 0.75 * share + 0.25 * related
    return Verdict(False, float(PARTIAL * partial), "; ".join(faults))


def _score(wanted: Wanted, o: Object) -> float:
    """Score of a required and a found object, 1 where it is right."""
    shape = wanted.shape == o.shape
    colour = shape if wanted.colour is None else wanted.colour == o.colour
    return (2 + 5 * shape + 3 * colour) / 10


def _name(wanted: Wanted) -> str:
    return f"{wanted.colour} {wanted.shape}" if wanted.colour else wanted.shape


def judge_plan(text: str, metadata: Mapping[str, Any]) -> Verdict:
    """The same judgement on the scene that a thinking plans; a plan that does not parse gets 0."""
    planned = parse_plan(text)
    return Verdict(False, 0.0, "no plan") if planned is None else judge(Findings(planned, ()), metadata)


def drawing_follows_plan(findings: Findings, text: str) -> bool | None:
    """Whether the image shows exactly the planned objects in their cells; None where the plan does not parse."""
    planned = parse_plan(text)
    return None if planned is None else findings == Findings(planned, ())


def judge_images(images: np.ndarray, metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """A verdict for each image, uint8 [B, 24, 24, 3], by its prompt's metadata."""
    return [judge(findings, facts) for findings, facts in zip(find_objects_batch(images), metadata, strict=True)]


def reward(batch: RewardBatch) -> dict[str, np.ndarray]:
    """The grade of each episode's image, float32 [B], under the name `graded`; the thinking is not read."""
    return {"graded": np.array([v.graded for v in judge_images(batch.images, batch.metadata)], np.float32)}
