"""The transformer of FLUX against diffusers: passes with and without told guidance, runs, gradients, and names."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_gradients
from unigrpo_jax.models.building.flat import of_stack
from unigrpo_jax.models.building.two_streams import rotary
from unigrpo_jax.models.flux.config import read_transformer
from unigrpo_jax.models.flux.painter import Flux
from unigrpo_jax.models.flux.transformer import THETA
from unigrpo_jax.models.folders import component, flow_scheduler
from unigrpo_jax.models.schedule import FlowShift
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.rollout.step_rules import ODE, DanceSDE


def read(folder):
    """The network that a folder's config describes, and its parameters."""
    network = read_transformer(folder / "config.json")
    params = component.read(component.open_weights(folder, component.DIFFUSERS, network), network, np.float32)
    return network, params


@pytest.fixture(scope="module")
def recorded(fixtures):
    """A reader of the recorded arrays, the painter that is told its guidance with its parameters, and the other one."""
    folder = fixtures / "flux"
    shift = flow_scheduler.read_scheduler(folder / "pipeline" / "scheduler" / "scheduler_config.json", "scheduler")
    (told, params), (plain, others) = (read(folder / name / "transformer") for name in ("pipeline", "no_guidance"))
    load = lambda name: dict(np.load(folder / f"{name}.npz"))
    told = Flux(transformer=told, shift=shift, guidance_scale=float(load("euler")["guidance"]))
    return load, (told, params), (Flux(transformer=plain, shift=shift), others)


def grid_of(ids):
    """Rows and columns of recorded ids [N, 3]."""
    return int(ids[:, 1].max()) + 1, int(ids[:, 2].max()) + 1


def runner(painter, found):
    """(params, x, t) -> velocity, upon the recorded texts."""
    text, grid = TextStates(found["encoder_hidden_states"], found["pooled_projections"]), grid_of(found["img_ids"])
    return jax.jit(lambda p, x, t: painter.predict(p, x, jnp.broadcast_to(t, x.shape[:1]), grid, text))


def test_single_passes(recorded, assert_close):
    load, (painter, params), (plain, plain_params) = recorded
    found, network = load("transformer"), painter.transformer
    given = (found["packed"], found["timestep"], found["encoder_hidden_states"], found["pooled_projections"])
    grid = grid_of(found["img_ids"])
    cos, sin = rotary((1, *grid), len(found["txt_ids"]), network.axes, THETA)
    assert_close(np.repeat(cos, 2, axis=1), found["dev_stage/pos_embed.0"], name="cos")
    assert_close(np.repeat(sin, 2, axis=1), found["dev_stage/pos_embed.1"], name="sin")
    told = 1000 * found["timestep"], found["pooled_projections"], 1000 * found["guidance"]
    condition = jax.jit(network.condition)(params, *told)
    assert_close(condition, jax.nn.silu(found["dev_stage/time_text_embed"]), name="condition")
    told = jax.jit(lambda p, *given: network(p, *given, grid, found["guidance"]))
    assert_close(told(params, *given), found["dev_out"], name="told")
    assert_close(runner(plain, found)(plain_params, found["packed"], found["timestep"]), found["noguid_out"], name="plain")


def test_stages(recorded, assert_close):
    """Text and picture after every block of which they are recorded."""
    load, (painter, params), _ = recorded
    found, network = load("transformer"), painter.transformer
    grid, length = grid_of(found["img_ids"]), len(found["txt_ids"])
    turn = rotary((1, *grid), length, network.axes, THETA)
    layer = lambda stack, i: {name: x[i] for name, x in of_stack(params, stack).items()}
    condition = network.condition(params, 1000 * found["timestep"], found["pooled_projections"], 1000 * found["guidance"])
    text, picture = found["dev_stage/context_embedder"], found["dev_stage/x_embedder"]
    out, block = {}, jax.jit(network.double_block)
    for i in range(network.double):
        text, picture = block(layer("transformer_blocks", i), text, picture, condition, turn)
        out |= {f"dev_stage/transformer_blocks.{i}.0": text, f"dev_stage/transformer_blocks.{i}.1": picture}
    h, block = np.concatenate([text, picture], axis=1), jax.jit(network.single_block)
    for i in range(network.single):
        h = block(layer("single_transformer_blocks", i), h, condition, turn)
        name = f"dev_stage/single_transformer_blocks.{i}"
        out |= {f"{name}.0": h[:, :length], f"{name}.1": h[:, length:]}
    stages = [name for name in found if "transformer_blocks." in name]
    assert {name.split("/")[1].split(".")[0] for name in stages} == {"transformer_blocks", "single_transformer_blocks"}
    for name in stages:
        assert_close(out[name], found[name], name=name)


@pytest.mark.parametrize("kind", ["dev", "noguid"])
def test_whole_runs(recorded, assert_close, kind):
    load, told, plain = recorded
    painter, params = told if kind == "dev" else plain
    run, found = load("euler"), load("transformer")
    times = painter.times(len(run["sigmas"]) - 1, 0, grid_of(found["img_ids"]))
    assert_close(times, run["sigmas"], limit=1e-6, name="times")
    x, velocity = run["init"], runner(painter, found)
    for i in range(len(times) - 1):
        v = velocity(params, x, times[i])
        assert_close(v, run[f"{kind}_v"][i], limit=2e-4, name=f"velocity {i}")
        x, _ = ODE().transition(x, v, times[i], times[i + 1], times[1])
        assert_close(x, run[f"{kind}_x"][i], limit=2e-4, name=f"tokens {i}")


def test_the_gradient_of_the_error_in_the_velocity(recorded, fixtures, assert_close):
    load, (painter, params), _ = recorded
    given, velocity = load("mse_inputs"), runner(painter, load("transformer"))
    loss = lambda p: jnp.mean((velocity(p, given["noisy"], given["sigma"]) - (given["noise"] - given["clean"])) ** 2)
    recorded_gradients.check(loss, params, painter.network.stored_names, fixtures / "flux", "grad_mse", assert_close)


def test_the_gradient_of_a_transitions_log_probability(recorded, fixtures, assert_close):
    load, (painter, params), _ = recorded
    run, found = load("dance"), load("transformer")
    step = recorded_gradients.step_of(fixtures / "flux", "grad_logprob", run["log_prob"])
    velocity, rule = runner(dataclasses.replace(painter, floor_time=True), found), DanceSDE(noise_level=float(run["eta"]))
    times = painter.times(len(run["sigmas"]) - 1, float(run["shift"]), grid_of(found["img_ids"]))

    def loss(p):
        v = velocity(p, run["x"][step], times[step])
        mean, std = rule.transition(run["x"][step], v, times[step], times[step + 1], times[1])
        return jnp.sum(rule.log_prob(run["x"][step + 1], mean, std))

    recorded_gradients.check(loss, params, painter.network.stored_names, fixtures / "flux", "grad_logprob", assert_close)


def test_latents_are_packed_as_recorded(recorded):
    load, (painter, _), _ = recorded
    found = load("transformer")
    latents = np.moveaxis(found["latents"], 1, -1)
    np.testing.assert_array_equal(painter.to_tokens(latents), found["packed"])
    np.testing.assert_array_equal(painter.to_latent(found["packed"], grid_of(found["img_ids"])), latents)


def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path):
    published = json.loads((fixtures / "flux" / "param_shapes_full.json").read_text())["shapes"]["transformer"]
    (tmp_path / "config.json").write_text(json.dumps({"guidance_embeds": True}))
    network = read_transformer(tmp_path / "config.json")
    assert component.wanted(network) == {name: tuple(shape) for name, shape in published.items()}
    assert component.count(network) == 11_901_408_320


def test_bfloat16_stays_within_two_percent(recorded):
    """Computed from float32 parameters."""
    load, _, (painter, params) = recorded
    found = load("transformer")
    velocity = runner(dataclasses.replace(painter, dtype="bfloat16"), found)
    out, exact = velocity(params, found["packed"], found["timestep"]), found["noguid_out"]
    assert out.dtype == jnp.float32
    assert np.sqrt(np.mean((np.asarray(out) - exact) ** 2)) < 0.02 * np.sqrt(np.mean(exact**2))


def test_times_are_the_schedulers_own(recorded, assert_close):
    """At every recorded number of steps and of tokens, and where nothing is shifted."""
    load, (painter, _), _ = recorded
    found, unshifted = load("schedule"), dataclasses.replace(painter, shift=FlowShift())
    names = [name for name in found if name.endswith("_sigmas")]
    cases = [re.fullmatch(r"(?:noshift_)?steps(\d+)(?:_seq(\d+))?_sigmas", name) for name in names]
    assert all(cases) and {case[2] is None for case in cases} == {True, False}
    for case in cases:
        steps, grid, want = int(case[1]), (1, int(case[2] or 1)), found[case[0]]
        for one, shift in ((painter, 0),) if case[2] else ((unshifted, 0), (painter, 1.0)):
            assert_close(one.times(steps, shift, grid), want, limit=1e-6, name=case[0])


@pytest.mark.parametrize(
    "data, words",
    [
        ({"patch_size": 2}, "patch_size = 2, but this network knows only 1"),
        ({"out_channels": 32}, "out_channels = 32, but this network knows only 64"),
        ({"axes_dims_rope": [16, 56]}, "three even widths whose sum is attention_head_dim = 128"),
        ({"axes_dims_rope": [16, 57, 55]}, "three even widths"),
        ({"guidance_embeds": 1}, "guidance_embeds = 1, but it must be true or false"),
    ],
)
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        read_transformer(tmp_path / "config.json")
    assert words in str(error.value)
