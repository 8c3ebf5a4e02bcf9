"""What comes with a plan's prompts beside their text: pictures, and what the user says in later rounds."""

import dataclasses
from typing import Literal

from unigrpo_jax.config import ConfigError, RunConfig, require

Said = Literal["auto", "yes", "no"]


@dataclasses.dataclass(frozen=True)
class Given:
    """What is compiled in beside the text of the prompts.

    Attributes:
      pictures: each prompt comes with a picture.
      turns: the user says something in each later round.
    """

    pictures: bool = False
    turns: bool = False


def find_given(config: RunConfig, pictures: Said, turns: Said, otherwise: Given) -> Given:
    """What the prompts of a run come with: as it is said, else as its first prompt has it.

    Args:
      config: the settings.
      pictures: what is said of pictures.
      turns: what is said of later turns.
      otherwise: what holds where nothing is said and no prompts are named.

    Raises:
      ConfigError: the prompts cannot be read, or say something that no round hears.
    """
    if config.prompts and "auto" in (pictures, turns):
        from unigrpo_jax.worlds.prompt import pictured, said_later
        from unigrpo_jax.worlds.world import load_world

        try:
            world = load_world(config.prompts, config.prompt_weights, config.evaluation.source, config.rollout.rounds,
                               config.evaluation.rounds)  # fmt: skip
            first = world.train(config.seed).batch(0, 1)
            otherwise = Given(pictured(first), bool(said_later(first, config.rollout.rounds)))
        except ConfigError as error:
            words = str(error).removesuffix(".")
            raise ConfigError(f"{words}; or plan without reading prompts, by --pictures and --turns, yes or no.") from None
    choose = lambda said, other: other if said == "auto" else said == "yes"
    found = Given(pictures=choose(pictures, otherwise.pictures), turns=choose(turns, otherwise.turns))
    require(
        not found.turns or config.rollout.rounds > 1,
        "--turns yes, but rollout.rounds = 1 has no later round that hears one; use rollout.rounds = 2 or more.",
    )
    return found
