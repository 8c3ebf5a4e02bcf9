"""The parts of a run, built from its config and checked before anything compiles, and one iteration of them."""

import dataclasses
import importlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unigrpo_jax.config import ConfigError, LearningConfig, RolloutConfig, RunConfig, require
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.episode import Episodes, Picture, TokenBlock
from unigrpo_jax.learning import credit, modalities, parameters
from unigrpo_jax.learning.advantages import extremes, zero_variance_share
from unigrpo_jax.learning.update import TrainState, new_state
from unigrpo_jax.models import tree
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.loaded import Loaded, sound_rate
from unigrpo_jax.models.verbs import Painter
from unigrpo_jax.parallel import kernels, processes
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.frozen import on_own_devices
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rewards.judging import Away, Judging, Left, RewardError
from unigrpo_jax.rewards.load import load_rewards
from unigrpo_jax.rewards.protocol import DifferentiableReward, RewardBatch
from unigrpo_jax.rollout.program import check_window, flow_sampler
from unigrpo_jax.training import measured, student_checks
from unigrpo_jax.training.evaluation import by_round, by_rule, check_evaluation, check_schedule
from unigrpo_jax.training.given import check_pictures, given_pictures
from unigrpo_jax.training.image_statistics import statistics
from unigrpo_jax.training.programs import Followed, Inputs, Programs
from unigrpo_jax.training.stopping import clause
from unigrpo_jax.training.text_statistics import repeated_share
from unigrpo_jax.worlds.order import Order
from unigrpo_jax.worlds.prompt import Prompt, pictured, said_later, turns_of
from unigrpo_jax.worlds.world import World, load_world


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config stands for.

    Attributes:
      config: the settings.
      layout: the devices, and where every array lies on them.
      loaded: the model folder, without its weights.
      world: prompts and rules.
      order: training prompts by position.
      judging: the rewards.
      followed: the one whose gradient the method `refl` follows, else None.
      teacher: the model that a student is held to while it learns from rewards, without its weights, else None.
    """

    config: RunConfig
    layout: Layout
    loaded: Loaded
    world: World
    order: Order
    judging: Judging
    followed: DifferentiableReward | None = None
    teacher: Loaded | None = None


def build(config: RunConfig, world: World | None = None) -> Parts:
    """Checks a config against itself, the machine and the files it names; ConfigError says what cannot work.

    `world` stands in the place of the one that the config names.
    """
    check(config)
    mesh = meshes.make_mesh(config.devices, config.mesh)
    check_devices(config, meshes.batch_size(mesh))
    attend = kernels.attend(config.model, mesh)
    world = world or load_world(config.prompts, config.prompt_weights, config.evaluation.source, config.rollout.rounds,
                                config.evaluation.rounds)  # fmt: skip
    unjudged = not config.learning.rewarded and not config.rewards
    rewards = {} if unjudged else load_rewards(config)
    judging, followed = Judging(rewards, config.judging), None
    if config.learning.method == "refl":
        followed = next((r for r in rewards.values() if isinstance(r, DifferentiableReward)), None)
        require(followed is not None, f"learning.method = 'refl' follows the gradient of a reward, but {config.rewards} has "
                                      "none; use --rewards shapes_scorer, or one of your own.")  # fmt: skip
    for prompts in world.longest:  # of each source
        judging.check([p.text for p in prompts], [p.metadata for p in prompts])
    loaded = load_model(config.model)  # last, since a model on the hub takes long to fetch
    loaded.check_image_size(config.rollout)
    # Examples bring their own first frames, and their prompts are judged with those where no others are named.
    shown = config.learning.method == "sft" and not config.prompts and loaded.network.needs_picture
    check_verbs(loaded, config.rollout, shown or any(pictured(prompts) for prompts in world.longest if prompts))
    world.check_size(config.rollout)
    world.check_sound(sound_rate(loaded))
    check_schedule("rollout.flow_steps", config.rollout.flow_steps, config.rollout, loaded)
    check_evaluation(config.evaluation, config.rollout, loaded)
    check_leash_times(config.learning, loaded)
    student_checks.check_method(config, loaded)
    modalities.check(config.learning, modalities.names(loaded.network, config.rollout.size), str(loaded.folder))
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if getattr(config.logging, name):
            try:
                importlib.import_module(module)
            except Exception as error:  # missing, or too broken to be imported
                missing = isinstance(error, ModuleNotFoundError) and error.name == module
                why = "" if missing else f", whose import fails ({clause(error)})"
                raise ConfigError(f"logging.{name} needs {module}{why}: pip install 'unigrpo_jax[{name}]'.") from error
    teacher = student_checks.teacher_of(config, loaded)
    loaded.check_weights()
    layout = Layout(mesh, loaded.network.axes)
    tokens = layout.sequence(loaded.network.cuts())
    for path, x in tree.flatten(loaded.abstract_params()).items():
        layout.parameter(path, x.shape)
    loaded = loaded.placed(layout.activations, attend, on_own_devices(mesh), tokens)
    parameters.groups(loaded.abstract_params(), config.learning, loaded.network.trained_by)
    require(
        config.model.param_dtype == "float32" or config.model.lora.rank > 0,
        "model.param_dtype = 'bfloat16', but weights that are trained must be float32, where small steps do not round "
        "away; use float32, or adapters with model.lora.rank.",
    )
    _check_words(config.rollout, loaded, world)
    check_pictures(world.longest, loaded.network, config.rollout)
    if config.learning.method == "grpo":
        check_window(flow_sampler(config.rollout, loaded.network), config.rollout)
    return Parts(config, layout, loaded, world, world.train(config.seed), judging, followed, teacher)


def token_size(network: Painter, rollout: RolloutConfig) -> tuple[int, int]:
    """Pixels (height, width) that a latent token stands for."""
    grid = network.grid(*rollout.size)
    rows, columns = grid if len(grid) == 2 else grid[1:3]  # of clips frames come first, and of their sound more behind
    return rollout.image_height // rows, rollout.image_width // columns


def check_leash_times(learning: LearningConfig, loaded: Loaded) -> None:
    """ConfigError where one of `leash_times` lies before the first of a diffusion's steps."""
    steps = loaded.network.path.steps
    early = [t for t in learning.leash_times if steps and round(t * steps) < 1]
    require(not early, f"learning.leash_times: {', '.join(f'{t:g}' for t in early)} lies before the first of the {steps} "
                       f"steps of {loaded.folder} ({loaded.family}); use {1 / max(steps, 1):g} or more.")  # fmt: skip


def check_verbs(loaded: Loaded, rollout: RolloutConfig, shows: bool = False) -> None:
    """ConfigError where a rollout asks for a verb that the model's family has not; `shows`: prompts come with pictures."""
    if loaded.network.thinks:
        return
    begins = loaded.network.begins
    words = f"{loaded.folder} is a model that only draws ({loaded.family})"
    require(not rollout.thinking, f"{words}, but rollout.thinking is on; use --rollout.no-thinking.")
    require(rollout.rounds == 1, f"{words} and looks at no image, but rollout.rounds = {rollout.rounds}; use 1.")
    require(shows or not loaded.network.needs_picture, f"{loaded.folder} goes on from a picture, the first frame of what it "
            'draws, but the prompts come with none; give each an "image".')  # fmt: skip
    require(begins or not shows, f"{words} and looks at no picture, but the prompts come with pictures; take them out, or "
            "use a model that sees.")  # fmt: skip
    require(rollout.guidance <= 1 or loaded.codec.guided, f"rollout.guidance = {rollout.guidance:g}, but {loaded.folder} "
            f"({loaded.family}) is not guided by a second pass; use 1.")  # fmt: skip


def _check_words(rollout: RolloutConfig, loaded: Loaded, world: World) -> None:
    """ConfigError where a prompt, or what the user says later, does not fit into its bucket or the rounds.

    Also where a world that judges by rule uses words that the model does not know.
    """
    talks = any(prompts[0].turns for prompts in world.longest[:1])
    each = rollout.rounds if talks else 1  # texts of a prompt
    for prompts in world.longest:
        said = (text for p in prompts for text in (p.text, *turns_of(p, rollout.rounds, talks)))
        place = lambda row, prompts=prompts: prompts[row // each].place
        loaded.codec.check_lengths(said, rollout.prompt_tokens, place)
        if world.judge is None:
            continue
        unknown = loaded.codec.unknown_words(text for p in prompts for text in (p.text, *p.turns))
        require(
            not unknown,
            f"{loaded.folder} does not know {len(unknown)} words of the prompts, such as {', '.join(unknown[:3])}; use a "
            "model that does, such as --model.path rounds_base for the shapes worlds of several rounds.",
        )


@dataclasses.dataclass(frozen=True)
class OwnEpisodes:
    """The episodes of an iteration that this process judges.

    Attributes:
      rows: int [R], their numbers among all.
      batches: R episodes as rewards see them, once for each round; the last one is what an episode ends with.
      tokens: int [R], tokens thought.
      finite: bool [R], whether the episode holds finite numbers only.
      repeated: by round float [R], `text_statistics.repeated_share` of the thinking; None where nothing was thought, and ()
        where nobody looked.
    """

    rows: np.ndarray
    batches: tuple[RewardBatch, ...]
    tokens: np.ndarray
    finite: np.ndarray
    repeated: tuple[np.ndarray | None, ...] = ()

    @property
    def batch(self) -> RewardBatch:
        """The last round's."""
        return self.batches[-1]


class Stopwatch:
    """The seconds of a rollout in which its model thinks, before each of its drawings: of every micro-batch and round.

    JAX keeps a callback of a compiled program for ever; this one holds nothing, no programs and no weights.
    """

    def start(self) -> float:
        """Begins anew; seconds of `time.monotonic`."""
        self.seconds, self._since = 0.0, time.monotonic()
        return self._since

    def __call__(self, _, thinking) -> None:
        """A thinking is done, or else a drawing; said again by another device it counts once."""
        now = time.monotonic()
        if not thinking:
            self._since = now
        elif self._since is not None:
            self.seconds, self._since = self.seconds + now - self._since, None


class Trainer:
    """Rollout, reward and update of a run."""

    programs_of: type[Programs] = Programs

    def __init__(self, parts: Parts):
        loaded = parts.loaded
        self._token = token_size(loaded.network, parts.config.rollout)
        self.parts, self._thought = parts, Stopwatch()
        system = loaded.codec.system(parts.config.rollout)
        follow = parts.followed and Followed.of(parts.followed, parts.order.batch(0, 1)[0].metadata)
        self.programs = self.programs_of(
            parts.config, loaded.network, loaded.autoencoder, system, parts.layout, loaded.abstract_params(),
            self._thought, follow,
        )  # fmt: skip
        self._compiled: Future | None = None
        first = parts.order.batch(0, 1)
        self._talks, self._shows = bool(said_later(first, parts.config.rollout.rounds)), pictured(first)
        self.frozen: dict[str, jax.Array] = {}
        self.reference: dict = {}
        self._imitated: dict | None = None
        self.autoencoder_params: dict[str, jax.Array] = {}

    def inputs(self) -> Inputs:
        """Shapes and places of all that an iteration reads."""
        loaded = self.parts.loaded
        rollout = self.parts.config.rollout
        text = loaded.codec.shapes(rollout.prompts_per_iteration, rollout.prompt_tokens)
        return self.programs.inputs(loaded.stored_params(), loaded.autoencoder.shapes(), text, self._talks, self._shows)

    def prepare(self) -> None:
        """Makes what frozen encoders say of all prompts; before `start`, so that the devices hold nothing else meanwhile.

        ConfigError where that cannot be kept.
        """
        order, r = self.parts.order, self.parts.config.rollout
        drawn = self.parts.config.iterations * (1 + r.resample) * r.prompts_per_iteration
        self.parts.loaded.codec.prepare(order.at(position).text for position in range(drawn))

    def compile(self) -> None:
        """Starts compiling both programs in the background, from shapes alone; the first use waits for them.

        They are traced here: Flax changes the fields of a layer while it scans it, and other programs are traced meanwhile.
        """
        lowered = self.programs.lower(self.inputs())
        executor = ThreadPoolExecutor(1)
        self._compiled = executor.submit(lambda: [program.compile() for program in lowered])
        executor.shutdown(wait=False)

    def start(self) -> TrainState:
        """Reads the weights; the state before the first iteration.

        What is not trained lies in `frozen` once.  The reference is made of the same arrays, and of a copy of what is
        trained; adapters are trained instead of weights, so it needs no copy then.  A teacher that was named is read
        beside them, and is what its fake score begins as.
        """
        loaded, learning, place = self.parts.loaded, self.parts.config.learning, self.parts.layout.parameter
        stored = loaded.params(place)
        self.autoencoder_params = loaded.autoencoder_params(self.programs.everywhere)
        shapes = loaded.abstract_params()
        flat = tree.flatten(stored) | self.fresh()
        trained_by = loaded.network.trained_by
        trained, self.frozen = parameters.split(tree.unflatten(flat), parameters.groups(shapes, learning, trained_by))
        teacher = self.parts.teacher
        flat = tree.flatten(stored if teacher is None else teacher.params(place))
        places = self.programs.reference_places(stored)
        kept = {path: at for path, at in places.items() if path in trained}
        copied = jax.jit(lambda own: {path: jnp.array(x, kept[path][0], copy=True) for path, x in own.items()})
        own = copied({path: flat[path] for path in kept})
        if learning.method == "best_of_n":  # the frozen start samples, with all adapters and dtypes of what is trained
            self._imitated = tree.unflatten(self.frozen | {path: jnp.copy(x) for path, x in trained.items()})
        own = {path: jax.device_put(x, kept[path][1]) for path, x in own.items()}
        self.reference = tree.unflatten({path: x for path, x in (flat | own).items() if path in places})
        whole = lambda trained: tree.unflatten(tree.flatten(shapes) | trained)
        begin = lambda trained, score: new_state(whole(trained), learning, trained_by, score)
        score = {} if teacher is None else {path: flat[path] for path in kept}
        return jax.jit(begin, out_shardings=self.programs.state_shardings, donate_argnums=0)(trained, score)

    def fresh(self) -> dict[str, jax.Array]:
        """{path: parameter} of those that no file holds, as they are at the start: adapters, a second time."""
        loaded, place = self.parts.loaded, self.parts.layout.parameter
        there, all_ = tree.flatten(loaded.stored_params()), tree.flatten(loaded.abstract_params())
        new = {path: place(path, x.shape) for path, x in all_.items() if path not in there}
        make = lambda: {path: tree.flatten(loaded.with_fresh(loaded.stored_params()))[path] for path in new}
        return jax.jit(make, out_shardings=new)() if new else {}

    def params(self, state: TrainState) -> dict:
        """The parameters that sample, as the network takes them."""
        return state.sampling(self.frozen)

    def judged_params(self, state: TrainState) -> dict:
        """The parameters that are judged: the moving average where there is one."""
        return state.averaged(self.frozen)

    def first_params(self) -> dict:
        """The parameters that the run started from, on the devices; read again where no reference is kept."""
        if not self.parts.config.learning.keeps_start:
            return self.parts.loaded.params(self.parts.layout.parameter)
        if self.parts.config.learning.reference == "device":
            return self.reference
        place = lambda x: jax.device_put(x, x.sharding.with_memory_kind("device"))
        return jax.tree.map(place, self.reference)

    def kept_reference(self) -> Callable[[], dict] | None:
        """What gives the start's parameters for an evaluation to compare with; None where they are not kept."""
        return self.first_params if self.parts.config.learning.keeps_start else None

    def sample(self, state: TrainState, step: int, number: int = 0) -> tuple[Episodes, OwnEpisodes, dict[str, float]]:
        """The episodes of rollout `number` of iteration `step`, those that this process judges, and metrics."""
        config = self.parts.config
        at = step * (1 + config.rollout.resample) + number
        prompts, block, picture, turns = processes.agree_on_errors((ConfigError,), lambda: self._prompts(at))
        rollout, _ = self._compiled.result()
        begin = self._thought.start()
        whole = lambda tree: jax.tree.map(lambda x: processes.to_global(x, self.programs.everywhere), tree)
        params = self.params(state) if self._imitated is None else self._imitated
        numbers = (np.int32(config.seed), np.int32(step), np.int32(number * config.episodes))
        given = (params, self.autoencoder_params, whole(block), *numbers, whole(picture), whole(turns))
        episodes = jax.block_until_ready(rollout(*given))
        jax.effects_barrier()
        end = time.monotonic()
        if self.parts.followed is not None:
            goals = self.parts.followed.goals([p.metadata for p in prompts for _ in range(config.learning.group_size)])
            place = lambda x: processes.to_global(np.asarray(x), self.programs.spread)
            episodes = episodes.replace(goals=jax.tree.map(place, goals))
        thought = self._thought.seconds
        times = {"time/rollout_text": thought, "time/rollout_flow": end - begin - thought}
        judged = processes.by_process(episodes.judged)
        return episodes, processes.agree_on_errors((), lambda: self._own(judged, prompts, picture)), times

    def _own(self, episodes: Episodes, prompts: list[Prompt], picture: Picture | None) -> OwnEpisodes:
        """The episodes that this process judges."""
        rows, finite = processes.own_rows(episodes.drawing.finite)
        own, of = lambda x: processes.own_rows(x)[1], rows // self.parts.config.learning.group_size
        before = None if picture is None else picture.levels[of]
        batches = by_round(episodes, [prompts[row] for row in of], self.parts.loaded.codec, own, before, group=of)
        thought = [thinking and (own(thinking.tokens), own(thinking.mask)) for thinking in episodes.thinkings]
        tokens = sum((mask.sum(axis=1) for _, mask in filter(None, thought)), np.zeros(len(rows), int))
        repeated = tuple(both and repeated_share(*both) for both in thought)
        return OwnEpisodes(rows, batches, tokens, finite, repeated)

    def _prompts(self, number: int) -> tuple[list[Prompt], TokenBlock, Picture | None, tuple[TokenBlock, ...]]:
        """The prompts of a run's rollout `number`, from 0 on, what is shown with them and what is said later.

        ConfigError where one cannot be read or does not fit.
        """
        rollout, network = self.parts.config.rollout, self.parts.loaded.network
        prompts = self.parts.order.batch(number, rollout.prompts_per_iteration)
        place = lambda row: prompts[row].place
        block = lambda texts: self.parts.loaded.codec.prompts(texts, rollout.prompt_tokens, place)
        later = said_later(prompts, rollout.rounds)
        seen = given_pictures(prompts, network, rollout, self._shows)
        return prompts, block([p.text for p in prompts]), seen, tuple(map(block, later))

    def judge(self, own: OwnEpisodes, times: dict[str, float]) -> tuple[Any, dict[str, float]]:
        """Advantages of all processes' episodes (`credit.advantages`), and metrics.

        RewardError in all processes where the reward fails in one, `Away` where its server does, `Left` where it is told to
        end.
        """
        config, learning, begin = self.parts.config, self.parts.config.learning, time.monotonic()
        judge = lambda: [self._columns(own, turn) for turn in range(len(own.batches))]
        columns = processes.agree_on_errors((Left, Away, RewardError), judge)
        try:
            shared = [processes.share_rows(own.rows, found, config.episodes) for found in columns]
        except ValueError as error:
            raise RewardError(f"the rewards {' '.join(config.rewards)}: {error}") from None
        finite = np.asarray(shared[-1]["finite"], bool)  # nothing is known of an episode that is not
        rounds = [measured.known(found, finite) for found in shared]
        grouped = [measured.by_group(found, "reward/", learning.group_size) for found in rounds]
        self.parts.judging.hold_to_share(finite.reshape(-1, learning.group_size).all(axis=1), "groups", "the rollout")
        rewarded = credit.rewarded(grouped, learning)
        judged, failed = credit.judged_and_failed(rewarded)
        self.parts.judging.hold_to_share(~failed, "groups")
        drawn = modalities.names(self.parts.loaded.network, config.rollout.size) if learning.credit_by else ()
        advantages, total = credit.advantages(rewarded, judged, learning, drawn)
        metrics = credit.abstained(grouped[-1]) | (credit.by_modality(advantages, judged) if drawn else {})
        if judged.any():
            metrics |= {"reward/mean": float(total.mean()), "reward/std": float(total.std())}
            metrics["reward/zero_variance_share"] = float(zero_variance_share(total))
        metrics["reward/dropped_share"] = float(1 - judged.mean())
        metrics["reward/failed_share"] = float(failed.mean())  # without those that all rewards abstain from
        metrics["rollout/nonfinite_share"] = float(1 - finite.mean())
        seconds = times["time/rollout_text"], times["time/rollout_flow"]
        metrics |= measured.means(rounds) | measured.speeds(rounds[-1]["tokens"], *seconds, config.rollout.thinking)
        metrics["time/reward"] = time.monotonic() - begin
        return advantages, metrics

    def _columns(self, own: OwnEpisodes, turn: int) -> dict[str, list]:
        """Everything that is measured of one round of this process's episodes, by episode."""
        if not len(own.rows):
            return {}
        batch = own.batches[turn]
        judged = self.parts.judging.start(batch)
        columns = {}
        if self.parts.world.judge is not None:
            columns |= {f"judge/{name}": x for name, x in by_rule(self.parts.world, batch).scores.items()}
        columns |= statistics(batch.media, self._token)
        if own.repeated and own.repeated[turn] is not None:
            columns["text/repeated_share"] = own.repeated[turn]
        columns["tokens"], columns["finite"] = own.tokens, own.finite
        columns |= {f"reward/{component}": values for component, values in judged().items()}
        return {name: np.asarray(x).tolist() for name, x in columns.items()}

    def replace(self, episodes: Episodes, others: Episodes, groups_P: np.ndarray) -> Episodes:
        """Those groups of two batches, numbered one after the other, that are named; int [P]."""
        return self.programs.replace(episodes, others, processes.to_global(groups_P, self.programs.everywhere))

    def learn(self, state: TrainState, episodes: Episodes, advantages: Any) -> tuple[TrainState, dict[str, float]]:
        """One update; `state` is donated.

        Of each group those episodes are seen that the config keeps; where it keeps not all, `episodes` are deleted.
        """
        _, update = self._compiled.result()
        begin, c = time.monotonic(), self.parts.config.learning
        if c.best + c.worst:
            rows = extremes(advantages.reshape(-1, c.group_size), c.best, c.worst)
            kept = self.programs.keep(episodes, processes.to_global(rows, self.programs.everywhere))
            jax.tree.map(lambda x: x.delete(), episodes)
            episodes, advantages = kept, advantages[rows]
        advantages = jax.tree.map(lambda x: processes.to_global(x, self.programs.spread), advantages)
        state, metrics = update(state, self.frozen, self.reference, episodes, advantages)
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        return state, metrics | {"time/update": time.monotonic() - begin}
