"""Judges a checkpoint on held-out prompts and prints the table.

python -m experiments.evaluate CHECKPOINT [--evaluation.sampler sde] [--evaluation.guidance 2] ...

CHECKPOINT is a run folder (its newest checkpoint), RUN/checkpoints/N, a model folder, or one in the package: `base`, the
shapes base, `rounds_base`, that of several rounds, `shapes_few_base`, a student of few steps, `shapes_flux_base` or
`shapes_sd_base`.  Where nothing else is named, a run's model draws as in the run's own evaluations, a model folder as
--preset says, else as it was published, and that of a student of few steps as it learned to: in its steps, by its sampler,
without guidance.
"""

import dataclasses
import pathlib
import re
import urllib.parse
from typing import Any

import tyro

from experiments.command_line import command_line, preset
from experiments.destination import file_to_write
from experiments.to_judge import Dtypes, sampler_words, to_judge
from unigrpo_jax.config import EvaluationConfig, MeshConfig
from unigrpo_jax.foreign_text import tell

NAMED = {"split", "source", "prompts", "seed", "sampler", "flow_steps", "guidance", "thinking", "thinking_as_text",
         "temperature"}  # what a table's name says anyway  # fmt: skip
UNNAMED = {"data", "batch", "every", "drift"}  # what decides no number of it


def others(settings: Any, plain: Any, between: str = "-") -> str:
    """What else decides a table, for its name, as far as it is not the default, such as "-image2-passes_sound7_other3"."""
    found = ""
    for field in dataclasses.fields(settings):
        own, usual = getattr(settings, field.name), getattr(plain, field.name)
        if field.name in NAMED | UNNAMED or own == usual:
            continue
        found += between + field.name.removeprefix("guidance_")
        if dataclasses.is_dataclass(own):
            found += others(own, usual, "_")
        else:
            values = own if isinstance(own, tuple) else (own,)
            found += "_".join(f"_{x}" if isinstance(x, str) else f"{x:g}" for x in values)
    return found


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to judge, on what, and how."""

    checkpoint: tyro.conf.Positional[str]
    """Run folder, RUN/checkpoints/N, model folder, or the name of a model in the package, such as `base`."""
    preset: str | None = None
    """Take prompts and reward of this preset instead of the run's own, and for a model folder its sampler and sizes, too."""
    prompts: tuple[str, ...] = ()
    """Take these prompts instead."""
    rewards: tuple[str, ...] = ()
    """Take these rewards instead."""
    judge_host: str = ""
    """Host of the remote judge in the run's config: a run folder may be a stranger's, and your key goes to that host."""
    errors: bool = True
    """Where evaluation.quantised is int8: how far predictions are off along the first evaluation.drift drawings, and judge
    in full precision, too, with the same noises, to see how far the scores are."""
    out: pathlib.Path | None = None
    """JSON file for the table; default RUN/evaluations/SETTINGS.json."""
    devices: int = 0
    """Devices that are used; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: Dtypes = dataclasses.field(default_factory=Dtypes)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """How to judge; how it draws (sampler, steps, guidance, thinking) is by default as in the run, or as published."""


@command_line
def main(arguments: Arguments) -> None:
    """Reads, judges, prints and saves."""
    from unigrpo_jax.config import require
    from unigrpo_jax.config_json import to_dict
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.rewards.judging import Judging
    from unigrpo_jax.rewards.load import load_rewards
    from unigrpo_jax.training import storage, student_checks
    from unigrpo_jax.training.console import Console
    from unigrpo_jax.training.evaluation import Evaluator
    from unigrpo_jax.training.int8_errors import error_table, moved_table, score_errors
    from unigrpo_jax.training.overview import drift_table
    from unigrpo_jax.training.run_folder import write_json
    from unigrpo_jax.worlds.world import load_world

    restored, arguments = to_judge(Arguments, arguments)
    restored.loaded.check_image_size(restored.config.rollout)
    source = preset([arguments.preset], "shapes")[0] if arguments.preset else restored.config
    prompts, weights, held_out = source.prompts, source.prompt_weights, source.evaluation.source
    if arguments.prompts:
        prompts, weights, held_out = arguments.prompts, (), None
    # The reward `shapes` is that of the prompts' own world, so they are told to it, too.
    source = dataclasses.replace(source, prompts=prompts, rewards=arguments.rewards or source.rewards)
    if not arguments.preset and any(name.partition(":")[0] == "judge" for name in source.rewards):
        host = urllib.parse.urlsplit(source.judge.url).hostname
        require(arguments.judge_host == host, f"{restored.folder} names {source.judge.url} as the judge, which gets the "
                f"images and the key in {source.judge.key_variable}; add --judge-host {host} if you trust it.")  # fmt: skip
    e = arguments.evaluation
    judging = Judging(load_rewards(source), source.judging)
    held_out = e.source or held_out
    world = load_world(prompts, weights, held_out, 0 if e.rounds else restored.config.rollout.rounds, e.rounds)
    evaluate = lambda e: Evaluator(e, restored.config.rollout, restored.loaded, world, judging, restored.layout)
    evaluator = evaluate(e)
    thinking = "off" if not e.thinking else "greedy" if e.temperature == 0 else f"t{e.temperature:g}"
    thinking += "_as_text" if e.thinking_as_text else ""
    sources = [held_out] if held_out else list(prompts)
    stems = "+".join(re.sub(r"[^\w.-]", "_", pathlib.Path(name).stem) for name in sources)
    stems = stems[:80] + ("" if e.split == "held_out" else f"_{e.split}")
    asked = f"{stems}{len(evaluator.prompts)}-seed{e.seed}"
    name = f"{restored.name}-{asked}-{e.sampler}{e.flow_steps}-cfg{e.guidance:g}-thinking_{thinking}"
    out = arguments.out or restored.folder / "evaluations" / f"{name}{others(e, EvaluationConfig())}.json"
    if not storage.is_bucket(out):
        out = storage.path(file_to_write(out, "--out"))
    for words in student_checks.warnings(restored.loaded, restored.config.rollout, e):
        tell(words)
    tell(sampler_words(e))
    autoencoder = restored.loaded.autoencoder_params(meshes.replicated(restored.layout.mesh))
    params = restored.read()
    errors = e.quantised != "none" and arguments.errors
    judged = evaluator(params, autoencoder, restored.reference and (lambda: restored.reference(params)), errors)
    table, moved = judged.table, {}
    if errors:
        full = evaluate(dataclasses.replace(e, quantised="none", drift=0))(params, autoencoder)
        moved = score_errors(judged.scores, full.scores)
    categories = list(dict.fromkeys(c for row in table.values() for c in row))
    rows = [[name, *(f"{row[c]:.3f}" if c in row else "-" for c in categories)] for name, row in table.items()]
    with Console() as console:
        console.table(f"{restored.name}: {len(evaluator.prompts)} prompts", ["score", *categories], rows)
        if judged.drift:
            console.table("Drift of the predictions from the first weights', by time", *drift_table(judged.drift))
        if judged.error:
            console.table("Relative error of the predictions, by time", *error_table(judged.error))
        if moved:
            console.table("Scores against those in full precision, same prompts and noises", *moved_table(moved))
        found = {"table": table, **({"error": judged.error, "scores": moved} if errors else {})}
        found |= {"drift": judged.drift} if judged.drift else {}
        write_json(out, {"checkpoint": restored.name, "prompts": sources, "evaluation": to_dict(e), **found})
        console.message(f"Saved {out}")


if __name__ == "__main__":
    main()
