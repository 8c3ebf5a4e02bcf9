"""DanceGRPO (arXiv 2505.07818) beside others' settings and its own choices, one changed at a time: the arms, and the page.

All arms spend the same: iterations, episodes sampled in each, optimizer steps.  What some of them differ in is how many
transitions of an episode are trained.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from experiments.comparison.arms import ODE, Arm, changed
from experiments.comparison.page import CATEGORIES, html_table, markdown, provenance, series, write, write_figure
from experiments.comparison.records import last, read_records, score, spread
from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.foreign_text import for_html
from unigrpo_jax.training.page_shell import page

TITLE = "DanceGRPO"
QUICK = ("base", "dance", "own_noise")
SECOND = "colourfulness"  # the second of two rewards
# What is shown together: a title, and the arms.
QUESTIONS = (
    ("Against others' settings", ("base", "dance", "ddpo", "flow_grpo")),
    ("Shared or own noise", ("dance", "own_noise")),
    ("Which transitions are trained", ("dance", "all_transitions", "first_30")),
    ("Two rewards", ("advantages", "sum")),
    ("Best and worst of a wide group", ("dance", "best_of_n")),
)


def arms(base: RunConfig) -> list[Arm]:
    """The arms; `base` is what DanceGRPO itself runs with.

    `ddpo` (arXiv 2305.13301): DDIM's noise with eta 1, own initial noise, every transition trained but the last, where DDIM
    has no noise, rewards divided by the batch's deviation.  `flow_grpo` (arXiv 2505.05470), without its KL: its SDE at 0.7,
    own initial noise, every transition.
    """
    steps, group = base.rollout.flow_steps, base.learning.group_size
    prompts = base.rollout.prompts_per_iteration
    require(prompts % 2 == 0 and group % 2 == 0, f"rollout.prompts-per-iteration = {prompts} and learning.group-size = "
            f"{group} must be even, since one arm has half as many groups, twice as wide.")  # fmt: skip
    require(steps >= 4, f"rollout.flow-steps = {steps} must be at least 4, since one arm trains the first 30 % of them.")
    of_first = lambda count: {"window": "contiguous", "window_size": count, "window_range": (0, count)}
    every, first = of_first(steps), of_first(round(0.3 * steps))
    own = changed(base, rollout={"shared_noise": False})
    ddim = of_first(steps - 1) | {"step_rule": "ddim", "noise_level": 1.0}
    ddpo = changed(own, rollout=ddim, learning={"advantage": "global_std"})
    flow = changed(own, rollout=every | {"step_rule": "flow_sde", "noise_level": 0.7})
    both = dataclasses.replace(base, rewards=(*base.rewards, SECOND))
    wide = changed(base, rollout={"prompts_per_iteration": prompts // 2},
                   learning={"group_size": 2 * group, "best": group // 2, "worst": group // 2})  # fmt: skip
    trained = (
        ("dance", "DanceGRPO", base),
        ("ddpo", "DDPO's settings", ddpo),
        ("flow_grpo", "Flow-GRPO's settings", flow),
        ("own_noise", "own noise", own),
        ("all_transitions", "all transitions trained", changed(base, rollout=every)),
        ("first_30", "the first 30 % trained", changed(base, rollout=first)),
        ("advantages", "two rewards, advantages added", changed(both, learning={"combine": "advantages"})),
        ("sum", "two rewards, their sum", changed(both, learning={"combine": "rewards"})),
        ("best_of_n", "best and worst quarter of groups twice as wide", wide),
    )
    settings = {"thinking": False, "judged": (ODE,)}
    return [
        Arm(name="base", title="base", stages=(), **settings),
        *(Arm(name=name, title=title, stages=(config,), **settings) for name, title, config in trained),
    ]


def write_dance(out: pathlib.Path, wanted: Sequence[Arm]) -> None:
    """Writes dance.md, dance.html and figures/dance.svg; an arm without a record is shown as missing."""
    records, titles = read_records(out), {arm.name: arm.title for arm in wanted}
    words = " ".join(provenance([r for name in titles for r in records.get(name, ())]))
    body, html, panels = [f"# {TITLE}", "", words], f"<h1>{TITLE}</h1><p class=note>{for_html(words)}</p>", []
    for question, names in QUESTIONS:
        if not (asked := [name for name in names if name in titles]):
            continue
        known = [name for name in asked if name in records]
        second = any(SECOND in records[name][0]["evaluations"].get(ODE, {}) for name in known)
        reads = [score(ODE, "exact"), score(ODE, "graded"), *(score(ODE, "exact", c) for c in CATEGORIES)]
        reads += [score(ODE, SECOND)] if second else []
        reads += [last("judge/exact"), lambda r: r["seconds"]["training"] / 60 or None]
        header = ["", "seeds", "exact", "graded", *CATEGORIES, *([SECOND] if second else []), "exact, training prompts",
                  "minutes"]  # fmt: skip
        of = lambda name, reads=reads: [spread([read(r) for r in records[name]]).words() for read in reads]
        rows = [[titles[n], str(len(records[n])), *of(n)] if n in records else
                [titles[n], *["missing"] * (len(header) - 1)] for n in asked]  # fmt: skip
        body += ["", f"## {question}", "", *markdown([header, *rows])]
        html += f"<h2>{for_html(question)}</h2>{html_table([header, *rows])}"
        lines = [series(records[n], "curve", "update", "judge/exact", titles[n]) for n in known if records[n][0]["curve"]]
        panels += [(f"{question}: exact, training prompts", lines)] if lines else []
    if panels:
        html += write_figure(out, "dance", panels)
        body += ["", "![Curves](figures/dance.svg)"]
    write(out / "dance.md", "\n".join(body) + "\n")
    write(out / "dance.html", page(TITLE, html))
