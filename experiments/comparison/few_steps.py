"""Few steps: a guided teacher at its usual transitions against students without guidance, and which order with RL is best.

Teacher and students draw several times for each held-out prompt, so that what becomes of diversity is seen.  What an arm
costs for a sample is told in evaluations of the network; seconds, measured in turn, are those of `experiments.bench --tables
students`.  Where reinforcement learning and distillation follow each other each has as many iterations as in the arms that
have it alone.  Runs judge few prompts themselves, since the whole judgement follows them; but for two long ones, the preset
and a student that a short distillation makes, whose held-out curves say which of them is sooner right.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments import distill
from experiments.comparison.arms import GUIDANCE, Arm, changed
from experiments.comparison.page import gallery, grid_of, html_table, markdown, provenance, series, write, write_figure
from experiments.comparison.records import Record, first_at_least, read_records, score, spread
from unigrpo_jax.config import EvaluationConfig, LearningConfig, RunConfig
from unigrpo_jax.foreign_text import for_html
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.training.page_shell import page

TITLE = "Few steps"
QUICK = ("teacher", "mean_flow")
STEPS = (8, 4, 2, 1)
ROLLED = 4  # transitions of a student's rollouts
IMAGES = 4  # of each prompt
MATCHING = 0.01  # weight of the teacher's hold on a student that learns from rewards
OWN_PROMPTS = 96  # that a run itself judges, before and after
ENOUGH = 0.85  # exact of held-out prompts, until which seconds are counted
SEEN = 0.25  # iterations between two judgements of the long runs, for each of `--updates`
# Iterations, for each of `--updates`: of a distillation, and of reinforcement learning alone and after it, and from which on
# the rates fall; with 40 updates these are the presets `shapes` and `shapes_few`.
SHORT, LONG, SOONER = 0.3, (7.5, 5.0), (3.75, 2.25)
# Of a distillation: few iterations of several steps each, which the average of a long run would lag behind; `mean_flow`
# looks nearer to the noise, where the sampler's shifted times lie, and more often at long strides than its paper does.
STUDENT = {
    "mean_flow": {"denoising_lr": 5e-4, "ema_decay": 0.8, "ppo_epochs": 8},
    "dmd2": {"denoising_lr": 2e-4, "ema_decay": 0.8},
}
TAUGHT = {"mean_flow": {"time_mean": 0.4, "time_std": 1.4, "equal_share": 0.5}, "dmd2": {"fake_lr": 5e-4}}
# What is shown together: a title, and the arms.
QUESTIONS = (
    ("Students against their teacher", ("teacher", "mean_flow", "dmd2")),
    (
        "Reinforcement learning and distillation",
        ("rl", "rl_few", "rl_mean_flow", "mean_flow_rl", "rl_dmd2", "dmd2_rl", "dmd2_held"),
    ),
)
LONG_ONES = ("rl_long", "dmd2_rl_long")
SOONER_TITLE, SOON_HEADER = "Sooner right", ["", "seeds", f"seconds until {ENOUGH}", "seconds in all", "exact then"]
COLUMNS = {"exact": "exact", "graded": "graded", "thinking right": "plan_exact", "follows plan": "drawing_follows_plan",
           "diversity": "diversity"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewSteps(Arm):
    """An arm that is judged at several numbers of transitions.

    Attributes:
      asked: {name of an evaluation: (transitions, guidance, sampler)}; the samples shown are the first one's.
    """

    asked: tuple[tuple[str, tuple[int, float, str]], ...]

    def evaluations(self, base: EvaluationConfig) -> dict[str, EvaluationConfig]:
        """As many drawings in all as the base's, several for each prompt."""
        judged = dataclasses.replace(base, prompts=max(base.prompts // IMAGES, 1), images_per_prompt=IMAGES, drift=0)
        judged = dataclasses.replace(judged, batch=max(judged.batch // IMAGES, 1) * IMAGES)
        return {
            name: dataclasses.replace(judged, flow_steps=steps, guidance=guidance, sampler=sampler)
            for name, (steps, guidance, sampler) in self.asked
        }


def arms(base: RunConfig) -> list[FewSteps]:
    """The arms; `base` is what reinforcement learning runs with, its evaluation's transitions are the teacher's."""
    usual, r = base.evaluation.flow_steps, base.rollout
    scale = max(base.evaluation.guidance, r.guidance, GUIDANCE if r.thinking else 1.0)
    whole, base = base, changed(base, evaluation={"prompts": min(OWN_PROMPTS, base.evaluation.prompts)})
    share = lambda part: max(round(part * base.iterations), 2)

    def student(method: str, part: float = 1.0) -> RunConfig:
        found = dataclasses.replace(distill.settings(base, method), iterations=share(part))
        taught = dataclasses.replace(found.learning.distillation, guidance=scale, **TAUGHT[method])
        falling = {"cooldown": (found.iterations // 2, found.iterations)}
        drawings = {"prompts_per_iteration": base.trained_episodes}  # as many as reinforcement learning takes
        return changed(found, rollout=drawings, learning=STUDENT[method] | falling | {"distillation": taught})

    def seen(config: RunConfig, part: float, falls: float) -> RunConfig:
        """Longer, and judged by all prompts as it goes."""
        judged = {"prompts": whole.evaluation.prompts, "every": share(SEEN), "drift": 0}
        longer = changed(config, evaluation=judged, learning={"cooldown": (share(falls), share(part))})
        return dataclasses.replace(longer, iterations=share(part))

    few = {"flow_steps": ROLLED, "window_range": (0, ROLLED - 1), "window_size": min(r.window_size, ROLLED - 1),
           "noise_range": (0, min(r.noise_range[1], ROLLED))}  # fmt: skip
    rolled = changed(base, rollout=few, evaluation={"flow_steps": ROLLED})
    of_student = changed(rolled, rollout={"guidance": 1.0}, evaluation={"guidance": 1.0})
    mean_flow, dmd2 = student("mean_flow"), student("dmd2")
    # A student of DMD2 draws the noise anew at each transition but the last.
    anew = {"step_rule": "cps", "noise_level": 1.0, "noise_range": (0, ROLLED - 1)}
    renoised = changed(of_student, rollout=anew, evaluation={"sampler": "sde"})
    guided = dmd2.learning.distillation
    teacher_of = dataclasses.replace(guided, steps=type(guided).steps, teacher=base.model.path or "base")
    place = {"mse_weight": 0.0, "leash_times": (), "leash_weight": LearningConfig.leash_weight, "latent_kl_weight": 0.0,
             "text_kl_weight": 0.0, "reference": dmd2.learning.reference}  # fmt: skip
    # Its last transition is never trained, and is held to the start where it begins.
    last = float(timesteps(ROLLED, r.timestep_shift or 1.0)[ROLLED - 1])
    leashed = {"leash_times": (last,)} if base.learning.reference != "none" else {}
    after = {"ema_decay": 0.9, "reasoning_lr": 2 * base.learning.reasoning_lr} | leashed
    held = changed(renoised, learning=place | {"matching_weight": MATCHING, "distillation": teacher_of})
    told = lambda n: (f"{n}, guided" if scale > 1 else f"{n}", (n, scale, "ode"))
    teacher = dict([told(usual), (f"{usual}", (usual, 1.0, "ode"))])
    fewer = dict(told(n) for n in STEPS if n < usual)
    of = lambda sampler: {f"{n}": (n, 1.0, sampler) for n in sorted(STEPS, key=lambda n: n != ROLLED)}
    found = (
        ("teacher", "teacher", (), teacher | fewer),
        ("mean_flow", "MeanFlow", (mean_flow,), of("ode")),
        ("dmd2", f"DMD2, made for {ROLLED}", (dmd2,), of("sde")),
        ("rl", "RL alone", (base,), teacher | of("ode")),
        ("rl_few", f"RL alone, at {ROLLED}", (rolled,), teacher | of("ode")),
        ("rl_mean_flow", "RL, then MeanFlow", (base, mean_flow), of("ode")),
        ("mean_flow_rl", f"MeanFlow, then RL at {ROLLED}", (mean_flow, of_student), of("ode")),
        ("rl_dmd2", "RL, then DMD2", (base, dmd2), of("sde")),
        ("dmd2_rl", f"DMD2, then RL at {ROLLED}", (dmd2, renoised), of("sde")),
        ("dmd2_held", f"DMD2, then RL at {ROLLED}, held to the teacher", (dmd2, held), of("sde")),
        ("rl_long", "RL alone, long", (seen(base, *LONG),), teacher | of("ode")),
        ("dmd2_rl_long", f"DMD2 for a short time, then RL at {ROLLED}",
         (student("dmd2", SHORT), seen(changed(renoised, learning=after), *SOONER)), of("sde")),
    )
    return [FewSteps(name=name, title=title, stages=stages, asked=tuple(asked.items()))
            for name, title, stages, asked in found]  # fmt: skip


def write_few_steps(out: pathlib.Path, wanted: Sequence[FewSteps]) -> None:
    """Writes few_steps.md, few_steps.html, samples.png and figures/few_steps.svg; what has no record is shown as missing."""
    records, by_name = read_records(out), {arm.name: arm for arm in wanted}
    words = " ".join(provenance([r for name in by_name for r in records.get(name, ())]))
    body, html, panels = [f"# {TITLE}", "", words], f"<h1>{TITLE}</h1><p class=note>{for_html(words)}</p>", []
    header = ["", "transitions", "evaluations", "seeds", *COLUMNS]
    for question, names in QUESTIONS:
        if not (asked := [by_name[name] for name in names if name in by_name]):
            continue
        rows = [row for arm in asked for row in _rows(arm, records.get(arm.name))]
        body += ["", f"## {question}", "", *markdown([header, *rows])]
        html += f"<h2>{for_html(question)}</h2>{html_table([header, *rows])}"
        known = [arm for arm in asked if arm.name in records and _draws_itself(arm)]
        lines = [series(records[arm.name], "curve", "seconds", "judge/exact", arm.title) for arm in known]
        lines = [line for line in lines if line.points]
        panels += [(f"{question}: exact of training drawings, by seconds", lines)] if lines else []
    if long_ones := [by_name[name] for name in LONG_ONES if name in by_name]:
        rows = [SOON_HEADER, *(_soon(arm, records.get(arm.name, ())) for arm in long_ones)]
        more = [header, *(row for arm in long_ones for row in _rows(arm, records.get(arm.name)))]
        body += ["", f"## {SOONER_TITLE}", "", *markdown(rows), "", *markdown(more)]
        html += f"<h2>{for_html(SOONER_TITLE)}</h2>{html_table(rows)}{html_table(more)}"
        judged = {arm.title: [_last_stage(r) for r in records[arm.name]] for arm in long_ones if arm.name in records}
        lines = [series(found, "held_out", "seconds", "exact", title) for title, found in judged.items()]
        panels += [(f"{SOONER_TITLE}: exact of held-out prompts, by seconds", lines)] if lines else []
    if panels:
        html += write_figure(out, "few_steps", panels)
        body += ["", "![Curves](figures/few_steps.svg)"]
    if shown := {arm.title: records[arm.name][0]["samples"] for arm in wanted if arm.name in records}:
        (out / "samples.png").write_bytes(grid_of(shown))
        body += ["", "![The same prompts, drawn by each](samples.png)"]
        html += f"<h2>The same prompts</h2>{gallery(shown)}"
    write(out / "few_steps.md", "\n".join(body) + "\n")
    write(out / "few_steps.html", page(TITLE, html))


def _soon(arm: FewSteps, found: Sequence[Record]) -> list[str]:
    """When an arm is right often enough, and how right it is in the end, of held-out prompts that its run judged."""
    if not found:
        return [arm.title, "0", *["missing"] * 3]
    found = [_last_stage(record) for record in found]
    ends, whens = [record["held_out"][-1] for record in found], [first_at_least(r, "exact", ENOUGH) for r in found]
    seconds, exact = spread([end["seconds"] for end in ends]), spread([end.get("exact") for end in ends])
    there = sum(when is not None for when in whens)
    soon = spread(whens).words(0) + (f" ({there} of {len(whens)})" if 0 < there < len(whens) else "")
    return [arm.title, f"{len(found)}", soon, seconds.words(0), exact.words()]


def _draws_itself(arm: FewSteps) -> bool:
    """Whether what is seen of its training drawings is its own: a distillation by MeanFlow draws the teacher's."""
    return bool(arm.stages) and all(config.learning.method != "mean_flow" for config in arm.stages)


def _last_stage(record: Record) -> Record:
    """The record with what its last run judged alone: by all prompts, and not by the few of a distillation before it."""
    begins = sum(config["iterations"] for config in record["configs"][:-1])
    points = [point for point in record["held_out"] if point["update"] >= begins]
    return record | {"held_out": points[1:] if begins else points}  # the first is what the run before it ended with


def _rows(arm: FewSteps, found: Sequence[Record] | None) -> list[list[str]]:
    """One row for each number of transitions, or one that says that there are none yet."""
    if not found:
        return [[arm.title, *["missing"] * (len(COLUMNS) + 3)]]
    out = []
    for name, (steps, guidance, _) in sorted(arm.asked, key=lambda asked: (-asked[1][1], -asked[1][0])):
        first = [arm.title, name, str(steps * (2 if guidance > 1 else 1))]
        reads = [score(name, column) for column in COLUMNS.values()]
        out.append([*first, str(len(found)), *(spread([read(r) for r in found]).words() for read in reads)])
    return out
