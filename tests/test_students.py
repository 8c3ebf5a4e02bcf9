"""Students of few steps: a second time of a network, their folders, their samplers, and what settings may ask of them."""

import dataclasses
import functools
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.test_drift import Line, measured
from unigrpo_jax.config import (
    ConfigError,
    DistillationConfig,
    EvaluationConfig,
    LearningConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
)
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.bagel.tiny import make_tiny as make_bagel
from unigrpo_jax.models.building import flat_adapters
from unigrpo_jax.models.building.second_time import NAME, is_second_time
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.flux.painter import Flux
from unigrpo_jax.models.flux.tiny import make_tiny as make_flux
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.transformer import HunyuanVideoTransformer
from unigrpo_jax.models.loaded import Published, as_student
from unigrpo_jax.models.stable_diffusion.tiny import make_tiny as make_sd
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.models.tree import flatten, unflatten
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout import randomness
from unigrpo_jax.rollout.drawing import FlowSampler, denoise
from unigrpo_jax.rollout.step_rules import CPS, FlowSDE
from unigrpo_jax.training import student_checks

SIZES = dict(channels=8, double=1, single=1, heads=2, axes=(2, 4, 2), text_width=6, pooled_width=5, guidance=True)
STUDENT = Student(method="mean_flow", steps=(1, 2, 4), second_time=True, guidance=4.0, timestep_shift=2.0, teacher="a toy")
T = jnp.asarray([0.9, 0.4])


def rng(seed=0):
    return np.random.default_rng(seed)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with two times, the same with one, the latter's parameters, and what both draw upon."""

    two: object
    one: object
    params: dict
    x: jax.Array
    grid: tuple
    condition: object

    @property
    def begun(self):
        return self.two.with_second_time(self.params, jax.random.key(3))

    @property
    def moved(self):
        """With an embedder that says something."""
        moved = {path: 0.3 * rng(1).standard_normal(x.shape, np.float32) if is_second_time(path) else x
                 for path, x in flatten(self.begun).items()}  # fmt: skip
        return unflatten(moved)


def painter(kind, transformer, grid):
    states = rng(2).standard_normal((2, 3, 6), np.float32)
    text = TextStates(states=jnp.asarray(states), pooled=jnp.asarray(states[:, 0, :5]))
    one, two = (kind(transformer=dataclasses.replace(transformer, second_time=has)) for has in (False, True))
    if kind is HunyuanVideo:
        text = one.empty(1).replace(states=text.states, pooled=text.pooled)
    random = lambda shape: jnp.asarray(0.3 * rng(4).standard_normal(shape, np.float32))
    params = {name: random(shape) for name, shape in one.network.shapes().items()}
    x = jnp.asarray(rng().standard_normal((2, int(np.prod(grid)), 8), np.float32))
    return Case(two, one, params, x, grid, text)


@functools.cache
def case(name) -> Case:
    if name == "flux":
        return painter(Flux, FluxTransformer(**SIZES), (2, 2))
    if name == "hunyuan_video":
        return painter(HunyuanVideo, HunyuanVideoTransformer(**SIZES, refiner=1), (2, 1, 2))
    two = dataclasses.replace(tiny.MODEL, config=dataclasses.replace(tiny.CONFIG, second_time=True))
    x = jnp.asarray(rng().standard_normal((2, 6, tiny.CONFIG.latent_width), np.float32))
    return Case(two, tiny.MODEL, tiny.params(), x, tiny.GRID, two.empty(2))


each = pytest.mark.parametrize("name", ["bagel", "flux", "hunyuan_video"])


@functools.cache
def says(name):
    """(params, x, t, s) -> u, jitted."""
    c = case(name)
    return tiny.jit(lambda p, x, t, s: c.two.predict(p, x, t, c.grid, c.condition, s))


@each
def test_a_student_begins_as_its_teacher_wherever_it_is_asked_to_arrive(name):
    """Bit for bit; and asked without a second time it is the teacher, whose parameters are enough."""
    c = case(name)
    teacher = tiny.jit(lambda p: c.one.predict(p, c.x, T, c.grid, c.condition))(c.params)
    assert np.abs(teacher).max() > 0.1
    for s in (0.0, 0.15, 0.4):
        np.testing.assert_array_equal(says(name)(c.begun, c.x, T, jnp.full(2, s)), teacher)
    without = tiny.jit(lambda p: c.two.predict(p, c.x, T, c.grid, c.condition))
    np.testing.assert_array_equal(without(c.params), teacher)
    np.testing.assert_array_equal(without(c.moved), teacher)
    assert not (np.asarray(says(name)(c.moved, c.x, T, jnp.zeros(2))) == np.asarray(teacher)).any()


@each
def test_what_is_new_has_the_embedders_shapes_and_its_last_map_is_zero(name):
    c = case(name)
    begun, there = flatten(c.begun), flatten(c.params)
    new = {path: x for path, x in begun.items() if path not in there}
    beside = {path.replace(NAME, "time_embedder" if name == "bagel" else "timestep_embedder"): x for path, x in new.items()}
    assert len(new) == 4 and {p: x.shape for p, x in beside.items()} == {p: there[p].shape for p in beside}
    for path, x in new.items():
        last = "fc2" in path or "linear_2" in path
        assert bool(np.any(np.asarray(x) != 0)) == (not last and not path.endswith("bias")), path
    labels = parameters.groups(c.begun, LearningConfig(), c.two.trained_by)
    layout = Layout(meshes.make_mesh(1), c.two.axes)
    for path, x in new.items():
        assert labels[path] == "denoising" and is_second_time(path)
        layout.parameter(path, x.shape)
    if name != "bagel":
        assert not any(map(is_second_time, flat_adapters.linears(c.two.network)))


@each
def test_the_gradient_reaches_the_second_times_embedder(name):
    c = case(name)
    loss = jax.grad(lambda p, x: jnp.sum(c.two.predict(p, x, T, c.grid, c.condition, jnp.zeros(2)) ** 2))
    program = tiny.jit(loss)
    for params, moves in ((c.begun, ("fc2", "linear_2")), (c.moved, ("fc1", "linear_1", "fc2", "linear_2"))):
        own = {path: x for path, x in flatten(program(params, c.x)).items() if is_second_time(path)}
        found = {path for path, x in own.items() if np.abs(x).max() > 1e-6}
        assert found == {path for path in own if any(word in path for word in moves)}


@each
def test_the_forward_derivative_is_that_of_finite_differences(name):
    """Along the time of arrival, and along (v, 1, 0) as MeanFlow takes it."""
    c, s = case(name), jnp.asarray([0.3, 0.1])
    v = jnp.asarray(rng(5).standard_normal(c.x.shape, np.float32))
    average = lambda p: lambda x, t, s: c.two.predict(p, x, t, c.grid, c.condition, s)
    slope = tiny.jit(lambda p, *tangents: jax.jvp(average(p), (c.x, T, s), tangents)[1])
    step = 1e-2 if name == "bagel" else 4e-5  # whose sinusoids take 1000 times the time
    for tangents in ((0 * v, 0 * T, jnp.ones(2)), (v, jnp.ones(2), 0 * s)):
        moved = lambda sign, tangents=tangents: (a + sign * step * b for a, b in zip((c.x, T, s), tangents, strict=True))
        ahead, behind = (np.asarray(says(name)(c.moved, *moved(sign)), np.float64) for sign in (1, -1))
        wanted, found = (ahead - behind) / (2 * step), np.asarray(slope(c.moved, *tangents))
        assert np.abs(wanted).max() > 1e-2
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_a_network_with_one_time_cannot_be_asked_where_to_arrive():
    for name in ("bagel", "flux"):
        c = case(name)
        with pytest.raises(ValueError, match="has one time"):
            c.one.predict(c.params, c.x, T, c.grid, c.condition, jnp.zeros(2))


# --- Folders.

MAKE = {"bagel": make_bagel, "flux": make_flux, "sd": make_sd}
WEIGHTS = {"bagel": "ema.safetensors", "flux": "transformer/diffusion_pytorch_model.safetensors"}
TENSORS = {"bagel": f"{NAME}.mlp.", "flux": f"time_text_embed.{NAME}.linear_"}
folders = pytest.mark.parametrize("name", WEIGHTS)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp("teachers") / name for name in MAKE}
    for name, folder in made.items():
        folder.mkdir()
        MAKE[name](folder)
    return made


@pytest.fixture(scope="module")
def written(toys, tmp_path_factory):
    """{family: (folder of a student, its parameters)}."""
    out = {}
    for name in WEIGHTS:
        loaded = load_model(ModelConfig(path=str(toys[name]), second_time=True))
        loaded.check_weights()
        params = flatten(loaded.with_fresh(loaded.params()))
        params |= {path: rng(6).standard_normal(x.shape, np.float32) for path, x in params.items() if is_second_time(path)}
        folder = tmp_path_factory.mktemp("students") / name
        files = loaded.export(unflatten(params), folder, "float32", student=STUDENT)
        assert folder / "student.json" in files
        out[name] = folder, params
    return out


def copy(written, name, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(written[name][0], tmp_path / "copy"))


def test_a_student_draws_as_it_learned_to_where_nobody_says_otherwise():
    """Average velocities without noise; matched distributions with all of it new at each step (CPS at level 1)."""
    usual = Published(rollout={"image_height": 8}, evaluation={"flow_steps": 28, "guidance": 4.0})
    matched = as_student(usual, dataclasses.replace(STUDENT, method="dmd2", steps=(3,), second_time=False))
    assert dict(matched.evaluation) == {"flow_steps": 3, "guidance": 1.0, "sampler": "sde"}
    noised = {"step_rule": "cps", "noise_level": 1.0}
    assert dict(matched.rollout) == {"image_height": 8, "timestep_shift": STUDENT.timestep_shift} | noised
    assert set(as_student(None, STUDENT).evaluation) == {"flow_steps", "guidance"} and as_student(usual, None) is usual


@folders
def test_a_students_folder_gives_back_what_was_written_and_exports_itself(toys, written, name, tmp_path):
    folder, params = written[name]
    loaded = load_model(ModelConfig(path=str(folder)))
    assert loaded.student == STUDENT and loaded.network.two_times and not loaded.network.fresh_time
    fresh = load_model(ModelConfig(path=str(toys[name]), second_time=True))
    assert fresh.student is None and dataclasses.replace(fresh.network, fresh_time=False) == loaded.network
    shapes = lambda tree: {path: x.shape for path, x in flatten(tree).items()}
    assert shapes(fresh.abstract_params()) == shapes(loaded.stored_params()) == shapes(unflatten(params))
    assert set(params) - set(shapes(fresh.stored_params())) == {path for path in params if is_second_time(path)}
    tiny.assert_trees_equal(flatten(loaded.params()), {path: jnp.asarray(x) for path, x in params.items()})
    assert loaded.published.evaluation["flow_steps"] == 4 and loaded.published.evaluation["guidance"] == 1
    assert loaded.published.rollout["timestep_shift"] == 2
    loaded.export(loaded.params(), tmp_path / "again", "float32")
    assert students.read(tmp_path / "again") == STUDENT
    first, second = load_file(folder / WEIGHTS[name]), load_file(tmp_path / "again" / WEIGHTS[name])
    assert first.keys() == second.keys() and all(first[key].tobytes() == second[key].tobytes() for key in first)
    assert sum(key.startswith(TENSORS[name]) for key in first) == 4


@folders
def test_asking_a_student_for_a_second_time_gives_it_no_new_one(written, name):
    loaded = load_model(ModelConfig(path=str(written[name][0]), second_time=True))
    assert loaded.network.two_times and not loaded.network.fresh_time
    assert loaded.abstract_params().keys() == loaded.stored_params().keys()


@folders
def test_tensors_that_a_student_lacks_or_that_nothing_reads_are_named(written, name, tmp_path):
    folder = copy(written, name, tmp_path)
    path = folder / WEIGHTS[name]
    tensors = load_file(path)
    lost = sorted(key for key in tensors if key.startswith(TENSORS[name]))[1]
    check = lambda: load_model(ModelConfig(path=str(folder))).check_weights()
    save_file({key: x for key, x in tensors.items() if key != lost}, path)
    with pytest.raises(ConfigError, match=f"missing.*{lost}"):
        check()
    save_file(tensors, path)
    check()
    (folder / "student.json").unlink()
    with pytest.raises(ConfigError, match=f"unknown.*{TENSORS[name]}"):
        check()


@folders
def test_a_second_time_is_not_exported_without_saying_so(toys, name, tmp_path):
    fresh = load_model(ModelConfig(path=str(toys[name]), second_time=True))
    with pytest.raises(ConfigError, match=r"without a student\.json"):
        fresh.export({}, tmp_path / "out", "float32")
    plain = load_model(ModelConfig(path=str(toys[name])))
    with pytest.raises(ConfigError, match="the network has one time"):
        plain.export({}, tmp_path / "out", "float32", student=STUDENT)
    assert not (tmp_path / "out").exists()


def test_a_family_without_a_second_time_says_which_have_one(toys, tmp_path):
    with pytest.raises(ConfigError, match=r"second_time is a setting of bagel and flux and hunyuan_video and ltx2 alone"):
        load_model(ModelConfig(path=str(toys["sd"]), second_time=True))
    folder = pathlib.Path(shutil.copytree(toys["sd"], tmp_path / "sd"))
    students.write(folder, STUDENT)
    with pytest.raises(ConfigError, match="networks of stable_diffusion have one time"):
        load_model(ModelConfig(path=str(folder)))
    own = dataclasses.replace(STUDENT, method="dmd2", second_time=False)
    students.write(folder, own)
    loaded = load_model(ModelConfig(path=str(folder)))
    assert loaded.student == own and not loaded.network.two_times


@pytest.mark.parametrize("change, said", [
    ({"steps": None}, "does not say steps"),
    ({"steps": [0]}, "whole number from 1"),
    ({"steps": []}, "list of whole numbers"),
    ({"method": "magic"}, "'mean_flow' or 'dmd2'"),
    ({"second_time": 1}, "must be true or false"),
    ({"guidance": -1}, "above 0"),
    ({"timestep_shift": -1}, "0 or more"),
    ({"teacher": 3}, "must be a text"),
    ({"sigma": 3}, "says sigma, which nothing here knows"),
])  # fmt: skip
def test_a_students_file_that_makes_no_sense_is_refused_in_a_sentence(tmp_path, change, said):
    students.write(tmp_path, STUDENT)
    assert students.read(tmp_path) == STUDENT
    path = tmp_path / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said) as error:
        students.read(tmp_path)
    assert str(path) in str(error.value)


# --- Samplers.


@dataclasses.dataclass(frozen=True)
class Plane(Line):
    """u(x, t, s) = x / 2 + t - s / 4 + s t; with one time the same at s = t / 2."""

    two_times: bool = True

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        assert (to_B is not None) == self.two_times
        return plane(x, t_B[:, None, None], (t_B / 2 if to_B is None else to_B)[:, None, None])


def plane(x, t, s):
    return x / 2 + t - s / 4 + s * t


SCHEDULE = (1.0, 0.75, 0.5, 0.25, 0.0)


def drawn(rule, window, two_times=True, noisy=(0, 0)):
    """The end of a drawing, float32 [2, 6, 4], its beginning, and the noises of all transitions."""
    keys = randomness.sample_keys(jax.random.key(0), jnp.arange(2))
    x = jnp.asarray(rng().standard_normal((2, 6, 4)), jnp.float32)
    flow = FlowSampler(schedule=SCHEDULE, rule=rule, grid=(1, 1), noisy=noisy)
    window = jnp.asarray(window, jnp.int32)
    end, kept = denoise(Plane(two_times), {}, jnp.zeros((2, 1)), x, keys, window, flow)
    noises = [np.asarray(randomness.normal_like(keys, step, x), np.float64) for step in range(4)]
    return np.asarray(end), np.asarray(x, np.float64), noises, kept


close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)


def test_without_noise_a_student_is_asked_to_arrive_where_the_step_does():
    end, x, _, _ = drawn(CPS(noise_level=0.9), [])
    for t, s in zip(SCHEDULE, SCHEDULE[1:], strict=False):
        x = x - (t - s) * plane(x, t, s)
    close(end, x)


@pytest.mark.parametrize("two_times", [True, False])
def test_cps_of_level_one_draws_new_noise_upon_what_the_student_says_of_the_data(two_times):
    """x' = (1 - t') data + t' noise, data = x - t u(x, t, 0), or of one time x - t v(x, t)."""
    end, x, noises, _ = drawn(CPS(noise_level=1.0), [0, 1, 2, 3], two_times)
    for t, s, noise in zip(SCHEDULE, SCHEDULE[1:], noises, strict=False):
        data = x - t * plane(x, t, 0.0 if two_times else t / 2)
        x = (1 - s) * data + s * noise
    close(end, x)


@pytest.mark.parametrize("rule", [CPS(noise_level=0.9), FlowSDE(noise_level=0.7)])
@pytest.mark.parametrize("noisy", [(0, 0), (0, 2)])
def test_the_window_asks_for_the_data_and_the_rest_for_the_next_time(rule, noisy):
    """Transition 1 is the window's; `noisy` ones draw noise, too."""
    end, x, noises, (states, _, means) = drawn(rule, [1], noisy=noisy)
    for step, (t, s, noise) in enumerate(zip(SCHEDULE, SCHEDULE[1:], noises, strict=False)):
        if step != 1 and not noisy[0] <= step < noisy[1]:
            x = x - (t - s) * plane(x, t, s)
            continue
        u = plane(x, t, 0.0)
        if isinstance(rule, CPS):
            data, own, angle = x - t * u, x + (1 - t) * u, rule.noise_level * np.pi / 2
            mean, std = (1 - s) * data + s * np.cos(angle) * own, s * np.sin(angle)
        else:
            sigma = rule.noise_level * np.sqrt(t / (1 - (t if t < 1 else SCHEDULE[1])))
            std = sigma * np.sqrt(t - s)
            mean = x - (t - s) * (u + sigma**2 / (2 * t) * (x + (1 - t) * u))
        if step == 1:
            close(states[:, 0], x)
            close(means[:, 0], mean)
        x = mean + std * noise
    close(end, x)


class Arrives(Plane):
    """u(x, t, s) = k s."""

    def predict(self, params, x, t_B, grid, condition, to_B=None):
        return 0 * x + params["scale"] * to_B[:, None, None]


def test_drift_is_measured_where_steps_without_noise_arrive():
    line = lambda k: {"scale": jnp.float32(k), "shift": jnp.zeros(4), "seen": jnp.float32(0)}
    flow = FlowSampler(schedule=SCHEDULE, rule=CPS(noise_level=1.0), grid=(1, 1))
    found, _ = measured(line(3.0), line(1.0), flow, Arrives())
    close(found["flow"]["squared"], (2 * np.asarray(SCHEDULE[1:])) ** 2)


# --- GRPO.


@functools.cache
def grpo():
    """Episodes of a BAGEL student at 2 of 4 transitions, and {micro-batches: (state, metrics)} of one update."""
    c = case("bagel")
    program = tiny.rollout_program(model=c.two, flow_steps=4, window_range=(0, 3), step_rule="cps", noise_level=0.9)
    params = jax.tree.map(jnp.asarray, c.moved)
    episodes = tiny.jit(program.__call__)(params, {}, tiny.prompts(), 0, 0, 0)
    out = {}
    for count in (1, 2):
        config = dataclasses.replace(tiny.LEARNING, micro_batches=count, leash_times=(0.6,))
        policy = Policy(model=c.two, tokens=program.tokens, flow=program.flow, leash_times=config.leash_times)
        update = UpdateProgram(objective=Objective(policy=policy, config=config), config=config)
        _, frozen = parameters.split(params, parameters.groups(params, config, c.two.trained_by))
        state = new_state(params, config, c.two.trained_by)
        out[count] = tiny.jit(update.__call__)(state, frozen, params, episodes, tiny.advantages())
    return program, params, episodes, out


def test_a_student_learns_on_policy_with_a_ratio_of_exactly_one():
    _, params, _, found = grpo()
    for state, metrics in found.values():
        assert metrics["flow/ratio_min"] == metrics["flow/ratio_max"] == 1 == metrics["text/ratio_max"]
        assert metrics["flow/log_prob_gap_max"] < 1e-4 and metrics["update/skipped"] == 0
        own = {path: x for path, x in state.trained.items() if is_second_time(path)}
        assert len(own) == 4 and all((np.asarray(x) != np.asarray(flatten(params)[path])).any() for path, x in own.items())


def test_pieces_of_a_batch_move_a_student_alike():
    (one, _), (two, _) = grpo()[3].values()
    for path, x in one.trained.items():
        np.testing.assert_allclose(x, two.trained[path], atol=2e-6, err_msg=path)


def test_the_policy_sees_what_the_sampler_saw_of_a_student():
    """At the window's states it is asked for the data, and the means are those that were drawn from."""
    program, params, episodes, _ = grpo()
    c = case("bagel")
    view = tiny.jit(Policy(model=c.two, tokens=program.tokens, flow=program.flow).view)(params, episodes)[-1]
    np.testing.assert_allclose(view.mean, episodes.drawing.mean, atol=1e-5)
    other = Policy(model=c.one, tokens=program.tokens, flow=program.flow)
    teacher = unflatten({path: x for path, x in flatten(params).items() if not is_second_time(path)})
    plain = tiny.jit(other.view)(teacher, episodes)[-1]
    assert np.abs(np.asarray(plain.mean - view.mean)).max() > 1e-2


# --- Settings.


def model(student=STUDENT, two_times=True, fresh_time=False):
    network = types.SimpleNamespace(two_times=two_times, fresh_time=fresh_time)
    return types.SimpleNamespace(student=student, network=network, folder="FOLDER")


def test_what_a_student_was_not_made_for_is_warned_of():
    rollout, evaluation = RolloutConfig(flow_steps=4), EvaluationConfig(flow_steps=10, guidance=3.0)
    steps, guided = student_checks.warnings(model(), rollout, evaluation)
    assert "evaluation.flow_steps = 10" in steps and "made for 1, 2 or 4 steps" in steps
    assert "evaluation.guidance = 3" in guided and "with 4; use 1" in guided
    fits = EvaluationConfig(flow_steps=2)
    assert student_checks.warnings(model(), rollout, fits, trains=True) == []
    assert student_checks.warnings(model(None), RolloutConfig(flow_steps=7), evaluation, trains=True) == []
    trained = student_checks.warnings(model(), RolloutConfig(flow_steps=3, guidance=2.0), fits, trains=True)
    assert [words.split()[1] for words in trained] == ["rollout.flow_steps", "rollout.guidance"]
    for passes, guide in ((dict(sound=7.0), 1), (dict(mixing=1.0, blocks=(2,)), 1), (dict(other=3.0), 1),
                          (dict(sound=1.0, rescale=0.5), 0)):  # fmt: skip
        further = dataclasses.replace(fits, passes=PassesConfig(**passes))
        found = student_checks.warnings(model(), rollout, further)
        assert len(found) == guide and all("evaluation.passes guide, but the model is a student" in words for words in found)


def test_a_student_that_is_held_to_a_teacher_is_warned_of_another_guidance_than_that_it_was_taught():
    rollout, evaluation = RolloutConfig(flow_steps=4), EvaluationConfig(flow_steps=4)
    of = lambda weight, guidance: LearningConfig(matching_weight=weight, distillation=DistillationConfig(guidance=guidance))
    found = lambda learning: student_checks.warnings(model(), rollout, evaluation, trains=True, learning=learning)
    (said,) = found(of(0.01, 1.0))
    assert "learning.distillation.guidance = 1, but" in said and "guided with 4, to which it is held; use 4." in said
    assert found(of(0.01, 4.0)) == found(of(0.0, 1.0)) == []


def test_a_student_of_matched_distributions_is_warned_of_another_sampler_than_its_own():
    matched = model(dataclasses.replace(STUDENT, method="dmd2", steps=(2,)))
    drawn = RolloutConfig(flow_steps=2, timestep_shift=2.0, step_rule="cps", noise_level=1.0, noise_range=(0, 1))
    anew = EvaluationConfig(flow_steps=2, sampler="sde")
    found = lambda *given: [words.split()[1] for words in student_checks.warnings(matched, *given)]
    of = lambda evaluation, trains=False, **changes: found(dataclasses.replace(drawn, **changes), evaluation, trains)
    assert of(anew) == of(anew, trains=True) == []
    assert of(anew, timestep_shift=3.0) == ["rollout.timestep_shift"]
    still = dataclasses.replace(anew, sampler="ode")
    assert of(still) == of(still, noise_level=0.8) == ["evaluation.sampler"]
    for other in ({"step_rule": "flow_sde"}, {"noise_level": 0.8}):
        assert of(anew, **other) == of(anew, trains=True, **other) == ["rollout.step_rule"]
        assert of(still, trains=True, **other) == ["evaluation.sampler", "rollout.step_rule"]


def test_a_student_of_matched_distributions_is_warned_of_transitions_that_it_would_draw_without_noise():
    """All but the last of 4; a window that is its whole range draws noise there, too."""
    matched = model(dataclasses.replace(STUDENT, method="dmd2", steps=(4,)))
    drawn = RolloutConfig(flow_steps=4, timestep_shift=2.0, step_rule="cps", noise_level=1.0, window_size=1,
                          window_range=(0, 3))  # fmt: skip
    anew = EvaluationConfig(flow_steps=4, sampler="sde")
    found = lambda trains, **own: student_checks.warnings(matched, dataclasses.replace(drawn, **own), anew, trains)
    for few in ((0, 0), (0, 2), (1, 3)):
        (said,) = found(True, noise_range=few)
        assert f"rollout.noise_range = [{few[0]}, {few[1]}), but" in said and said.endswith("use 0 3.")
        assert found(False, noise_range=few) == []
    for enough in ({"noise_range": (0, 3)}, {"noise_range": (0, 4)}, {"window_size": 3},
                   {"window_range": (0, 1), "noise_range": (1, 3)}):  # fmt: skip
        assert found(True, **enough) == []


def test_plain_flow_matching_of_a_student_is_refused_and_what_does_not_teach_a_new_second_time():
    run = lambda method: RunConfig(learning=LearningConfig(method=method))
    matched = dataclasses.replace(STUDENT, method="dmd2", second_time=False)
    for method in ("fpo", "diffusion_nft", "best_of_n", "sft"):
        for student in (model(), model(matched, two_times=False)):
            with pytest.raises(ConfigError, match="blurs what a student such as FOLDER draws .* use grpo or refl"):
                student_checks.check_method(run(method), student)
        student_checks.check_method(run(method), model(None, two_times=False))
    for method in ("grpo", "refl"):
        for student in (model(), model(matched, two_times=False)):
            student_checks.check_method(run(method), student)
    for method in ("grpo", "refl", "sft", "fpo"):
        with pytest.raises(ConfigError, match="does not teach"):
            student_checks.check_method(run(method), model(None, fresh_time=True))
    student_checks.check_method(run("mean_flow"), model(None, fresh_time=True))


def test_adapters_leave_a_students_second_time_alone():
    c = case("flux")
    params = c.two.adapted(c.begun, LoraConfig(rank=2, targets=(".*",)), jax.random.key(0))
    assert any("lora" in path for path in params)
    assert not any(is_second_time(path) and "lora" in path for path in params)
    labels = parameters.groups(params, LearningConfig(), c.two.trained_by)
    assert {labels[path] for path in params if is_second_time(path)} == {"frozen"}
