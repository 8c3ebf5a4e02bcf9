"""Judging a model on prompts it was not trained on: the table of a run, before and after.

The same prompts, tokens' randomness and noises are used for every checkpoint, so that differences are paired.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, EvaluationConfig, RolloutConfig, require
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.episode import Episodes
from unigrpo_jax.learning.drift import drift, relative_error
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.building import int8
from unigrpo_jax.models.building.guidance import Guidance, Guiding
from unigrpo_jax.models.loaded import Codec, Loaded, sound_rate
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel import processes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rewards.judging import ABSTAINED, Away, Judging, Left, RewardError
from unigrpo_jax.rewards.protocol import NotDrawn, RewardBatch
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.program import RolloutProgram, flow_sampler
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.rollout.windows import Window
from unigrpo_jax.training.given import given_pictures
from unigrpo_jax.training.image_statistics import diversity
from unigrpo_jax.training.samples import Clip, Moment, Sample
from unigrpo_jax.worlds.prompt import Prompt, pictured, said_later
from unigrpo_jax.worlds.world import Judgement, World

WORDS = ("thinking", "verdict", "correct")  # of a round, beside its scores


def evaluation_rollout(evaluation: EvaluationConfig, rollout: RolloutConfig, loaded: Loaded) -> RolloutProgram:
    """The rollout of an evaluation: no window with the ODE, all transitions stochastic with the SDE.

    ConfigError where several processes are to read thinkings as text, or where the model's family has not what is asked for.
    """
    check_evaluation(evaluation, rollout, loaded)
    require(not evaluation.thinking_as_text or jax.process_count() == 1,
            f"thinking_as_text works in one process, not in {jax.process_count()}; leave it out or start one.")  # fmt: skip
    guidance: Guiding = Guidance(
        text=evaluation.guidance,
        image=evaluation.guidance_image,
        interval=evaluation.guidance_interval,
        renorm=loaded.network.guidance_renorm if evaluation.guidance_renorm == "model" else evaluation.guidance_renorm,
        renorm_min=evaluation.guidance_renorm_min,
    )
    if evaluation.passes != PassesConfig():
        guidance = _further(evaluation, loaded)
    rollout = dataclasses.replace(rollout, flow_steps=evaluation.flow_steps, noise_range=(0, 0))
    steps = evaluation.flow_steps if evaluation.sampler == "sde" else 0
    return RolloutProgram(
        model=loaded.network,
        autoencoder=loaded.autoencoder,
        group_size=evaluation.images_per_prompt,
        system=loaded.codec.system(dataclasses.replace(rollout, thinking=evaluation.thinking)),
        thinking_tokens=rollout.thinking_tokens if evaluation.thinking else 0,
        tokens=TokenSampler(temperature=evaluation.temperature, top_k=rollout.top_k, top_p=rollout.top_p),
        flow=flow_sampler(rollout, loaded.network, guidance),
        rounds=rollout.rounds,
        window=Window(size=steps, range=(0, steps)) if steps else None,
        as_text=loaded.codec if evaluation.thinking_as_text else None,
        quantised=evaluation.quantised,
        fps=rollout.frames_per_second,
    )


def _further(evaluation: EvaluationConfig, loaded: Loaded) -> Guiding:
    """A guidance of several passes; ConfigError where the model has none of them, or not beside what else is asked for."""
    require(loaded.network.further_passes, f"evaluation.passes: {loaded.folder} is a model ({loaded.family}) that has no "
            "such passes; leave them out.")  # fmt: skip
    require(evaluation.guidance_renorm in ("model", "none"), f"evaluation.guidance_renorm = {evaluation.guidance_renorm} is "
            "not built beside evaluation.passes, which have a rescale of their own; leave it out.")  # fmt: skip
    try:
        return loaded.network.guided_by(max(evaluation.guidance, 1.0), evaluation.guidance_interval, evaluation.passes)
    except ValueError as error:
        raise ConfigError(f"evaluation.passes: {error}") from None


def check_evaluation(evaluation: EvaluationConfig, rollout: RolloutConfig, loaded: Loaded) -> None:
    """ConfigError where a model that only draws is to think, to look or to be guided otherwise, or has no such schedule."""
    words = f"{loaded.folder} is a model that only draws ({loaded.family})"
    if not loaded.network.thinks:
        require(not evaluation.thinking, f"{words}, so it cannot think; turn thinking off (--no-thinking, or "
                "--evaluation.no-thinking in a run).")  # fmt: skip
        require(evaluation.rounds <= 1, f"{words} and looks at no image, but evaluation.rounds = {evaluation.rounds}; use "
                "1.")  # fmt: skip
        require(evaluation.guidance_image <= 1, f"{words} and looks at no image, so it cannot be guided by one; leave "
                "guidance_image out.")  # fmt: skip
    require(evaluation.guidance <= 1 or loaded.codec.guided, f"guidance = {evaluation.guidance:g}, but {loaded.folder} "
            f"({loaded.family}) is not guided by a second pass; use 1.")  # fmt: skip
    if evaluation.quantised == "int8":
        int8.check_installed("evaluation.quantised")
    if evaluation.passes != PassesConfig():
        _further(evaluation, loaded)
    check_schedule("evaluation.flow_steps", evaluation.flow_steps, rollout, loaded)


def check_schedule(setting: str, steps: int, rollout: RolloutConfig, loaded: Loaded) -> None:
    """ConfigError where the family has no schedule of so many steps, those of a setting."""
    network = loaded.network
    try:
        network.times(steps, rollout.timestep_shift, network.grid(*rollout.size))
    except ValueError as error:
        raise ConfigError(f"{setting}, rollout.timestep_shift: {error}") from None


def whole_prompts(count: int, images: int, mesh: jax.sharding.Mesh) -> int:
    """`count` prompts or a few more, so that `images` episodes of each divide over the devices.

    The prompts themselves divide over the processes, so that one process has all episodes of each of its own.
    """
    devices = meshes.batch_size(mesh)
    step = math.lcm(devices // math.gcd(devices, images), jax.process_count())
    return -(-count // step) * step


def on_mesh(program: RolloutProgram, layout: Layout) -> tuple[RolloutProgram, jax.sharding.NamedSharding]:
    """The program with its episodes spread over the devices, among which they divide; and where these are."""
    program = dataclasses.replace(program, place=layout.condition, parts=meshes.batch_size(layout.mesh))
    return program, meshes.spread(layout.mesh)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What one call of the program gave: this process's episodes among all, and the media of the first ones; by round."""

    rows: np.ndarray
    batches: tuple[RewardBatch, ...]
    total: int
    shown: tuple[Mapping[str, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What an evaluation found.

    Attributes:
      table: {"overall": mean, category: mean, ...} for each score of the world and each component of the reward, and for
        `diversity` (`image_statistics.diversity`) where a prompt is drawn several times.
      samples: of the first prompts.
      scores: the same scores of each episode, float64 [episodes], prompt after prompt; NaN where one does not apply.
      thinkings: of each round the thinking of each episode, in words.
      drift: `learning.drift` by modality, {"flow": {"times": [...], "squared": [...], "pattern": [...]}}, each a list of T
        numbers, None where one is not finite; {} where nothing was compared.
      error: the error of weights in int8 (`learning.drift`), likewise with "relative" for both; {} where it was not asked
        for.
    """

    table: dict[str, Any]
    samples: list[Sample]
    scores: dict[str, np.ndarray]
    thinkings: tuple[list[str], ...]
    drift: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)
    error: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)


class Evaluator:
    """A compiled evaluation of one model, world and setting.

    Attributes:
      prompts: the prompts it judges on.
      alive: called before each call of its program.
    """

    def __init__(
        self,
        evaluation: EvaluationConfig,
        rollout: RolloutConfig,
        loaded: Loaded,
        world: World,
        judging: Judging,
        layout: Layout,
        samples: int = 0,
    ):
        """`layout` is that of the weights; `samples` images are kept to be looked at.

        A batch is filled up to what divides over the devices, and over the processes by whole prompts.

        Reads all prompts and pictures once; ConfigError where one does not fit.  Pictures are read again for each call.
        """
        rollout = dataclasses.replace(rollout, rounds=evaluation.rounds or rollout.rounds)
        self.prompts = world.judged_on(evaluation.split, evaluation.prompts)
        judging.check([p.text for p in self.prompts], [p.metadata for p in self.prompts])
        judging.check_drawn(self.prompts[0].text, self.prompts[0].metadata, rollout, sound_rate(loaded))
        images = evaluation.images_per_prompt
        self._per_call = whole_prompts(evaluation.batch // images, images, layout.mesh)
        batch = self._per_call * images
        self._count = min(samples, batch, len(self.prompts) * images)
        self.alive: Callable[[], None] = lambda: None
        self._config, self._world = evaluation, world
        self._judging = judging
        self._codec = loaded.codec
        setting = "evaluation.rounds" if evaluation.rounds else "rollout.rounds"
        self._texts = [p.text for p in self.prompts], *said_later(self.prompts, rollout.rounds, setting)
        # The bucket changes no image, so it is made to fit.
        self._bucket = max(rollout.prompt_tokens, *(loaded.codec.bucket(texts) for texts in self._texts))
        for texts in self._texts:
            loaded.codec.check_lengths(texts, self._bucket, lambda row: self.prompts[row].place)
            loaded.codec.prepare(texts)
        self._see = lambda prompts: given_pictures(prompts, loaded.network, rollout)
        for prompt in self.prompts if pictured(self.prompts) else self.prompts[:1]:
            self._see([prompt])
        world.check_size(rollout)
        world.check_sound(sound_rate(loaded))
        program, place = on_mesh(evaluation_rollout(evaluation, rollout, loaded), layout)

        def run(*given):
            episodes = program(*given)
            return episodes, tuple(jax.tree.map(lambda x: x[: self._count], drawing.media) for drawing in episodes.drawings)

        self._run = jax.jit(run, out_shardings=(place, meshes.replicated(layout.mesh)))
        policy = Policy(model=program.model, system=program.system, tokens=program.tokens, flow=program.flow)
        count = min(evaluation.drift, batch, len(self.prompts) * images)
        # As many as divide over the devices: what does not would be whole on each of them.
        parts = meshes.batch_size(layout.mesh)
        self._compared, compared = count, -(-count // parts) * parts
        self._times = program.flow.schedule[:-1]

        def compare(measure, params, reference, episodes, seed):
            ids = jnp.arange(compared)
            keys = randomness.round_keys(seed, 0, randomness.INITIAL_NOISE, program.rounds - 1, ids)
            noise = randomness.normal_like(keys, 0, program.latent(compared))  # at which the drawing that is judged begins
            first = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[:compared], place), episodes)
            return measure(policy, params, reference, first, noise, count)

        def error(params, *given):
            return compare(relative_error, program.weights(params), params, *given)

        measured = functools.partial(jax.jit, out_shardings=meshes.replicated(layout.mesh))
        self._drift = measured(functools.partial(compare, drift)) if count else None
        self._error = measured(error) if count and evaluation.quantised != "none" else None

    def __call__(
        self, params, autoencoder_params, reference: Callable[[], Any] | None = None, errors: bool = False
    ) -> Judged:
        """Judges all prompts; each process its own images, and all know what was found.

        Args:
          params: the network's parameters.
          autoencoder_params: the autoencoder's.
          reference: gives the parameters that the first drawings' predictions are compared with, which are let go of as soon
            as they have been; None for no comparison.
          errors: measure along the first drawings what int8 does to predictions, where that is what draws.
        """
        found, wrong, calls = {}, {}, []
        for start in range(0, len(self.prompts), self._per_call):
            self.alive()
            call, episodes = self._call(params, autoencoder_params, start)
            if not start and reference is not None and self._drift is not None:
                found = self._rounded(self._drift(params, reference(), episodes, np.int32(self._config.seed)))
            if not start and errors and self._error is not None:
                wrong = self._rounded(self._error(params, episodes, np.int32(self._config.seed)))
            del episodes  # so that the next call's are not there beside them
            calls.append(call)
        return dataclasses.replace(self._judge(calls), drift=found, error=wrong)

    def samples(self, params, autoencoder_params) -> list[Sample]:
        """The samples only."""
        self.alive()
        return self._judge([self._call(params, autoencoder_params, 0)[0]]).samples

    def _call(self, params, autoencoder_params, start: int) -> tuple[_Call, Episodes]:
        """One call of the program; the last one is filled up with repeated prompts, which are then dropped."""
        per, images = self._per_call, self._config.images_per_prompt
        rows = [min(i, len(self.prompts) - 1) for i in range(start, start + per)]
        said = lambda: [self._codec.prompts([texts[row] for row in rows], self._bucket) for texts in self._texts]
        seen = lambda: (*said(), self._see([self.prompts[row] for row in rows]))
        block, *turns, picture = processes.agree_on_errors((ConfigError,), seen)
        seed, first = np.int32(self._config.seed), np.int32(start * images)
        episodes, shown = self._run(params, autoencoder_params, block, seed, np.int32(0), first, picture, tuple(turns))
        keep = min(per, len(self.prompts) - start) * images
        judged = processes.by_process(episodes.judged)
        numbers = processes.own_rows(judged.drawing.finite)[0]
        kept = numbers < keep
        own, numbers = lambda x: processes.own_rows(x)[1][kept], numbers[kept]
        before = None if picture is None else picture.levels[numbers // images]
        asked = [self.prompts[start + n // images] for n in numbers]
        group = (start * images + numbers) // images
        batches = by_round(judged, asked, self._codec, own, before, group)
        shown = jax.tree.map(np.asarray, shown)
        return _Call(rows=start * images + numbers, batches=batches, total=keep, shown=shown), episodes

    def _rounded(self, found: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, list]]:
        """As `Judged.drift`."""
        number = lambda x: float(f"{x:.6g}") if np.isfinite(x) else None
        rounded = lambda values: [number(x) for x in np.asarray(values, np.float64).tolist()]
        times = {"times": rounded(self._times)}
        return {name: times | {kind: rounded(x) for kind, x in own.items()} for name, own in found.items()}

    def _judge(self, calls: Sequence[_Call]) -> Judged:
        joined = [join(batches) for batches in zip(*(c.batches for c in calls), strict=True)]
        columns = processes.agree_on_errors((Left, Away, RewardError), lambda: self._rounds(joined))
        total = sum(c.total for c in calls)
        try:
            columns = processes.share_rows(np.concatenate([c.rows for c in calls]), columns, total)
        except ValueError as error:
            raise RewardError(f"held-out images: {error}") from None
        asked = [p for p in self.prompts for _ in range(self._config.images_per_prompt)][:total]
        thinkings = tuple(columns[f"thinking{turn}"] for turn in range(len(joined)))
        shown = list(enumerate(calls[0].shown))
        looked = lambda: [_moments(columns, asked, turn, media, joined[turn]) for turn, media in shown]
        moments = processes.agree_on_errors((ConfigError,), looked)  # it reads pictures of prompts again
        columns = {name: np.asarray(values, np.float64) for name, values in columns.items()}
        rewards = [x for name, x in columns.items() if name.startswith("reward/")]
        if rewards:  # supervised training needs none
            self._judging.hold_to_share(~np.any([np.isnan(x) for x in rewards], axis=0), "held-out images")
        if rewards and all((x == ABSTAINED).all() for x in rewards):
            raise RewardError(f"every reward abstained from all of {total} held-out images, so nothing can be compared")
        scores = {name.split("/", 1)[1]: np.where(x == ABSTAINED, np.nan, x) for name, x in columns.items()}
        table = by_category(scores, [str(p.metadata.get("category", "")) for p in asked])
        samples = [Sample(**m[-1], earlier=tuple(Moment(**n) for n in m[:-1])) for m in zip(*moments, strict=True)]
        return Judged(table, samples, scores, thinkings)

    def _rounds(self, batches: Sequence[RewardBatch]) -> dict[str, list]:
        """By episode: the last round's scores, those of the rounds before as `round1_NAME` ..., and the words of all."""
        columns = self._columns(batches[-1])
        columns |= {f"{name}{len(batches) - 1}": columns.pop(name) for name in WORDS if name in columns}
        for turn, batch in enumerate(batches[:-1], 1):
            for name, values in self._columns(batch).items():
                kind, slash, score = name.partition("/")
                columns[f"score/round{turn}_{score}" if slash else f"{kind}{turn - 1}"] = values
        return columns

    def _columns(self, batch: RewardBatch) -> dict[str, list]:
        """Scores, verdicts and words, by episode."""
        if not batch.prompts:
            return {}
        scores, found = self._judging(batch), {}
        if self._world.judge is None:
            correct = [None] * len(batch.prompts)
            said = lambda value: "abstains" if value == ABSTAINED else f"{value:.3f}"
            verdicts = [", ".join(f"{n} {said(v[i])}" for n, v in scores.items()) for i in range(len(batch.prompts))]
        else:
            judged = by_rule(self._world, batch)
            found = {name: x for name, x in judged.scores.items() if name not in scores}
            correct, verdicts = [bool(c) for c in judged.correct], list(judged.verdicts)
        columns = {f"reward/{name}": np.asarray(values).tolist() for name, values in scores.items()}
        columns |= {f"score/{name}": np.asarray(values).tolist() for name, values in found.items()}
        if self._config.images_per_prompt > 1:
            columns["score/diversity"] = diversity(batch.media, batch.group).tolist()
        return columns | {"thinking": list(batch.thinking), "verdict": verdicts, "correct": correct}


def _moments(
    columns: dict[str, list], asked: Sequence[Prompt], turn: int, media: Mapping[str, np.ndarray], judged: RewardBatch
) -> list[dict[str, Any]]:
    """Fields of one round of the samples: images, or clips with their sound; takes its words out of the columns.

    `judged` says how many frames and samples of sound a second has.
    """
    thinking, verdicts, correct = (columns.pop(f"{name}{turn}") for name in WORDS)
    said = [p.turns[turn - 1] if turn and p.turns else "" if turn else p.text for p in asked]
    kind, sounds = ("clip", media.get("audio")) if "video" in media else ("image", None)
    drawn = media["video"] if kind == "clip" else media["image"]
    given = [() if turn or p.picture is None else (np.asarray(p.picture()),) for p in asked[: len(drawn)]]
    if kind == "clip":
        sound = lambda row: None if sounds is None else (sounds[row], int(judged.rate))
        drawn = [Clip.of(frames, judged.fps, sound(row)) for row, frames in enumerate(drawn)]
    names = ("prompt", "thinking", kind, "verdict", "correct", "given")
    rows = zip(said, thinking, drawn, verdicts, correct, given, strict=False)
    return [dict(zip(names, row, strict=True)) for row in rows]


def by_rule(world: World, batch: RewardBatch) -> Judgement:
    """What the world's own rules say; RewardError where they judge images and clips are drawn, or the other way round."""
    try:
        return world.judge(batch)
    except NotDrawn as error:
        raise RewardError(f"the rules of these prompts {error}") from None


def join(batches: Sequence[RewardBatch]) -> RewardBatch:
    """Several batches as one."""
    every = lambda name: [x for batch in batches for x in getattr(batch, name)]
    return RewardBatch(
        prompts=every("prompts"),
        metadata=every("metadata"),
        media={medium: np.concatenate([batch.media[medium] for batch in batches]) for medium in batches[0].media},
        fps=batches[0].fps,
        rate=batches[0].rate,
        thinking=every("thinking"),
        before=None if batches[0].before is None else np.concatenate([batch.before for batch in batches]),
        group=None if batches[0].group is None else np.concatenate([batch.group for batch in batches]),
    )


def by_round(
    episodes: Episodes, asked: Sequence[Prompt], codec: Codec, own: Callable[[jax.Array], np.ndarray],
    before: np.ndarray | None, group: np.ndarray | None = None,
) -> tuple[RewardBatch, ...]:  # fmt: skip
    """Episodes as rewards see them, once for each round.

    Args:
      episodes: those of all processes.
      asked: the prompt of each of the R episodes that this one judges.
      codec: makes words of tokens.
      own: picks those R rows of an array, on the host.
      before: the pictures that came with their prompts, uint8 [R, H, W, 3]; None where none did.
      group: int [R], numbers of the groups; None where rewards need not know.
    """
    batches = []
    for turn, (thinking, drawing) in enumerate(zip(episodes.thinkings, episodes.drawings, strict=True)):
        prompts, media = [p.at(turn) for p in asked], {name: own(x) for name, x in drawing.media.items()}
        batches.append(
            RewardBatch(
                prompts=[p.text for p in prompts],
                metadata=[p.metadata for p in prompts],
                media=media,
                fps=episodes.fps or 0.0,
                rate=episodes.rate or 0.0,
                thinking=codec.thoughts(jax.tree.map(own, thinking), len(asked)),
                before=before,
                group=group,
            )
        )
        before = media.get("image")
    return tuple(batches)


def by_category(
    scores: dict[str, np.ndarray], categories: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """{score: {"overall": mean, category: mean}}; NaN entries do not count, a mean of nothing is left out.

    A category that is itself called overall stands there as `overall (category)`.  `weights` above 0, one an entry, are
    those of the means; without any all entries weigh the same.
    """
    labels, table = np.array(categories), {}
    called = lambda category: f"{category} (category)" if category == "overall" else category
    for name, values in scores.items():
        masks = {"overall": np.ones(len(labels), bool)} | {called(c): labels == c for c in dict.fromkeys(categories) if c}
        rows = {key: mask & np.isfinite(values) for key, mask in masks.items()}
        mean = lambda row, values=values: np.average(values[row], weights=None if weights is None else weights[row])
        table[name] = {key: round(float(mean(row)), 6) for key, row in rows.items() if row.any()}
    return table
