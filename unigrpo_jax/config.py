"""Every setting of a run, named as in the papers.

A preset is a Python file in `experiments/presets` that builds a `RunConfig`; the command line changes single fields.
Defaults that differ from the paper's Table 3 (arXiv 2603.23500) are those of a small world on a laptop.
"""

import dataclasses
from typing import Literal

from unigrpo_jax.config_distillation import METHODS, DistillationConfig
from unigrpo_jax.config_evaluation import EvaluationConfig
from unigrpo_jax.config_judging import JudgeConfig, JudgingConfig
from unigrpo_jax.config_machines import MeshConfig, ProcessConfig


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
class EmbeddingsConfig:
    """Where a model's text encoders' states of prompts are kept, so that a prompt is encoded once."""

    folder: str | None = None
    """Folder of the files; processes and runs may share it.  None is one beside this program's other caches."""
    gigabytes: float = 50.0
    """Largest size of all files in it; those that were used longest ago are removed first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and where its weights come from."""

    path: str | None = None
    """Folder in BAGEL's or diffusers' layout, or a name on the Hugging Face hub; None is the shapes base, `rounds_base` that
    of the shapes worlds of several rounds, `shapes_few_base` a student of few steps; `tiny`, `flux_tiny`,
    `sd_tiny`, `hunyuan_tiny`, `skyreels_tiny` and `ltx2_tiny` are toys with all parts."""
    family: str = ""
    """Family whose settings these are, a folder of `unigrpo_jax/models`; another's model is refused.  Empty takes any."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; statistics, log-probabilities, the SDE and the losses are float32 in both."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights in memory; bfloat16 is for use and for LoRA, weights that are trained must be float32."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Plain products, or a kernel that stores no scores: `splash` on TPUs, `cudnn` on NVIDIA GPUs in bfloat16."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes to save memory: each whole layer, or all of it but its products with weights."""
    told_guidance: float | None = None
    """Guidance that a model is told which was distilled from it; None is what it was published with: 3.5 of FLUX.1-dev, 6 of
    HunyuanVideo, 1 of SkyReels-V1.  Others are told none."""
    sound: bool = True
    """Draw a clip's sound, too, where a model does (LTX-2); without it the clip alone is drawn, judged and trained."""
    second_time: bool = False
    """Give the network a second time input, where a velocity is to arrive, if its folder has none; experiments.distill sets
    it where a student needs one."""
    floor_time: bool = False
    """Feed FLUX floor(1000 t) / 1000 for t, as DanceGRPO's code does."""
    unroll: int = 1
    """Layers per iteration of the scan over layers; more compile longer, and may run faster on CPU (decoding with all)."""
    embeddings: EmbeddingsConfig = dataclasses.field(default_factory=EmbeddingsConfig)


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
    rounds: int = 1
    """Rounds of thinking and drawing.  Each later one looks at the image drawn before it, and hears the next of the prompt's
    `turns` (a list of texts in its metadata), where there are any."""
    image_height: int = 24
    """Pixels."""
    image_width: int = 24
    """Pixels."""
    frames: int = 1
    """Frames of a clip, where a model draws such: 1 more than a multiple of 4, of 8 where it makes sound; 1 is an image."""
    frames_per_second: float = 24.0
    """At which clips are meant, judged and written."""
    flow_steps: int = 10
    """Denoising transitions T (BAGEL counts points: its N is N - 1 here)."""
    timestep_shift: float = 3.0
    """Shift of the schedule, t = s u / (1 + (s - 1) u); 0 is what the model's scheduler file says, which is all that a
    diffusion takes."""
    step_rule: Literal["flow_sde", "dance_sde", "cps", "ddim", "ode"] = "flow_sde"
    """Transition inside the window; outside it is the rule without noise, Euler's step of a flow and DDIM of a diffusion."""
    noise_level: float = 0.8
    """`a` of the step rule; eta of `ddim`."""
    window_size: int = 3
    """Stochastic, trained transitions per episode.  Methods that learn from noisy versions of what was drawn make so many of
    each drawing."""
    window_range: tuple[int, int] = (0, 5)
    """The window lies inside [first, end)."""
    window: Literal["contiguous", "random", "sliding"] = "contiguous"
    """Transitions in a row from a random start, any of them (DanceGRPO), or in a row and moving on in time (MixGRPO)."""
    noise_range: tuple[int, int] = (0, 0)
    """[first, end) of transitions that draw noise beside the window's, which alone are trained (DanceGRPO: all); none."""
    window_every: int = 25
    """Iterations that a sliding window rests before it moves on."""
    window_stride: int = 1
    """Transitions that a sliding window moves on by."""
    shared_noise: bool = False
    """All episodes of a prompt begin at the same noise (DanceGRPO), so that they differ by thinking and transitions."""
    guidance: float = 1.0
    """Text guidance of what is sampled and trained; 1 is none, as in UniGRPO.  Above it a transition depends on two
    conditions, trained together (DanceGRPO), costs twice, and allows one optimizer step an iteration."""
    micro_batches: int = 1
    """Split the prompts of an iteration into this many rollouts, one after the other; changes memory, not episodes."""
    resample: int = 0
    """Dynamic sampling (DAPO): where all rewards of a group are alike, so that it teaches nothing, further prompts are
    sampled in its place, in at most so many rollouts more of prompts_per_iteration each; 0 learns from what came first."""
    quantised: Literal["none", "int8"] = "none"
    """Sample with the products of the network's blocks in int8 (extra `int8`); what the update computes, the old
    log-probabilities too, stays in full precision.  Method `grpo`."""
    gather_weights: bool = False
    """Gather what mesh.fsdp cuts once per rollout, in the compute dtype, instead of at every token and step."""

    @property
    def size(self) -> tuple[int, int, int, float]:
        """Height, width, frames and frames per second of what is drawn, as `Painter.grid` takes them."""
        return self.image_height, self.image_width, self.frames, self.frames_per_second


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFTConfig:
    """Method `diffusion_nft` (arXiv 2509.16117)."""

    beta: float = 1.0
    """How far the two implicit policies lie from the old one, in steps from it to the trained one."""
    limit: float = 5.0
    """Z: an advantage of Z or more is a positive example altogether, one of -Z or less a negative one."""
    old_growth: float = 0.001
    """The old policy, which samples, follows the trained one: its decay after iteration i, from 0 on, is old_growth * i."""
    old_decay: float = 0.5
    """Largest decay of the old policy; 0 keeps none, and each iteration samples with what the one before it learned."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How episodes become an update."""

    method: Literal["grpo", "fpo", "diffusion_nft", "best_of_n", "refl", "sft", "mean_flow", "dmd2"] = "grpo"
    """Learn both ratios (UniGRPO); learn the drawing from noisy versions of what was drawn, by the ratio of flow-matching
    losses (FPO), or by pulling it to what is better and from what is worse than others (DiffusionNFT), beside the token
    ratio; imitate the `best` episodes of each group, all sampled by the frozen start (rejection sampling); follow the
    reward's own gradient through drawing (ReFL), beside the token ratio; learn the examples of `data`, as experiments.sft
    does; or to draw in few steps what the start draws in many, as experiments.distill does."""
    nft: NFTConfig = dataclasses.field(default_factory=NFTConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    text_dropout: float = 0.1
    """Method `sft`: share of the examples of which nothing is learned but to draw without any text, for guidance; a model
    that is not guided by a second pass leaves none out."""
    group_size: int = 8
    """Episodes G per prompt; an episode's advantage is relative to its group."""
    advantage: Literal["group_std", "global_std", "none"] = "group_std"
    """What the centred reward is divided by: the group's std, the batch's std, or nothing."""
    advantage_limit: float = 0.0
    """Advantages, those of several components once they are added, are clipped to +- this (DanceGRPO: 5); 0 leaves them."""
    reward_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each reward component's advantage; a component that is not named has weight 1."""
    reward_thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    """A component that is named counts as 1 where it reaches this value, and as 0 below it."""
    round_reward: Literal["last", "each", "gain"] = "last"
    """Several rounds: what is rewarded is the last image, each image, or the first and then what each gains on the one
    before."""
    credit: Literal["shared", "round", "segment"] = "shared"
    """One advantage of the sum over rewarded rounds for all actions (the paper's); each round's own; or also each segment's:
    what judges the thinking (`thought_rewards`) counts for the thinking alone, all else for thinking and drawing."""
    thought_rewards: tuple[str, ...] = ()
    """Credit `segment`: the components that judge the thinking, a process reward; such as `plan` of `shapes_thoughts`."""
    credit_by: dict[str, str] = dataclasses.field(default_factory=dict)
    """Several modalities, such as a clip and its sound: which of them a reward component's advantage goes to, by name, such
    as video, audio or video,audio.  All components are named, or none: then each one's goes to all."""
    modality_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each modality's whole loss, ratio and leash; one that is not named has weight 1."""
    combine: Literal["advantages", "rewards"] = "advantages"
    """Several components: each one's advantages, weighted and added (DanceGRPO), or the advantage of their weighted sum."""
    best: int = 0
    """Train only on so many episodes of each group with the largest advantages, and on the `worst`; 0 and 0 is all."""
    worst: int = 0
    """So many episodes of each group with the smallest advantages (DanceGRPO's best-of-N takes as many of both)."""
    text_clip: float = 0.2
    """Clip range of the token ratio."""
    flow_clip: float = 1.2e-5
    """Clip range of RatioNorm's log-ratio scale; about 1e-6 * sqrt(262144 / numbers in the latent).  Method `fpo`: of its
    own ratio, 0.05 in the paper."""
    ratio_norm: bool = True
    """Method `grpo`: regulate the flow ratio (GRPO-Guard's RatioNorm); without it the plain Gaussian ratio is clipped."""
    flow_weight: float = 1.0
    """lambda: weight of the flow loss against the text loss."""
    text_weight: float = 1.0
    """Weight of the text loss; 0 trains the flow alone (FlowGRPO)."""
    mse_weight: float = 0.005
    """Weight of the velocity MSE to the reference (mean over the latent's numbers)."""
    leash_times: tuple[float, ...] = ()
    """Times in (0, 1], 1 is noise, at which the velocity MSE is taken beside the window, which alone holds nothing of a
    drawing's rest: at states made of its own clean latent and the window's noise.  Each costs what a transition does."""
    leash_weight: float = 0.02
    """Weight of the mean of the MSEs at leash_times."""
    matching_weight: float = 0.0
    """Method `grpo` of a student of few steps: weight of DMD2's loss against the teacher that `distillation` names, in the
    place of the velocity MSE (RTDMD); a fake score is then trained beside the student, as it is by `dmd2`."""
    latent_kl_weight: float = 0.0
    """Weight of the latent KL to the reference, the ablation of the velocity MSE."""
    text_kl_weight: float = 0.0
    """Weight of the k3 estimate of the text KL to the reference."""
    context_gradient: Literal["full", "stop"] = "full"
    """Whether the flow losses reach the thinking through the context's keys and values."""
    reference: Literal["device", "host", "none"] = "device"
    """Where the frozen copy of what is trained lies between updates; on the host it takes no device memory.  `none` keeps
    none and leaves out its pass, where no leash holds the policy; how far the network moved is then not measured."""
    old_log_probs: Literal["recompute", "rollout"] = "recompute"
    """Where the ratio's denominator comes from; recomputed ones make the first ratio exactly 1."""
    ppo_epochs: int = 1
    """Passes over an iteration's episodes."""
    minibatches: int = 1
    """Optimizer steps per pass, each on its own share of every group."""
    micro_batches: int = 1
    """Gradients of a minibatch are accumulated over this many pieces; changes memory, not the update."""
    window_steps: Literal["batched", "scanned"] = "batched"
    """A drawing's trained transitions: together, or one after the other in less memory; changes no number."""
    reasoning_lr: float = 1e-4
    """Adam's rate for the reasoning expert (und): thinking."""
    denoising_lr: float = 5e-4
    """Adam's rate for the denoising expert (gen) and the flow head."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter paths that are not trained; position tables and the vision side never are."""
    cooldown: tuple[int, int] = (0, 0)
    """(first, end): from iteration `first` on both rates fall linearly, and would be 0 at `end`; (0, 0) keeps them."""
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

    @property
    def credited(self) -> dict[str, tuple[str, ...]]:
        """{component: the modalities that its advantage goes to}; {} where each one's goes to all."""
        return {name: tuple(part.strip() for part in value.split(",")) for name, value in self.credit_by.items()}

    @property
    def rewarded(self) -> bool:
        """Whether rewards say what is learned; those of other methods are measured and teach nothing."""
        return self.method != "sft" and not self.distils

    @property
    def distils(self) -> bool:
        """Whether the method makes a student of few steps, of which the drawing alone is trained."""
        return self.method in METHODS

    @property
    def matches(self) -> bool:
        """Whether drawings are matched with a teacher's, by a fake score that is trained beside them."""
        return self.method == "dmd2" or self.matching_weight > 0

    @property
    def fake_lr(self) -> float:
        """Adam's rate for a fake score: its own, or twice the student's."""
        own = self.distillation.fake_lr
        return 2 * self.denoising_lr if own is None else own

    @property
    def keeps_start(self) -> bool:
        """Whether the reference is what the run started from; else it is a teacher that was named, or there is none."""
        return self.reference != "none" and self.distillation.teacher is None

    @property
    def keeps_old(self) -> bool:
        """Whether the policy that samples is kept beside the trained one."""
        return self.method == "diffusion_nft" and self.nft.old_growth > 0 and self.nft.old_decay > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = 25
    """Iterations between checkpoints; the last iteration always gets one."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Best checkpoints kept beside them, by evaluations during the run; each new best is saved. 0 keeps none."""
    best_metric: str = ""
    """What the best is the highest of, such as eval/exact, or the lowest of a loss; empty is the first score that the
    evaluation reports."""
    keep_every: int = 0
    """Checkpoints of iterations that this divides are kept, too; 0 keeps none."""


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
class AlarmsConfig:
    """When a run's metrics say that it goes wrong; the exact rules stand in unigrpo_jax.training.health."""

    action: Literal["warn", "stop", "off"] = "warn"
    """Print and record an alarm; also end the run with a checkpoint; or look for none."""
    compared: int = 10
    """K: levels are means over so many iterations; nothing rings before twice as many are done."""
    entropy_floor: float = 0.1
    """The text entropy may fall to this share of its start."""
    image_range: tuple[float, float] = (0.4, 5.0)
    """Edge density, colour entropy and a clip's frame difference may fall and rise to these multiples of their start."""
    grid_energy: float = 1e-4
    """So much energy, 1 of a full range squared, may come to the background at the period of the latent tokens."""
    truncated_share: float = 0.5
    """So much of the thinking may be cut at its maximum."""
    repeated_share: float = 0.3
    """So much of the thinking may have been said before: four tokens in a row."""
    text_ratio: float = 10.0
    """Largest ratio of a token to its old probability, or of the old to the new."""
    flow_ratio: float = 1.1
    """The same of a transition, whose log-ratio is a mean over the latent's numbers."""
    skipped_share: float = 0.2
    """Share of the iterations that may skip an update that was not finite."""
    dropped_share: float = 0.2
    """Share of the groups that may be dropped, not judged or not finite."""
    window: int = 100
    """Reward hacking: iterations whose first and last K are compared."""
    sigmas: float = 5.0
    """Reward hacking: a change counts where it is so many standard errors."""
    fall: float = 0.3
    """Reward hacking: a second judge must also fall by this share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    name: str = "run"
    """Name of the run folder under runs/."""
    seed: int = 0
    """Seed of prompts, tokens and noise."""
    iterations: int = 100
    """Rollout, reward, update: once each per iteration."""
    prompts: tuple[str, ...] = ("shapes",)
    """`shapes`, the shapes world; `examples`, 48 prompts; `first_frames`, 8 with a first frame each; FILE.jsonl, a `prompt`
    and any metadata per line; FILE.txt, one prompt per line; geneval:FILE; tfds:NAME[/CONFIG][:SPLIT][#FIELD]; several are
    mixed."""
    data: str | None = None
    """Method `sft`: FILE.jsonl of examples: a `prompt`, an `image` to draw and, where the model thinks, a `thinking` a line;
    where clips are drawn a `video`, an `image`, the first frame that it goes on from (LTX-2: in every line or in none;
    SkyReels-V1: where that is not the clip's own), and an `audio`, a WAV file, where the MP4 does not hold the sound that is
    learned.  Held-out prompts still come from `prompts`, where there are some."""
    prompt_weights: tuple[float, ...] = ()
    """Shares of several sources of prompts, in their order; without any they are equal."""
    rewards: tuple[str, ...] = ("shapes",)
    """What judges the images: names of unigrpo_jax.rewards.load, or your own package.module:function; several are mixed."""
    judging: JudgingConfig = dataclasses.field(default_factory=JudgingConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    devices: int = 0
    """Devices that are used; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    processes: ProcessConfig = dataclasses.field(default_factory=ProcessConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    learning: LearningConfig = dataclasses.field(default_factory=LearningConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    alarms: AlarmsConfig = dataclasses.field(default_factory=AlarmsConfig)

    @property
    def episodes(self) -> int:
        """Episodes B of one iteration."""
        return self.rollout.prompts_per_iteration * self.learning.group_size

    @property
    def trained_episodes(self) -> int:
        """Episodes of one iteration that the update sees."""
        return self.rollout.prompts_per_iteration * (self.learning.best + self.learning.worst or self.learning.group_size)

    @property
    def trained_states(self) -> int:
        """States of a drawing at which an update evaluates the network: the window's, and those of `leash_times`."""
        return self.rollout.window_size + len(self.learning.leash_times)
