"""What a run says of itself: what it is about to do, and its scores in a line and as a table."""

from collections.abc import Mapping, Sequence

import jax
from etils import epath

from unigrpo_jax.clip_files import spread
from unigrpo_jax.config import LearningConfig, RolloutConfig, RunConfig
from unigrpo_jax.foreign_text import visible
from unigrpo_jax.learning import parameters
from unigrpo_jax.models import tree
from unigrpo_jax.rewards.judging import Judging
from unigrpo_jax.training.placement import shown_bytes
from unigrpo_jax.training.programs import FORWARD
from unigrpo_jax.training.trainer import Parts

SHORTEST, MUCH = 20, 0.1  # iterations of a run that is to learn something, and a share of the start
LEAST_GROUP = 8  # episodes of a group, fewer of which are warned of
COLUMNS = 10


def evaluated(table: dict) -> dict[str, float]:
    """The overall scores as metrics."""
    return {f"eval/{name}": row["overall"] for name, row in table.items() if "overall" in row}


def drifted(drift: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, float | None]:
    """`Judged.drift` as metrics: its mean over a drawing's steps, its last step, and the share of that in one pattern.

    Those of one modality are called `drift/...`, of several `drift_NAME/...`.
    """
    found = {}
    for name, own in drift.items():
        prefix, squared = f"drift{name.removeprefix('flow')}", own["squared"]
        mean = None if None in squared else sum(squared) / len(squared)
        found |= {f"{prefix}/mean": mean, f"{prefix}/last": squared[-1], f"{prefix}/last_pattern": own["pattern"][-1]}
    return found


def drift_table(drift: Mapping[str, Mapping[str, Sequence[float | None]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `Judged.drift`: a column for each of a drawing's steps, or of COLUMNS of them, by its time."""
    times, rows = next(iter(drift.values()))["times"], []
    shown = spread(len(times), COLUMNS)
    for name, own in drift.items():
        kind = name.removeprefix("flow").removeprefix("_")
        for title, form in (("squared", "{:.2e}"), ("pattern", "{:.2f}")):
            cells = ["-" if own[title][step] is None else form.format(own[title][step]) for step in shown]
            rows.append([f"{kind} {title}".strip(), *cells])
    return ["t", *(f"{times[step]:.3g}" for step in shown)], rows


def headline(table: dict) -> str:
    """The overall scores in one line."""
    return "  ".join(f"{name} {row['overall']:.3f}" for name, row in table.items() if "overall" in row)


def summary_table(before: dict, after: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows of scores by category, as "before -> after"."""
    categories = list(dict.fromkeys(c for table in (before, after) for row in table.values() for c in row))
    cell = lambda row, c: f"{row[c]:.3f}" if c in row else "-"
    rows = []
    for name in after:
        rows.append([name, *(f"{cell(before.get(name, {}), c)} -> {cell(after[name], c)}" for c in categories)])
    return ["score", *categories], rows


def warnings(config: RunConfig) -> list[str]:
    """What the settings allow and hardly anybody should want, in sentences."""
    learn, found = config.learning, []
    if learn.rewarded and learn.group_size < LEAST_GROUP:
        found.append(f"Warning: learning.group_size = {learn.group_size}: an advantage compares an episode with its group, "
                     f"whose mean and spread so few show badly; use {LEAST_GROUP} or more (the paper: 24).")  # fmt: skip
    start = learn.ema_decay**config.iterations
    if learn.rewarded and config.iterations >= SHORTEST and start > MUCH:
        found.append(f"Warning: learning.ema_decay = {learn.ema_decay:g}: after {config.iterations} iterations the average "
                     f"of the weights, which is judged and exported, is to {100 * start:.0f} % the start's; use "
                     f"{0.01 ** (1 / config.iterations):.2g} or less.")  # fmt: skip
    return found


def blind(config: RunConfig, judging: Judging) -> str:
    """A sentence where no reward that is trained by looks at what was asked for; "" else, and before any judged."""
    names = judging.blind(config.learning.reward_weights) if config.learning.rewarded else []
    if not names:
        return ""
    return (f"Warning: {' '.join(names)} {'looks' if len(names) == 1 else 'look'} at neither prompts nor what comes with "
            "them, so that nothing rewards drawing what was asked for; add one that does, such as clipscore.")  # fmt: skip


def card(parts: Parts, run_dir: epath.Path, held: int) -> list[tuple[str, str]]:
    """What a run is about to do, in rows; `held` are the bytes that lie on a device all the time."""
    c, learn, r = parts.config, parts.config.learning, parts.config.rollout
    taught = learn.method == "sft"
    params = parts.loaded.abstract_params()
    labels = parameters.groups(params, learn, parts.loaded.network.trained_by)
    sizes = {group: 0 for group in parameters.GROUPS}
    for path, array in tree.flatten(params).items():
        sizes[labels[path]] += array.size
    rate = {parameters.REASONING: f"Adam {learn.reasoning_lr:g}", parameters.DENOISING: f"Adam {learn.denoising_lr:g}",
            parameters.FROZEN: "not trained"}  # fmt: skip
    pieces = learn.minibatches * learn.micro_batches
    adapted = parts.loaded.adapted_layers()
    kind, mesh = jax.devices()[0].device_kind, parts.layout.mesh
    window = f"{r.window_size} of [{r.window_range[0]}, {r.window_range[1]})"
    first, end = r.noise_range
    drawn = f"{r.image_height} x {r.image_width} px"
    drawn += f", {r.frames} frames at {r.frames_per_second:g} per second" if r.frames > 1 else ""
    noise = f"in {window}" + (f", and in all of [{first}, {end})" if first < end else "")
    rule = "ode" if r.step_rule == "ode" else f"{r.step_rule} {r.noise_level:g} {noise}"
    rule += f", learned from {r.window_size} noisy version(s) each" if learn.method in FORWARD else ""
    if learn.distils:
        drawn = f"{_distilled(learn, r)}, {drawn}"
    more = f", and up to {r.resample} rollout(s) more where groups are alike" if r.resample else ""
    return [
        ("devices", f"{mesh.size} x {kind}, " + ", ".join(f"{n} {s}" for n, s in mesh.shape.items())),
        ("model", f"{parts.loaded.folder}, compute in {c.model.dtype}"),
        *((("model settings not read", "; ".join(parts.loaded.unknown_settings)),) if parts.loaded.unknown_settings else ()),
        *((("model files not read", ", ".join(map(visible, parts.loaded.unread_files[:20]))),) if parts.loaded.unread_files
          else ()),
        *((f"{group} parameters", f"{size:,}, {rate[group]}") for group, size in sizes.items() if size),
        *((("adapters", "; ".join(f"{target} hits {n} layers" for target, n in adapted.items())),) if adapted else ()),
        ("held per device", f"{shown_bytes(held)} (weights, optimizer, reference)"),
        (("examples per iteration", f"{c.episodes} of {c.data}, {r.window_size} noise level(s) each") if taught else
         ("episodes per iteration", f"{r.prompts_per_iteration} prompts x {learn.group_size} = {c.episodes}{more}")),
        ("update", f"{learn.ppo_epochs} epoch(s) x {learn.minibatches} step(s); "
                   f"{pieces} piece(s) of {c.trained_episodes // pieces}"),
        ("thinking", f"at most {r.thinking_tokens} tokens" if r.thinking else "off"),
        ("drawing", drawn if taught or learn.distils else
                    f"{r.flow_steps} steps, {rule}, "
                    f"{f'guidance {r.guidance:g}, ' if r.guidance > 1 else ''}{drawn}"),
        ("prompts; rewards", f"{', '.join(c.prompts) or 'those of the data'}; {', '.join(c.rewards) or 'none'}"),
        *((("told to rewards alone", f"{', '.join(parts.world.facts)} (a prompt's picture stands under image)"),)
          if parts.world.facts else ()),
        *((("fields not read", ", ".join(parts.world.unread)),) if parts.world.unread else ()),
        ("iterations", str(c.iterations)),
        ("results", str(run_dir)),
    ]  # fmt: skip


def _distilled(learn: LearningConfig, r: RolloutConfig) -> str:
    """What a distillation draws, and from whom it learns what, in words."""
    d = learn.distillation
    low, high = d.guidance_interval
    guided = f"guidance {d.guidance:g} in ({low:g}, {high:g}]" if d.guidance > 1 else "no guidance"
    steps = " ".join(map(str, d.steps))
    if learn.method == "dmd2":
        return f"the student's in {steps} steps; teacher with {guided}; {d.fake_steps} fake step(s) at {learn.fake_lr:g}"
    return f"the teacher's in {r.flow_steps} steps with {guided}, {r.window_size} noisy version(s) each; student of {steps}"
