"""The order of prompts: a function of (seed, position), so that a resume needs no iterator state.

Prompts come in groups (GenEval's categories, or one group).  Position i takes the next prompt of group i mod groups,
and each group is walked through in a new random order per pass.  Several sources share the positions by weight.
"""

import abc
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.worlds.prompt import Prompt


class Order(abc.ABC):
    """An endless sequence of prompts."""

    @abc.abstractmethod
    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of iteration `step`, from 0 on."""
        return [self.at(position) for position in range(step * size, (step + 1) * size)]


class PromptOrder(Order):
    """Groups in turn, each in a new random order per pass; a pass holds 8 bytes per prompt in memory."""

    def __init__(self, groups: Sequence[Sequence[Prompt]], seed: int, stream: int = 0):
        """Orders with the same seed and another `stream` are independent."""
        require(bool(groups) and all(groups), "there are no prompts to draw from.")
        self.groups, self.seed, self.stream = groups, seed, stream
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # the current pass of each group

    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""
        index, number = divmod(position, len(self.groups))
        group = self.groups[number]
        epoch, offset = divmod(index, len(group))
        if self._orders.get(number, (None,))[0] != epoch:
            entropy = [self.seed, number, epoch] + ([self.stream] if self.stream else [])
            self._orders[number] = (epoch, np.random.default_rng(entropy).permutation(len(group)))
        return group[self._orders[number][1][offset]]


class InTurn(Order):
    """Groups in turn, each in its own order, again and again."""

    def __init__(self, groups: Sequence[Sequence[Prompt]]):
        require(bool(groups) and all(groups), "there are no prompts to draw from.")
        self.groups = groups

    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""
        index, number = divmod(position, len(self.groups))
        return self.groups[number][index % len(self.groups[number])]


class Mixture(Order):
    """Several orders, each with its share of the positions, spread evenly.

    Of the first n positions the first order has floor(n p), p its share of all weights; among the positions that it leaves
    the second one has its share of what is left of the weights in the same way, and so on.  Weights that are whole numbers
    are met exactly after every multiple of their sum.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float] = ()):
        """`weights`: one above 0 per order; without any, all have the same share."""
        exact = [Fraction(str(weight)) for weight in weights] or [Fraction(1)] * len(orders)
        require(len(exact) == len(orders), f"{len(exact)} weights do not belong to {len(orders)} orders of prompts.")
        self._orders = orders
        self._shares = [weight / sum(exact[i:]) for i, weight in enumerate(exact)]  # of what those before it leave

    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""
        for order, share in zip(self._orders, self._shares, strict=True):
            before = math.floor(position * share)
            if math.floor((position + 1) * share) > before:
                return order.at(before)
            position -= before
        raise AssertionError("the last share is 1")


class Drawn(Order):
    """Prompts made one by one, without end: position i is that of group i mod groups, from a generator of (seed, i)."""

    def __init__(self, draw: Callable[[np.random.Generator, int], Prompt], groups: int, seed: int, stream: int = 0):
        """`draw`: the prompt of a generator and a group; orders with the same seed and another `stream` are independent."""
        self.draw, self.groups, self.entropy = draw, groups, [seed, stream]

    def at(self, position: int) -> Prompt:
        """The prompt at a position from 0 on."""
        return self.draw(np.random.default_rng([*self.entropy, position]), position % self.groups)
