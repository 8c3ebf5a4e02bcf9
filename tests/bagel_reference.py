"""The public PyTorch BAGEL on tiny random weights, read from a folder in the published layout, and ways to walk its data."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tests import verbs
from unigrpo_jax.config import ModelConfig
from unigrpo_jax.episode import TokenBlock
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.bagel import Bagel, BagelConfig, weights
from unigrpo_jax.models.bagel.folder import BagelFolder
from unigrpo_jax.models.building import context as contexts
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.schedule import timesteps
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE


def published_folder(fixtures: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The recorded weights as a user would have them: configs, safetensors and a tokenizer with the special tokens' ids."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    raw = json.loads((fixtures / "config.json").read_text())
    folder.mkdir()
    vit = raw["vit_config"]
    (folder / "llm_config.json").write_text(json.dumps(raw["llm_config"]))
    # The release's file counts one layer more than its checkpoint holds.
    (folder / "vit_config.json").write_text(json.dumps(vit | {"num_hidden_layers": vit["num_hidden_layers"] + 1}))
    (folder / "ema.safetensors").symlink_to((fixtures / "model.safetensors").resolve())
    (folder / "ae.safetensors").symlink_to((fixtures / "ae.safetensors").resolve())
    ids = raw["special_token_ids"]
    special = {ids["bos_token_id"]: "<|im_start|>", ids["eos_token_id"]: "<|im_end|>",
               ids["start_of_image"]: "<|vision_start|>", ids["end_of_image"]: "<|vision_end|>"}  # fmt: skip
    words = {special.get(i, f"w{i}"): i for i in range(raw["llm_config"]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


class Recorded:
    """The arrays of a file, and which of them were asked for."""

    def __init__(self, path: pathlib.Path):
        self._arrays = np.load(path)
        self.names, self.seen = list(self._arrays.files), set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.seen.add(name)
        return self._arrays[name]


@functools.cache
def _applied(network, method):
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args, method=method))


@functools.cache
def _captured(network, method):
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args, method=method, mutable="intermediates"))


@dataclasses.dataclass(frozen=True)
class Reference:
    """The recorded system.

    Attributes:
      folder: the recorded arrays.
      loaded: the model as a user loads it.
      params: its parameters.
      autoencoder_params: its autoencoder's.
    """

    folder: pathlib.Path
    loaded: BagelFolder
    params: dict
    autoencoder_params: dict

    @property
    def model(self) -> Bagel:
        return self.loaded.network

    @property
    def config(self) -> BagelConfig:
        return self.loaded.network.config

    @property
    def autoencoder(self) -> ImageAutoencoder:
        return self.loaded.autoencoder

    @contextlib.contextmanager
    def all_of(self, name: str, *unread: str) -> Iterator[Recorded]:
        """The arrays of a file; at the end all must have been read but `unread`, whose reasons stand beside the call."""
        arrays = Recorded(self.folder / f"{name}.npz")
        yield arrays
        assert set(arrays.names) - arrays.seen == set(unread), set(arrays.names) - arrays.seen ^ set(unread)

    def apply(self, method, *args, params=None):
        """A method of the Linen module, or a function of it."""
        return _applied(self.model.network, method)(self.params if params is None else params, *args)

    def captured(self, method, *args, params=None):
        """Outputs of a pass, and the residual stream after every layer, per stream."""
        out, state = _captured(self.model.network, method)(self.params if params is None else params, *args)
        return out, state["intermediates"]["layers"]["hidden"][0]

    def block(self, ids) -> TokenBlock:
        """A text block of one sample: BOS ids EOS."""
        tokens = jnp.asarray([[self.config.bos_token, *map(int, ids), self.config.eos_token]], jnp.int32)
        return TokenBlock(tokens=tokens, valid=jnp.ones(tokens.shape, bool))

    def read(self, *texts, context=None):
        """The context after some text blocks, and the last one's final hidden states."""
        context, hidden = self.model.empty(1) if context is None else context, None
        for ids in texts:
            block = self.block(ids)
            hidden, new = verbs.prefill(self.model, self.params, block.tokens, block.valid, context)
            context = contexts.extend(context, new)
        return context, hidden

    def greedy(self, context, forward_calls, stop=None):
        """Decodes from a fresh BOS with a reserved cache; the tokens read, their logits, and the cache."""
        batch, first = context.valid.shape[0], context.slots
        context = contexts.reserve(context, forward_calls)
        token, inputs, logits = jnp.full(batch, self.config.bos_token), [], []
        for i in range(forward_calls):
            inputs.append(np.asarray(token))
            out, new = verbs.decode_token(self.model, self.params, token, jnp.ones(batch, bool), context)
            context = contexts.write(context, new, first + i)
            token = jnp.argmax(out, axis=-1)
            logits.append(np.asarray(out))
            if stop is not None and int(token[0]) == stop:
                break
        return np.stack(inputs), np.stack(logits), context

    def stored(self, tree: dict) -> dict[str, np.ndarray]:
        """A tree like the parameters (gradients, say) under the file's names."""
        out, flat = {}, flatten(tree)
        for t in weights.name_table(self.config):
            value = np.asarray(flat[t.path])
            for i, name in enumerate(t.names):
                out[name] = t.to_stored(value[i] if t.stacked else value)
        return out


def load_reference(fixtures: pathlib.Path, folder: pathlib.Path) -> Reference:
    """The recorded system, through the published layout.

    No file of the layout holds the autoencoder's scale and shift, which are FLUX's for every released folder; the recorded
    ones stand in the recorded config.
    """
    loaded = load_model(ModelConfig(path=str(published_folder(fixtures, folder))))
    vae = json.loads((fixtures / "config.json").read_text())["vae_config"]
    autoencoder = dataclasses.replace(loaded.autoencoder, scale=vae["scale_factor"], shift=vae["shift_factor"])
    loaded = dataclasses.replace(loaded, autoencoder=autoencoder)
    return Reference(fixtures, loaded, loaded.params(), loaded.autoencoder_params())


def image_rows(streams, axis: int = -2):
    """The original's row order of an image block from our two streams: start, latents, end."""
    und, gen = (np.moveaxis(np.asarray(s), axis, 0) for s in streams)
    return np.moveaxis(np.concatenate([und[:1], gen, und[1:]]), 0, axis)


def image_slots(cache):
    """The same for keys or values [layers, slots, ...] of a latent block, whose slots are start, end, latents."""
    cache = np.asarray(cache)
    return np.concatenate([cache[:, :1], cache[:, 2:], cache[:, 1:2]], axis=1)


def final_norms(network, und, gen):
    """Both streams after their final norms."""
    return network.norm_und(und), None if gen is None else network.norm_gen(gen)


def channels_last(images) -> jax.Array:
    """[..., C, H, W] to [..., H, W, C]."""
    return jnp.moveaxis(jnp.asarray(images), -3, -1)


def channels_first(images) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(np.asarray(images), -1, -3)


def euler(reference, context, others, guidance, x, grid, shift, points):
    """States and guided velocities of every step, and the end, step by step; `denoise` must reach the same end."""
    model, params, states, velocities, times = reference.model, reference.params, [], [], timesteps(points - 1, shift)

    def velocity(x, t):
        v, *rest = (verbs.predict(model, params, x, t[None], grid, c) for c in (context, *others))
        return jnp.where(guidance.acts(t), guidance.apply(v, *rest), v) if guidance.active else v

    start = x
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        states.append(x[0])
        velocities.append(velocity(x, jnp.float32(t))[0])
        x = x + velocities[-1][None] * (t_next - t)
    schedule = tuple(timesteps(len(times) - 1, shift).tolist())
    sampler = FlowSampler(schedule=schedule, rule=ODE(), grid=grid, guidance=guidance)
    end, _ = verbs.denoise(model, params, context, start, None, jnp.zeros(0, jnp.int32), sampler, others)
    np.testing.assert_allclose(end, x, atol=2e-5 * float(jnp.max(jnp.abs(x))))
    return np.stack(states), np.stack(velocities), end[0]
