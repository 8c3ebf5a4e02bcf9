"""The plan's refusals and arithmetic; what it compiles is compiled where libtpu is installed."""

import importlib.util

import pytest

from launch.plan import show
from tests.command import command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v9:2x2"], ["topology = 'v9:2x2'", "v5p", "v5p:4x4x4"]),
        (["--topology", "v5p"], ["topology = 'v5p'", "such as v5p:4x4x4"]),
        (["--topology", "v5p:2x2x1", "--model.path", "tiny"], ["bagel_7b preset"]),
        (["--topology", "v5p:2x2x1", "--rollout.guidance", "2"], ["rollout.guidance = 2.0"]),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_sentence(arguments, words):
    outcome = command("launch.plan", "bagel_7b", *arguments)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_a_plan_says_what_to_install():
    outcome = command("launch.plan", "bagel_7b", "--topology", "v5p:2x2x1")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "[tpu]" in outcome.err, outcome


def test_what_lies_on_a_chip_is_added_to_what_a_program_needs():
    """The rollout does not get optimizer and reference, but they lie there; the update gets all."""
    gib = 2**30
    numbers = {
        "topology": "v5p:2x2x1", "chips": 4, "mesh": {"data": 1, "fsdp": 4, "tensor": 1}, "hbm": 20 * gib,
        "trained": 2 * gib, "optimizer": 4 * gib, "average": 0, "frozen": gib, "reference": 2 * gib, "cache": gib // 2,
        "rollout": {"arguments": 3 * gib, "results": gib, "temporaries": 5 * gib, "seconds": 1.0},
        "update": {"arguments": 10 * gib, "results": 0, "temporaries": 11 * gib, "seconds": 2.0},
    }  # fmt: skip
    text = "\n".join(show(numbers))
    assert "4 chips, data 1, fsdp 4, tensor 1" in text and "0.50 GiB  cache" in text
    assert "15.00 GiB  rollout: 9.00 held + 1.00 results + 5.00 temporaries of 20.00, fits" in text
    assert "21.00 GiB  update: 10.00 held + 0.00 results + 11.00 temporaries of 20.00, does not fit" in text
