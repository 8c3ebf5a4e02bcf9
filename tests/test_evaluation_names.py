"""What an evaluation's table is called: all that decides it, so that none is written over another's."""

import dataclasses

import pytest

from experiments.evaluate import NAMED, UNNAMED, others
from unigrpo_jax.config import EvaluationConfig
from unigrpo_jax.config_evaluation import PassesConfig

PLAIN = EvaluationConfig()
PASSES = PassesConfig(sound=7.0, mixing=1.0, blocks=(28, 29), other=3.0, rescale=0.7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"guidance": 3.0, "batch": 4, "drift": 0}, ""),
        ({"passes": PASSES}, "-passes_sound7_mixing1_blocks28_29_other3_rescale0.7"),
        ({"passes": PassesConfig(other=3.0)}, "-passes_other3"),
        ({"guidance_image": 2.0, "guidance_interval": (0.25, 1.0)}, "-image2-interval0.25_1"),
        ({"quantised": "int8"}, "-quantised_int8"),
        ({"guidance_renorm": "text_channel", "images_per_prompt": 2}, "-images_per_prompt2-renorm_text_channel"),
    ],
)
def test_what_is_not_the_default_is_a_part_of_the_name(changes, words):
    assert others(dataclasses.replace(PLAIN, **changes), PLAIN) == words


def test_every_setting_that_decides_a_table_is_in_its_name_whatever_is_added_to_them():
    """A changed number of any other field changes the name."""
    other = {"images_per_prompt": 2, "rounds": 3, "guidance_image": 2.0, "guidance_interval": (0.0, 0.5), "passes": PASSES,
             "guidance_renorm": "none", "guidance_renorm_min": 1.0, "quantised": "int8"}  # fmt: skip
    assert {field.name for field in dataclasses.fields(PLAIN)} == {*other, *NAMED, *UNNAMED}
    assert len({others(dataclasses.replace(PLAIN, **{name: value}), PLAIN) for name, value in other.items()}) == len(other)
