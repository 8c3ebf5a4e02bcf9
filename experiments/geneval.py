"""Writes a checkpoint's images for GenEval's own evaluator, and reads what it found.

    python -m experiments.geneval write CHECKPOINT OUT --metadata evaluation_metadata.jsonl [--evaluation.guidance 4] ...
    python -m experiments.geneval read results.jsonl

Between the two, in GenEval's environment: python evaluation/evaluate_images.py OUT --outfile results.jsonl --model-path ...
CHECKPOINT is a run folder (its newest checkpoint), RUN/checkpoints/N, a model folder, or one in the package: `base`, the
shapes base, `rounds_base`, that of several rounds, `shapes_few_base`, a student of few steps, `shapes_flux_base` or
`shapes_sd_base`.  Where nothing else is named, a run's model draws as in the run's own evaluations, a model folder as
--preset says, else as it was published.
"""

import dataclasses
import pathlib

import tyro

from experiments.command_line import command_line
from experiments.destination import file_to_write, folder_to_write
from experiments.to_judge import Dtypes, sampler_words, to_judge
from unigrpo_jax.config import EvaluationConfig, MeshConfig


@dataclasses.dataclass(frozen=True)
class Write:
    """Draws the images of GenEval's prompts into the folders that its evaluator reads."""

    checkpoint: tyro.conf.Positional[str]
    """Run folder, RUN/checkpoints/N, model folder, or the name of a model in the package, such as `base`."""
    out: tyro.conf.Positional[pathlib.Path]
    """New folder for the images."""
    metadata: pathlib.Path
    """GenEval's evaluation_metadata.jsonl, or another file of its form."""
    preset: str | None = None
    """Sample a model folder as this preset says, and not as it was published; a run knows its own settings."""
    grid: bool = False
    """Also write each prompt's images beside each other, as grid.png."""
    devices: int = 0
    """Devices that are used; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: Dtypes = dataclasses.field(default_factory=Dtypes)
    evaluation: EvaluationConfig = dataclasses.field(
        default_factory=lambda: EvaluationConfig(prompts=553, images_per_prompt=4)
    )
    """How to sample, by default as in the run, or as published; of the metadata the first `prompts` lines are drawn, GenEval
    has 553."""


@dataclasses.dataclass(frozen=True)
class Read:
    """Prints the scores of GenEval's results: per tag, and their mean."""

    results: tyro.conf.Positional[pathlib.Path]
    """JSON lines that GenEval's evaluate_images.py wrote."""
    out: pathlib.Path | None = None
    """JSON file for the table."""


@command_line
def main(arguments: Write | Read) -> None:
    """Writes or reads."""
    (write if isinstance(arguments, Write) else read)(arguments)


def write(arguments: Write) -> None:
    """Reads weights and prompts, draws, writes."""
    import itertools

    import jax
    import numpy as np

    from unigrpo_jax.config import require
    from unigrpo_jax.foreign_files import named
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.training import student_checks
    from unigrpo_jax.training.console import Console
    from unigrpo_jax.training.evaluation import evaluation_rollout, on_mesh, whole_prompts
    from unigrpo_jax.worlds import geneval, lines

    e, out = arguments.evaluation, named(arguments.out, "out")
    require(e.source is None, "evaluation.source is not read here; give GenEval's file as --metadata.")
    require(not out.exists() or (out.is_dir() and not any(out.iterdir())), f"{out} is there already; name a new folder.")
    folder_to_write(out, "OUT")
    metadata = named(arguments.metadata, "--metadata")
    found = itertools.islice(lines.parsed(metadata, lines.geneval_prompt, "--metadata"), e.prompts)
    prompts = [prompt for _, prompt in found]
    require(bool(prompts), f"{arguments.metadata} holds no prompts; give GenEval's evaluation_metadata.jsonl.")
    restored, arguments = to_judge(Write | Read, arguments)
    e, loaded, rollout = arguments.evaluation, restored.loaded, dataclasses.replace(restored.config.rollout, frames=1)
    require(not loaded.network.needs_picture, f"GenEval's prompts come without pictures, but {restored.name} goes on from "
            "one; name another model.")  # fmt: skip
    loaded.check_image_size(rollout)

    # The bucket changes no image, so it is made to fit.
    bucket = max(loaded.codec.bucket(p.text for p in prompts), rollout.prompt_tokens)
    loaded.codec.prepare(p.text for p in prompts)
    program, place = on_mesh(evaluation_rollout(e, rollout, loaded), restored.layout)
    program = jax.jit(program.__call__, out_shardings=place)
    params, autoencoder_params = restored.read(), loaded.autoencoder_params(meshes.replicated(restored.layout.mesh))
    per_call = whole_prompts(e.batch // e.images_per_prompt, e.images_per_prompt, restored.layout.mesh)
    with Console() as console:
        for words in student_checks.warnings(loaded, rollout, e):
            console.message(words)
        console.message(sampler_words(e))
        for start in range(0, len(prompts), per_call):
            rows = [min(row, len(prompts) - 1) for row in range(start, start + per_call)]  # the last call is filled up
            block = loaded.codec.prompts([prompts[row].text for row in rows], bucket)
            first = np.int32(start * e.images_per_prompt)
            episodes = program(params, autoencoder_params, block, np.int32(e.seed), np.int32(0), first)
            images = np.asarray(episodes.drawing.image)
            images = images.reshape(per_call, e.images_per_prompt, *images.shape[1:])
            for number, own in zip(range(start, len(prompts)), images, strict=False):
                geneval.write_prompt(out, number, prompts[number], own, arguments.grid)
            console.message(f"{min(start + per_call, len(prompts))} of {len(prompts)} prompts")
        console.message(f"Wrote {len(prompts)} prompts x {e.images_per_prompt} images of {restored.name} to {out}")


def read(arguments: Read) -> None:
    """Reads, prints and saves."""
    from unigrpo_jax.config import require
    from unigrpo_jax.foreign_files import named
    from unigrpo_jax.training.console import Console
    from unigrpo_jax.training.run_folder import write_json
    from unigrpo_jax.worlds import geneval, lines

    path = named(arguments.results, "results")
    out = arguments.out and file_to_write(arguments.out, "--out")
    found = [x for _, x in lines.parsed(path, lambda line: geneval.result(lines.json_value(line)), "the results' name")]
    require(bool(found), f"{path} holds no results; give the file that GenEval's evaluate_images.py wrote.")
    table = geneval.summary(found)
    with Console() as console:
        title = f"GenEval: {table['images']} images of {table['prompts']} prompts"
        scores = [[name, f"{score:.4f}"] for name, score in table["geneval"].items()]
        shares = [[name.replace("_", " "), f"{table[name]:.4f}"] for name in ("correct_images", "correct_prompts")]
        console.table(title, ["score", ""], [*scores, *shares])
        if out is not None:
            write_json(out, table)
            console.message(f"Saved {out}")


if __name__ == "__main__":
    main()
