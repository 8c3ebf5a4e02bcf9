"""The network against the public PyTorch BAGEL on tiny random weights.

| file | compared here |
|---|---|
| components | every array |
| text_forward | attention_allowed, packed_position_ids, layer_hidden, final_hidden, logits, all three losses |
| text_generate | prefill hidden and caches, every step's logits, tokens, final caches, the stopped run, the batch of two |
| velocity | context caches and position; square and non-square: conditional, unconditional, layer and final hidden |
| euler | timesteps, and every state and velocity of the run without guidance (cfg1) |
| train_t2i | timesteps, noisy latents, layer and final hidden, velocities, logits, losses, gradients, gradient norms |
| model.safetensors | every tensor that the network reads, in and out again, byte-equal |

Not here: the autoencoder's and the vision encoder's arrays and guidance with them, which this network does not hold yet.
"""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.bagel import Bagel, BagelConfig, latents, weights
from unigrpo_jax.models.bagel import context as contexts
from unigrpo_jax.models.bagel.layers import RMSNorm, rotary_table
from unigrpo_jax.models.bagel.network import time_sinusoid
from unigrpo_jax.rollout.schedule import timesteps


@dataclasses.dataclass(frozen=True)
class Reference:
    folder: object
    config: BagelConfig
    model: Bagel
    params: dict
    downsample: int

    def load(self, name):
        return np.load(self.folder / f"{name}.npz")


@pytest.fixture(scope="module")
def ref(fixtures) -> Reference:
    folder = fixtures / "bagel"
    raw = json.loads((folder / "config.json").read_text())
    llm, special = raw["llm_config"], raw["special_token_ids"]
    config = BagelConfig(
        vocab_size=llm["vocab_size"],
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        layers=llm["num_hidden_layers"],
        heads=llm["num_attention_heads"],
        kv_heads=llm["num_key_value_heads"],
        rope_theta=llm["rope_theta"],
        rms_norm_eps=llm["rms_norm_eps"],
        bos_token=special["bos_token_id"],
        eos_token=special["eos_token_id"],
        image_start_token=special["start_of_image"],
        image_end_token=special["end_of_image"],
        pad_token=0,
        latent_channels=raw["vae_config"]["z_channels"],
        latent_patch=raw["latent_patch_size"],
        latent_downsample=raw["vae_config"]["downsample"],
        max_latent_size=raw["max_latent_size"],
        frequency_size=raw["frequency_embedding_size"],
    )
    model = Bagel(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(jnp.asarray, weights.load_params(folder / "model.safetensors", config, shapes))
    chex.assert_trees_all_equal_shapes(params, shapes)
    return Reference(folder, config, model, params, raw["vae_config"]["downsample"])


def block(ref, ids):
    """A text block: BOS ids EOS, as [1, L]."""
    return jnp.asarray([[ref.config.bos_token, *map(int, ids), ref.config.eos_token]], jnp.int32)


def read(ref, *texts):
    context, hidden = ref.model.empty(1), None
    for ids in texts:
        tokens = block(ref, ids)
        hidden, new = ref.model.prefill(ref.params, tokens, jnp.ones(tokens.shape, bool), context)
        context = contexts.extend(context, new)
    return context, hidden


def image_rows(streams):
    """The original's row order of an image block from our two streams: start, latents, end."""
    und, gen = streams
    return np.concatenate([und[..., :1, :], gen, und[..., 1:, :]], axis=-2)


def final_norms(network, und, gen):
    return network.norm_und(und), network.norm_gen(gen)


def captured(ref, method, *args):
    """Outputs of a pass, and the residual stream after every layer."""
    out, state = ref.model.network.apply({"params": ref.params}, *args, method=method, mutable="intermediates")
    return out, state["intermediates"]["layers"]["hidden"][0]


def test_components(ref, assert_close):
    d = ref.load("components")
    assert_close(time_sinusoid(jnp.asarray(d["t"]), ref.config.frequency_size), d["t_sinusoid"], name="t_sinusoid")
    embedded = ref.model.network.apply({"params": ref.params}, jnp.asarray(d["t"]), method=lambda n, t: n.time_embedder(t))
    assert_close(embedded, d["t_embed"], name="t_embed")
    cos, sin = rotary_table(jnp.asarray(d["rope_positions"]), ref.config.head_dim, ref.config.rope_theta)
    assert_close(cos, d["rope_cos"], name="rope_cos")
    assert_close(sin, d["rope_sin"], name="rope_sin")
    latent = jnp.asarray(d["latent"]).transpose(1, 2, 0)[None]
    tokens = latents.patchify(latent, ref.config.latent_patch)
    assert_close(tokens[0], d["latent_patchified"], name="latent_patchified")
    grid = (latent.shape[1] // ref.config.latent_patch, latent.shape[2] // ref.config.latent_patch)
    assert_close(latents.unpatchify(tokens, grid, ref.config.latent_patch)[0], latent[0], limit=0)
    lifted = ref.model.network.apply({"params": ref.params}, tokens, method=lambda n, x: n.vae2llm(x))
    assert_close(lifted[0], d["latent_vae2llm"], name="latent_vae2llm")
    ids = latents.position_ids(ref.config.grid(*map(int, d["image_hw"])), ref.config.max_latent_size)
    np.testing.assert_array_equal(ids, d["latent_position_ids"])
    scale = ref.params["layers"]["und"]["input_norm"]["scale"][0]
    normed = RMSNorm(ref.config.rms_norm_eps).apply({"params": {"scale": scale}}, jnp.asarray(d["rms_in"]))
    assert_close(normed, d["rms_out"], name="rms_out")
    for points, shift in ((50, 3), (24, 1), (8, 3), (5, 4)):
        name = f"schedule_N{points}_shift{shift}"
        assert_close(timesteps(points - 1, float(shift)), d[name], name=name)
    table = latents.position_table(ref.config.max_latent_size, ref.config.hidden_size)
    assert_close(table, ref.params["latent_pos_embed"], name="latent_pos_embed")


def test_text_forward(ref, assert_close):
    """Samples of the pack one by one: causal inside a sample, blind across samples."""
    d = ref.load("text_forward")
    lens, start, losses = d["sample_lens"], 0, []
    allowed = np.zeros_like(d["attention_allowed"])
    for n in map(int, lens):
        rows = slice(start, start + n)
        np.testing.assert_array_equal(d["packed_position_ids"][rows], np.arange(n))
        allowed[rows, rows] = np.tril(np.ones((n, n), bool))
        tokens = jnp.asarray(d["packed_text_ids"][rows])[None].astype(jnp.int32)
        args = (tokens, jnp.ones(tokens.shape, bool), ref.model.empty(1))
        (hidden, _), layers = captured(ref, "text", *args)
        assert_close(layers[0][:, 0], d["layer_hidden"][:, rows], name="layer_hidden")
        assert_close(hidden[0], d["final_hidden"][rows], name="final_hidden")
        logits = ref.model.text_logits(ref.params, hidden[0])
        assert_close(logits, d["logits"][rows], name="logits")
        inside = (d["ce_loss_indexes"] >= start) & (d["ce_loss_indexes"] < start + n)
        log_probs = jax.nn.log_softmax(logits)[d["ce_loss_indexes"][inside] - start]
        losses.append(-np.take_along_axis(np.asarray(log_probs), d["packed_label_ids"][inside][:, None], 1)[:, 0])
        start += n
    np.testing.assert_array_equal(allowed, d["attention_allowed"])
    ce, w = np.concatenate(losses), d["ce_loss_weights"]
    assert_close(ce, d["ce_per_token"], name="ce_per_token")
    assert_close(ce.mean(), d["ce_mean"], name="ce_mean")
    assert_close((ce * w).sum() / w.sum(), d["ce_reweighted"], name="ce_reweighted")


def greedy(ref, context, forward_calls, stop=None):
    """Decodes from a fresh BOS with a reserved cache; returns inputs, logits and the cache."""
    batch = context.valid.shape[0]
    first = context.slots
    context = contexts.reserve(context, forward_calls)
    step = jax.jit(ref.model.decode)
    token, inputs, logits = jnp.full(batch, ref.config.bos_token), [], []
    for i in range(forward_calls):
        inputs.append(np.asarray(token))
        out, new = step(ref.params, token, jnp.ones(batch, bool), context)
        context = contexts.write(context, new, first + i)
        token = jnp.argmax(out, axis=-1)
        logits.append(np.asarray(out))
        if stop is not None and int(token[0]) == stop:
            break
    return np.stack(inputs), np.stack(logits), context


def test_text_generate(ref, assert_close):
    d = ref.load("text_generate")
    context, hidden = read(ref, d["prompt_ids"])
    np.testing.assert_array_equal(block(ref, d["prompt_ids"])[0], d["prefill_packed_ids"])
    assert_close(hidden[0], d["prefill_final_hidden"], name="prefill_final_hidden")
    assert_close(context.keys[:, 0], d["prefill_key_cache"], name="prefill_key_cache")
    assert_close(context.values[:, 0], d["prefill_value_cache"], name="prefill_value_cache")
    assert int(context.rope[0]) == int(d["start_position"][0])
    calls = int(d["max_length"])
    tokens, logits, full = greedy(ref, context, calls)
    np.testing.assert_array_equal(tokens[:, 0], d["output_tokens"])
    np.testing.assert_array_equal(logits[:, 0].argmax(-1), d["step_argmax"])
    assert_close(logits[:, 0], d["step_logits"], name="step_logits")
    assert_close(full.keys[:, 0], d["final_key_cache"], name="final_key_cache")
    assert_close(full.values[:, 0], d["final_value_cache"], name="final_value_cache")
    stopped, _, _ = greedy(ref, context, calls, stop=int(d["stop_token"]))
    np.testing.assert_array_equal(stopped[:, 0], d["stopped_output_tokens"])
    assert len(stopped) == int(d["stopped_num_forward_calls"])


def test_text_generate_batch_of_left_padded_prompts(ref, assert_close):
    d = ref.load("text_generate")
    rows = [np.asarray(block(ref, d[f"batch_prompt{i}"])[0]) for i in range(2)]
    length = max(map(len, rows)) + 3  # more padding than needed must not matter
    tokens = np.stack([np.pad(r, (length - len(r), 0)) for r in rows])
    valid = np.stack([np.arange(length) >= length - len(r) for r in rows])
    _, context = ref.model.prefill(ref.params, jnp.asarray(tokens, jnp.int32), jnp.asarray(valid), ref.model.empty(2))
    inputs, logits, _ = greedy(ref, context, int(d["batch_max_length"]))
    np.testing.assert_array_equal(inputs, d["batch_output_tokens"])
    assert_close(logits, d["batch_step_logits"], name="batch_step_logits")


@pytest.mark.parametrize("prefix", ["sq", "ns"])
def test_velocity(ref, assert_close, prefix):
    d = ref.load("velocity")
    context, _ = read(ref, d["prompt_ids"], d["think_ids"])
    assert context.slots == int(d["context_len"][0]) and int(context.rope[0]) == int(d["context_next_rope"][0])
    assert_close(context.keys[:, 0], d["context_key_cache"], name="context_key_cache")
    assert_close(context.values[:, 0], d["context_value_cache"], name="context_value_cache")
    grid = tuple(map(int, d[f"{prefix}_grid_hw"]))
    assert ref.config.grid(*map(int, d[f"{prefix}_image_hw"])) == grid
    times, x = jnp.asarray(d["t"]), jnp.asarray(d[f"{prefix}_x_t"])
    for name, ctx in (("v_cond", context), ("v_uncond", ref.model.empty(1))):
        velocity = jax.vmap(lambda t, ctx=ctx: ref.model.velocity(ref.params, x[None], t[None], grid, ctx)[0])(times)
        assert_close(velocity, d[f"{prefix}_{name}"], name=name)
    ids = jnp.asarray(latents.position_ids(grid, ref.config.max_latent_size))
    np.testing.assert_array_equal(ids, d[f"{prefix}_latent_position_ids"])
    _, hidden = captured(ref, "flow", x[None], jnp.array([0.5]), ids, context)
    rows = image_rows(hidden)[:, 0]
    assert_close(rows, d[f"{prefix}_t0p5_layer_hidden"], name="layer_hidden")
    last = [h[-1] for h in hidden]
    final = image_rows(ref.model.network.apply({"params": ref.params}, *last, method=final_norms))[0]
    assert_close(final, d[f"{prefix}_t0p5_final_hidden"], name="final_hidden")
    head = ref.model.network.apply({"params": ref.params}, jnp.asarray(final), method=lambda n, h: n.llm2vae(h))
    assert_close(head, d[f"{prefix}_t0p5_llm2vae_all_tokens"], name="llm2vae_all_tokens")


def test_euler_without_guidance(ref, assert_close):
    d = ref.load("euler")
    times = timesteps(int(d["num_timesteps"]) - 1, float(d["timestep_shift"]))
    assert_close(times, d["timesteps_full"], name="timesteps_full")
    assert_close(times[:-1] - times[1:], d["dt"], name="dt")
    context, _ = read(ref, d["prompt_ids"], d["think_ids"])
    grid, x = tuple(map(int, d["grid_hw"])), jnp.asarray(d["init_noise"])[None]
    velocity = jax.jit(lambda x, t: ref.model.velocity(ref.params, x, t[None], grid, context))
    for i in range(len(times) - 1):
        assert_close(x[0], d["cfg1_x"][i], name=f"cfg1_x[{i}]")
        v = velocity(x, jnp.asarray(times[i]))
        assert_close(v[0], d["cfg1_v"][i], name=f"cfg1_v[{i}]")
        x = x + v * (times[i + 1] - times[i])
    assert_close(x[0], d["cfg1_final"], name="cfg1_final")
    latent = latents.unpatchify(x, grid, ref.config.latent_patch)[0].transpose(2, 0, 1)
    assert_close(latent, d["cfg1_latent_chw"], name="cfg1_latent_chw")


def test_train_t2i(ref, assert_close):
    """Both losses of supervised training and their gradients, through context and velocity, sample by sample."""
    d = ref.load("train_t2i")
    grids = [tuple(map(int, g)) for g in d["patchified_vae_latent_shapes"]]
    split_lens = d["split_lens"].reshape(-1, 2)
    assert d["split_is_noise"].tolist() == [False, True] * len(grids)
    u = d["timestep_logits"].astype(np.float64)
    t_unshifted, shift = 1 / (1 + np.exp(-u)), float(d["timestep_shift"])
    times = shift * t_unshifted / (1 + (shift - 1) * t_unshifted)
    assert_close(times, d["timesteps"], name="timesteps")
    noisy = (1 - times)[:, None] * d["latent_clean"] + times[:, None] * d["noise"]
    assert_close(noisy, d["latent_noisy"], name="latent_noisy")

    samples, row, token, text = [], 0, 0, 0
    for (n_text, n_image), grid in zip(split_lens, grids, strict=True):
        n = grid[0] * grid[1]
        assert n_image == n + 2
        samples.append((slice(row, row + n_text), slice(row + n_text, row + n_text + n_image), slice(token, token + n),
                        d["packed_text_ids"][text : text + n_text], grid))
        row, token, text = row + n_text + n_image, token + n, text + n_text + 2

    def forward(params):
        model, out = Bagel(ref.config), []
        for _, _, tokens, ids, grid in samples:
            ids = jnp.asarray(ids, jnp.int32)[None]
            hidden, context = model.prefill(params, ids, jnp.ones(ids.shape, bool), model.empty(1))
            t = jnp.asarray(d["timesteps"][tokens][:1])
            v = model.velocity(params, jnp.asarray(d["latent_noisy"][tokens])[None], t, grid, context)
            out.append((model.text_logits(params, hidden)[0], v[0]))
        return out

    def losses(params):
        out = forward(params)
        velocity = jnp.concatenate([v for _, v in out])
        mse = (velocity - (d["noise"] - d["latent_clean"])) ** 2
        image_rows = [image.stop - image.start for _, image, *_ in samples]
        padded = [jnp.pad(logits, ((0, n), (0, 0))) for (logits, _), n in zip(out, image_rows, strict=True)]
        rows = jnp.concatenate(padded)
        ce_logits = rows[d["ce_loss_indexes"]]
        ce = -jnp.take_along_axis(jax.nn.log_softmax(ce_logits), d["packed_label_ids"][:, None], axis=1)[:, 0]
        return mse.mean() + ce.mean(), (velocity, mse, ce_logits, ce)

    (total, (velocity, mse, ce_logits, ce)), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(ref.params)
    assert_close(velocity, d["velocity_pred"], name="velocity_pred")
    assert_close(mse, d["mse"], name="mse")
    assert_close(mse.mean(), d["mse_loss"], name="mse_loss")
    assert_close(ce_logits, d["ce_logits"], name="ce_logits")
    assert_close(ce, d["ce_per_token"], name="ce_per_token")
    assert_close(ce.mean(), d["ce_loss"], name="ce_loss")
    w = d["ce_loss_weights"]
    assert_close((ce * w).sum() / w.sum(), d["ce_loss_reweighted"], name="ce_loss_reweighted")
    assert_close(total, d["total_loss"], name="total_loss")

    stored = {}
    for t in weights.name_table(ref.config):
        value = np.asarray(weights.get(grads, t.path))
        for i, name in enumerate(t.names):
            stored[name] = weights.to_stored(value[i] if t.stacked else value, t.kind)
    for name in d.files:
        if name.startswith("grad/"):
            assert_close(stored[name[5:]], d[name], name=name)
    norms = json.loads((ref.folder / "train_t2i_gradnorms.json").read_text())["norms"]
    assert len(norms) > 20
    for name, norm in norms.items():
        assert_close(np.linalg.norm(stored[name]), norm, name=f"|grad {name}|", limit=1e-4)

    for text_rows, image, tokens, ids, grid in samples:
        ids = jnp.asarray(ids, jnp.int32)[None]
        (final, context), hidden = captured(ref, "text", ids, jnp.ones(ids.shape, bool), ref.model.empty(1))
        assert_close(hidden[0][:, 0], d["layer_hidden"][:, text_rows], name="layer_hidden of text")
        assert_close(final[0], d["final_hidden"][text_rows], name="final_hidden of text")
        assert (d["packed_position_ids"][image] == int(context.rope[0])).all()
        places = jnp.asarray(latents.position_ids(grid, ref.config.max_latent_size))
        np.testing.assert_array_equal(places, d["packed_latent_position_ids"][tokens])
        x, t = jnp.asarray(d["latent_noisy"][tokens])[None], jnp.asarray(d["timesteps"][tokens][:1])
        _, hidden = captured(ref, "flow", x, t, places, context)
        assert_close(image_rows(hidden)[:, 0], d["layer_hidden"][:, image], name="layer_hidden of the image")
        final = image_rows(ref.model.network.apply({"params": ref.params}, *(h[-1] for h in hidden), method=final_norms))
        assert_close(final[0], d["final_hidden"][image], name="final_hidden of the image")


def test_weights_go_in_and_out_byte_equal(ref, tmp_path):
    from safetensors.numpy import load_file

    weights.save_params(tmp_path / "out.safetensors", ref.config, ref.params)
    before, after = load_file(ref.folder / "model.safetensors"), load_file(tmp_path / "out.safetensors")
    read_here = {n for n in before if not n.startswith(weights.IGNORED_PREFIXES)}
    assert read_here == set(after)
    for name in after:
        assert before[name].tobytes() == after[name].tobytes(), name


def test_a_wrong_weight_file_is_one_error_that_lists_every_fault(ref, tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(ref.folder / "model.safetensors")
    arrays["vae2llm.bais"] = arrays.pop("vae2llm.bias")
    arrays["llm2vae.bias"] = arrays["llm2vae.bias"][:-1].copy()
    save_file(arrays, tmp_path / "bad.safetensors")
    shapes = jax.eval_shape(ref.model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"missing vae2llm\.bias; unknown vae2llm\.bais; llm2vae\.bias has shape"):
        weights.load_params(tmp_path / "bad.safetensors", ref.config, shapes)
