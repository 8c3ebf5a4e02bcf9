"""Distillation: from a trained model, its guidance included, to a student that draws in 1 to 8 steps without guidance.

    python -m experiments.distill [PRESET] [--learning.method dmd2] [--field value ...]
    python -m experiments.run [PRESET] --model.path runs/PRESET_distill/model

`mean_flow` (the default) learns the average velocity between two times from the teacher's drawings; `dmd2` makes the
student's own drawings in a fixed number of steps as likely as the teacher's.  PRESET is a file in experiments/presets
(default: shapes).  --help lists every field with its default and meaning; those of learning.distillation are this program's.
"""

import dataclasses
import functools
import math

from experiments.command_line import given_arguments
from experiments.run import train
from experiments.sft import write_model
from unigrpo_jax.config import DistillationConfig, RunConfig

PROGRAM = "experiments.distill"
STEPS = {"mean_flow": (1, 2, 4, 8), "dmd2": (4,)}
EPOCHS = {"mean_flow": 4, "dmd2": 2}  # optimizer steps of an iteration's drawings, which cost more than a step


def main() -> None:
    """Parses the command line, runs, and writes the model."""
    train(PROGRAM, __doc__, functools.partial(settings, method=asked_method(given_arguments())), write_model)


def asked_method(arguments: list[str], unnamed: str = "mean_flow") -> str:
    """The method that a command line names, on which other defaults depend; `unnamed` where it names none of them."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    named = [after for word, after in zip(words, words[1:], strict=False) if word == "--learning.method"]
    return named[-1] if named and named[-1] in STEPS else unnamed


def settings(preset: RunConfig, method: str = "mean_flow") -> RunConfig:
    """A preset's settings for a distillation: its machine, model and world, and pieces of an update as large as they were.

    The teacher is guided as the preset guides, in evaluations or in its policy; the student is judged without guidance.
    """
    r, e, learn, many = preset.rollout, preset.evaluation, preset.learning, method == "mean_flow"
    batch = preset.trained_episodes // learn.minibatches  # pieces of an update are as large as they were
    teacher = DistillationConfig(
        guidance=max(e.guidance, r.guidance), guidance_interval=e.guidance_interval, guidance_renorm=e.guidance_renorm,
        guidance_renorm_min=e.guidance_renorm_min, steps=STEPS[method],
    )  # fmt: skip
    rollout = dataclasses.replace(
        r, prompts_per_iteration=batch, micro_batches=math.gcd(batch, r.micro_batches), guidance=1.0, rounds=1, resample=0,
        shared_noise=False, noise_range=(0, 0), window="contiguous", window_size=1, window_range=(0, 1),
        step_rule="ode" if many else "cps", noise_level=1.0,
    )  # fmt: skip
    learning = dataclasses.replace(
        learn, method=method, distillation=teacher, group_size=1, best=0, worst=0, credit="shared", credit_by={},
        thought_rewards=(), round_reward="last", reference="host" if learn.reference == "host" else "device", mse_weight=0.0,
        latent_kl_weight=0.0, text_kl_weight=0.0, leash_times=(), leash_weight=type(learn).leash_weight, ratio_norm=True,
        nft=type(learn.nft)(), ppo_epochs=EPOCHS[method], minibatches=1, old_log_probs="recompute", advantage_limit=0.0,
    )  # fmt: skip
    evaluation = dataclasses.replace(
        e, flow_steps=max(STEPS[method]), guidance=1.0, guidance_image=1.0, passes=type(e.passes)(), rounds=0, drift=0,
        sampler="ode" if many else "sde",
    )  # fmt: skip
    model = dataclasses.replace(preset.model, second_time=many)
    name = f"{preset.name}_distill"
    return dataclasses.replace(preset, name=name, rollout=rollout, learning=learning, evaluation=evaluation, model=model)


if __name__ == "__main__":
    main()
