"""Every setting of a run, named as in the papers, with the checks that need nothing but the numbers themselves.

A preset is a Python file in `experiments/presets` that builds a `RunConfig`; the command line changes single fields.
Defaults that differ from the paper's Table 3 (arXiv 2603.23500) are those of a small world on a laptop.
"""

import dataclasses
import difflib
import json
import math
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting, a file or an argument that cannot work; the message is one sentence for the user and names the fix."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, trained instead of the weights (LoRA, arXiv 2106.09685)."""

    rank: int = 0
    """Rank of the adapters; 0 trains the weights themselves."""
    alpha: float = 32.0
    """The adapters' product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("layers/(und|gen)/(q|k|v|o|gate|up|down)_proj",)
    """Regular expressions of the projections that get one, und is the reasoning expert, gen the denoising one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and where its weights come from."""

    path: str | None = None
    """Folder in BAGEL's layout, or a name on the Hugging Face hub; `tiny` is a toy with all parts; None the shapes base."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; statistics, log-probabilities, the SDE and the losses are float32 in both."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights in memory; bfloat16 is for use and for LoRA, weights that are trained must be float32."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    remat: bool = False
    """Recompute each layer's activations in the backward pass: less memory, about a third more time."""
    unroll: int = 1
    """Layers per iteration of the scan over layers; more may run faster on CPU and compiles longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How episodes are sampled."""

    prompts_per_iteration: int = 12
    """Different prompts P in one iteration; each is answered by learning.group-size episodes."""
    prompt_tokens: int = 18
    """Bucket that prompts are left-padded to, including the two tokens around the text."""
    thinking: bool = True
    """Think before drawing; without it the image follows the prompt directly and only the flow is trained."""
    system_prompt: str = ""
    """Text block read before the prompt where the model thinks; none where it is empty."""
    thinking_tokens: int = 26
    """Largest number of sampled thinking tokens; a chain without a stop token by then is truncated."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in the ratio; 0 decodes greedily (evaluation only)."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is all. Log-probabilities stay those of the untruncated distribution."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this probability. Log-probabilities as for top-k."""
    image_height: int = 24
    """Pixels."""
    image_width: int = 24
    """Pixels."""
    flow_steps: int = 10
    """Denoising transitions T (BAGEL counts points: its N is N - 1 here)."""
    timestep_shift: float = 3.0
    """Shift of the schedule, t = s u / (1 + (s - 1) u)."""
    step_rule: Literal["flow_sde", "dance_sde", "cps", "ode"] = "flow_sde"
    """Transition inside the window; outside it is always the Euler ODE step."""
    noise_level: float = 0.8
    """`a` of the step rule."""
    window_size: int = 3
    """Stochastic, trained transitions per episode."""
    window_range: tuple[int, int] = (0, 5)
    """The window lies inside [first, end); its start is drawn once per iteration."""
    guidance: float = 1.0
    """Must stay 1: with guidance a transition depends on several contexts, and episodes are no longer linear."""
    micro_batches: int = 1
    """Split the prompts of an iteration into this many rollouts, one after the other; changes memory, not episodes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How episodes become an update."""

    group_size: int = 8
    """Episodes G per prompt; an episode's advantage is relative to its group."""
    advantage: Literal["group_std", "global_std", "none"] = "group_std"
    """What the centred reward is divided by: the group's std, the batch's std, or nothing."""
    reward_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each reward component's advantage; a component that is not named has weight 1."""
    text_clip: float = 0.2
    """Clip range of the token ratio."""
    flow_clip: float = 1.2e-5
    """Clip range of RatioNorm's log-ratio scale; about 1e-6 * sqrt(262144 / numbers in the latent)."""
    ratio_norm: bool = True
    """Regulate the flow ratio (GRPO-Guard's RatioNorm); without it the plain Gaussian ratio is clipped."""
    flow_weight: float = 1.0
    """lambda: weight of the flow loss against the text loss."""
    text_weight: float = 1.0
    """Weight of the text loss; 0 trains the flow alone (FlowGRPO)."""
    mse_weight: float = 0.005
    """Weight of the velocity MSE to the reference (mean over the latent's numbers)."""
    latent_kl_weight: float = 0.0
    """Weight of the latent KL to the reference, the ablation of the velocity MSE."""
    text_kl_weight: float = 0.0
    """Weight of the k3 estimate of the text KL to the reference."""
    context_gradient: Literal["full", "stop"] = "full"
    """Whether the flow losses reach the thinking through the context's keys and values."""
    old_log_probs: Literal["recompute", "rollout"] = "recompute"
    """Where the ratio's denominator comes from; recomputed ones make the first ratio exactly 1."""
    ppo_epochs: int = 1
    """Passes over an iteration's episodes."""
    minibatches: int = 1
    """Optimizer steps per pass, each on its own share of every group."""
    micro_batches: int = 1
    """Gradients of a minibatch are accumulated over this many pieces; changes memory, not the update."""
    reasoning_lr: float = 1e-4
    """Adam's rate for the reasoning expert (und): thinking."""
    denoising_lr: float = 5e-4
    """Adam's rate for the denoising expert (gen) and the flow head."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter paths that are not trained; position tables and the vision side never are."""
    adam_b1: float = 0.9
    """Adam's first decay."""
    adam_b2: float = 0.999
    """Adam's second decay."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm over both experts together."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0 keeps none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is judged on held-out prompts, before and after training."""

    prompts: int = 480
    """Held-out prompts, equal shares of each category where the world has them."""
    images_per_prompt: int = 1
    """Episodes per prompt."""
    batch: int = 96
    """Episodes per call of the program."""
    every: int = 0
    """Iterations between evaluations during the run; 0 evaluates at the start and the end only."""
    thinking: bool = True
    """Think before drawing."""
    temperature: float = 1.0
    """Of the thinking; 0 is greedy."""
    sampler: Literal["ode", "sde"] = "ode"
    """ODE everywhere, or the rollout's step rule at every transition."""
    flow_steps: int = 10
    """Denoising transitions."""
    guidance: float = 1.0
    """Text classifier-free guidance scale; 1 is off."""
    guidance_image: float = 1.0
    """Image guidance scale: against the prompt without images and thinking; 1 is off, as is all where guidance is 1."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts where low < t <= high."""
    guidance_renorm: Literal["global", "channel", "text_channel"] = "global"
    """Over what the guided velocity's norm is held to the conditional one's; text_channel does so before image guidance."""
    guidance_renorm_min: float = 0.0
    """Lower bound of the renormalisation factor; 1 turns it off."""
    seed: int = 0
    """Noise and tokens of the evaluation; the same for every checkpoint, so that differences are paired."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = 25
    """Iterations between checkpoints; the last iteration always gets one."""
    keep: int = 2
    """Newest checkpoints kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written while a run goes on, beside metrics.jsonl."""

    samples_every: int = 25
    """Iterations between sample grids of the same prompts and noises; 0 draws none but the first and the last."""
    samples: int = 12
    """Images in a grid."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `tensorboard`)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra `wandb`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged; the sizes multiply to their number."""

    data: int = 0
    """Copies of the parameters; episodes are spread over them. 0 is what the others leave."""
    fsdp: int = 1
    """Parts of every parameter along its width, gathered when a layer runs; episodes are spread over these, too."""
    tensor: int = 1
    """Parts of every head group, MLP and the vocabulary; each part is computed where it lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    name: str = "run"
    """Name of the run folder under runs/."""
    seed: int = 0
    """Seed of prompts, tokens and noise."""
    iterations: int = 100
    """Rollout, reward, update: once each per iteration."""
    prompts: str = "shapes"
    """`shapes`, the shapes world; `examples`, 48 prompts; or a JSONL file with a `prompt` and any metadata per line."""
    reward: str = "shapes"
    """The shapes checker, or package.module:function (see unigrpo_jax.rewards.protocol)."""
    devices: int = 0
    """Devices that are used; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    learning: LearningConfig = dataclasses.field(default_factory=LearningConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

    @property
    def episodes(self) -> int:
        """Episodes B of one iteration."""
        return self.rollout.prompts_per_iteration * self.learning.group_size


_AT_LEAST_ONE = {
    "rollout": ("prompts_per_iteration", "prompt_tokens", "thinking_tokens", "flow_steps", "window_size",
                "micro_batches", "image_height", "image_width"),
    "learning": ("ppo_epochs", "minibatches", "micro_batches"),
    "evaluation": ("prompts", "images_per_prompt", "batch", "flow_steps"),
    "checkpoint": ("every", "keep"),
    "logging": ("samples",),
    "model": ("unroll",),
}  # fmt: skip
_POSITIVE = {
    "rollout": ("timestep_shift",),
    "learning": ("text_clip", "flow_clip", "max_grad_norm", "adam_eps"),
    "evaluation": ("guidance", "guidance_image"),
}
_NOT_NEGATIVE = {
    "rollout": ("temperature", "top_k", "noise_level"),
    "learning": ("flow_weight", "text_weight", "mse_weight", "latent_kl_weight", "text_kl_weight", "reasoning_lr",
                 "denoising_lr", "weight_decay", "ema_decay"),
    "evaluation": ("temperature", "every", "seed"),
    "logging": ("samples_every",),
    "mesh": ("data", "fsdp", "tensor"),
}  # fmt: skip
_LARGEST = {int: 2**31 - 1, float: 3.4e38}


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a config with its name, such as ("rollout.window_range[1]", 5)."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    elif isinstance(value, dict | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{name}[{key}]")
    elif type(value) in _LARGEST:
        yield name, value


def check(config: RunConfig) -> None:
    """Raises ConfigError where settings contradict each other or cannot work; compiles and reads nothing."""
    for name, value in _numbers(config):
        fits = abs(value) <= _LARGEST[type(value)]  # False for NaN
        require(fits, f"{name} = {value}, but it must be a finite number that fits into 32 bits.")
    for table, low, words in ((_AT_LEAST_ONE, 1, "at least 1"), (_NOT_NEGATIVE, 0, "0 or more")):
        for section, names in table.items():
            for name in names:
                value = getattr(getattr(config, section), name)
                require(value >= low, f"{section}.{name} = {value}, but it must be {words}.")
    for section, names in _POSITIVE.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            require(value > 0, f"{section}.{name} = {value}, but it must be above 0.")
    require(config.iterations >= 1, f"iterations = {config.iterations}, but it must be at least 1.")
    require(config.seed >= 0, f"seed = {config.seed}, but it must be 0 or more.")
    require(config.devices >= 0, f"devices = {config.devices}, but it must be 0 (all of them) or more.")
    require(
        config.name not in ("", ".", "..") and not set("/\\") & set(config.name),
        f"name = {config.name!r} cannot be a folder's name; use letters, digits and '-', or --run-dir for a path.",
    )
    r, learn, e, lora = config.rollout, config.learning, config.evaluation, config.model.lora
    require(lora.rank >= 0, f"model.lora.rank = {lora.rank}, but it must be 0 (no adapters) or more.")
    require(lora.alpha > 0, f"model.lora.alpha = {lora.alpha}, but it must be above 0.")
    require(
        r.guidance == 1,
        f"rollout.guidance = {r.guidance}, but episodes are sampled and trained without guidance: the ratio is that of one "
        "policy on one linear episode, and a guided velocity mixes several contexts; use evaluation.guidance.",
    )
    require(
        learn.group_size >= 2,
        f"learning.group_size = {learn.group_size}: an advantage compares an episode with its group, so a group needs "
        "at least 2 episodes (the paper uses 24).",
    )
    first, end = r.window_range
    require(
        0 <= first < end and r.window_size <= end - first,
        f"rollout.window_size = {r.window_size} does not fit into rollout.window_range = [{first}, {end}), which holds "
        f"{max(end - first, 0)} transitions; use a smaller window or a wider range.",
    )
    require(
        end <= r.flow_steps,
        f"rollout.window_range = [{first}, {end}) reaches beyond the schedule of rollout.flow_steps = {r.flow_steps} "
        f"transitions; use a range that ends at {r.flow_steps} or before, or more steps.",
    )
    require(0 < r.top_p <= 1, f"rollout.top_p = {r.top_p}, but it must be above 0 and at most 1.")
    require(r.temperature > 0 or not r.thinking,
            "rollout.temperature = 0 is greedy: every episode of a group would think the same; use 1.")  # fmt: skip
    require(
        r.step_rule != "ode" and r.noise_level > 0,
        f"rollout.step_rule = {r.step_rule!r} with noise_level = {r.noise_level} draws without noise, so there is no "
        "ratio to learn from; use flow_sde, dance_sde or cps with a noise_level above 0.",
    )
    require(r.step_rule != "cps" or r.noise_level < 2,
            f"rollout.noise_level = {r.noise_level}, but it must be below 2 for cps.")  # fmt: skip
    require(
        r.step_rule != "cps" or end < r.flow_steps,
        f"rollout.window_range = [{first}, {end}) holds the schedule's last transition, where cps has no noise; "
        f"let the range end at {r.flow_steps - 1}.",
    )
    for name in ("ema_decay", "adam_b1", "adam_b2"):
        value = getattr(learn, name)
        require(0 <= value < 1, f"learning.{name} = {value}, but it must be 0 or more and below 1.")
    require(
        r.prompts_per_iteration % r.micro_batches == 0,
        f"rollout.prompts_per_iteration = {r.prompts_per_iteration} does not divide into rollout.micro_batches = "
        f"{r.micro_batches}; use {nearest_divisors(r.prompts_per_iteration, r.micro_batches)} micro-batches.",
    )
    pieces = learn.minibatches * learn.micro_batches
    require(
        config.episodes % pieces == 0,
        f"learning.group_size * rollout.prompts_per_iteration = {learn.group_size} * {r.prompts_per_iteration} = "
        f"{config.episodes} episodes do not divide into learning.minibatches * learning.micro_batches = "
        f"{learn.minibatches} * {learn.micro_batches} = {pieces} pieces; let the product be "
        f"{nearest_divisors(config.episodes, pieces)}.",
    )
    low, high = e.guidance_interval
    require(0 <= low < high <= 1, f"evaluation.guidance_interval = ({low}, {high}) must satisfy 0 <= low < high <= 1.")
    require(0 <= e.guidance_renorm_min <= 1,
            f"evaluation.guidance_renorm_min = {e.guidance_renorm_min}, but it must be from 0 to 1.")  # fmt: skip
    require(
        e.batch % e.images_per_prompt == 0,
        f"evaluation.batch = {e.batch} is not a multiple of evaluation.images_per_prompt = {e.images_per_prompt}; use "
        f"{nearest_multiples(e.batch, e.images_per_prompt)}.",
    )
    require(
        learn.text_weight > 0 or learn.flow_weight > 0,
        "learning.text_weight and learning.flow_weight are both 0, so nothing learns; set one above 0.",
    )
    require(
        r.thinking or learn.flow_weight > 0,
        "rollout.thinking is off and learning.flow_weight is 0, so nothing learns; change one of them.",
    )


def check_devices(config: RunConfig, devices: int) -> None:
    """Raises ConfigError, with the arithmetic, unless the episodes spread evenly over the devices."""
    prompts, rollouts = config.rollout.prompts_per_iteration, config.rollout.micro_batches
    group, total = config.learning.group_size, config.episodes
    pieces = config.learning.minibatches * config.learning.micro_batches
    spreads = lambda devices: total % (devices * pieces) == 0 and total // rollouts % devices == 0
    if spreads(devices):
        return
    part = lambda count: count // math.gcd(count, group)  # what the prompts must be a multiple of for `count` pieces
    unit = math.lcm(part(devices * pieces), rollouts * part(devices))
    options = " or ".join(f"{p} ({p * group})" for p in (prompts // unit * unit, prompts // unit * unit + unit) if p)
    fewer = max(d for d in range(1, devices) if spreads(d))
    parts = ((rollouts, "rollout micro-batches"), (pieces, "pieces of an update"))
    split = [f"{count} {what}" for count, what in parts if count > 1]
    raise ConfigError(
        f"learning.group_size * rollout.prompts_per_iteration = {group} * {prompts} = {total} episodes do not divide "
        f"over {devices} devices{' in ' + ' and '.join(split) if split else ''}; use rollout.prompts_per_iteration = "
        f"{options}, or devices = {fewer}."
    )


def nearest_divisors(whole: int, wanted: int) -> str:
    """The divisors of `whole` just below and above `wanted`, in words."""
    below = next(d for d in range(min(wanted, whole), 0, -1) if whole % d == 0)
    above = next((d for d in range(wanted + 1, whole + 1) if whole % d == 0), None)
    return f"{below}" if above is None else f"{below} or {above}"


def nearest_multiples(near: int, unit: int) -> str:
    """The multiples of `unit` just below and above `near`, in words."""
    return " or ".join(str(n) for n in (near // unit * unit, near // unit * unit + unit) if n)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested JSON-serialisable dicts."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(data: dict[str, Any], cls: type = RunConfig, where: str = "config") -> Any:
    """Rebuilds a config from `to_dict`'s output.

    Raises:
      ConfigError: a field is unknown (its nearest neighbour is named), or its value is of another type.
    """
    require(isinstance(data, dict), f"{where} is not a mapping of settings.")
    kinds = typing.get_type_hints(cls)
    for name in data:
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"{where}: no field is called {name!r}{hint}")
    return cls(**{name: _typed(value, kinds[name], f"{where}.{name}") for name, value in data.items()})


def _typed(value: Any, kind: Any, where: str) -> Any:
    """A JSON value as a field's type; ConfigError where it is of another."""
    if dataclasses.is_dataclass(kind):
        return from_dict(value, kind, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # text or nothing
        return None if value is None else _typed(value, inner[0], where)
    if origin is dict:
        require(isinstance(value, dict), f"{where} = {value!r}, but it must be a mapping of names to numbers.")
        return {_typed(k, inner[0], where): _typed(v, inner[1], f"{where}[{k}]") for k, v in value.items()}
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{where} = {value!r}, but it must be a list.")
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        require(len(value) == len(kinds), f"{where} = {value!r}, but it must hold {len(kinds)} values.")
        return tuple(_typed(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if origin is Literal:
        require(value in inner, f"{where} = {value!r}, but it must be one of {', '.join(inner)}.")
        return value
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    require(fits, f"{where} = {value!r}, but it must be {words}.")
    return value


def load_run_config(path: pathlib.Path) -> RunConfig:
    """Reads a run folder's config.json; ConfigError where it is missing, no JSON, or of another version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a run folder that `python -m experiments.run` made."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it or give another run folder.") from None
    return from_dict(data, where=str(path))
