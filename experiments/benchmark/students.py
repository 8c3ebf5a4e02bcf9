"""What a student saves for each sample: its few transitions of one pass against a teacher's usual ones, guided.

All programs are timed in turn, so that a ratio compares times of one round.  A sample is a prompt read, thought about where
the model thinks, drawn and decoded; drawing alone is also timed, upon one condition that is there.  The weights are the
teacher's in all: what a student has learned changes no time, its embedder of the second time is in its network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.rows import Row
from experiments.benchmark.timing import alternate, ratios, spread
from experiments.benchmark.workload import Workload, of_config
from experiments.comparison.arms import GUIDANCE
from unigrpo_jax.config import ConfigError, EvaluationConfig
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.dialogue import begin, hear
from unigrpo_jax.rollout.drawing import denoise
from unigrpo_jax.rollout.thinking import think
from unigrpo_jax.training.evaluation import evaluation_rollout

STEPS = (8, 4, 2, 1)
TEACHER = "teacher"


def students(workload: Workload, repeats: int) -> list[Row]:
    """Seconds a sample of the teacher and of students, and how many times as fast these are, of a preset."""
    config, loaded = workload.config, workload.parts_of_run.loaded
    published = {} if loaded.published is None else loaded.published.evaluation
    usual = published.get("flow_steps", config.evaluation.flow_steps)
    scale = max(published.get("guidance", 1.0), config.evaluation.guidance, GUIDANCE) if loaded.codec.guided else 1.0
    drawn = dataclasses.replace(
        config.evaluation, images_per_prompt=config.learning.group_size, sampler="ode", guidance=1.0, rounds=1
    )
    try:
        other = of_config(dataclasses.replace(config, model=dataclasses.replace(config.model, second_time=True)))
    except ConfigError:  # a family whose students have one time
        other = workload
    guided = dataclasses.replace(drawn, flow_steps=usual, guidance=scale)
    ways = {TEACHER: (workload, guided)}
    ways |= {f"{n} transitions": (other, dataclasses.replace(drawn, flow_steps=n)) for n in STEPS if n < usual}
    functions: dict[str, Callable[[], Any]] = {}
    for name, (load, evaluation) in ways.items():
        functions[f"sample, {name}"], functions[f"drawing, {name}"] = _programs(load, evaluation)
    seconds, count = alternate(functions, repeats), config.episodes
    what = f"{usual} transitions, guidance {scale:g}" if scale > 1 else f"{usual} transitions"
    out = []
    for part in ("sample", "drawing"):
        own = {name: [s / count for s in seconds[f"{part}, {name}"]] for name in ways}
        measured = f"{count} at a time; the teacher: {what}"
        out += [Row(name=f"{part}, {name}", value=spread(values), unit="s", measured=measured)
                for name, values in own.items()]  # fmt: skip
        out += [Row(name=f"{part} in {name}, times as fast", value=spread(ratios(own[TEACHER], values)), unit="x",
                    measured="seconds of the teacher over those of the student")
                for name, values in own.items() if name != TEACHER]  # fmt: skip
    return out


def _programs(load: Workload, evaluation: EvaluationConfig) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions that draw whole samples, and latents upon a condition that is there."""
    program = dataclasses.replace(evaluation_rollout(evaluation, load.config.rollout, load.parts_of_run.loaded), parts=1)
    network, group, whole = load.network, load.config.learning.group_size, jax.jit(program.__call__)
    keys = randomness.sample_keys(jax.random.key(0), jnp.arange(load.config.episodes))

    @jax.jit
    def read(params, prompt):
        dialogue = begin(network, params, program.system, jax.tree.leaves(prompt)[0].shape[0])
        dialogue = hear(network, params, dialogue, prompt).repeat(group)
        thinks, condition = program.thinking_tokens, dialogue.full
        if thinks:
            _, condition = think(network, params, condition, keys, thinks, program.tokens)
        return condition, (dialogue.without_text, dialogue.without_images)

    @jax.jit
    def paint(params, condition, others):
        x = randomness.normal_like(keys, 0, program.latent(len(keys)))
        return denoise(network, params, condition, x, None, jnp.zeros(0, jnp.int32), program.flow, others)[0]

    given, nothing = read(load.params, load.prompt), (np.int32(0),) * 3
    return (
        lambda: whole(load.params, load.autoencoder_params, load.prompt, *nothing, load.picture),
        lambda: paint(load.params, *given),
    )
