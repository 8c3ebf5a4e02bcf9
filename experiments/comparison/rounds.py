"""Several rounds, compared: the three worlds before and after training, two rounds against one, with and without a judge of
the thinking; arms, what is counted over episodes, and the page.

All arms but `reflect_one` are their preset.  That one draws once and is trained on twice as many prompts in each iteration,
so that as many images are drawn; at the end all arms of `reflect` are judged in two rounds, two episodes for each prompt.
Runs judge few prompts themselves, since the whole judgement follows them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.comparison.arms import ODE, Arm, changed
from experiments.comparison.page import html_table, markdown, provenance, series, write, write_figure
from experiments.comparison.records import Record, read_records, score, spread
from experiments.presets import shapes_edit, shapes_reflect, shapes_story
from unigrpo_jax.config import RunConfig
from unigrpo_jax.foreign_text import for_html
from unigrpo_jax.training.evaluation import Judged
from unigrpo_jax.training.page_shell import page
from unigrpo_jax.worlds.shapes.reflect import says_right

TITLE = "Several rounds"
WORLDS = {"reflect": shapes_reflect, "edit": shapes_edit, "story": shapes_story}
ROUNDS = {"reflect": 2, "edit": 1, "story": 3}
QUICK = ("reflect_base", "reflect", "edit_base", "edit")
IMAGES = 2  # of each prompt of `reflect` at the end, to choose among
OWN_PROMPTS = 96  # that a run itself judges, before and after


def arms(presets: Mapping[str, RunConfig], updates: int | None = None) -> list[Arm]:
    """The arms of the presets of all `WORLDS`; `updates` replaces their iterations, with rates held constant."""
    if updates:
        shortened = lambda c: changed(dataclasses.replace(c, iterations=updates), learning={"cooldown": (0, 0)})
        presets = {world: shortened(c) for world, c in presets.items()}
    reflect = presets["reflect"]
    per_iteration = {"prompts_per_iteration": 2 * reflect.rollout.prompts_per_iteration, "rounds": 1}
    one = changed(reflect, rollout=per_iteration, learning={"round_reward": "last", "credit": "shared"})
    credit = {"credit": "segment", "thought_rewards": ("plan", "verdict")}
    thoughts = changed(dataclasses.replace(reflect, rewards=("shapes", "shapes_thoughts")), learning=credit)
    trained = {"reflect": reflect, "reflect_thoughts": thoughts, "reflect_one": one, "edit": presets["edit"],
               "story": presets["story"]}  # fmt: skip
    titles = {"reflect": "two rounds", "reflect_thoughts": "two rounds, thinking judged too", "reflect_one": "one round",
              "edit": "trained", "story": "trained"}  # fmt: skip
    trained = {n: changed(c, evaluation={"prompts": min(OWN_PROMPTS, c.evaluation.prompts)}) for n, c in trained.items()}
    found = []
    for world, config in presets.items():
        if world == "reflect":
            config = changed(config, evaluation={"rounds": 2, "images_per_prompt": IMAGES})
        found.append(Arm(name=f"{world}_base", title="base", stages=(), judged=(ODE,), base=config))
        named = {name: c for name, c in trained.items() if name.partition("_")[0] == world}
        found += [Arm(name=n, title=titles[n], stages=(c,), judged=(ODE,), base=config) for n, c in named.items()]
    return found


def over_episodes(found: Judged, images_per_prompt: int) -> dict[str, dict[str, float]]:
    """What a table of means over episodes does not show, in the table's form; {} where there is one round.

    Scores: `every_round`, is the image of each round right; `either_round`, is one of them.  Where a thinking can say that
    the picture seen is right, in two rounds, also `own_choice_of_rounds`, is the image right that the model itself
    chooses, the first one where it then finds it right and else the second; with several episodes for each prompt
    `own_choice_of_images`, is the first image right of the first episode in which the model then finds it right, and of the
    first one where it never does, and `either_image`, is one of the first images right.
    """
    rounds = len(found.thinkings)
    if rounds == 1:
        return {}
    exact = np.stack([*(found.scores[f"round{r}_exact"] for r in range(1, rounds)), found.scores["exact"]])
    values = {"every_round": exact.min(0), "either_round": exact.max(0)}
    if "verdict_right" in found.scores and rounds == 2:
        says = np.array([says_right(thinking) for thinking in found.thinkings[1]])
        values["own_choice_of_rounds"] = np.where(says, exact[0], exact[1])
        if images_per_prompt > 1:
            by_prompt = lambda x: x.reshape(-1, images_per_prompt)
            first, chosen = by_prompt(exact[0]), by_prompt(says).argmax(1)  # argmax gives 0 where none is said to be right
            values["own_choice_of_images"] = np.take_along_axis(first, chosen[:, None], 1)
            values["either_image"] = first.max(1)
    return {name: {"overall": round(float(x.mean()), 6)} for name, x in values.items()}


def write_rounds(out: pathlib.Path, shown: Sequence[Arm]) -> None:
    """Writes rounds.md, rounds.html and figures/rounds.svg from the records; an arm without one is shown as missing."""
    records = read_records(out)
    known = [arm for arm in shown if arm.name in records]
    words = provenance([r for arm in known for r in records[arm.name]])
    body, html = [f"# {TITLE}", "", *words], f"<h1>{TITLE}</h1><p class=note>{for_html(' '.join(words))}</p>"
    of = lambda world: [arm for arm in shown if arm.name.partition("_")[0] == world]

    def table(title: str, columns: dict[str, str], rows: Sequence[Arm]) -> None:
        nonlocal html
        header = ["", "seeds", *columns]
        cells = [header, *(_row(arm, records.get(arm.name), columns) for arm in rows)]
        body.extend(["", f"## {title}", "", *markdown(cells)])
        html += f"<h2>{for_html(title)}</h2>{html_table(cells)}"

    for world in WORLDS:
        if of(world):
            table(f"{world}: held-out prompts, images right by the ODE", _by_round(ROUNDS[world]), of(world))
    if of("reflect"):
        table("reflect: with two drawn images", CHOICES, of("reflect"))
        table("reflect: what becomes of the first image", CONFUSION, of("reflect"))
        table("reflect: is the thinking right where the image is?", THINKING, of("reflect"))
    panels = [
        (f"{world}: images right, training prompts", [series(records[a.name], "curve", "update", "judge/exact", a.title)
                                                      for a in of(world) if a in known and records[a.name][0]["curve"]])
        for world in WORLDS
    ]  # fmt: skip
    if any(line.points for _, lines in panels for line in lines):
        html += f"<h2>Curves</h2>{write_figure(out, 'rounds', panels)}"
        body += ["", "![Curves](figures/rounds.svg)", "", "Lines are means over seeds, bands from lowest to highest."]
    write(out / "rounds.md", "\n".join(body) + "\n")
    write(out / "rounds.html", page(TITLE, html))


def _by_round(rounds: int) -> dict[str, str]:
    """Columns of a world: each round's images, and the parts of the last one."""
    each = {f"round {r}": f"round{r}_exact" for r in range(1, rounds)}
    last = {f"round {rounds}" if rounds > 1 else "exact": "exact"}
    every = {"every round": "every_round"} if rounds > 2 else {}
    return each | last | every | {"graded": "graded", "thinking right": "plan_exact", "follows plan": "drawing_follows_plan"}


CHOICES = {
    "first image": "round1_exact",
    "second image": "exact",
    "own choice of the two rounds": "own_choice_of_rounds",
    "own choice of two first images": "own_choice_of_images",
    "either round": "either_round",
    "either first image": "either_image",
}
CONFUSION = {
    "right, then right": "right_right",
    "right, then wrong": "right_wrong",
    "wrong, then right": "wrong_right",
    "wrong, then wrong": "wrong_wrong",
    "fault named, of the wrong": "caught",
    "mended, of the wrong": "mended",
    "kept, of the right": "kept",
    "verdict true": "verdict_right",
}
THINKING = {
    "round 1: plan right, of right images": "round1_thinking_right",
    "round 2: plan and verdict right, of right images": "thinking_right",
    "verdict true": "verdict_right",
    "plan right, round 2": "plan_exact",
    "follows plan, round 2": "drawing_follows_plan",
}


def _row(arm: Arm, found: Sequence[Record] | None, columns: dict[str, str]) -> list[str]:
    if not found:
        return [arm.title, *["missing"] * (len(columns) + 1)]
    return [arm.title, str(len(found)), *(spread([_read(r, name) for r in found]).words() for name in columns.values())]


def _read(record: Record, name: str) -> float | None:
    """A number of the evaluation; the four shares of the confusion table follow from three of them."""
    value = lambda n: score(ODE, n)(record)
    first, _, second = name.partition("_")
    if first not in ("right", "wrong") or second not in ("right", "wrong"):
        return value(name)
    if value("seen_right") is None:
        return None
    share = value("seen_right") if first == "right" else 1 - value("seen_right")
    then = value("kept" if first == "right" else "mended") or 0.0  # absent where the share is 0
    return share * (then if second == "right" else 1 - then)
