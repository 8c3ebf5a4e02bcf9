"""Finds the rewards that a config names."""

import difflib
import importlib
import sys
from collections.abc import Callable

from unigrpo_jax.config import ConfigError, RunConfig, require
from unigrpo_jax.foreign_text import said
from unigrpo_jax.rewards.protocol import RewardFunction

# name -> where a function (argument, config) -> reward stands; the argument is what follows "name:" on the command line.
BUILT_IN: dict[str, str] = {
    "shapes": "unigrpo_jax.worlds.shapes.reward:load",
    "shapes_thoughts": "unigrpo_jax.worlds.shapes.thoughts:load",
    "shapes_scorer": "unigrpo_jax.worlds.shapes.scorer:load",
    "colourfulness": "unigrpo_jax.rewards.colourfulness:load",
    "judge": "unigrpo_jax.rewards.remote:load",
    "ocr": "unigrpo_jax.rewards.ocr:load",
    "clipscore": "unigrpo_jax.rewards.clip_scores:clipscore",
    "pickscore": "unigrpo_jax.rewards.clip_scores:pickscore",
    "hpsv2": "unigrpo_jax.rewards.clip_scores:hpsv2",
    "aesthetic": "unigrpo_jax.rewards.clip_scores:aesthetic",
    "frames": "unigrpo_jax.rewards.frames:load",
    "onsets": "unigrpo_jax.rewards.sound:onsets",
    "silence": "unigrpo_jax.rewards.sound:silence",
    "clipping": "unigrpo_jax.rewards.sound:clipping",
}
# Of these, what judges images and no clips, what judges either, and what hears the sound of clips.  What the others judge,
# and a function of one's own, shows when they are asked.
OF_IMAGES = ("shapes_scorer", "colourfulness", "ocr", "clipscore", "pickscore", "hpsv2", "aesthetic")
OF_BOTH = ("judge",)
OF_SOUND = ("onsets", "silence", "clipping")


def alone(name: str) -> str:
    """A reward as it is called without `frames:HOW:`."""
    return name.split(":", 2)[-1] if name.startswith("frames:") else name


def load_reward(name: str, config: RunConfig) -> RewardFunction:
    """The reward that `name` stands for: NAME or NAME:ARGUMENT of `BUILT_IN`, else what stands at package.module:function.

    ConfigError where there is none.
    """
    known, _, argument = name.partition(":")
    if known in BUILT_IN:
        module, _, function = BUILT_IN[known].partition(":")
        load: Callable[[str, RunConfig], RewardFunction] = getattr(importlib.import_module(module), function)
        return load(argument, config)
    if not known or not argument:
        near = difflib.get_close_matches(known, BUILT_IN, 1)
        hint = f"did you mean {near[0]}?" if near else "write your own as my_module:score."
        raise ConfigError(
            f"rewards: {name!r} is neither one of {', '.join(sorted(BUILT_IN))} nor package.module:function; {hint}"
        )
    return find_function(name, name)


def find_function(place: str, name: str) -> Callable:
    """What stands at package.module:function, from the current folder or from what is installed.

    Args:
      place: package.module:function.
      name: of the reward that it belongs to, for messages.

    Raises:
      ConfigError: nothing that can be called stands there.
    """
    module_name, _, attribute = place.partition(":")
    require(bool(module_name and attribute), f"rewards: {name!r}: {place!r} is not package.module:function; write it so.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the user's own folder
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises at import; a script may leave
        raise ConfigError(
            f"rewards: {name!r}: importing {module_name} failed ({type(error).__name__}: {said(error)}); it must import "
            "from the current folder or from what is installed."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(attribute, functions, 1)
        hint = f"did you mean {near[0]}?" if near else "name a function that is defined there."
        raise ConfigError(f"rewards: {name!r}: {module_name} has no function called {attribute}; {hint}")
    return function


def load_rewards(config: RunConfig) -> dict[str, RewardFunction]:
    """{name: reward} of all that a config names; ConfigError where there is none, or one twice."""
    names = config.rewards
    require(bool(names), "rewards is empty; give --rewards package.module:function, which scores a batch of pictures.")
    require(len(set(names)) == len(names), f"rewards = {' '.join(names)} names one twice; once is enough.")
    return {name: load_reward(name, config) for name in names}
