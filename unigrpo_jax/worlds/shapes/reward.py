"""The reward `shapes`: the grade by the rules of the world of shapes that the prompts come from: still, moving or heard."""

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.rewards.protocol import RewardFunction
from unigrpo_jax.worlds.motion import world as motion
from unigrpo_jax.worlds.shapes import edit, judge, story
from unigrpo_jax.worlds.shapes.drawing import check_size
from unigrpo_jax.worlds.sound import world as sound

_OWN = {
    ("shapes_edit",): edit.reward,
    ("shapes_story",): story.reward,
    ("shapes_motion",): motion.motion_reward,
    ("shapes_animate",): motion.animation_reward,
    ("shapes_sound",): sound.sound_reward,
}


def load(argument: str, config: RunConfig) -> RewardFunction:
    """The reward function; ConfigError where it is given an argument, or pictures of another size."""
    require(not argument, f"rewards: shapes:{argument}: shapes takes no argument; leave it out.")
    check_size("shapes", config.rollout)
    return _OWN.get(config.prompts, judge.reward)
