"""Trains and judges one arm with one seed, and writes its record.

    python -m experiments.comparison.execute JOB.json

A job is a process of its own, so that one that dies takes nothing with it.  Its runs are ordinary run folders, continued
from their checkpoints where they were interrupted.
"""

import base64
import dataclasses
import datetime
import io
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

from unigrpo_jax.config import EvaluationConfig, RunConfig
from unigrpo_jax.config_json import from_dict, to_dict

PHASES = ("time/rollout_text", "time/rollout_flow", "time/reward", "time/update")
KEPT = ("reward/", "judge/", "image/", "flow/", "text/entropy", "text/length", "text/ratio_m", "text/clip", "imitation/",
        "episodes/")  # fmt: skip
SAMPLES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One arm and one seed.

    Attributes:
      study: `table`, `ablations` or `rounds`.
      arm: the arm's name.
      title: its title.
      seed: of its runs.
      base: the config of the base, where there are no stages.
      stages: configs of its runs.
      evaluations: {name: how the result is judged}.
      runs: folder of its run folders.
      record: file of its record.
    """

    study: str
    arm: str
    title: str
    seed: int
    base: RunConfig
    stages: tuple[RunConfig, ...]
    evaluations: dict[str, EvaluationConfig]
    runs: pathlib.Path
    record: pathlib.Path

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        plain = {name: getattr(self, name) for name in ("study", "arm", "title", "seed")}
        return plain | {
            "base": to_dict(self.base),
            "stages": [to_dict(config) for config in self.stages],
            "evaluations": {name: to_dict(config) for name, config in self.evaluations.items()},
            "runs": str(self.runs),
            "record": str(self.record),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Job":
        """Back from `to_json`."""
        return cls(
            **{name: data[name] for name in ("study", "arm", "title", "seed")},
            base=from_dict(data["base"]),
            stages=tuple(from_dict(config) for config in data["stages"]),
            evaluations={name: from_dict(config, EvaluationConfig) for name, config in data["evaluations"].items()},
            runs=pathlib.Path(data["runs"]),
            record=pathlib.Path(data["record"]),
        )


def execute(job: Job) -> None:
    """Trains, judges, writes the record."""
    from unigrpo_jax.training.distilled import student_of
    from unigrpo_jax.training.loop import run
    from unigrpo_jax.training.metrics import FILE_NAME, read_metrics
    from unigrpo_jax.training.restore import restore
    from unigrpo_jax.training.run_folder import versions, write_json
    from unigrpo_jax.training.summary import read_summary

    start, curve, held_out, updates, episodes, seconds, spent, configs = None, [], [], 0, 0, 0.0, 0.0, []
    for number, config in enumerate(job.stages, 1):
        if start is not None:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(start)))
        configs.append(config)
        folder = job.runs / f"{job.arm}-seed{job.seed}" / f"stage{number}"
        finished = "after" in read_summary(folder)
        summary = read_summary(folder) if finished else run(config, folder, resume=True)
        lines = read_metrics(folder / FILE_NAME)
        overall = lambda table: {name: row["overall"] for name, row in table.items() if "overall" in row}
        held_out.append({"update": updates, "seconds": round(seconds, 2)} | overall(summary["before"]))
        for line in lines:
            seconds += sum(line.get(phase, 0.0) for phase in PHASES)
            episodes += line.get("episodes/sampled", config.episodes)
            at = {"update": updates + line["step"], "seconds": round(seconds, 2)}
            curve.append(at | {name: _rounded(x) for name, x in line.items() if name.startswith(KEPT)})
            scores = {name.removeprefix("eval/"): x for name, x in line.items() if name.startswith("eval/")}
            held_out += [at | scores] if scores else []
        updates += config.iterations
        spent += summary["seconds"]
        held_out.append({"update": updates, "seconds": round(seconds, 2)} | overall(summary["after"]))
        start = folder.parent / f"model{number}"
        if number < len(job.stages) and not start.exists():
            restored = restore(str(folder), job.base)
            student, begun = student_of(restored.config, restored.loaded), start.with_name(f"{start.name}.part")
            shutil.rmtree(begun, ignore_errors=True)  # of a job that died here
            restored.loaded.export(restored.read(), begun, restored.loaded.stored_dtype, student=student)
            begun.rename(start)
    last = str(job.runs / f"{job.arm}-seed{job.seed}" / f"stage{len(job.stages)}") if job.stages else job.base.model.path
    begin = time.monotonic()
    evaluations, samples = _judged(last or "base", job)
    write_json(
        job.record,
        {
            "study": job.study,
            "arm": job.arm,
            "title": job.title,
            "seed": job.seed,
            "commit": commit(),
            "versions": versions(),
            "machine": machine(),
            "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "configs": [to_dict(config) for config in configs],
            "evaluated": {name: to_dict(config) for name, config in job.evaluations.items()},
            "budget": {"iterations": updates, "episodes": episodes, "updates": updates},
            "seconds": {"training": round(seconds, 1), "total": round(spent + time.monotonic() - begin, 1)},
            "evaluations": evaluations,
            "curve": curve,
            "held_out": held_out,
            "samples": samples,
        },
    )


def _judged(path: str, job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tables of the result, and the first samples of the first of them."""
    from experiments.comparison.rounds import over_episodes
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.rewards.judging import Judging
    from unigrpo_jax.rewards.load import load_rewards
    from unigrpo_jax.training.evaluation import Evaluator
    from unigrpo_jax.training.restore import restore
    from unigrpo_jax.worlds.world import load_world

    tables, samples = {}, []
    restored = restore(path, job.base, job.base.devices, job.base.mesh)
    params = restored.read()
    autoencoder = restored.loaded.autoencoder_params(meshes.replicated(restored.layout.mesh))
    config = restored.config
    world = load_world(config.prompts, config.prompt_weights, config.evaluation.source, config.rollout.rounds)
    for name, evaluation in job.evaluations.items():
        judging = Judging(load_rewards(config), config.judging)
        judge = Evaluator(evaluation, config.rollout, restored.loaded, world, judging, restored.layout, SAMPLES)
        found = judge(params, autoencoder)
        tables[name] = found.table | over_episodes(found, evaluation.images_per_prompt)
        samples = samples or [
            {"prompt": s.asked, "thinking": s.thinking, "verdict": s.verdict, "correct": s.correct, "image": _png(s.still)}
            for s in found.samples
        ]
    return tables, samples


def commit() -> str | None:
    """The commit of the program, with "+" where files differ from it; None where it is no checkout."""
    folder = pathlib.Path(__file__).parent
    asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        head, changes = (
            subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


def machine() -> dict[str, str]:
    """What it ran on."""
    from experiments.benchmark.machine import description

    return {name: str(value) for name, value in description().items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _png(image) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Reads the job and does it."""
    import json

    from experiments.command_line import complain, configure_jax, say
    from unigrpo_jax.config import ConfigError
    from unigrpo_jax.training.loop import RunStopped

    configure_jax()
    try:
        execute(Job.from_json(json.loads(pathlib.Path(sys.argv[1]).read_text())))
    except ConfigError as error:
        complain(error, "experiments.compare")
    except RunStopped as error:
        say("experiments.compare", error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
