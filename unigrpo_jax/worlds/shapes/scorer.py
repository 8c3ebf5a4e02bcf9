"""A small learned reward with a gradient: a network reads each cell, a formula compares soft counts with what is required.

The network sees one 8x8 cell and a pixel around it at a time and gives p [B, 9, 25], for each cell the probabilities of the
24 kinds of object (colour, then shape) and, last, of nothing.  It saw drawn scenes under slight noise, never a picture that
was made to fool it, so that optimising it hard finds some.  With

    n_k     expected number of cells that hold an object of the required kind k (a free colour sums over all six)
    n       expected number of cells that hold any object
    d       sum_k w_k (n_k - count_k)^2 + (n - count)^2
    r       min(1, sum over pairs of cells a, b in the relation of P(a holds kind 1) P(b holds kind 2)), 1 without a relation

the score is (0.25 + 0.75 r) / (1 + d): in [0, 1], 1 for a right picture.  Its gradient falls off as d^(-3/2) far from there,
where that of exp(-d) would be lost: an empty picture for four circles has d = 32.

A kind inside another one (red circle, circle) counts for both: the wider kind must be there as often as the two together
(as in Hall's theorem on matchings), and more of the narrower one than is required is no miss, so that w_k is 0 where n_k is
too large.  A kind that is named twice is counted once.
"""

import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.models.folders.stored import StoredTensors, checksum
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction
from unigrpo_jax.worlds.shapes.drawing import CELL, SIDE, check_size
from unigrpo_jax.worlds.shapes.judge import holds
from unigrpo_jax.worlds.shapes.requirement import Wanted, from_metadata
from unigrpo_jax.worlds.shapes.scene import CELLS, COLOURS, SHAPES, Object

KINDS = tuple(itertools.product(COLOURS, SHAPES))
EMPTY = len(KINDS)
WEIGHTS = {
    "near.kernel": (3, 3, 3, 16),
    "near.bias": (16,),
    "cell.kernel": (CELL, CELL, 16, 48),
    "cell.bias": (48,),
    "read.kernel": (48, EMPTY + 1),
    "read.bias": (EMPTY + 1,),
}
FILE = pathlib.Path(__file__).parent / "scorer.safetensors"
MOST_KINDS = 2  # that a prompt requires
HIGHEST = jax.lax.Precision.HIGHEST  # the same score on every kind of device
ROWS = 64  # pictures per call; a batch's last call is filled up, so that there is one shape

Params = Mapping[str, jax.Array]
einsum = functools.partial(jnp.einsum, precision=HIGHEST)


@flax.struct.dataclass
class Goal:
    """What B prompts require, as float32 arrays; a prompt of one kind has zeros in the second one's place.

    Attributes:
      kinds: [B, 2, 24], 1 where a kind of object is one of the required kind.
      counts: [B, 2], how often each is required.
      too_few: [B, 2], the weight w_k where there are fewer.
      too_many: [B, 2], the weight w_k where there are more.
      count: [B], objects in all.
      relation: [B, 9, 9], 1 where the first kind in the first cell stands right to the second kind in the second cell.
      unrelated: [B], 1 where there is no relation.
    """

    kinds: jax.Array
    counts: jax.Array
    too_few: jax.Array
    too_many: jax.Array
    count: jax.Array
    relation: jax.Array
    unrelated: jax.Array


def goals(metadata: Sequence[Mapping[str, Any]]) -> Goal:
    """What B prompts of the shapes world require, as numpy arrays; ValueError where the metadata does not say."""
    each = [_goal(facts) for facts in metadata]
    return jax.tree.map(lambda *rows: np.stack(rows).astype(np.float32), *each)


def _goal(metadata: Mapping[str, Any]) -> Goal:
    try:
        requirement = from_metadata(metadata)
        required = requirement.objects
        kinds = np.array([_matches(wanted) for wanted in required])
        counted = [wanted.count for wanted in required]
        place = [Object("", "", cell) for cell in CELLS]
        relation = [[bool(requirement.relation) and holds(a, requirement.relation, b) for b in place] for a in place]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the metadata of a prompt does not say what the picture must show ({type(error).__name__}: "
                         f"{error}); shapes_scorer scores the prompts of the shapes world.") from None  # fmt: skip
    if not 1 <= len(required) <= MOST_KINDS:
        raise ValueError(f"a prompt requires {len(required)} kinds of objects; shapes_scorer compares 1 to {MOST_KINDS}.")
    # Two kinds are alike, or one is inside the other, or they share no object.
    inside = np.array([[(a <= b).all() for b in kinds] for a in kinds])
    again = [any((kind == earlier).all() for earlier in kinds[:i]) for i, kind in enumerate(kinds)]
    narrower = (inside & ~inside.T).any(axis=1)
    pad = lambda values: np.pad(values, [(0, MOST_KINDS - len(required))] + [(0, 0)] * (np.ndim(values) - 1))
    return Goal(
        kinds=pad(kinds),
        counts=pad(inside.T @ np.array(counted)),
        too_few=pad(np.logical_not(again)),
        too_many=pad(np.logical_not(again) & ~narrower),
        count=np.array(sum(counted)),
        relation=np.array(relation),
        unrelated=np.array(requirement.relation is None),
    )


def _matches(wanted: Wanted) -> list[bool]:
    """Which of `KINDS` are of the required kind; KeyError where none is."""
    matches = [wanted.shape == shape and wanted.colour in (None, colour) for colour, shape in KINDS]
    if not any(matches):
        raise KeyError(f"{wanted.colour} {wanted.shape}")
    return matches


def logits(params: Params, images: jax.Array) -> jax.Array:
    """What each cell holds, [B, 9, 25], of images float32 [B, 24, 24, 3] in [0, 1]."""
    side = SIDE // CELL
    x = jax.lax.conv_general_dilated(images * 2 - 1, params["near.kernel"], (1, 1), "SAME", precision=HIGHEST,
                                     dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
    x = jax.nn.relu(x + params["near.bias"][None, None, None])
    x = x.reshape(-1, side, CELL, side, CELL, x.shape[-1])
    x = einsum("brycxi,yxio->brco", x, params["cell.kernel"]) + params["cell.bias"][None, None, None]
    x = einsum("brci,io->brco", jax.nn.relu(x), params["read.kernel"]) + params["read.bias"][None, None, None]
    return x.reshape(-1, side * side, EMPTY + 1)


def agreement(goal: Goal, p: jax.Array) -> jax.Array:
    """The formula: scores [B] of what is required and p [B, 9, 25]."""
    objects = p[..., :EMPTY]
    found = einsum("bcn,bkn->bkc", objects, goal.kinds)
    miss = found.sum(axis=2) - goal.counts
    weight = jnp.where(miss < 0, goal.too_few, goal.too_many)
    d = (weight * miss**2).sum(axis=1) + (objects.sum(axis=(1, 2)) - goal.count) ** 2
    related = einsum("bx,bxy,by->b", found[:, 0], goal.relation, found[:, 1])
    return (0.25 + 0.75 * jnp.minimum(1, goal.unrelated + related)) / (1 + d)


def score(params: Params, goal: Goal, images: jax.Array) -> jax.Array:
    """Scores, float32 [B], of images float32 [B, 24, 24, 3] in [0, 1]."""
    return agreement(goal, jax.nn.softmax(logits(params, images)))


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Random weights, with He's variance of 2 over the number of inputs."""
    keys = dict(zip(WEIGHTS, jax.random.split(key, len(WEIGHTS)), strict=True))
    return {
        name: jnp.zeros(shape) if len(shape) == 1 else jax.nn.initializers.he_normal()(keys[name], shape)
        for name, shape in WEIGHTS.items()
    }


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights in a file, float32."""
    stored = StoredTensors(file.parent, file.stem)
    return {name: stored.read(name).astype(np.float32) for name in WEIGHTS}


class ShapesScorer:
    """The reward `shapes_scorer` with the weights of the package, on one of this process's devices."""

    cost = "device"

    def __init__(self):
        self._params = read(FILE)
        self._program = jax.jit(score)

    @functools.cached_property
    def identity(self) -> str:
        """Name and a checksum of the weights."""
        return f"shapes_scorer {checksum([FILE])}"

    def check(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError where the shapes world's requirement is missing; prompts of several rounds say it in each."""
        try:
            for facts in metadata:
                if "rounds" not in facts:
                    _goal(facts)
        except ValueError as error:
            raise ConfigError(f"rewards: {error}") from None

    def goals(self, metadata: Sequence[Mapping[str, Any]]) -> Goal:
        """What the prompts require."""
        return goals(metadata)

    def score(self, goal: Goal, images: jax.Array) -> jax.Array:
        """Scores, float32 [B], of images float32 [B, 24, 24, 3] in [0, 1]; can be traced and has a gradient."""
        return score(self._params, goal, images)

    def __call__(self, batch: RewardBatch) -> dict[str, np.ndarray]:
        """{"scorer": float32 [B]}."""
        size = len(batch.metadata)
        inputs = goals(batch.metadata), np.asarray(batch.images, np.float32) / 255
        rows = np.arange(-(-size // ROWS) * ROWS) % size
        chunks = [jax.tree.map(lambda x, own=own: x[own], inputs) for own in rows.reshape(-1, ROWS)]
        scores = [self._program(self._params, *chunk) for chunk in chunks]
        return {"scorer": np.concatenate(jax.device_get(scores))[:size]}


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `shapes_scorer`."""
    require(not argument, f"rewards: shapes_scorer:{argument}: shapes_scorer takes no argument; leave it out.")
    check_size("shapes_scorer", config.rollout)
    return ShapesScorer()
