"""The network against the public PyTorch BAGEL on tiny random weights, read through the published layout.

| file | compared | where |
|---|---|---|
| components | every array | here |
| text_forward | every array | here, by the walk of test_bagel_reference_training |
| text_generate | every array | here |
| velocity | every array | here |
| euler | every array | here |
| vit | every array but position_ids_interpolate_image0: ids of a rule that the release does not use | ..._images |
| ae | every array | ..._images |
| understanding | every array | ..._images |
| edit | every array | ..._images |
| e2e | every array | ..._images |
| train_t2i, its gradnorms | every array | ..._training |
| train_interleaved, its gradnorms | every array | ..._training |
| model.safetensors, ae.safetensors | every tensor, in and out, byte-equal | test_weights |
| param_shapes | every name and shape | here |

"Every array" is enforced: `Reference.all_of` fails where one was not read.  The inputs among them are what the comparison
is fed with.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.bagel_reference import channels_first, channels_last, euler, final_norms, image_rows
from unigrpo_jax.models.bagel import latents, weights
from unigrpo_jax.models.bagel.network import time_sinusoid
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.norms import RMSNorm
from unigrpo_jax.models.building.patches import patchify, unpatchify
from unigrpo_jax.models.building.rotary import rotary_table
from unigrpo_jax.models.schedule import timesteps


def test_the_folder_says_what_the_recorded_config_says(reference):
    raw = json.loads((reference.folder / "config.json").read_text())
    c, vae = reference.config, reference.autoencoder
    assert (c.max_latent_size, c.latent_patch) == (raw["max_latent_size"], raw["latent_patch_size"])
    assert (c.latent_width, c.token_pixels) == (raw["patch_latent_dim"], raw["latent_downsample"])
    assert (c.frequency_size, c.vision.max_side) == (raw["frequency_embedding_size"], raw["vit_max_num_patch_per_side"])
    assert c.vision.layers == raw["vit_config"]["num_hidden_layers"]
    assert dataclasses.asdict(vae) == {
        "width": raw["vae_config"]["ch"], "multipliers": tuple(raw["vae_config"]["ch_mult"]),
        "blocks": raw["vae_config"]["num_res_blocks"], "channels": raw["vae_config"]["z_channels"],
        "scale": raw["vae_config"]["scale_factor"], "shift": raw["vae_config"]["shift_factor"],
        "groups": 32, "quant": False,  # its code has them so
    }  # fmt: skip
    assert vae.downsample == raw["vae_config"]["downsample"]


def test_names_and_shapes(reference):
    recorded = json.loads((reference.folder / "param_shapes.json").read_text())
    ours = weights.stored_shapes(reference.config, reference.loaded.stored_params())
    theirs = {name: tuple(shape) for part in recorded.values() for name, shape in part.items()}
    assert ours | reference.autoencoder.shapes() == theirs


def test_components(reference, assert_close):
    config = reference.config
    with reference.all_of("components") as d:
        sinusoid = time_sinusoid(jnp.asarray(d["t"]), config.frequency_size)
        assert_close(sinusoid, d["t_sinusoid"], name="t_sinusoid")
        embedded = reference.apply(lambda n, t: n.time_embedder(t), jnp.asarray(d["t"]))
        assert_close(embedded, d["t_embed"], name="t_embed")
        cos, sin = rotary_table(jnp.asarray(d["rope_positions"]), config.head_dim, config.rope_theta)
        assert_close(cos, d["rope_cos"], name="rope_cos")
        assert_close(sin, d["rope_sin"], name="rope_sin")
        latent = channels_last(d["latent"])[None]
        tokens = patchify(latent, config.latent_patch)
        assert_close(tokens[0], d["latent_patchified"], name="latent_patchified")
        grid = (latent.shape[1] // config.latent_patch, latent.shape[2] // config.latent_patch)
        assert_close(unpatchify(tokens, grid, config.latent_patch), latent, limit=0)
        lifted = reference.apply(lambda n, x: n.vae2llm(x), tokens)
        assert_close(lifted[0], d["latent_vae2llm"], name="latent_vae2llm")
        ids = latents.position_ids(config.grid(*map(int, d["image_hw"])), config.max_latent_size)
        np.testing.assert_array_equal(ids, d["latent_position_ids"])
        scale = reference.params["layers"]["und"]["input_norm"]["scale"][0]
        normed = RMSNorm(config.rms_norm_eps).apply({"params": {"scale": scale}}, jnp.asarray(d["rms_in"]))
        assert_close(normed, d["rms_out"], name="rms_out")
        schedules = [m for m in (re.fullmatch(r"schedule_N(\d+)_shift([0-9.]+)", name) for name in d.names) if m]
        assert schedules, "no recorded schedule was recognised"
        for match in schedules:
            assert_close(timesteps(int(match[1]) - 1, float(match[2])), d[match[0]], name=match[0])
    for path, side in (("latent_pos_embed", config.max_latent_size), ("vit_pos_embed", config.vision.max_side)):
        assert_close(latents.position_table(side, config.hidden_size), reference.params[path], name=path)


def test_text_generate(reference, assert_close):
    with reference.all_of("text_generate") as d:
        context, hidden = reference.read(d["prompt_ids"])
        np.testing.assert_array_equal(reference.block(d["prompt_ids"]).tokens[0], d["prefill_packed_ids"])
        np.testing.assert_array_equal(np.arange(context.slots), d["prefill_position_ids"])
        assert_close(hidden[0], d["prefill_final_hidden"], name="prefill_final_hidden")
        assert_close(context.keys[:, 0].swapaxes(1, 2), d["prefill_key_cache"], name="prefill_key_cache")
        assert_close(context.values[:, 0].swapaxes(1, 2), d["prefill_value_cache"], name="prefill_value_cache")
        assert int(context.rope[0]) == int(d["start_position"][0])
        assert reference.config.bos_token == int(d["start_token"][0])
        calls = int(d["max_length"])
        tokens, logits, full = reference.greedy(context, calls)
        np.testing.assert_array_equal(tokens[:, 0], d["output_tokens"])
        np.testing.assert_array_equal(logits[:, 0].argmax(-1), d["step_argmax"])
        assert_close(logits[:, 0], d["step_logits"], name="step_logits")
        assert_close(full.keys[:, 0].swapaxes(1, 2), d["final_key_cache"], name="final_key_cache")
        assert_close(full.values[:, 0].swapaxes(1, 2), d["final_value_cache"], name="final_value_cache")
        stopped, _, _ = reference.greedy(context, calls, stop=int(d["stop_token"]))
        np.testing.assert_array_equal(stopped[:, 0], d["stopped_output_tokens"])
        assert len(stopped) == int(d["stopped_num_forward_calls"])

        rows = [np.asarray(reference.block(d[f"batch_prompt{i}"]).tokens[0]) for i in range(2)]
        length = max(map(len, rows)) + 3  # more left padding than needed must not matter
        tokens = jnp.asarray(np.stack([np.pad(r, (length - len(r), 0)) for r in rows]), jnp.int32)
        valid = jnp.asarray(np.stack([np.arange(length) >= length - len(r) for r in rows]))
        _, context = reference.model.prefill(reference.params, tokens, valid, reference.model.empty(2))
        inputs, logits, _ = reference.greedy(context, int(d["batch_max_length"]))
        np.testing.assert_array_equal(inputs, d["batch_output_tokens"])
        assert_close(logits, d["batch_step_logits"], name="batch_step_logits")


def test_velocity(reference, assert_close):
    model, config = reference.model, reference.config
    with reference.all_of("velocity") as d:
        context, _ = reference.read(d["prompt_ids"], d["think_ids"])
        assert context.slots == int(d["context_len"][0]) and int(context.rope[0]) == int(d["context_next_rope"][0])
        assert_close(context.keys[:, 0].swapaxes(1, 2), d["context_key_cache"], name="context_key_cache")
        assert_close(context.values[:, 0].swapaxes(1, 2), d["context_value_cache"], name="context_value_cache")
        times = jnp.asarray(d["t"])
        for kind in ("sq", "ns"):
            grid, x = tuple(map(int, d[f"{kind}_grid_hw"])), jnp.asarray(d[f"{kind}_x_t"])
            assert config.grid(*map(int, d[f"{kind}_image_hw"])) == grid
            at = lambda t, c, x=x, grid=grid: model.predict(reference.params, x[None], t[None], grid, c)[0]
            v, v_text = (jax.vmap(at, (0, None))(times, c) for c in (context, model.empty(1)))
            assert_close(v, d[f"{kind}_v_cond"], name="v_cond")
            assert_close(v_text, d[f"{kind}_v_uncond"], name="v_uncond")
            guided = lambda **settings: Guidance(text=4.0, **settings).apply(v, v_text)  # noqa: B023
            assert_close(guided(), d[f"{kind}_v_textcfg4_global"], name="v_textcfg4_global")
            name = f"{kind}_v_textcfg4_channel_min0p3"
            assert_close(guided(renorm="channel", renorm_min=0.3), d[name], name=name)
            ids = jnp.asarray(latents.position_ids(grid, config.max_latent_size))
            np.testing.assert_array_equal(ids, d[f"{kind}_latent_position_ids"])
            n = len(ids)
            assert d[f"{kind}_query_ids"].tolist() == [config.image_start_token, config.image_end_token]
            assert d[f"{kind}_text_indexes"].tolist() == [0, n + 1]
            assert d[f"{kind}_vae_indexes"].tolist() == list(range(1, n + 1))
            (_, block), hidden = reference.captured("latent_block", x[None], jnp.array([0.5]), ids, context)
            assert block.slots == n + 2 and (d[f"{kind}_rope_position_ids"] == int(context.rope[0])).all()
            assert_close(image_rows(hidden)[:, 0], d[f"{kind}_t0p5_layer_hidden"], name="layer_hidden")
            final = image_rows(reference.apply(final_norms, *(h[-1] for h in hidden)))[0]
            assert_close(final, d[f"{kind}_t0p5_final_hidden"], name="final_hidden")
            head = reference.apply(lambda n, h: n.llm2vae(h), jnp.asarray(final))
            assert_close(head, d[f"{kind}_t0p5_llm2vae_all_tokens"], name="llm2vae_all_tokens")


EULER_CASES = {
    "cfg1": {"text": 1.0},
    "textcfg4_interval0_1": {"interval": (0.0, 1.0)},
    "textcfg4_interval0p4_1": {},
    "textcfg4_channel": {"renorm": "channel", "renorm_min": 0.2},
    "textcfg4_textchannel": {"renorm": "text_channel"},
    "textcfg4_renormmin1": {"interval": (0.0, 1.0), "renorm_min": 1.0},
}


def test_euler(reference, assert_close):
    with reference.all_of("euler") as d:
        points, shift = int(d["num_timesteps"]), float(d["timestep_shift"])
        times = timesteps(points - 1, shift)
        assert_close(times, d["timesteps_full"], name="timesteps_full")
        assert_close(times[:-1], d["t_used"], name="t_used")
        assert_close(times[:-1] - times[1:], d["dt"], name="dt")
        context, _ = reference.read(d["prompt_ids"], d["think_ids"])
        grid, start = tuple(map(int, d["grid_hw"])), jnp.asarray(d["init_noise"])[None]
        assert reference.config.grid(*map(int, d["image_hw"])) == grid
        others = (reference.model.empty(1),)
        for name, settings in EULER_CASES.items():
            guidance = Guidance(**{"text": 4.0, "interval": (0.4, 1.0)} | settings)
            x, v, end = euler(reference, context, others, guidance, start, grid, shift, points)
            assert_close(v, d[f"{name}_v"], name=f"{name}_v")
            assert_close(end, d[f"{name}_final"], name=f"{name}_final")
            if name == "cfg1":
                assert_close(x, d["cfg1_x"], name="cfg1_x")
            if f"{name}_decoded" in d.names:
                latent = unpatchify(jnp.asarray(end)[None], grid, reference.config.latent_patch)
                assert_close(channels_first(latent)[0], d[f"{name}_latent_chw"], name=f"{name}_latent_chw")
                image = reference.autoencoder.decode(reference.autoencoder_params, latent)
                assert_close(channels_first(image)[0], d[f"{name}_decoded"], name=f"{name}_decoded")


@pytest.mark.parametrize("name", ["vae2llm.weight", "latent_pos_embed.pos_embed"])
def test_parameters_are_the_files_tensors(reference, name):
    """Not only what the network makes of them."""
    stored = reference.stored(reference.params)
    np.testing.assert_array_equal(stored[name], reference.loaded.stored.read(name))
