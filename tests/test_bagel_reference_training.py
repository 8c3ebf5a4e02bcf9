"""Training forwards and their gradients against the public PyTorch BAGEL: packed samples, walked segment by segment.

The original computes a pack as one sequence under one mask.  Here every segment is read upon the context of those before
it; that the walk sees what the mask allows is checked, too.  The table of what is compared where stands in
test_bagel_reference.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny, verbs
from tests.bagel_reference import channels_first, channels_last, final_norms, image_rows
from unigrpo_jax.models.bagel import latents
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.building.patches import patchify


@dataclasses.dataclass
class Walk:
    """What a forward over a pack gives, in the pack's order of rows.

    Attributes:
      layers: residual stream after every layer, [layers, rows, D].
      final: after the final norms, [rows, D].
      velocity: at the rows of latents, [tokens, C].
      positions: rotary positions, [rows].
      allowed: which row attends to which, [rows, rows].
      ids: rows of both position tables: of latents, of patches.
    """

    layers: jax.Array
    final: jax.Array
    velocity: jax.Array
    positions: np.ndarray
    allowed: np.ndarray
    ids: tuple[np.ndarray, np.ndarray]


def read_velocity(network, hidden):
    """Of `gen`'s stream after its norm."""
    return network.llm2vae(hidden)


def walk(reference, params, d) -> Walk:
    """Segment by segment: text causal; images full; noisy images seen by nobody after them."""
    model, config = reference.model, reference.config
    total = int(d["sample_lens"].sum())
    allowed, positions = np.zeros((total, total), bool), np.zeros(total, int)
    split_is = lambda name, i: f"split_is_{name}" in d.names and bool(d[f"split_is_{name}"][i])
    grids = iter(d["patchified_vae_latent_shapes"] if "patchified_vae_latent_shapes" in d.names else ())
    vit_lengths = iter(d["vit_token_seqlens"] if "vit_token_seqlens" in d.names else ())
    latent_rows = set(d["packed_vae_token_indexes"].tolist()) if "packed_vae_token_indexes" in d.names else set()
    text_ids = dict(zip(d["packed_text_indexes"].tolist(), d["packed_text_ids"].tolist(), strict=True))
    layers, finals, velocities, latent_ids, patch_ids = [], [], [], [], []
    row = token = patch = 0
    ends = set(np.cumsum(d["sample_lens"]).tolist())
    context, seen, rope = model.empty(1), [], 0
    for i, length in enumerate(map(int, d["split_lens"])):
        rows = range(row, row + length)
        allowed[np.ix_(rows, [*seen, *rows])] = True
        noisy, full = split_is("noise", i), split_is("full", i)
        if noisy or full:
            positions[rows] = rope
            assert (text_ids[rows[0]], text_ids[rows[-1]]) == (config.image_start_token, config.image_end_token)
        if (noisy or full) and rows[1] in latent_rows:
            grid = tuple(map(int, next(grids)))
            ids = latents.position_ids(grid, config.max_latent_size)
            x = jnp.asarray(d["latent_noisy"][token : token + len(ids)])[None]
            t = d["timesteps"][token : token + len(ids)][:1]
            assert noisy == bool(t[0] > 0)
            (streams, block), hidden = reference.captured(
                "latent_block", x, jnp.asarray(t), jnp.asarray(ids), context, params=params
            )
            normed = reference.apply(final_norms, *streams, params=params)
            velocities.append(reference.apply(read_velocity, normed[1], params=params)[0])
            order = jnp.array([0, *range(2, length), 1])  # our streams: start, end, then the latents
            joined = lambda pair, order=order: jnp.concatenate(pair, axis=-2)[..., order, :]
            layers.append(joined(hidden)[:, 0])
            finals.append(joined(normed)[0])
            latent_ids.append(ids)
            token += len(ids)
        elif full:
            count = int(next(vit_lengths))
            ids = d["packed_vit_position_ids"][patch : patch + count]
            side = config.vision.max_side
            grid = (int(ids.max()) // side + 1, int((ids % side).max()) + 1)
            ids = latents.position_ids(grid, side)
            patches = jnp.asarray(d["packed_vit_tokens"][patch : patch + count])[None]
            ((und, _), block), hidden = reference.captured(
                "patch_block", patches, jnp.asarray(ids), context, params=params
            )
            layers.append(hidden[0][:, 0])
            finals.append(reference.apply(final_norms, und, None, params=params)[0][0])
            patch_ids.append(ids)
            patch += count
        else:
            tokens = jnp.asarray([[text_ids[r] for r in rows]], jnp.int32)
            args = (tokens, jnp.ones(tokens.shape, bool), context)
            (final, block), hidden = reference.captured("text", *args, params=params)
            layers.append(hidden[0][:, 0])
            finals.append(final[0])
            positions[rows] = rope + np.arange(length)
            allowed[np.ix_(rows, rows)] = np.tril(np.ones((length, length), bool))
        if not noisy:
            context = contexts.extend(context, block)
            seen, rope = [*seen, *rows], rope + (1 if full else length)
        row += length
        if row in ends:
            context, seen, rope = model.empty(1), [], 0
    join = lambda parts: np.concatenate(parts) if parts else np.zeros(0, int)
    return Walk(
        layers=jnp.concatenate(layers, axis=1), final=jnp.concatenate(finals),
        velocity=jnp.concatenate(velocities) if velocities else jnp.zeros((0, config.latent_width)),
        positions=positions, allowed=allowed, ids=(join(latent_ids), join(patch_ids)),
    )  # fmt: skip


def cross_entropy(reference, params, final, d):
    """Logits and unreduced cross-entropy at the rows that have a loss."""
    logits = reference.model.text_logits(params, final[d["ce_loss_indexes"]])
    log_probs = jax.nn.log_softmax(logits)
    return logits, -jnp.take_along_axis(log_probs, jnp.asarray(d["packed_label_ids"])[:, None], axis=1)[:, 0]


def test_text_forward(reference, assert_close):
    with reference.all_of("text_forward") as d:
        static = []  # the walk's numpy parts

        def forward(params):
            out = walk(reference, params, d)
            static.append(out)
            logits, ce = reference.model.text_logits(params, out.final), cross_entropy(reference, params, out.final, d)[1]
            return dict(layers=out.layers, final=out.final), logits, ce

        arrays, logits, ce = tiny.jit(forward)(reference.params)
        out = dataclasses.replace(static[0], **arrays)
        np.testing.assert_array_equal(out.positions, d["packed_position_ids"])
        np.testing.assert_array_equal(out.allowed, d["attention_allowed"])
        assert_close(out.layers, d["layer_hidden"], name="layer_hidden")
        assert_close(out.final, d["final_hidden"], name="final_hidden")
        assert_close(logits, d["logits"], name="logits")
        assert_close(ce, d["ce_per_token"], name="ce_per_token")
        assert_close(ce.mean(), d["ce_mean"], name="ce_mean")
        w = d["ce_loss_weights"]
        assert_close((ce * w).sum() / w.sum(), d["ce_reweighted"], name="ce_reweighted")


def check_noise(reference, d, assert_close):
    """Patches, times and the mixture of data and noise."""
    patch, start = reference.config.latent_patch, 0
    for latent, (h, w) in zip(d["padded_latent"], d["patchified_vae_latent_shapes"], strict=True):
        own = channels_last(latent)[None, : h * patch, : w * patch]  # the padding of the batch is cropped
        rows = slice(start, start + int(h) * int(w))
        assert_close(patchify(own, patch)[0], d["latent_clean"][rows], name="latent_clean")
        start = rows.stop
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-d["timestep_logits"].astype(np.float64)))
    shift = float(d["timestep_shift"])
    times = shift * s / (1 + (shift - 1) * s)
    assert_close(times, d["timesteps"], name="timesteps")
    noisy = (1 - times)[:, None] * d["latent_clean"] + times[:, None] * d["noise"]
    assert_close(noisy, d["latent_noisy"], name="latent_noisy")


def check_training(reference, d, assert_close, gradients) -> Walk:
    """Losses, gradients and the norm of every gradient of one pack."""
    noisy_tokens = np.isin(d["packed_vae_token_indexes"], d["mse_loss_indexes"])
    target = (d["noise"] - d["latent_clean"])[noisy_tokens]
    static = []  # the walk's numpy parts, which do not depend on the parameters

    def losses(params):
        out = walk(reference, params, d)
        static.append(out)
        velocity = out.velocity[noisy_tokens]
        mse = (velocity - target) ** 2
        logits, ce = cross_entropy(reference, params, out.final, d)
        return mse.mean(axis=1).sum() / len(mse) + ce.mean(), (out.layers, out.final, velocity, mse, logits, ce)

    (total, out), grads = tiny.jit(jax.value_and_grad(losses, has_aux=True))(reference.params)
    layers, final, velocity, mse, logits, ce = out
    np.testing.assert_array_equal(static[0].positions, d["packed_position_ids"])
    np.testing.assert_array_equal(static[0].allowed, d["attention_allowed"])
    np.testing.assert_array_equal(static[0].ids[0], d["packed_latent_position_ids"])
    assert_close(final, d["final_hidden"], name="final_hidden")
    assert_close(velocity, d["velocity_pred"], name="velocity_pred")
    assert_close(mse, d["mse"], name="mse")
    assert_close(mse.mean(), d["mse_loss"], name="mse_loss")
    assert_close(logits, d["ce_logits"], name="ce_logits")
    assert_close(ce, d["ce_per_token"], name="ce_per_token")
    assert_close(ce.mean(), d["ce_loss"], name="ce_loss")
    w = d["ce_loss_weights"]
    assert_close((ce * w).sum() / w.sum(), d["ce_loss_reweighted"], name="ce_loss_reweighted")
    assert_close(total, d["total_loss"], name="total_loss")
    if "layer_hidden" in d.names:
        assert_close(layers, d["layer_hidden"], name="layer_hidden")

    stored = reference.stored(grads)
    recorded = [name for name in d.names if name.startswith("grad/")]
    assert len(recorded) >= 8
    for name in recorded:
        assert_close(stored[name.removeprefix("grad/")], d[name], name=name)
    norms = json.loads((reference.folder / gradients).read_text())["norms"]
    tables = {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}  # not trained in the original
    assert len(norms) > 20
    # A key's bias adds the same to all scores of a query where there is no key norm: its gradient is 0, and what was
    # recorded is rounding.
    nothing = 1e-7 * np.linalg.norm(list(norms.values()))
    for name, norm in norms.items():
        if norm < nothing:
            assert name.startswith("vit_model") and name.endswith("k_proj.bias"), name
            assert np.linalg.norm(stored[name]) < nothing, name
        else:
            assert_close(np.linalg.norm(stored[name]), norm, name=f"|grad {name}|")
    for name in set(stored) - set(norms) - tables:
        assert not stored[name].any(), name  # what the original has no gradient for has none here
    return static[0]


def test_train_t2i(reference, assert_close):
    with reference.all_of("train_t2i") as d:
        images = channels_last(d["padded_images"])
        latent = verbs.encode(reference.autoencoder, reference.autoencoder_params, images)
        assert_close(channels_first(latent), d["padded_latent"], name="padded_latent")
        check_noise(reference, d, assert_close)
        check_training(reference, d, assert_close, "train_t2i_gradnorms.json")


def test_train_interleaved(reference, assert_close):
    """Clean images, patches and noisy images in one sample; the gradient reaches the vision encoder, too."""
    with reference.all_of("train_interleaved") as d:
        check_noise(reference, d, assert_close)
        rows = [r for r in range(int(d["sample_lens"].sum()))
                if r in set(d["packed_vit_token_indexes"].tolist())]  # fmt: skip
        assert len(rows) == int(d["vit_token_seqlens"].sum()) == len(d["packed_vit_position_ids"])
        out = check_training(reference, d, assert_close, "train_interleaved_gradnorms.json")
        np.testing.assert_array_equal(out.ids[1], d["packed_vit_position_ids"])


def test_the_order_of_rows_of_an_image_is_the_originals():
    und, gen = np.arange(2.0).reshape(1, 2, 1), 10 + np.arange(3.0).reshape(1, 3, 1)
    assert image_rows((und, gen))[0, :, 0].tolist() == [0, 10, 11, 12, 1]
