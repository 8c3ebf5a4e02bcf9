"""Finds the reward function that a config names, and holds what it returns to the protocol."""

import difflib
import importlib
import sys
from collections.abc import Mapping

import numpy as np

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction


class RewardError(RuntimeError):
    """A reward function raised, or returned what is no reward; the message names it, without a full stop."""


def load_reward(name: str) -> RewardFunction:
    """The shapes checker for "shapes", else what stands at package.module:function; ConfigError where there is none."""
    if name == "shapes":
        from unigrpo_jax.worlds.shapes.judge import reward

        return reward
    require(bool(name), "reward is empty; give --reward package.module:function, which scores a batch of pictures.")
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(
            f"reward = {name!r} is neither `shapes` nor package.module:function; write it as my_module:score."
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the user's own folder
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises at import
        raise ConfigError(
            f"reward = {name!r}: importing {module_name} failed ({type(error).__name__}: {error}); it must import from "
            "the current folder or from what is installed."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(attribute, functions, 1)
        hint = f"did you mean {near[0]}?" if near else "name a function that is defined there."
        raise ConfigError(f"reward = {name!r}: {module_name} has no function called {attribute}; {hint}")
    return function


def call_reward(function: RewardFunction, name: str, batch: RewardBatch) -> dict[str, np.ndarray]:
    """Calls a reward function.

    Args:
      function: see `unigrpo_jax.rewards.protocol`; a bare array counts as one component called "reward".
      name: for messages.
      batch: B finished episodes.

    Returns:
      {component: float32 [B]}, every number finite.

    Raises:
      RewardError: it raised, or returned another length, no component, or a number that is not finite.
    """
    try:
        result = function(batch)
    except Exception as error:  # a user's function may raise anything
        raise RewardError(f"the reward function {name} raised {type(error).__name__}: {error}") from error
    components = dict(result) if isinstance(result, Mapping) else {"reward": result}
    if not components:
        raise RewardError(f"the reward function {name} returned no component")
    size, checked = len(batch.prompts), {}
    for component, values in components.items():
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise RewardError(f"the reward function {name} returned no numbers for {component!r}") from None
        if array.shape != (size,):
            raise RewardError(
                f"the reward function {name} returned shape {list(array.shape)} for {component!r}; it got {size} "
                f"episodes and must return [{size}]"
            )
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array))[0])
            raise RewardError(f"the reward function {name} returned {array[bad]} for {component!r} of episode {bad}")
        checked[str(component)] = array
    return checked
