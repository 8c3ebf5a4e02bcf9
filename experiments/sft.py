"""Supervised training on one's own pictures or clips, in every run's loop; reinforcement learning begins with its model.

    python -m experiments.sft [PRESET] --data FILE.jsonl [--field value ...]
    python -m experiments.run [PRESET] --model.path runs/PRESET_sft/model

A line of FILE.jsonl is {"prompt": text, "image": path}, and has a "thinking", too, where the model thinks; where the preset
draws clips, it is {"prompt": text, "video": path}, and may have an "image", the first frame that the clip goes on from;
where clips have sound, the MP4 holds it, or "audio" names a WAV file.  PRESET is a file in experiments/presets
(default: shapes); an iteration is one optimizer step upon as many examples as one of the preset's takes episodes.  --help
lists every field with its default and meaning.
"""

import dataclasses
import pathlib
import shutil

from experiments.run import train
from unigrpo_jax.config import LearningConfig, RunConfig, require
from unigrpo_jax.foreign_text import tell

PROGRAM = "experiments.sft"
MODEL = "model"  # the folder in a finished run that holds what it learned, as `--model.path` takes it


def main() -> None:
    """Parses the command line, runs, and writes the model."""
    train(PROGRAM, __doc__, settings, write_model)


def settings(preset: RunConfig) -> RunConfig:
    """A preset's settings for the method `sft`: its machine and model, and pieces of an update as large as they were.

    Nothing holds what is learned to the start, of which no copy is kept.
    """
    batch = preset.trained_episodes // preset.learning.minibatches
    rollout = dataclasses.replace(preset.rollout, prompts_per_iteration=batch, micro_batches=1)
    learning = dataclasses.replace(
        preset.learning, method="sft", group_size=1, best=0, worst=0, ppo_epochs=1, minibatches=1, credit="shared",
        thought_rewards=(), round_reward="last", reference="none", mse_weight=0.0, latent_kl_weight=0.0, text_kl_weight=0.0,
        leash_times=(), leash_weight=LearningConfig.leash_weight, credit_by={}, advantage_limit=0.0,
    )  # fmt: skip
    return dataclasses.replace(preset, name=f"{preset.name}_sft", rollout=rollout, learning=learning)


def write_model(run_dir: str) -> None:
    """Writes what a finished run learned into a model folder in its run folder; where that cannot be, says what can."""
    import jax

    from unigrpo_jax.config_json import load_run_config
    from unigrpo_jax.parallel import processes
    from unigrpo_jax.training import storage
    from unigrpo_jax.training.distilled import student_of
    from unigrpo_jax.training.restore import restore

    if jax.process_count() > 1 or storage.is_bucket(storage.path(run_dir)):
        if processes.is_first():
            tell(f"`python -m experiments.export {run_dir} FOLDER` writes what was learned for --model.path FOLDER.")
        return
    out = pathlib.Path(run_dir) / MODEL
    config = load_run_config(storage.path(run_dir) / "config.json")
    restored = restore(run_dir, config, config.devices, config.mesh)  # where it was trained it also fits
    try:
        if out.exists():  # of this run, before it was continued
            shutil.rmtree(out)
        student = student_of(restored.config, restored.loaded)
        restored.loaded.export(restored.read(), out, restored.loaded.stored_dtype, student=student)
    except OSError as error:
        require(False, f"{out} cannot be written ({error.strerror or error}); `python -m experiments.export {run_dir} "
                "FOLDER` writes it elsewhere.")  # fmt: skip
    tell(f"What was learned: {out}; --model.path {out} begins with it.")


if __name__ == "__main__":
    main()
