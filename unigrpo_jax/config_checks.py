"""Whether settings can work together, from the numbers alone: nothing is compiled and no file is read."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from unigrpo_jax.clip_files import LEAST_FPS, MOST_FPS, MOST_PIXELS
from unigrpo_jax.config import ConfigError, LearningConfig, MeshConfig, NFTConfig, RunConfig, require
from unigrpo_jax.config_distillation_checks import check_distillation
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.config_judge_checks import check_judge
from unigrpo_jax.foreign_text import quoted, visible

_AT_LEAST_ONE = {
    "rollout": ("prompts_per_iteration", "rounds", "prompt_tokens", "thinking_tokens", "flow_steps", "window_size",
                "micro_batches", "image_height", "image_width", "frames", "window_every", "window_stride"),
    "learning": ("ppo_epochs", "minibatches", "micro_batches"),
    "evaluation": ("prompts", "images_per_prompt", "batch", "flow_steps"),
    "checkpoint": ("every", "keep"),
    "logging": ("samples",),
    "model": ("unroll",),
    "processes": ("wait_seconds",),
    "judge": ("top_logprobs", "max_tokens", "concurrency", "frames"),
    "alarms": ("text_ratio", "flow_ratio"),
}  # fmt: skip
_POSITIVE = {
    "learning": ("text_clip", "flow_clip", "max_grad_norm", "adam_eps"),
    "evaluation": ("guidance", "guidance_image"),
    "judging": ("timeout_seconds",),
    "judge": ("connect_seconds", "read_seconds", "total_seconds"),
    "alarms": ("sigmas",),
}
_NOT_NEGATIVE = {
    "rollout": ("timestep_shift", "temperature", "top_k", "noise_level", "resample"),
    "learning": ("flow_weight", "text_weight", "mse_weight", "leash_weight", "matching_weight", "latent_kl_weight",
                 "text_kl_weight", "reasoning_lr", "denoising_lr", "weight_decay", "ema_decay", "best", "worst",
                 "advantage_limit"),
    "evaluation": ("temperature", "every", "seed", "rounds", "drift"),
    "checkpoint": ("keep_best", "keep_every"),
    "logging": ("samples_every",),
    "mesh": ("slice", "data", "fsdp", "sequence", "tensor"),
    "processes": ("count", "hang_seconds"),
    "judging": ("retries", "backoff_seconds", "remembered"),
    "judge": ("temperature", "retries", "backoff_seconds", "retry_after_seconds"),
    "alarms": ("entropy_floor", "grid_energy", "truncated_share", "repeated_share", "skipped_share", "dropped_share",
               "fall"),
}  # fmt: skip
_LARGEST = {int: 2**31 - 1, float: 3.4e38}
_WITH_ADVANTAGES = ("grpo", "fpo", "diffusion_nft")  # methods that give each action its advantage


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
    require(
        len(config.prompt_weights) in (0, len(config.prompts)) and all(weight > 0 for weight in config.prompt_weights),
        f"prompt_weights = {config.prompt_weights} must hold one number above 0 for each of the {len(config.prompts)} "
        "sources in prompts, or nothing.",
    )
    require(config.iterations >= 1, f"iterations = {config.iterations}, but it must be at least 1.")
    require(config.seed >= 0, f"seed = {config.seed}, but it must be 0 or more.")
    require(config.devices >= 0, f"devices = {config.devices}, but it must be 0 (all of them) or more.")
    require(
        config.name not in ("", ".", "..") and not set("/\\") & set(config.name),
        f"name = {quoted(config.name)} cannot be a folder's name; use letters, digits and '-', or --run-dir for a path.",
    )
    require(
        visible(config.name) == config.name and len(config.name.encode()) <= 200,
        f"name = {quoted(config.name)} has hidden characters or more than 200 bytes; use letters, digits and '-'.",
    )
    require(config.episodes < 2**31, f"learning.group_size * rollout.prompts_per_iteration = {config.episodes} episodes, "
                                     "but that must be below 2^31; use fewer.")  # fmt: skip
    r, learn, e, lora = config.rollout, config.learning, config.evaluation, config.model.lora
    require(lora.rank >= 0, f"model.lora.rank = {lora.rank}, but it must be 0 (no adapters) or more.")
    require(lora.rank == 0 or len(lora.targets) > 0, f"model.lora.rank = {lora.rank}, but model.lora.targets names nothing; "
            "leave it out for the preset's, or use rank 0, which trains the weights.")  # fmt: skip
    require(lora.alpha > 0, f"model.lora.alpha = {lora.alpha}, but it must be above 0.")
    told = config.model.told_guidance
    require(told is None or told >= 0, f"model.told_guidance = {told}, but it must be 0 or more.")
    kept = config.model.embeddings
    require(kept.gigabytes > 0, f"model.embeddings.gigabytes = {kept.gigabytes}, but it must be above 0.")
    require(kept.folder != "", "model.embeddings.folder is empty; give a folder, or leave it out for this user's caches.")
    require(LEAST_FPS <= r.frames_per_second <= MOST_FPS, f"rollout.frames_per_second = {r.frames_per_second:g}, but it "
            f"must be from {LEAST_FPS} to {MOST_FPS}.")  # fmt: skip
    frame = r.image_height * r.image_width
    require(r.frames == 1 or r.frames * frame <= MOST_PIXELS, f"rollout.frames = {r.frames} of {r.image_height} x "
            f"{r.image_width} pixels are more than the {MOST_PIXELS} pixels that a clip may have; use at most "
            f"{max(1, MOST_PIXELS // frame)} frames.")  # fmt: skip
    require(r.guidance >= 1, f"rollout.guidance = {r.guidance}, but it must be 1, which is none, or more.")
    _check_supervised(config)
    check_distillation(config)
    _check_method(config)
    require(
        learn.group_size >= 2 or not learn.rewarded,
        f"learning.group_size = {learn.group_size}: an advantage compares an episode with its group, so a group needs "
        "at least 2 episodes (the paper uses 24).",
    )
    first, end = r.window_range  # which no distillation reads
    require(
        learn.distils or 0 <= first < end and r.window_size <= end - first,
        f"rollout.window_size = {r.window_size} does not fit into rollout.window_range = [{first}, {end}), which holds "
        f"{max(end - first, 0)} transitions; use a smaller window or a wider range.",
    )
    require(
        learn.distils or end <= r.flow_steps,
        f"rollout.window_range = [{first}, {end}) reaches beyond the schedule of rollout.flow_steps = {r.flow_steps} "
        f"transitions; use a range that ends at {r.flow_steps} or before, or more steps.",
    )
    noisy, quiet = r.noise_range
    require(0 <= noisy <= quiet <= r.flow_steps, f"rollout.noise_range = [{noisy}, {quiet}), but it must lie in [0, "
            f"{r.flow_steps}), the transitions of rollout.flow_steps.")  # fmt: skip
    require(0 < r.top_p <= 1, f"rollout.top_p = {r.top_p}, but it must be above 0 and at most 1.")
    require(r.temperature > 0 or not r.thinking,
            "rollout.temperature = 0 is greedy: every episode of a group would think the same; use 1.")  # fmt: skip
    require(
        learn.method != "grpo" or (r.step_rule != "ode" and r.noise_level > 0),
        f"rollout.step_rule = {r.step_rule!r} with noise_level = {r.noise_level} draws without noise, so there is no "
        "ratio to learn from; use flow_sde, dance_sde, cps or ddim with a noise_level above 0.",
    )
    require(r.step_rule != "cps" or r.noise_level < 2,
            f"rollout.noise_level = {r.noise_level}, but it must be below 2 for cps.")  # fmt: skip
    require(r.step_rule != "ddim" or r.noise_level <= 1,
            f"rollout.noise_level = {r.noise_level}, but for ddim it is eta, at most 1.")  # fmt: skip
    require(
        learn.distils or r.step_rule != "cps" or end < r.flow_steps,
        f"rollout.window_range = [{first}, {end}) holds the schedule's last transition, where cps has no noise; let the "
        f"range end at {r.flow_steps - 1}.",
    )
    steps = learn.ppo_epochs * learn.minibatches
    require(
        r.guidance <= 1 or learn.method != "grpo" or steps == 1,
        f"rollout.guidance = {r.guidance} with learning.ppo_epochs * learning.minibatches = {steps} optimizer steps an "
        "iteration: with guidance the conditional and the unconditional pass are one policy, whose difference is scaled, so "
        "that a second step on the same episodes runs away from its ratio (DanceGRPO); use 1 and 1.",
    )
    for name in ("ema_decay", "adam_b1", "adam_b2"):
        value = getattr(learn, name)
        require(0 <= value < 1, f"learning.{name} = {value}, but it must be 0 or more and below 1.")
    require(
        r.prompts_per_iteration % r.micro_batches == 0,
        f"rollout.prompts_per_iteration = {r.prompts_per_iteration} does not divide into rollout.micro_batches = "
        f"{r.micro_batches}; use {nearest_divisors(r.prompts_per_iteration, r.micro_batches)} micro-batches.",
    )
    require(
        learn.best + learn.worst <= learn.group_size,
        f"learning.best + learning.worst = {learn.best} + {learn.worst} is more than learning.group_size = "
        f"{learn.group_size}; keep fewer episodes, or sample more.",
    )
    require(
        learn.method != "best_of_n" or (learn.best > 0 and learn.worst == 0),
        f"learning.method = 'best_of_n' imitates learning.best = {learn.best} episodes of each group and none of the "
        f"learning.worst = {learn.worst}; use learning.best = 1 and learning.worst = 0.",
    )
    leashes = {name: getattr(learn, name) for name in ("mse_weight", "latent_kl_weight", "text_kl_weight")}
    holding = [f"learning.{name} = {weight:g}" for name, weight in leashes.items() if weight > 0]
    require(
        learn.reference != "none" or not holding,
        f"learning.reference = 'none' keeps nothing that {' and '.join(holding)} could hold the policy to; use 'device' or "
        "'host', or a weight of 0.",
    )
    _check_leash_times(learn)
    require(
        learn.credit == "shared" or (learn.method in _WITH_ADVANTAGES and not learn.best + learn.worst),
        f"learning.credit = {learn.credit!r} gives an episode several advantages, by which no best or worst can be chosen; "
        "use 'shared', or method 'grpo' with learning.best = 0 and learning.worst = 0.",
    )
    require(
        (learn.credit == "segment") == bool(learn.thought_rewards),
        f"learning.credit = {learn.credit!r} with learning.thought_rewards = {learn.thought_rewards}: the components that "
        "judge the thinking alone are named where credit goes to segments; use both or neither.",
    )
    require(r.thinking or not learn.thought_rewards,
            "learning.thought_rewards judge the thinking, and rollout.thinking is off; change one of them.")  # fmt: skip
    _check_modalities(config)
    cool, cold = learn.cooldown
    require(
        (cool, cold) == (0, 0) or 0 <= cool < cold,
        f"learning.cooldown = ({cool}, {cold}), but its first iteration must lie before its end; use 0 0 for none.",
    )
    require(
        cold == 0 or config.iterations <= cold,
        f"learning.cooldown = ({cool}, {cold}) leaves nothing to learn with after iteration {cold}, but iterations = "
        f"{config.iterations}; use --learning.cooldown {cool} {config.iterations}, or 0 0 for none.",
    )
    pieces = learn.minibatches * learn.micro_batches
    require(
        config.trained_episodes % pieces == 0,
        f"{trained_words(config)} episodes do not divide into learning.minibatches * learning.micro_batches = "
        f"{learn.minibatches} * {learn.micro_batches} = {pieces} pieces; let the product be "
        f"{nearest_divisors(config.trained_episodes, pieces)}.",
    )
    require(0 <= config.judging.max_dropped < 1,
            f"judging.max_dropped = {config.judging.max_dropped}, but it must be 0 or more and below 1.")  # fmt: skip
    if any(name.partition(":")[0] == "judge" for name in config.rewards):
        check_judge(config.judge)
    watch = config.alarms
    require(watch.compared >= 2, f"alarms.compared = {watch.compared}, but a standard error needs at least 2; use 10.")
    require(
        watch.window >= 2 * watch.compared,
        f"alarms.window = {watch.window} is shorter than its first and last alarms.compared = {watch.compared} iterations; "
        f"use {2 * watch.compared} or more.",
    )
    low, high = watch.image_range
    require(0 <= low < 1 < high, f"alarms.image_range = ({low}, {high}), but the start, 1, must lie inside; use 0.4 5.")
    require(e.thinking or not e.thinking_as_text,
            "thinking_as_text reads the thinking again as words, but thinking is off; turn it on, or leave thinking_as_text "
            "out.")  # fmt: skip
    low, high = e.guidance_interval
    require(0 <= low < high <= 1, f"evaluation.guidance_interval = ({low}, {high}) must satisfy 0 <= low < high <= 1.")
    require(0 <= e.guidance_renorm_min <= 1,
            f"evaluation.guidance_renorm_min = {e.guidance_renorm_min}, but it must be from 0 to 1.")  # fmt: skip
    _check_passes(e.passes)
    require(
        e.batch % e.images_per_prompt == 0,
        f"evaluation.batch = {e.batch} is not a multiple of evaluation.images_per_prompt = {e.images_per_prompt}; use "
        f"{nearest_multiples(e.batch, e.images_per_prompt)}.",
    )
    require(
        not config.checkpoint.best_metric or e.every > 0,
        f"checkpoint.best_metric = {config.checkpoint.best_metric!r}, but evaluation.every = 0 evaluates nothing during the "
        "run; set evaluation.every.",
    )
    require(
        learn.text_weight > 0 or learn.flow_weight > 0,
        "learning.text_weight and learning.flow_weight are both 0, so nothing learns; set one above 0.",
    )
    require(
        r.thinking or learn.flow_weight > 0,
        "rollout.thinking is off and learning.flow_weight is 0, so nothing learns; change one of them.",
    )


def _check_leash_times(learn: LearningConfig) -> None:
    """Raises ConfigError unless there is something to hold to at `leash_times`, and they are times."""
    times, usual = " ".join(f"{t:g}" for t in learn.leash_times), LearningConfig.leash_weight
    require(bool(times) or learn.leash_weight in (usual, 0), f"learning.leash_weight = {learn.leash_weight:g} weighs the "
            "MSEs at learning.leash_times, and these name none; add some, such as --learning.leash-times 0.25 0.5625, or "
            "leave it out.")  # fmt: skip
    require(all(0 < t <= 1 for t in learn.leash_times),
            f"learning.leash_times = {times}, but each must be above 0, the data, and at most 1, the noise.")  # fmt: skip
    require(not learn.leash_times or learn.method in ("grpo", "refl"),
            f"learning.leash_times = {times} hold the policy to the reference, which learning.method = {learn.method!r} "
            "does not; leave them out.")  # fmt: skip
    require(not learn.leash_times or learn.reference != "none",
            f"learning.leash_times = {times} hold the policy to the reference, and learning.reference = 'none' keeps none; "
            "use 'device' or 'host', or leave them out.")  # fmt: skip


def _check_modalities(config: RunConfig) -> None:
    """Raises ConfigError unless weights and credit of modalities make sense, whatever modalities there are."""
    learn, weights = config.learning, config.learning.modality_weights
    for name, weight in weights.items():
        require(weight >= 0, f"learning.modality_weights[{name}] = {weight:g}, but it must be 0 or more.")
    if not learn.credit_by:
        return
    require(learn.method in _WITH_ADVANTAGES and not learn.best + learn.worst and learn.credit == "shared",
            f"learning.credit_by gives each modality an advantage of its own, which learning.method = {learn.method!r} with "
            f"learning.credit = {learn.credit!r}, learning.best = {learn.best} and learning.worst = {learn.worst} cannot "
            "take; use 'grpo', 'shared', 0 and 0, or leave it out.")  # fmt: skip
    require(not config.rollout.thinking, "learning.credit_by gives components to modalities of a drawing, and "
            "rollout.thinking is on, which is none of them; use --rollout.no-thinking, or leave it out.")  # fmt: skip
    for name, own in learn.credited.items():
        require(all(own), f"learning.credit_by[{name}] = {learn.credit_by[name]!r}, but it must name modalities, such as "
                          "video or video,audio.")  # fmt: skip
        require(any(weights.get(modality, 1.0) for modality in own) or not learn.reward_weights.get(name, 1.0),
                f"learning.credit_by gives {name} to {' and '.join(own)}, whose learning.modality_weights are 0, so that it "
                f"teaches nothing; name another modality, or set learning.reward_weights {name} 0.")  # fmt: skip


def _check_method(config: RunConfig) -> None:
    """Raises ConfigError where a setting is not read by the method, though somebody changed it."""
    learn, r, method = config.learning, config.rollout, f"learning.method = {config.learning.method!r}"
    nft = learn.nft
    for name, value in (("beta", nft.beta), ("limit", nft.limit)):
        require(value > 0, f"learning.nft.{name} = {value}, but it must be above 0.")
    require(nft.old_growth >= 0, f"learning.nft.old_growth = {nft.old_growth}, but it must be 0 or more.")
    require(0 <= nft.old_decay < 1, f"learning.nft.old_decay = {nft.old_decay}, but it must be 0 or more and below 1.")
    require(learn.method == "diffusion_nft" or nft == NFTConfig(),
            f"learning.nft is read by learning.method = 'diffusion_nft' alone, but {method}; leave it out.")  # fmt: skip
    require(r.resample == 0 or (learn.rewarded and learn.method != "refl"),
            f"rollout.resample = {r.resample} replaces groups whose rewards are alike, from which {method} learns, too; use "
            "0.")  # fmt: skip
    sampled = f"rollout.quantised = {r.quantised!r}"
    require(r.quantised == "none" or learn.method == "grpo", f"{sampled} is for learning.method = 'grpo', whose update "
            f"recomputes what is compared in full precision, but {method}; use 'none'.")  # fmt: skip
    require(r.quantised == "none" or learn.old_log_probs == "recompute", f"{sampled} with learning.old_log_probs = "
            f"{learn.old_log_probs!r} would put the error of the rounding into every ratio; use 'recompute'.")  # fmt: skip
    most = config.episodes * (1 + r.resample)
    require(most < 2**31, f"rollout.resample = {r.resample} lets an iteration sample {most} episodes, but that must be "
                          "below 2^31; use fewer.")  # fmt: skip
    known = "; use learning.method = 'grpo', or"
    require(learn.latent_kl_weight == 0 or learn.method == "grpo", f"learning.latent_kl_weight = {learn.latent_kl_weight:g} "
            f"is that of transitions, of which {method} looks at none{known} mse_weight.")  # fmt: skip
    require(learn.text_kl_weight == 0 or learn.method != "best_of_n", f"learning.text_kl_weight = {learn.text_kl_weight:g} "
            f"holds to the start, and {method} imitates{known} 0.")  # fmt: skip
    require(learn.advantage_limit == 0 or learn.method in _WITH_ADVANTAGES, f"learning.advantage_limit = "
            f"{learn.advantage_limit:g} clips advantages, and {method} has none; use 0.")  # fmt: skip
    require(r.rounds == 1 or learn.method != "refl", f"rollout.rounds = {r.rounds}, but {method} follows what the reward "
            f"says of a single drawing{known} 1.")  # fmt: skip
    if learn.method not in ("fpo", "diffusion_nft"):
        return
    require(r.guidance <= 1, f"rollout.guidance = {r.guidance:g}, but {method} learns the flow that draws without guidance"
                             f"{known} 1.")  # fmt: skip
    require(learn.ratio_norm, f"learning.ratio_norm is off, but {method} has no ratio of transitions to regulate{known} "
                              "leave it on.")  # fmt: skip
    require(learn.old_log_probs == "recompute", f"learning.old_log_probs = {learn.old_log_probs!r}, but a rollout records "
            f"nothing that {method} compares{known} 'recompute'.")  # fmt: skip


def _check_supervised(config: RunConfig) -> None:
    """Raises ConfigError unless the settings of the method `sft` stand together, and alone."""
    learn, r, sft = config.learning, config.rollout, config.learning.method == "sft"
    for name, value in (("data", config.data), ("evaluation.data", config.evaluation.data)):
        require(sft or value is None, f"{name} = {value!r} holds examples, which learning.method = {learn.method!r} does "
                "not learn; use experiments.sft, or leave it out.")  # fmt: skip
    require(0 <= learn.text_dropout < 1,
            f"learning.text_dropout = {learn.text_dropout}, but it must be 0 or more and below 1.")  # fmt: skip
    if not sft:
        return
    require(config.data is not None, "there is nothing to learn from; give --data FILE.jsonl, a `prompt` and an `image`, or "
            "where clips are drawn a `video`, per line.")  # fmt: skip
    require(learn.group_size == 1 and not learn.best + learn.worst,
            f"learning.group_size = {learn.group_size}, learning.best = {learn.best} and learning.worst = {learn.worst}, "
            "but examples form no groups; use 1, 0 and 0, and rollout.prompts_per_iteration for the examples of an "
            "iteration.")  # fmt: skip
    require(r.rounds == 1, f"rollout.rounds = {r.rounds}, but an example is one round; use 1, and evaluation.rounds = "
                           f"{r.rounds} to judge as many.")  # fmt: skip


def mesh_sizes(mesh: MeshConfig, devices: int, slices: int, words: str) -> dict[str, int]:
    """{axis: size} of the mesh that a config describes, sizes of 0 inferred; ConfigError, with the arithmetic, else.

    Args:
      mesh: the sizes that were asked for.
      devices: number of devices.
      slices: slices that they lie in; 1 where they say nothing of slices.
      words: what the devices are called, such as "64 chips of v5p:4x4x4".
    """
    require(
        mesh.slice in (0, slices) or slices == 1,
        f"mesh.slice = {mesh.slice}, but the {words} lie in {slices} slices; use {slices} or 0.",
    )
    asked = {"slice": mesh.slice or slices, "data": mesh.data, "fsdp": mesh.fsdp, "sequence": mesh.sequence,
             "tensor": mesh.tensor}  # fmt: skip
    known = math.prod(size for size in asked.values() if size)
    unknown = [name for name, size in asked.items() if not size]
    plain = lambda name, size: name in ("slice", "sequence") and size == 1  # seldom asked for
    product = " * ".join(f"mesh.{name} = {size or '?'}" for name, size in asked.items() if not plain(name, size))
    require(len(unknown) < 2, f"{product}: at most one size may be 0 (inferred); set the others.")
    require(
        devices % known == 0 if unknown else devices == known,
        f"{product} = {known}{' * ?' if unknown else ''} does not give the {words}; let the sizes multiply to "
        f"{nearest_divisors(devices, known) if unknown else devices}.",
    )
    return {name: size or devices // known for name, size in asked.items()}


def trained_words(config: RunConfig) -> str:
    """The product that makes the episodes of an update, such as "learning.group_size * ... = 24 * 5 = 120"."""
    learn, prompts = config.learning, config.rollout.prompts_per_iteration
    kept = learn.best + learn.worst
    name, group = ("(learning.best + learning.worst)", kept) if kept else ("learning.group_size", learn.group_size)
    return f"{name} * rollout.prompts_per_iteration = {group} * {prompts} = {config.trained_episodes}"


def check_devices(config: RunConfig, devices: int) -> None:
    """Raises ConfigError, with the arithmetic, unless the episodes spread evenly over the devices."""
    prompts, rollouts = config.rollout.prompts_per_iteration, config.rollout.micro_batches
    group, total = config.learning.group_size, config.episodes
    trained = config.trained_episodes
    pieces = config.learning.minibatches * config.learning.micro_batches
    spreads = lambda devices: trained % (devices * pieces) == 0 and total // rollouts % devices == 0
    if spreads(devices):
        return
    # What the prompts must be a multiple of for `count` pieces, with so many episodes of each.
    part = lambda count, of: count // math.gcd(count, of)
    unit = math.lcm(part(devices * pieces, trained // prompts), rollouts * part(devices, group))
    options = " or ".join(f"{p} ({p * group})" for p in (prompts // unit * unit, prompts // unit * unit + unit) if p)
    fewer = max(d for d in range(1, devices) if spreads(d))
    parts = ((rollouts, "rollout micro-batches"), (pieces, "pieces of an update"))
    split = [f"{count} {what}" for count, what in parts if count > 1]
    kept = f" (of which {trained} are trained on)" if trained != total else ""
    raise ConfigError(
        f"learning.group_size * rollout.prompts_per_iteration = {group} * {prompts} = {total} episodes{kept} do not divide "
        f"over {devices} devices{' in ' + ' and '.join(split) if split else ''}; use rollout.prompts_per_iteration = "
        f"{options}, or devices = {fewer}."
    )


def nearest_divisors(whole: int, wanted: int) -> str:
    """The divisors of `whole` just below and above `wanted`, in words."""
    small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
    divisors = {*small, *(whole // d for d in small)}
    below, above = max(d for d in divisors if d <= wanted), min((d for d in divisors if d > wanted), default=None)
    return f"{below}" if above is None else f"{below} or {above}"


def nearest_multiples(near: int, unit: int) -> str:
    """The multiples of `unit` just below and above `near`, in words."""
    return " or ".join(str(n) for n in (near // unit * unit, near // unit * unit + unit) if n)


def _check_passes(p: PassesConfig) -> None:
    require(p.sound is None or p.sound >= 1, f"evaluation.passes.sound = {p.sound}, but it must be 1, which is off, or "
            "more.")  # fmt: skip
    require(p.mixing >= 0, f"evaluation.passes.mixing = {p.mixing}, but it must be 0, which is off, or more.")
    require(p.other >= 1, f"evaluation.passes.other = {p.other}, but it must be 1, which is off, or more.")
    require(0 <= p.rescale <= 1, f"evaluation.passes.rescale = {p.rescale}, but it must be from 0 to 1.")
    require(bool(p.mixing) == bool(p.blocks), f"evaluation.passes.mixing = {p.mixing:g} with blocks = "
            f"{' '.join(map(str, p.blocks)) or 'none'}; give both, such as mixing 1 and blocks 28, or neither.")  # fmt: skip
