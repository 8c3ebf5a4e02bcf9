"""The tables: what is measured of a workload, each number with how it came about."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import machine, variants
from experiments.benchmark.timing import Compilations, Spread, alternate, ratios, spread
from experiments.benchmark.workload import Workload
from unigrpo_jax.models.building.context import Context
from unigrpo_jax.models.work import Work
from unigrpo_jax.rollout.thinking import thinking_block

HEADER = ("what", "median", "low", "high", "unit", "rounds", "share", "of")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number.

    Attributes:
      name: what it is about.
      value: the median of the rounds, with the smallest and the largest.
      unit: of the value.
      share: the value as a part of a limit; None where there is no limit to compare with.
      of: the limit, in words.
      measured: what was timed, in words.
    """

    name: str
    value: Spread
    unit: str
    share: Spread | None = None
    of: str = ""
    measured: str

    def cells(self) -> list[str]:
        """The row of a table under `HEADER`."""
        v = self.value
        share = "" if self.share is None else f"{self.share.median:.2f} ({self.share.low:.2f}-{self.share.high:.2f})"
        return [self.name, *(f"{x:.4g}" for x in (v.median, v.low, v.high)), self.unit, str(v.times), share, self.of]


def measured(workload: Workload, thinking) -> Work:
    """The work with mean lengths of what was read and thought, padding left out; as it is where nothing is thought."""
    if thinking is None:
        return workload.work
    said = float(jnp.mean(jnp.sum(thinking.mask, axis=1)))
    return workload.work.measured(float(jnp.mean(jnp.sum(workload.prompt.valid, axis=1))), said)


def token_steps(workload: Workload, thinking) -> int:
    """Steps of the token loop: until the longest chain's last token is read."""
    return int(jnp.max(jnp.sum(thinking_block(workload.network, thinking).valid, axis=1)))


def slots(condition) -> float:
    """Mean slots that an episode has read; 0 where a condition does not grow."""
    return float(jnp.mean(jnp.sum(condition.valid, axis=1))) if isinstance(condition, Context) else 0.0


def token_products(workload: Workload) -> Callable[[], list]:
    """The products with weights of one token step of all episodes, each weight an array of its own, and nothing else."""
    matrices, batch = workload.work.decoding_matrices(workload.params), workload.config.episodes
    tokens = [jnp.ones((batch, w.shape[0]), w.dtype) for w in matrices]
    product = jax.jit(lambda xs, ws: [x @ w for x, w in zip(xs, ws, strict=True)])
    return lambda: product(tokens, matrices)


def speed(workload: Workload, repeats: int) -> list[Row]:
    """Decoding, flow steps, prefill, rollout and update, and the machine's limits in the same rounds."""
    config, parts = workload.config, workload.parts()
    matmul, bandwidth = machine.matmul_limit(), machine.bandwidth_limit()
    functions = {"prefill": parts.prefill, "flow": parts.draw, "rollout": workload.sample, "update": workload.updater()}
    thinking, condition = parts.thought
    if thinking is not None:
        steps, products = token_steps(workload, thinking), token_products(workload)
        functions |= {"decoding": parts.think, "products": lambda: [products() for _ in range(steps)]}
    limits = {"matmul": matmul, "bandwidth": bandwidth}
    functions |= {name: limit.run for name, limit in limits.items() if limit.run is not None}
    alternate(functions, 0)  # compiles
    with Compilations() as compiled:
        seconds = alternate(functions, repeats)
    top = {name: [limit.work] if limit.run is None else limit.rates(seconds[name]) for name, limit in limits.items()}
    work, upon = measured(workload, thinking), slots(condition)
    guidance = workload.program.flow.guidance
    per_step = config.episodes * (guidance.passes if guidance else 1) * work.evaluation(upon)
    update = sum(work.update().values())

    def row(name, unit, work, share_of, needed, measured):
        rates = [work / s for s in seconds[name]]
        used = [needed / s for s in seconds[name]]
        return Row(name=name, value=spread(rates), unit=unit, share=spread([u / max(top[share_of]) for u in used]),
                   of=f"the {share_of} rate", measured=measured)  # fmt: skip

    plain = lambda name, what: Row(name=name, value=spread(seconds[name]), unit="s", measured=what)
    out = [
        Row(name="matmul rate", value=spread([r / 1e9 for r in top["matmul"]]), unit="GFLOP/s", measured=matmul.what),
        Row(name="bandwidth", value=spread([r / 1e9 for r in top["bandwidth"]]), unit="GB/s", measured=bandwidth.what),
    ]
    if thinking is not None:
        tokens, weight = float(jnp.sum(thinking.mask)), jax.tree.leaves(workload.params)[0].dtype.itemsize
        out += [
            row("decoding", "tokens/s", tokens, "bandwidth", work.decoded(steps, weight),
                f"{steps} token steps of {config.episodes} episodes; weights once a step, and the cache"),
            Row(name="products in decoding", unit="of the time", measured="the same products with weights alone",
                value=spread(ratios(seconds["products"], seconds["decoding"]))),
        ]  # fmt: skip
    return [
        *out,
        row("flow", "velocities/s", config.rollout.flow_steps, "matmul", config.rollout.flow_steps * per_step,
            f"{config.rollout.flow_steps} flow steps of {config.episodes} episodes, {work.latents} latent tokens, "
            f"{upon:.1f} slots; {per_step / 1e9:.3g} GFLOP each"),
        row("update", "updates/s", 1.0, "matmul", update, f"{config.episodes} episodes, {update / 1e9:.3g} GFLOP"),
        plain("prefill", f"{config.rollout.prompts_per_iteration} prompts, repeated for their groups"),
        plain("rollout", f"{config.episodes} episodes, whole program"),
        Row(name="update time", value=spread(seconds["update"]), unit="s", measured="as above"),
        Row(name="compilations", value=spread([compiled.count]), unit="", measured=f"in {repeats} rounds after the first"),
    ]  # fmt: skip


def _compared(name: str, short: Sequence[float], long: Sequence[float], measured: str) -> Row:
    return Row(name=name, value=spread(ratios(long, short)), unit="x", measured=measured)


def savings(workload: Workload, repeats: int) -> list[Row]:
    """Seconds the long way over seconds as it is: the shared context, and the prompt that a group shares.

    Nothing for a network that reads no text itself.
    """
    if not workload.network.thinks:
        return []
    config, parts = workload.config, workload.parts()
    width = config.rollout.window_size
    window = dataclasses.replace(workload.policy, leash_times=())  # both without what has no place in a step of its own
    whole = variants.one_forward_per_step(window, width)
    shared = workload.updater(window if workload.policy.leash_times else None)
    seconds = alternate({"shared": shared, "whole": workload.updater(whole)}, repeats)
    out = [_compared("update without a shared context", seconds["shared"], seconds["whole"],
                     f"one forward pass for each of {width} window steps over one context for all")]  # fmt: skip
    alone = jax.jit(variants.one_prefill_per_episode(workload.program))
    group = config.learning.group_size
    repeated = jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), workload.prompt)
    given = (workload.params, workload.autoencoder_params, workload.prompt, np.int32(0), np.int32(0))
    seconds = alternate(
        {
            "shared": parts.prefill,
            "each": lambda: parts.read(workload.params, repeated, 1),
            "rollout": workload.sample,
            "rollout each": lambda: alone(*given),
        },
        repeats,
    )
    what = f"every prompt read for each of {group} episodes over once for all"
    out.append(_compared("prefill without sharing", seconds["shared"], seconds["each"], what))
    out.append(_compared("rollout without sharing", seconds["rollout"], seconds["rollout each"], what))
    return out


def costs(workload: Workload, repeats: int, factors: Sequence[float] = (0.5, 2.0)) -> list[Row]:
    """Seconds with one setting halved or doubled (the window as far as its range allows) over seconds as it is."""
    c = workload.config
    first, end = c.rollout.window_range
    size = lambda value, factor: max(1, round(value * factor))
    settings = [("group_size", c.learning.group_size, lambda f: size(c.learning.group_size, f))]
    if c.rollout.thinking:
        settings.append(("thinking_tokens", c.rollout.thinking_tokens, lambda f: size(c.rollout.thinking_tokens, f)))
    settings.append(("window_size", c.rollout.window_size, lambda f: min(size(c.rollout.window_size, f), end - first)))
    base = {"rollout": workload.sample, "update": workload.updater()}
    out = []
    for (name, usual, at), factor in itertools.product(settings, factors):
        value = at(factor)
        if value == usual:
            continue
        other = workload.changed(**{name: value})
        seconds = alternate(base | {"other rollout": other.sample, "other update": other.updater()}, repeats)
        for program in base:
            out.append(_compared(f"{program}, {name} {value}", seconds[program], seconds[f"other {program}"],
                                 f"{name} = {value} over {usual}"))  # fmt: skip
    return out


def loop(workload: Workload, repeats: int) -> list[Row]:
    """The share of an iteration that neither program takes: prompts, reward, advantages, metrics; presets only."""
    if workload.parts_of_run is None:
        return []
    from unigrpo_jax.training.trainer import Trainer

    trainer = Trainer(workload.parts_of_run)
    trainer.prepare()
    state = trainer.start()
    trainer.compile()
    outside = []
    with Compilations() as compiled:
        for step in range(repeats + 1):
            begin = time.perf_counter()
            episodes, own, sampled = trainer.sample(state, step)
            advantages, _ = trainer.judge(own, sampled)
            state, learned = trainer.learn(state, episodes, advantages)
            whole = time.perf_counter() - begin
            inside = sampled["time/rollout_text"] + sampled["time/rollout_flow"] + learned["time/update"]
            outside.append((whole - inside) / whole)
            if not step:
                compiled.count = 0  # the first iteration waits for the compiler
    return [
        Row(name="outside the programs", value=spread(outside[1:]), unit="of an iteration",
            measured="iterations of the trainer, the first left out"),
        Row(name="compilations in iterations", value=spread([compiled.count]), unit="",
            measured=f"in {repeats} iterations after the first"),
    ]  # fmt: skip
