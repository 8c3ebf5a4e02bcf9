"""Thinks about a prompt, draws it, prints the thinking and writes the picture.

python -m experiments.generate CHECKPOINT "three green circles"

CHECKPOINT is a run folder (its newest checkpoint), RUN/checkpoints/N, a model folder, or `base`, the shapes base.
"""

import dataclasses
import pathlib
import re

import tyro

from experiments.command_line import command_line, preset


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw and how."""

    checkpoint: tyro.conf.Positional[str]
    """Run folder, RUN/checkpoints/N, model folder, or `base`."""
    prompt: tyro.conf.Positional[str]
    """What to draw."""
    out: pathlib.Path | None = None
    """PNG file; default the prompt's words in the current folder."""
    thinking: bool = True
    """Think before drawing."""
    temperature: float = 0.0
    """Of the thinking; 0 is greedy."""
    flow_steps: int = 20
    """Denoising transitions."""
    guidance: float = 1.0
    """Text classifier-free guidance scale; 1 is off."""
    seed: int = 0
    """Seed of tokens and noise."""
    enlarge: int = 8
    """Each pixel becomes this many on a side."""


@command_line
def main(arguments: Arguments) -> None:
    """Reads, thinks, draws, writes."""
    import jax
    import numpy as np
    from PIL import Image

    from unigrpo_jax.config import EvaluationConfig, RunConfig, check, require
    from unigrpo_jax.training.evaluation import evaluation_rollout
    from unigrpo_jax.training.restore import restore

    require(arguments.enlarge >= 1, f"enlarge = {arguments.enlarge}, but it must be at least 1.")
    evaluation = EvaluationConfig(
        thinking=arguments.thinking,
        temperature=arguments.temperature,
        flow_steps=arguments.flow_steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
    )
    check(RunConfig(evaluation=evaluation))
    restored = restore(arguments.checkpoint, preset([], "shapes")[0])
    rollout, codec = restored.config.rollout, restored.loaded.codec
    block = codec.prompts([arguments.prompt], rollout.prompt_tokens)
    words = re.sub(r"[^a-z0-9]+", "-", arguments.prompt.lower()).strip("-")[:60] or "image"
    out = arguments.out or pathlib.Path(f"{words}.png")
    require(not out.is_dir(), f"out = {out} is a folder; name a PNG file.")
    params = restored.read()
    out.parent.mkdir(parents=True, exist_ok=True)
    program = jax.jit(evaluation_rollout(evaluation, rollout, restored.loaded).__call__)
    episodes = program(params, {}, block, arguments.seed, 0)
    if arguments.thinking:
        print(codec.thoughts(episodes.thinking, 1)[0])
    image = Image.fromarray(np.asarray(episodes.drawing.image)[0])
    image = image.resize((image.width * arguments.enlarge, image.height * arguments.enlarge), Image.Resampling.NEAREST)
    image.save(out, format="PNG")
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
