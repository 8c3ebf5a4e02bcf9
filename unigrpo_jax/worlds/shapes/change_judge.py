"""Judges what an image shows against what a change asks for: the change, and everything else as it was.

A change and the scene before it have one or several goals (`change.goals`): objects K that are kept, pieces P that are
to appear, objects G that are to go.  Of the found objects F those in K are kept ones; the rest is matched with the pieces
as well as can be.  Strays are found objects that are neither kept nor matched, and unclear cells.  With

    C = (sum of piece scores + number of G not in F) / (|P| + |G|)      how much of the change is done; 1 where |P| + |G| = 0
    U = |F and K| / (|K| + strays)                                      how much else is as it was; 1 where that is 0 / 0

an image is exact where C = U = 1 for some goal, and

    graded = 1 where exact, else PARTIAL * max over goals of (C / 4 + U / 4 + C U / 2),     PARTIAL = 0.8.

A piece scores 1 where an object has its shape, its colour and one of its cells, else a sixth for each of these that an
object has which was not there before (a free colour counts as right where the shape is), and 0 for one that was.  Hence
doing nothing has C = 0 and gets at most 0.2; the right answer to the instruction alone, all else lost or moved, has U = 0
and gets 0.2; half a change with all else intact gets 0.5, and a whole one that loses one of three other objects 0.6.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from unigrpo_jax.worlds.shapes.change import Change, Goal, Piece, from_metadata, goals
from unigrpo_jax.worlds.shapes.checker import Findings
from unigrpo_jax.worlds.shapes.judge import PARTIAL, Verdict
from unigrpo_jax.worlds.shapes.scene import Object, Scene, parse_plan


def judge_change(found: Findings, before: Findings, facts: Mapping[str, Any]) -> Verdict:
    """Judges findings by the formula above.

    Args:
      found: what the image shows.
      before: what the image before shows; its unclear cells count as empty.
      facts: `Change.metadata()`.
    """
    change = from_metadata(facts)
    verdicts = [_judge(found, before.objects, goal, change) for goal in goals(change, before.objects)]
    return max(verdicts, key=lambda v: v.graded)


def judge_changed_plan(text: str, before: Findings, facts: Mapping[str, Any]) -> Verdict:
    """The same judgement on the scene that a thinking plans; a plan that does not parse gets 0."""
    planned = parse_plan(text)
    return Verdict(False, 0.0, "no plan") if planned is None else judge_change(Findings(planned, ()), before, facts)


def _judge(found: Findings, before: Scene, goal: Goal, change: Change) -> Verdict:
    kept = [o for o in goal.kept if o in found.objects]
    rest = [o for o in found.objects if o not in kept]
    scores = np.array([[_score(piece, o, before) for o in rest] for piece in goal.new]).reshape(len(goal.new), len(rest))
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True) if scores[i, j] > 0]
    still = [o for o in goal.gone if o in rest]
    strays = [o for j, o in enumerate(rest) if j not in {j for _, j in pairs}]

    parts = len(goal.new) + len(goal.gone)
    done = (sum(scores[pair] for pair in pairs) + len(goal.gone) - len(still)) / parts if parts else 1.0
    others = len(goal.kept) + len(strays) + len(found.unclear)
    unchanged = len(kept) / others if others else 1.0

    right = {i for i, j in pairs if scores[i, j] == 1}
    faults = [f"not done: {change.key()}"] if len(right) < len(goal.new) or still else []
    faults += [f"lost: {_name(o)}" for o in goal.kept if o not in kept]
    faults += [f"extra: {_name(o)}" for o in strays if o not in still]
    faults += [f"unclear cell: {cell}" for cell in found.unclear]
    if not faults:
        return Verdict(True, 1.0, "right")
    return Verdict(False, float(PARTIAL * (done / 4 + unchanged / 4 + done * unchanged / 2)), "; ".join(faults))


def _score(piece: Piece, o: Object, before: Scene) -> float:
    """Score of a piece and a found object, 1 where it is right."""
    if piece.fits(o):
        return 1.0
    if o in before:
        return 0.0
    shape = piece.shape == o.shape
    return (shape + (shape if piece.colour is None else piece.colour == o.colour) + (o.cell in piece.cells)) / 6


def _name(o: Object) -> str:
    return f"{o.colour} {o.shape} {o.cell}"
