"""Looking at images, editing them, and the whole driver, against the public PyTorch BAGEL.

The table of what is compared where stands in test_bagel_reference.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from tests import verbs
from tests.bagel_reference import channels_first, channels_last, euler, final_norms, image_rows, image_slots
from unigrpo_jax.models.autoencoders.pixels import from_uint8, to_uint8
from unigrpo_jax.models.bagel import latents
from unigrpo_jax.models.building.guidance import Guidance
from unigrpo_jax.models.building.patches import patchify, unpatchify
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.thinking import TokenSampler


def patches_of(reference, image):
    """Patches [1, rows, columns, P] of an image [3, H, W]."""
    vision = reference.config.vision
    tokens = patchify(channels_last(image)[None], vision.patch)
    return tokens.reshape(1, *vision.grid(*image.shape[1:]), vision.patch_width)


def latent_tokens(reference, latent):
    """Latent tokens [1, rows, columns, C] of a latent [1, h, w, c]."""
    patch = reference.config.latent_patch
    grid = (latent.shape[1] // patch, latent.shape[2] // patch)
    return patchify(latent, patch).reshape(1, *grid, reference.config.latent_width)


def test_vit(reference, assert_close):
    vision, network = reference.config.vision, reference.model.network
    connector, encoder = lambda n, x: n.connector(x), lambda n, p, i: n.vision(p, i)
    look = lambda params, *given: network.apply({"params": params}, *given, method=encoder, mutable="intermediates")
    # The ids of the interpolating rule, which the release does not use and this package does not have.
    with reference.all_of("vit", "position_ids_interpolate_image0") as d:
        start = 0
        for image, count in zip((d["image0"], d["image1"]), d["seqlens"], strict=True):
            rows = slice(start, start + int(count))
            tokens = patches_of(reference, image)
            grid, patches = tokens.shape[1:3], tokens.reshape(1, -1, vision.patch_width)
            assert_close(patches[0], d["patches"][rows], name="patches")
            ids = latents.position_ids(grid, vision.max_side)
            np.testing.assert_array_equal(ids, d["position_ids"][rows])
            out, state = jax.jit(look)(reference.params, patches, jnp.asarray(ids))
            seen = state["intermediates"]["vision"]
            assert_close(seen["embeddings"][0][0], d["embeddings"][rows], name="embeddings")
            assert_close(seen["layers"]["hidden"][0][:, 0], d["layer_hidden"][:, rows], name="layer_hidden")
            assert_close(out[0], d["vit_output"][rows], name="vit_output")
            connected = reference.apply(connector, out)
            assert_close(connected[0], d["connector_output"][rows], name="connector_output")
            entering = reference.apply("patch_tokens", patches, jnp.asarray(ids))
            assert_close(entering[0], d["llm_input"][rows], name="llm_input")
            start = rows.stop


def test_autoencoder(reference, assert_close):
    ae, params = reference.autoencoder, reference.autoencoder_params
    with reference.all_of("ae") as d:
        image = channels_last(d["image"])
        moments = verbs.moments(ae, params, image)
        assert_close(channels_first(jnp.concatenate(moments, axis=-1)), d["moments"], name="moments")
        mean = verbs.encode(ae, params, image)
        assert_close(channels_first(mean), d["encode_mean_scaled"], name="encode_mean_scaled")
        sample = ae.sample(*moments, channels_last(d["sample_noise"]))
        assert_close(channels_first(sample), d["encode_sample_scaled"], name="encode_sample_scaled")
        decoded = verbs.decode_latent(ae, params, channels_last(d["latent"]))
        assert_close(channels_first(decoded), d["decoded"], name="decoded")
        assert_close(channels_first(verbs.decode_latent(ae, params, mean)), d["reconstruct"], name="reconstruct")
        mean = verbs.encode(ae, params, channels_last(d["image_ns"]))
        assert_close(channels_first(mean), d["encode_mean_scaled_ns"], name="encode_mean_scaled_ns")
        assert_close(channels_first(verbs.decode_latent(ae, params, mean)), d["reconstruct_ns"], name="reconstruct_ns")


def test_a_sampled_encoding_is_that_of_each_images_own_key(reference):
    ae, params = reference.autoencoder, reference.autoencoder_params
    side = 4 * ae.downsample
    image = jax.random.uniform(jax.random.key(0), (2, side, side, 3), minval=-1.0)
    keys = jax.random.split(jax.random.key(1), 2)
    mean, log_variance = verbs.moments(ae, params, image)
    noise = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    np.testing.assert_array_equal(verbs.encode(ae, params, image, keys), ae.sample(mean, log_variance, noise))
    assert (verbs.encode(ae, params, image, keys) != verbs.encode(ae, params, image, keys[::-1])).any()


def test_understanding(reference, assert_close):
    config, model, params = reference.config, reference.model, reference.params
    with reference.all_of("understanding") as d:
        patches = patches_of(reference, d["image"])
        seen = verbs.look(model, params, verbs.begin(model, params, (), 1), patches=patches).full
        n = patches.shape[1] * patches.shape[2]
        assert d["image_block_text_ids"].tolist() == [config.image_start_token, config.image_end_token]
        assert d["image_block_position_ids"].tolist() == [0] * (n + 2)
        assert seen.slots == int(d["image_block_len"][0]) and int(seen.rope[0]) == int(d["next_rope"][0])
        assert_close(seen.keys[:, 0].swapaxes(1, 2), d["image_key_cache"], name="image_key_cache")
        assert_close(seen.values[:, 0].swapaxes(1, 2), d["image_value_cache"], name="image_value_cache")
        context, hidden = reference.read(d["question_ids"], context=seen)
        assert_close(verbs.text_logits(model, params, hidden)[0], d["question_logits"], name="question_logits")
        tokens, logits, _ = reference.greedy(context, len(d["output_tokens"]))
        np.testing.assert_array_equal(tokens[:, 0], d["output_tokens"])
        assert_close(logits[:, 0], d["step_logits"], name="step_logits")

        # The same sequence as one training forward: [image][question][answer].
        answer = d["output_tokens"][1:]
        assert d["train_packed_text_ids"].tolist() == [
            config.image_start_token, config.image_end_token,
            *np.asarray(reference.block(d["question_ids"]).tokens[0]), *np.asarray(reference.block(answer).tokens[0]),
        ]  # fmt: skip
        question, reply = len(d["question_ids"]) + 2, len(answer) + 2
        assert d["train_vit_indexes"].tolist() == list(range(1, n + 1))
        assert d["train_packed_text_indexes"].tolist() == [0, *range(n + 1, n + 2 + question + reply)]
        positions = [0] * (n + 2) + list(range(1, 1 + question + reply))
        np.testing.assert_array_equal(d["train_position_ids"], positions)
        allowed = np.tril(np.ones((len(positions),) * 2, bool))
        allowed[: n + 2, : n + 2] = True
        np.testing.assert_array_equal(allowed, d["train_attention_allowed"])
        last, hidden = reference.read(answer, context=context)
        assert int(last.rope[0]) == positions[-1] + 1
        rows = d["train_ce_loss_indexes"] - (n + 2 + question)
        logits = verbs.text_logits(model, params, hidden)[0][rows]
        assert_close(logits, d["train_logits"], name="train_logits")
        labels = d["train_label_ids"]
        np.testing.assert_array_equal(labels, [*answer, config.eos_token])
        ce = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
        assert_close(ce, d["train_ce_per_token"], name="train_ce_per_token")


EDITS = {
    "nocfg": {"text": 1.0},
    "text4_img2_textchannel_interval0_1": {"text": 4.0, "image": 2.0, "renorm": "text_channel"},
    "text4_img2_global_interval0p4_1": {"text": 4.0, "image": 2.0, "interval": (0.4, 1.0)},
    "text4_img1p5_channel_interval0_1": {"text": 4.0, "image": 1.5, "renorm": "channel"},
    "text1_img2": {"text": 1.0, "image": 2.0},
}


def test_edit(reference, assert_close):
    config, model, params = reference.config, reference.model, reference.params
    with reference.all_of("edit") as d:
        latent = verbs.encode(reference.autoencoder, reference.autoencoder_params, channels_last(d["vae_image"])[None])
        assert_close(channels_first(latent)[0], d["vae_latent_scaled"], name="vae_latent_scaled")
        tokens = latent_tokens(reference, latent)
        n, grid = tokens.shape[1] * tokens.shape[2], tokens.shape[1:3]
        ids = jnp.asarray(latents.position_ids(grid, config.max_latent_size))
        np.testing.assert_array_equal(ids, d["vae_block_latent_position_ids"])
        assert not d["vae_block_position_ids"].any() and d["vae_block_timestep"].tolist() == [0]
        flat = tokens.reshape(1, n, -1)
        (streams, _), _ = reference.captured("latent_block", flat, jnp.zeros(1), ids, model.empty(1))
        final = image_rows(reference.apply(final_norms, *streams))
        assert_close(final[0], d["vae_block_final_hidden"], name="vae_block_final_hidden")

        empty = verbs.begin(model, params, (), 1)
        after_vae = verbs.look(model, params, empty, latent=tokens).full
        both = verbs.look(model, params, empty, tokens, patches_of(reference, d["vit_image"]))
        for name, context in (("after_vae", after_vae), ("after_vit", both.full)):
            for part, cache in (("key", context.keys), ("value", context.values)):
                rows = np.asarray(cache[:, 0].swapaxes(1, 2))
                rows = np.concatenate([image_slots(rows[:, : n + 2]), rows[:, n + 2 :]], axis=1)
                assert_close(rows, d[f"{name}_{part}_cache"], name=f"{name}_{part}_cache")
            assert context.slots == int(d[f"{name}_len"][0]) and int(context.rope[0]) == int(d[f"{name}_rope"][0])
        dialogue = verbs.hear(model, params, both, reference.block(d["instruction_ids"]))
        assert dialogue.full.slots == int(d["full_len"][0]) and int(dialogue.full.rope[0]) == int(d["full_rope"][0])

        grid, x = config.grid(*map(int, d["image_hw"])), jnp.asarray(d["init_noise"])[None]
        others = (dialogue.without_text, dialogue.without_images)
        for name, context in zip(("cond", "textuncond", "imguncond"), (dialogue.full, *others), strict=True):
            v = verbs.predict(model, params, x, jnp.ones(1), grid, context)
            assert_close(v[0], d[f"v_at_noise_t1_{name}"], name=name)
        points, shift = int(d["num_timesteps"]), float(d["timestep_shift"])
        assert_close(timesteps(points - 1, shift)[:-1], d["t_used"], name="t_used")
        for name, settings in EDITS.items():
            guidance = Guidance(**settings)
            _, v, end = euler(reference, dialogue.full, others, guidance, x, grid, shift, points)
            assert_close(v, d[f"{name}_v"], name=f"{name}_v")
            assert_close(end, d[f"{name}_final"], name=f"{name}_final")
        output, logits, _ = reference.greedy(dialogue.full, len(d["think_output_tokens"]))
        np.testing.assert_array_equal(output[:, 0], d["think_output_tokens"])
        assert_close(logits[:, 0], d["think_step_logits"], name="think_step_logits")


def test_end_to_end(reference, assert_close):
    """System prompt, image, text, thinking, the three contexts of guidance, drawing, decoding to uint8."""
    config, model, params = reference.config, reference.model, reference.params
    settings = json.loads((reference.folder / "e2e_settings.json").read_text())["runs"]
    assert set(settings) == {"t2i", "t2i_defaultimgcfg", "t2i_think", "t2i_think_imgcfg", "edit", "edit_think"}
    with reference.all_of("e2e") as d:
        system = tuple(np.asarray(reference.block(d["gen_system_ids"]).tokens[0]).tolist())
        u8 = d["input_edit_image_u8"]
        assert_close(from_uint8(u8), np.moveaxis(d["input_edit_image_vae"], 0, -1), name="input_edit_image_vae")
        latent = verbs.encode(reference.autoencoder, reference.autoencoder_params, from_uint8(u8)[None])
        patches = patches_of(reference, d["input_edit_image_vit"])
        length = int(d["common_max_think_token_n"]) - 1  # the original counts forward calls
        assert not d["common_do_sample"]
        for name, run in settings.items():
            assert (run["num_timesteps"], run["timestep_shift"]) == (d["common_num_timesteps"], d["common_timestep_shift"])
            assert run["cfg_renorm_min"] == d["common_cfg_renorm_min"]
            dialogue = verbs.begin(model, params, system if run["think"] else (), 1)
            size, text = run.get("image_shapes"), d["prompt_ids"]
            if size is None:
                dialogue = verbs.look(model, params, dialogue, latent_tokens(reference, latent), patches)
                size, text = u8.shape[:2], d["instruction_ids"]
            dialogue = verbs.hear(model, params, dialogue, reference.block(text))
            full = dialogue.full
            if run["think"]:
                keys = jax.random.split(jax.random.key(0), 1)
                thinking, full = verbs.think(model, params, full, keys, length, TokenSampler(temperature=0))
                ids = np.asarray(thinking.tokens)[0][np.asarray(thinking.mask)[0]]
                np.testing.assert_array_equal(ids[ids != config.eos_token], d[f"{name}_think_ids"])
            others = (dialogue.without_text, dialogue.without_images)
            np.testing.assert_array_equal([c.valid.sum() for c in (full, *others)], d[f"{name}_kv_lens_cond_text_img"])
            np.testing.assert_array_equal([c.rope[0] for c in (full, *others)], d[f"{name}_rope_cond_text_img"])
            guidance = Guidance(
                text=run["cfg_text_scale"], image=run["cfg_img_scale"], interval=tuple(run["cfg_interval"]),
                renorm=run["cfg_renorm_type"], renorm_min=run["cfg_renorm_min"],
            )  # fmt: skip
            times = tuple(timesteps(run["num_timesteps"] - 1, run["timestep_shift"]).tolist())
            flow = FlowSampler(schedule=times, rule=ODE(), grid=config.grid(*size), guidance=guidance)
            noise = jnp.asarray(d[f"{name}_init_noise"])[None]
            tokens, _ = verbs.denoise(model, params, full, noise, None, jnp.zeros(0, jnp.int32), flow, others)
            assert_close(tokens[0], d[f"{name}_final_latent_tokens"], name=f"{name}_final_latent_tokens")
            drawn = unpatchify(tokens, flow.grid, config.latent_patch)
            image = to_uint8(verbs.decode_latent(reference.autoencoder, reference.autoencoder_params, drawn))[0]
            assert np.abs(np.asarray(image, int) - d[f"{name}_image_u8"]).max() <= 1, name


def test_padding_of_a_batch_reaches_the_latents_and_is_cropped(reference):
    """As the original: an image that is smaller than its batch mates is encoded with zeros beside it."""
    ae, params, down = reference.autoencoder, reference.autoencoder_params, reference.autoencoder.downsample
    for rows, columns in ((3, 5), (2, 2)):
        image = jax.random.uniform(jax.random.key(0), (1, rows * down, columns * down, 3), minval=-1.0)
        padded = jnp.pad(image, ((0, 0), (0, (7 - rows) * down), (0, (7 - columns) * down), (0, 0)))
        alone, cropped = verbs.encode(ae, params, image), verbs.encode(ae, params, padded)[:, :rows, :columns]
        assert alone.shape == cropped.shape and float(jnp.max(jnp.abs(alone - cropped))) > 1e-3
