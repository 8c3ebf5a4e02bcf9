"""What is compared: arms, each a chain of training runs from one base, and how the result is judged.

All arms of a comparison spend the same budget: iterations, episodes sampled in each, and updates.
"""

import dataclasses
from collections.abc import Callable

from unigrpo_jax.config import EvaluationConfig, LearningConfig, RunConfig

ODE, GUIDED = "ode", "guided"
GUIDANCE = 2.0
UNHELD = {"leash_times": (), "leash_weight": LearningConfig.leash_weight}  # at no times beside the window's
LATENT_KL, LEASH = 10.0, 0.1  # weights of the two regularisers
NOISY, FPO_CLIP = 4, 0.05  # noisy versions of a drawing; the clip range of FPO's paper


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
      name: for files.
      title: for tables.
      stages: configs of the runs, each of which starts from what the one before it learned; none is the base itself.
      thinking: whether the result is judged with thinking.
      judged: the evaluations of the result, of `ODE` and `GUIDED`.
      base: where it is not that of the comparison: world, model and evaluations of the arm.
    """

    name: str
    title: str
    stages: tuple[RunConfig, ...]
    thinking: bool = True
    judged: tuple[str, ...] = (ODE, GUIDED)
    base: RunConfig | None = None

    def evaluations(self, base: EvaluationConfig) -> dict[str, EvaluationConfig]:
        """How the result is judged: the ODE sampler without guidance and with it."""
        plain = dataclasses.replace(base, sampler="ode", guidance=1.0, thinking=self.thinking)
        every = {ODE: plain, GUIDED: dataclasses.replace(plain, guidance=GUIDANCE)}
        return {name: every[name] for name in self.judged}


def changed(config: RunConfig, **sections: dict) -> RunConfig:
    """The config with single fields of its sections changed: changed(c, learning={"text_weight": 0.0})."""
    nested = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **nested)


def table(base: RunConfig, learned_scorer: bool) -> list[Arm]:
    """The arms of the paper's Table 1 and three more (arXiv 2603.23500), in its order.

    Args:
      base: what UniGRPO itself runs with.
      learned_scorer: whether the prompts are those that the reward `shapes_scorer`, whose gradient ReFL follows, can read.
    """
    text = changed(base, learning={"flow_weight": 0.0, "mse_weight": 0.0} | UNHELD)
    flow = changed(base, learning={"text_weight": 0.0})
    blind = changed(flow, rollout={"thinking": False}, evaluation={"thinking": False})
    half = lambda config: dataclasses.replace(config, iterations=config.iterations // 2)
    steps = base.rollout.flow_steps
    # Drawn by the ODE, and learned from noisy versions at any of the schedule's times.
    forward = {"step_rule": "ode", "window_size": NOISY, "window_range": (0, steps), "window": "contiguous"}
    unifpo = changed(base, learning={"method": "fpo", "flow_clip": FPO_CLIP} | UNHELD, rollout=forward)
    fpo = changed(unifpo, learning={"text_weight": 0.0})
    nft = changed(flow, learning={"method": "diffusion_nft"} | UNHELD, rollout=forward)
    imitation = changed(base, learning={"method": "best_of_n", "best": 1} | UNHELD, rollout={"step_rule": "ode"})
    arms = [
        Arm(name="base_plain", title="Base", stages=(), thinking=False),
        Arm(name="base", title="Base", stages=()),
        Arm(name="flow_grpo_plain", title="FlowGRPO", stages=(blind,), thinking=False),
        Arm(name="flow_grpo", title="FlowGRPO", stages=(flow,)),
        Arm(name="fpo", title="FPO", stages=(fpo,)),
        Arm(name="diffusion_nft", title="DiffusionNFT", stages=(nft,)),
        Arm(name="text_grpo", title="TextGRPO", stages=(text,)),
        Arm(name="best_of_n", title="SFT on best of N", stages=(imitation,)),
        Arm(name="two_stage", title="TextGRPO, then FlowGRPO", stages=(half(text), half(flow))),
    ]
    if learned_scorer:
        late = {"step_rule": "ode", "window_size": 1, "window_range": (2, steps), "window": "contiguous"}
        follow = dataclasses.replace(changed(flow, learning={"method": "refl"}, rollout=late), rewards=("shapes_scorer",))
        arms += [
            Arm(name="refl", title="ReFL (learned scorer)", stages=(follow,)),
            Arm(name="refl_text", title="ReFL, then TextGRPO", stages=(half(follow), half(text))),
        ]
    both = [Arm(name="unifpo", title="UniFPO", stages=(unifpo,)), Arm(name="unigrpo", title="UniGRPO", stages=(base,))]
    return arms + both


QUICK = ("base_plain", "base", "flow_grpo", "text_grpo", "unigrpo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question and the settings that answer it.

    Attributes:
      name: for files.
      title: for pages.
      question: one sentence.
      change: (label, config) of each arm, made from the base.
      metrics: those whose curves are drawn, and their titles.
      judged: the evaluation that the table shows.
    """

    name: str
    title: str
    question: str
    change: Callable[[RunConfig], dict[str, RunConfig]]
    metrics: tuple[tuple[str, str], ...] = (("judge/exact", "Exact, training prompts"),)
    judged: str = ODE


def _guidance(base: RunConfig) -> dict[str, RunConfig]:
    """A guided rollout's second optimizer step is refused, so each takes one."""
    one = changed(base, learning={"minibatches": 1})
    return {"no guidance": one, f"guidance {GUIDANCE:g}": changed(one, rollout={"guidance": GUIDANCE})}


def _regulariser(base: RunConfig) -> dict[str, RunConfig]:
    """The learned reward, followed at twice the rate, so that what can be hacked is hacked within the budget."""
    none = {"mse_weight": 0.0, "latent_kl_weight": 0.0, "denoising_lr": 2 * base.learning.denoising_lr}
    scored = changed(dataclasses.replace(base, rewards=("shapes_scorer",)), learning=none | UNHELD)
    return {
        "none": scored,
        f"latent KL, {LATENT_KL:g}": changed(scored, learning={"latent_kl_weight": LATENT_KL}),
        f"velocity MSE, {LEASH:g}": changed(scored, learning={"mse_weight": LEASH}),
    }


def _groups(base: RunConfig) -> dict[str, RunConfig]:
    """The same number of episodes, in groups of different size."""
    sizes = [g for g in (4, 8, 16, 24) if base.episodes % g == 0]
    return {
        f"G = {g}": changed(base, learning={"group_size": g}, rollout={"prompts_per_iteration": base.episodes // g})
        for g in sizes
    }


def _each(section: str, field: str, values: tuple, label: str) -> Callable[[RunConfig], dict[str, RunConfig]]:
    return lambda base: {label.format(value): changed(base, **{section: {field: value}}) for value in values}


def _windows(base: RunConfig) -> dict[str, RunConfig]:
    """Sizes in the same range, and places of the same size."""
    size, (first, end) = base.rollout.window_size, base.rollout.window_range
    third = (base.rollout.flow_steps - 1) // 3
    sizes = [(n, (first, end)) for n in (1, 3, 5) if n <= end - first]
    places = [(size, (third * i, third * (i + 1))) for i in range(3) if size <= third]
    label = lambda n, r: f"{n} in [{r[0]}, {r[1]})"
    return {label(n, r): changed(base, rollout={"window_size": n, "window_range": r}) for n, r in (*sizes, *places)}


def _clips(base: RunConfig) -> dict[str, RunConfig]:
    """A clip range acts from the second step on an iteration's episodes, so each takes two."""
    two = changed(base, learning={"minibatches": 2})
    return {f"{clip:g}": changed(two, learning={"flow_clip": clip}) for clip in (1.2e-5, 1.2e-4, 1.2e-3)}


def _off_policy(base: RunConfig) -> dict[str, RunConfig]:
    """One, two and four optimizer steps on an iteration's episodes, and two passes over them."""
    steps = {f"{n} step{'s'[: n - 1]}": {"minibatches": n} for n in (1, 2, 4)}
    steps |= {"2 epochs": {"minibatches": 1, "ppo_epochs": 2}}
    norms = {"RatioNorm": True, "plain": False}
    return {f"{label}, {norm}": changed(base, learning=more | {"ratio_norm": on})
            for label, more in steps.items() for norm, on in norms.items()}  # fmt: skip


_CURVES = (("judge/exact", "Exact, training prompts"), ("flow/velocity_mse", "Velocity MSE"))

ABLATIONS = (
    Ablation(
        name="guidance",
        title="Guidance in rollouts",
        change=_guidance,
        judged=GUIDED,
        question="Is training without guidance as good, when guidance is on at evaluation?",
    ),
    Ablation(
        name="regulariser",
        title="Regulariser",
        change=_regulariser,
        question="Against a learned reward that can be hacked: what keeps the images whole?",
        metrics=(
            ("reward/scorer/mean", "Learned reward"),
            ("judge/exact", "Truth: the rule"),
            ("image/edge_density", "Edge density"),
            ("flow/velocity_mse", "Velocity MSE"),
        ),
    ),
    Ablation(
        name="ratio_norm",
        title="RatioNorm",
        change=lambda base: {
            "on": changed(base, learning={"ratio_norm": True}),
            "off": changed(base, learning={"ratio_norm": False}),
        },
        question="Does regulating the flow ratio matter?",
        metrics=_CURVES,
    ),
    Ablation(
        name="noise_level",
        title="Noise level",
        change=_each("rollout", "noise_level", (0.1, 0.4, 0.8), "a = {:g}"),
        question="How much noise should the window have?",
        metrics=_CURVES,
    ),
    Ablation(
        name="window",
        title="Window",
        change=_windows,
        question="How many transitions should be trained, and which?",
    ),
    Ablation(
        name="group_size",
        title="Group size",
        change=_groups,
        question="Few large groups or many small ones?",
    ),
    Ablation(
        name="shared_noise",
        title="Shared noise",
        change=lambda base: {
            "own": changed(base, rollout={"shared_noise": False}),
            "shared": changed(base, rollout={"shared_noise": True}),
        },
        question="Should a group begin at the same noise?",
    ),
    Ablation(
        name="context_gradient",
        title="Context gradient",
        change=_each("learning", "context_gradient", ("full", "stop"), "{}"),
        question="Should the flow losses reach the thinking through the context?",
    ),
    Ablation(
        name="flow_clip",
        title="Flow clip range",
        change=_clips,
        metrics=(*_CURVES, ("flow/clip_fraction_above", "Clipped above")),
        question="How far may a flow ratio go, where an iteration takes two steps?",
    ),
    Ablation(
        name="off_policy",
        title="Several steps an iteration",
        change=_off_policy,
        metrics=(
            *_CURVES,
            ("flow/log_ratio_mean", "Log-ratio of the flow, mean"),
            ("flow/ratio_std", "Ratio of the flow, spread"),
            ("flow/clip_fraction_above", "Clipped above"),
            ("flow/clip_fraction_below", "Clipped below"),
        ),
        question="From the second step on ratios differ from 1: does RatioNorm straighten them, and does it matter?",
    ),
)
QUICK_ABLATIONS = ("shared_noise", "context_gradient")


def ablations(base: RunConfig, studies: tuple[str, ...]) -> tuple[list[Arm], dict[str, dict[str, str]]]:
    """The arms of some ablations, each setting once, and {study: {label: arm's name}}."""
    arms: dict[RunConfig, Arm] = {}
    named: dict[str, dict[str, str]] = {}
    for study in (a for a in ABLATIONS if a.name in studies):
        named[study.name] = {}
        for label, config in study.change(base).items():
            key = repr(config)
            known = arms.get(key)
            if known is None:
                slug = "".join(c if c.isalnum() else "_" for c in f"{study.name} {label}").strip("_")
                known = Arm(name=slug, title=f"{study.title}: {label}", stages=(config,), judged=(study.judged,))
            elif study.judged not in known.judged:
                known = dataclasses.replace(known, judged=(*known.judged, study.judged))
            arms[key] = known
            named[study.name][label] = known.name
    return list(arms.values()), named
