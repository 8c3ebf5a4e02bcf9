"""What the settings of a run buy against a straightforward loop, one part after the other, upon the same prompts and noises.

The straightforward loop asks the text encoders for every episode's prompt in every iteration, samples one episode at a time,
and learns every transition that may be trained, of one episode at a time.  Then come, each with all before it:

    texts kept       the encoders' states of a prompt are read from the disk
    batches          the whole batch is sampled, and learned, in as few pieces as the size has
    window           only the size's own number of transitions are trained
    no guidance      one pass of the network for a transition, and not two

All but the last draw the same samples, to rounding, which is measured, too (where transitions draw noise whether they are
trained or not).  An iteration is the sum of its three parts, texts, rollout and update, each timed apart; what rewards and
files take is the same in all, and left out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.rows import Row
from experiments.benchmark.timing import alternate, ratios, spread
from experiments.benchmark.variants import one_prefill_per_episode
from experiments.benchmark.workload import Workload
from unigrpo_jax.episode import Episodes


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run an iteration.

    Attributes:
      name: what it has that the one before it had not.
      load: the settings.
      kept: whether states of prompts come from the disk.
      alone: whether episodes are sampled one at a time.
      same: whether its samples are those of the first way.
    """

    name: str
    load: Workload
    kept: bool = True
    alone: bool = False
    same: bool = True


def ways(workload: Workload) -> list[Way]:
    """The straightforward way first, the size's own settings last; without what would change nothing.

    Starts of a group's episodes are noises of their own in all of them: whoever samples one at a time has no group.
    """
    own = workload.changed(shared_noise=False)
    first, end = own.config.rollout.window_range
    every = own if own.config.rollout.window_size == end - first else own.changed(window_size=end - first)
    alone = every.changed(micro_batches=own.config.trained_episodes)
    out = [Way("straightforward", alone, kept=False, alone=True), Way("texts kept", alone, alone=True)]
    out.append(Way("batches", every))
    if every is not own:
        noisy, quiet = own.config.rollout.noise_range
        out.append(Way("window", own, same=noisy <= first and end <= quiet))
    if own.config.rollout.guidance > 1:
        out.append(Way("no guidance", own.changed(guidance=1.0), same=False))
    return out


def sampler(way: Way) -> Callable[[], Episodes]:
    """A function that samples the episodes of an iteration."""
    load = way.load
    if not way.alone:
        return load.sample
    rollout = jax.jit(one_prefill_per_episode(load.program, load.config.episodes))
    params, autoencoder, prompt, seed, step, *_ = load.sampling()
    return lambda: rollout(params, autoencoder, prompt, seed, step)


def pipeline(workload: Workload, repeats: int) -> list[Row]:
    """Seconds of an iteration of each way, and how many times as fast each is, of a preset whose network does not think."""
    config, parts, found = workload.config, workload.parts_of_run, ways(workload)
    codec = parts.loaded.codec
    texts = [prompt.text for prompt in parts.order.batch(0, config.rollout.prompts_per_iteration)]
    asked = [text for text in texts for _ in range(config.learning.group_size)] + [""] * codec.guided
    functions: dict[str, Callable[[], Any]] = {}
    drawn: dict[str, Any] = {}
    with codec.encoders.on_devices(codec.place) as encode:
        functions["texts, straightforward"] = lambda: encode(asked)
        functions["texts, kept"] = lambda: codec.prompts(texts, config.rollout.prompt_tokens)
        for way in found[1:]:  # the first one's programs are the second's
            sample = functions[f"rollout, {way.name}"] = sampler(way)
            episodes = sample()
            drawn[way.name] = jax.device_get(episodes.drawing.latent)
            functions[f"update, {way.name}"] = way.load.updates(way.load.programs.update, way.load.learning(episodes))
        seconds = alternate(functions, repeats)
    return table(found, seconds, drawn)


def table(found: Sequence[Way], seconds: Mapping[str, Sequence[float]], drawn: Mapping[str, Any]) -> list[Row]:
    """The rows of ways, of their parts' seconds round by round, and of the latents that they drew."""
    begin, *others = found
    parts = {way.name: [f"texts, {'kept' if way.kept else begin.name}",
                        *(f"{part}, {found[1].name if way is begin else way.name}" for part in ("rollout", "update"))]
             for way in found}  # fmt: skip
    whole = {name: [sum(round_) for round_ in zip(*(seconds[part] for part in own), strict=True)]
             for name, own in parts.items()}  # fmt: skip
    out = [Row(name=name, value=spread(values), unit="s", measured="a part of an iteration")
           for name, values in seconds.items()]  # fmt: skip
    out += [Row(name=f"iteration, {name}", value=spread(values), unit="s", measured=" + ".join(parts[name]))
            for name, values in whole.items()]  # fmt: skip
    faster = lambda name, before, after: Row(name=name, value=spread(ratios(whole[before], whole[after])), unit="x",
                                             measured=f"seconds of {before} over those of {after}")  # fmt: skip
    out += [faster(f"times as fast by {after.name}", before.name, after.name)
            for before, after in zip(found, others, strict=False)]  # fmt: skip
    out += [faster(f"times as fast by all up to {way.name}", begin.name, way.name) for way in others[1:]]
    first = drawn[others[0].name]
    apart = lambda a, b: float(np.max(np.abs(a - b)) / np.std(a))
    for way in (way for way in others[1:] if way.same):
        far = max(jax.tree.leaves(jax.tree.map(apart, first, drawn[way.name])))
        out.append(Row(name=f"samples apart, {way.name}", value=spread([far]), unit="std",
                       measured="largest distance of a number of a latent from the straightforward way's"))  # fmt: skip
    return out
