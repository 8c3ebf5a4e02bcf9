"""The U-Net of Stable Diffusion against diffusers: passes with their stages, gradients, names, and its config file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_gradients
from unigrpo_jax.models import component
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.stable_diffusion.config import read_unet
from unigrpo_jax.models.stable_diffusion.unet import UNet
from unigrpo_jax.rollout.step_rules import DDIM

pixels = lambda x: jnp.asarray(np.moveaxis(x, -3, -1))
SMALL = UNet(channels=4, widths=(16, 32), attends=(True, False), blocks=1, heads=4, text_width=24, groups=8)


@pytest.fixture(scope="module")
def recorded(fixtures):
    """A reader of the recorded arrays, the network that they belong to, and its parameters."""
    folder = fixtures / "sd"
    unet = read_unet(folder / "pipeline" / "unet" / "config.json")
    weights = component.open_weights(folder / "pipeline" / "unet", component.DIFFUSERS, unet)
    params = component.read(weights, unet, np.float32)
    return lambda name: dict(np.load(folder / f"{name}.npz")), unet, params


def test_every_name_and_shape_of_the_published_size(fixtures):
    published = json.loads((fixtures / "sd" / "param_shapes_full.json").read_text())["shapes"]["unet"]
    widths = (320, 640, 1280, 1280)
    unet = UNet(channels=4, widths=widths, attends=(True, True, True, False), blocks=2, heads=8, text_width=768, groups=32)
    assert unet.shapes() == {name: tuple(shape) for name, shape in published.items()}


class Noting(UNet):
    """Notes what each block says."""

    def _residual(self, params, name, x, time):
        self.said[name] = super()._residual(params, name, x, time)
        return self.said[name]

    def _attention(self, params, name, x, text):
        self.said[name] = super()._attention(params, name, x, text)
        return self.said[name]


def test_single_passes(recorded, assert_close):
    read, unet, params = recorded
    found, noting = read("unet"), Noting(**dataclasses.asdict(unet))

    @jax.jit
    def run(x, step, text):
        object.__setattr__(noting, "said", {"time_embedding": noting.time(params, step)})
        return noting(params, x, step, text), noting.said

    out, said = run(pixels(found["sample"]), found["timestep"], found["encoder_hidden_states"])
    assert_close(out, np.moveaxis(found["out"], 1, -1), name="out")
    first, last, scales = unet.attends[0], unet.attends[-1], len(unet.widths) - 1
    same = {name: name for name in ("time_embedding", "down_blocks.0.resnets.0")}
    same |= {"mid_block": "mid_block.resnets.1", "down_blocks.0.attentions.0.0": "down_blocks.0.attentions.0"}
    same[f"down_blocks.{scales}.0"] = f"down_blocks.{scales}.{'attentions' if last else 'resnets'}.{unet.blocks - 1}"
    same[f"up_blocks.{scales}"] = f"up_blocks.{scales}.{'attentions' if first else 'resnets'}.{unet.blocks}"
    for name, ours in same.items():
        there = found[f"stage/{name}"]
        assert_close(said[ours], there if there.ndim == 2 else np.moveaxis(there, 1, -1), name=name)


def test_the_gradient_of_the_error_in_the_noise(recorded, fixtures, assert_close):
    read, unet, params = recorded
    given = read("mse_inputs")
    x, noise = pixels(given["noisy"]), pixels(given["noise"])
    loss = lambda p: jnp.mean((unet(p, x, given["timestep"], given["encoder_hidden_states"]) - noise) ** 2)
    recorded_gradients.check(loss, params, unet.stored_names, fixtures / "sd", "grad_mse", assert_close)


def test_a_guided_run_and_the_gradient_of_a_transitions_log_probability(recorded, fixtures, assert_close):
    """Conditional and unconditional pass are both part of the policy."""
    read, unet, params = recorded
    run, settings = read("ddim"), json.loads((fixtures / "sd" / "settings.json").read_text())
    name, step = "a1F_eta1_cfg5", settings["grad_logprob_step"]
    path, rule = scaled_linear(0.00085, 0.012, len(run["alphas_cumprod"])), DDIM(eta=1.0)
    states = [pixels(x) for x in (run["init_latents"], *run[f"{name}_latents"])]
    text = np.concatenate([run["uncond_hidden_states"], run["encoder_hidden_states"]])
    times = np.append(run["timesteps"] + 1, 1) / np.float32(len(run["alphas_cumprod"]))

    def guided(p, x, index):
        plain, asked = jnp.split(unet(p, jnp.concatenate([x, x]), jnp.full(2 * len(x), run["timesteps"][index]), text), 2)
        return plain + 5 * (asked - plain)

    assert_close(jax.jit(guided, static_argnums=2)(params, states[step], step), np.moveaxis(run[f"{name}_eps"][step], 1, -1))

    def loss(p):
        x = states[step]
        mean, std = rule.transition(x, guided(p, x, step), times[step], times[step + 1], times[1], path, "noise")
        return jnp.sum(rule.log_prob(states[step + 1], mean, std))

    recorded_gradients.check(loss, params, unet.stored_names, fixtures / "sd", "grad_logprob", assert_close)


def test_bfloat16_stays_within_two_percent(recorded):
    read, unet, params = recorded
    found = read("unet")
    rough = {name: jnp.asarray(x, jnp.bfloat16) for name, x in params.items()}
    out = jax.jit(unet.__call__)(rough, pixels(found["sample"]), found["timestep"], found["encoder_hidden_states"])
    exact = np.moveaxis(found["out"], 1, -1)
    assert out.dtype == jnp.float32
    assert np.sqrt(np.mean((np.asarray(out) - exact) ** 2)) < 0.02 * np.sqrt(np.mean(exact**2))


# ---- the config file


def config(tmp_path, **changes):
    data = {"block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 4, "layers_per_block": 1,
            "cross_attention_dim": 24, "norm_num_groups": 8}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps({name: value for name, value in (data | changes).items() if value != "absent"}))
    return path


def test_a_config_file_with_the_classes_defaults(tmp_path):
    assert read_unet(config(tmp_path)) == SMALL
    names = ("block_out_channels", "down_block_types", "up_block_types", "attention_head_dim", "layers_per_block",
             "cross_attention_dim", "norm_num_groups")  # fmt: skip
    published = read_unet(config(tmp_path, **dict.fromkeys(names, "absent")))
    assert published.widths == (320, 640, 1280, 1280) and published.attends == (True, True, True, False)
    assert (published.blocks, published.heads, published.text_width, published.groups) == (2, 8, 1280, 32)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(use_linear_projection=True), "use_linear_projection = True, but this network knows only False"),
        (dict(class_embed_type="timestep"), "class_embed_type = 'timestep', but this network does not have that"),
        (dict(down_block_types=["DownBlock2D", "KDownBlock2D"]), "a list of CrossAttnDownBlock2D and DownBlock2D"),
        (dict(up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"]), "must be down_block_types backwards"),
        (dict(block_out_channels=[16, 32, 64]), "it must have 3 entries"),
        (dict(block_out_channels=[16, 20]), "20 must divide into 4 heads and into 8 groups"),
        (dict(block_out_channels=16), "a list of whole numbers"),
        (dict(out_channels=8), "out_channels = 8, but this network knows only 4"),
        (dict(attention_head_dim=[5, 10]), "attention_head_dim"),
    ],
)
def test_what_would_be_another_network_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        read_unet(config(tmp_path, **changes))
    assert words in str(error.value)
