"""Gemma 3 as LTX-2's text encoder: recorded states, both kinds of layers by hand, its files, ids, and what follows it."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unigrpo_jax.config import ConfigError, EmbeddingsConfig, MeshConfig
from unigrpo_jax.models.folders import component, toys
from unigrpo_jax.models.folders.rope_settings import Rope
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.encoder import Encoders, open_gemma
from unigrpo_jax.models.text_encoders.gemma import PREFIXES, Gemma, open_gemma_weights
from unigrpo_jax.models.text_encoders.projected import Projected
from unigrpo_jax.parallel.frozen import on_own_devices
from unigrpo_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def recorded(fixtures):
    """The folder, its prompts and their length, and what the public pipeline said of them."""
    own = fixtures / "ltx2"
    settings = json.loads((own / "settings.json").read_text())
    return types.SimpleNamespace(
        folder=own / "pipeline",
        tokens=settings["text_len"],
        prompts=settings["prompts"],
        said=dict(np.load(own / "text.npz")),
    )


@pytest.fixture(scope="module")
def gemma(recorded):
    return open_gemma(recorded.folder, "float32", recorded.tokens)


@pytest.fixture(scope="module")
def run(gemma):
    """ids and mask to the states [B, L, D, layers + 1]."""
    params, jitted = gemma.read(None), jax.jit(gemma.network.__call__)
    with jax.default_matmul_precision("highest"):
        yield lambda ids, mask: np.asarray(jitted(params, ids, mask))


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy of the recorded folder that may be changed."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(recorded.folder / name, tmp_path / name, copy_function=shutil.copyfile)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def refusal(read) -> str:
    with pytest.raises((ValueError, ConfigError)) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the network


def test_recorded_states_of_the_embedding_after_every_layer_and_after_the_norm(run, recorded, assert_close):
    said = recorded.said
    states, kept = run(said["input_ids"], said["attention_mask"]), said["attention_mask"] != 0
    assert states.shape == said["hidden_states"].shape and np.isfinite(states).all()
    for layer in range(states.shape[-1]):
        assert_close(states[kept, :, layer], said["hidden_states"][kept, :, layer], name=f"after {layer} layers")


def test_padding_on_either_side_and_what_stands_in_it_change_no_state_of_a_token(run, recorded, assert_close):
    ids, mask = recorded.said["input_ids"], recorded.said["attention_mask"]
    assert (np.diff(mask) >= 0).all() and not mask.all()
    states, other = run(ids, mask), run(np.where(mask != 0, ids, 7), mask)
    kept = mask.sum(axis=1)
    right = run(*(np.stack([np.roll(row, count) for row, count in zip(x, kept, strict=True)]) for x in (ids, mask)))
    for row, count in enumerate(kept):
        assert (other[row, -count:] == states[row, -count:]).all()
        assert_close(right[row, :count], states[row, -count:], name="padded on the right")


def test_bfloat16_states_are_near(gemma, recorded):
    """PyTorch's own in bfloat16 are as far: with six layers the last by 0.014 of its length, its largest number by 0.031.

    Of 15 encoders with random weights, of 4 to 8 layers, the farthest is away by 0.0195.
    """
    said, kept = recorded.said, recorded.said["attention_mask"] != 0
    params = component.read(gemma.weights, gemma.network, jnp.bfloat16)
    found = jax.jit(gemma.network.__call__)(params, said["input_ids"], said["attention_mask"])
    assert found.dtype == jnp.bfloat16
    for layer in range(found.shape[-1]):
        exact = said["hidden_states"][kept, :, layer]
        away = np.linalg.norm(np.asarray(found, np.float32)[kept, :, layer] - exact)
        assert away < 0.03 * np.linalg.norm(exact), f"after {layer} layers"


# Sizes that nothing binds to each other; one layer of each kind, texts four times as long as the window.
SMALL = Gemma(vocabulary=11, width=10, heads=6, kv_heads=3, head_dim=4, mlp=9, full=(False, True), window=3, scale=0.8,
              rope=Rope(100.0, 3.0), near_rope=Rope(7.0, 1.0), norm_eps=1e-2, prefix="")  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """Parameters of `SMALL`, and its jitted pass."""
    rng, jitted = np.random.default_rng(0), jax.jit(SMALL.__call__)
    params = {name: 0.5 * rng.standard_normal(shape, np.float32) for name, shape in SMALL.shapes().items()}
    with jax.default_matmul_precision("highest"):
        yield params, lambda ids, mask: np.asarray(jitted(params, ids, mask))


def by_hand(params, ids, seen):
    """States [L, D, layers + 1] of one text, float64, token by token and head by head."""
    params = {name: np.asarray(x, np.float64) for name, x in params.items()}
    norm = lambda x, weight: x / np.sqrt((x**2).mean(-1, keepdims=True) + SMALL.norm_eps) * (1 + weight)
    gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    half, x = SMALL.head_dim // 2, params["embed_tokens.weight"][ids] * math.sqrt(SMALL.width)
    before = [x]
    for layer, full in enumerate(SMALL.full):
        own = lambda name, layer=layer: params[f"layers.{name}.weight"][layer]
        rope = SMALL.rope if full else SMALL.near_rope
        turn = np.exp(1j * np.arange(len(ids))[:, None, None] / rope.factor * rope.theta ** (-np.arange(half) / half))

        def heads(h, which, own=own, turn=turn):
            x = (h @ own(f"self_attn.{which}_proj").T).reshape(len(ids), -1, SMALL.head_dim)
            if which == "v":
                return x
            x = norm(x, own(f"self_attn.{which}_norm"))
            x = (x[..., :half] + 1j * x[..., half:]) * turn
            return np.concatenate([x.real, x.imag], axis=-1)

        h = norm(x, own("input_layernorm"))
        q, k, v = (heads(h, which) for which in "qkv")
        mixed = np.zeros(q.shape)
        for token in range(len(ids)):
            keys = [key for key in range(token + 1) if seen[key] and (full or token - key < SMALL.window)]
            for head in range(SMALL.heads if keys else 0):
                shared = head // (SMALL.heads // SMALL.kv_heads)
                weights = np.exp(k[keys, shared] @ q[token, head] * SMALL.scale)
                mixed[token, head] = weights @ v[keys, shared] / weights.sum()
        x = x + norm(mixed.reshape(len(ids), -1) @ own("self_attn.o_proj").T, own("post_attention_layernorm"))
        h = norm(x, own("pre_feedforward_layernorm"))
        wide = (gelu(h @ own("mlp.gate_proj").T) * (h @ own("mlp.up_proj").T)) @ own("mlp.down_proj").T
        x = x + norm(wide, own("post_feedforward_layernorm"))
        before.append(x)
    return np.stack([*before[:-1], norm(x, params["norm.weight"])], axis=-1)


def test_sizes_that_nothing_binds_to_each_other_agree_with_the_formulas_by_hand(small, assert_close):
    params, states = small
    ids, mask = np.random.default_rng(1).integers(0, 11, (2, 12)), np.ones((2, 12), int)
    mask[1, :4] = 0
    found = states(ids, mask)
    for row in range(2):
        kept = mask[row] != 0
        assert_close(found[row, kept], by_hand(params, ids[row], mask[row])[kept], name=f"row {row}")


def test_a_token_reaches_as_far_as_the_window_in_one_kind_of_layer_and_to_the_end_in_the_other(small):
    _, states = small
    ids = np.random.default_rng(2).integers(0, 10, (2, 12))
    other, mask = ids.copy(), np.ones((2, 12), int)
    other[:, 4] = 10
    moved = (states(ids, mask) != states(other, mask)).any(axis=2)  # [B, L, layers + 1]
    expected = np.array([np.arange(12) == 4, (np.arange(12) >= 4) & (np.arange(12) < 4 + SMALL.window), np.arange(12) >= 4])
    assert (moved == expected.T).all()


# ---- weights


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("whole", [True, False], ids=["with eyes", "alone"])
def test_weights_are_read_under_the_prefixes_of_both_versions(gemma, copy, prefix, whole):
    path = copy / "text_encoder" / "model.safetensors"
    stored = load_file(path)
    tensors = {name.replace(PREFIXES[0], prefix, 1): x for name, x in stored.items() if name.startswith(PREFIXES[0])}
    if whole:
        outer = "model." if prefix == PREFIXES[1] else ""
        tensors |= {f"{outer}{name}": x for name, x in stored.items() if not name.startswith(PREFIXES[0])}
        inner = "language_model." if prefix == PREFIXES[0] else ""
        tensors[f"{inner}lm_head.weight"] = np.ones((2, 2), np.float32)
    save_file(tensors, path)
    found = open_gemma(copy, "float32", 8)
    assert found.network == dataclasses.replace(gemma.network, prefix=prefix)
    assert found.unread == (("lm_head", "multi_modal_projector", "vision_tower") if whole else ())
    read = [component.read(own.weights, own.network, np.float32) for own in (found, gemma)]
    assert all((a == b).all() for a, b in zip(*(own.values() for own in read), strict=True))
    assert set(read[0]) == {name.replace(PREFIXES[0], prefix, 1) for name in read[1]}


def test_the_recorded_file_s_eyes_are_said_to_be_unread(gemma):
    assert gemma.unread == ("multi_modal_projector", "vision_tower")


def test_tensors_that_are_missing_unknown_or_misshaped_are_named(gemma, copy):
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    norm = f"{PREFIXES[0]}layers.{len(gemma.network.full) - 1}.self_attn.q_norm.weight"
    tensors[norm] = np.ones(3, np.float32)
    tensors[f"{PREFIXES[0]}layers.0.self_attn.q_proj.bias"] = np.ones(3, np.float32)
    del tensors[f"{PREFIXES[0]}layers.0.mlp.up_proj.weight"]
    save_file(tensors, path)
    words = refusal(lambda: open_gemma(copy, "float32", 8))
    assert "missing language_model.model.layers.0.mlp.up_proj.weight" in words
    assert "unknown language_model.model.layers.0.self_attn.q_proj.bias" in words
    assert f"{norm} has shape [3], the config asks for [{gemma.network.head_dim}]" in words
    save_file({f"other.{name}": x for name, x in tensors.items()}, path)
    words = refusal(lambda: open_gemma_weights(path.parent, gemma.network))
    assert "missing language_model.model.embed_tokens.weight" in words


# ---- ids


def test_recorded_ids(gemma, recorded):
    ids, mask = gemma.coder(recorded.prompts)
    np.testing.assert_array_equal(ids, recorded.said["input_ids"])
    np.testing.assert_array_equal(mask, recorded.said["attention_mask"])


TEXTS = ["", " ", "\n", "the cat", "  the   cat  ", "\n\n the\ncat\t\n", "a\r\nb\u00a0c\u2003", "\U0001f600", "x" * 40,
         "the cat " * 9, "the \U0001f468\u200d\U0001f469 cat", "caf\u00e9 cafe\u0301", "\u732b \u202e \u05d0",
         "\u2581the \u2581", "cat's re-read #12, {} <b> %s", "<unk> <mask>", "<start_of_turn>user",
         "\ufeff\x00\x7f"]  # fmt: skip


def assert_public_ids(folder: pathlib.Path, tokens: int):
    """The public pipeline strips a prompt, pads before it and cuts behind, to a length of its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    public = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    public.padding_side = "left"
    found = public([text.strip() for text in TEXTS], padding="max_length", max_length=tokens, truncation=True)
    coder = open_gemma(folder, "float32", tokens).coder
    ids, mask = coder(TEXTS)
    np.testing.assert_array_equal(ids, found["input_ids"])
    np.testing.assert_array_equal(mask, found["attention_mask"])
    assert (ids[np.arange(len(ids)), mask.argmax(axis=1)] == public.bos_token_id).all()
    assert coder.lengths(TEXTS) == [len(public(text.strip())["input_ids"]) for text in TEXTS]


@pytest.mark.parametrize("tokens", [3, 16, 40])
def test_ids_are_those_of_transformers_class_asked_as_the_public_pipeline_asks(recorded, tokens):
    assert_public_ids(recorded.folder, tokens)


def test_control_tokens_that_a_prompt_names_are_its_letters(gemma):
    coder, said = gemma.coder, "a<bos>b<eos>"
    ids, mask = coder([said])
    letters = [coder.tokenizer.convert_tokens_to_ids(letter) for letter in said]
    row = [coder.tokenizer.bos_token_id, *letters][: coder.tokens]
    assert ids[0, mask[0] != 0].tolist() == row and mask[0, -1] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_side": "right", "truncation_side": "left", "model_max_length": 5},
        {"tokenizer_class": "GemmaTokenizerFast", "add_bos_token": True, "add_eos_token": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1000000000000000019884624838656},
    ],
    ids=str,
)
def test_the_class_the_sides_and_the_length_that_a_tokenizer_s_config_names_change_no_id(copy, recorded, settings):
    path = copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    ids, mask = open_gemma(copy, "float32", recorded.tokens).coder(recorded.prompts)
    np.testing.assert_array_equal(ids, recorded.said["input_ids"])
    np.testing.assert_array_equal(mask, recorded.said["attention_mask"])


def test_a_tokenizer_that_does_not_fit_is_a_sentence(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"post_processor": None}))
    assert "does not put its bos_token before a text" in refusal(lambda: open_gemma(copy, "float32", 8))
    path.write_text(json.dumps(data))
    own = copy / "text_encoder" / "config.json"
    config = json.loads(own.read_text())
    fewer = config["text_config"]["vocab_size"] = max(data["model"]["vocab"].values())
    own.write_text(json.dumps(config))
    weights = copy / "text_encoder" / "model.safetensors"
    name = f"{PREFIXES[0]}embed_tokens.weight"
    tensors = load_file(weights)
    save_file(tensors | {name: np.ascontiguousarray(tensors[name][:fewer])}, weights)
    assert f"but config.json says vocab_size = {fewer}" in refusal(lambda: open_gemma(copy, "float32", 8))
    path.unlink()
    assert "holds no tokenizer (tokenizer.json)" in refusal(lambda: open_gemma(copy, "float32", 8))
    own.unlink()
    assert "such a model holds text_encoder and tokenizer" in refusal(lambda: open_gemma(copy, "float32", 8))


# ---- with a projection behind it


@dataclasses.dataclass(frozen=True)
class Sums:
    """Stands for a family's frozen network: linear maps of the sum over all layers, nothing of padding."""

    files: tuple[pathlib.Path, ...]
    tokens: int

    def shapes(self):
        return {name: (self.tokens, x.shape[1]) for name, x in load_file(self.files[0]).items()}

    def read(self, place):
        here = (lambda path, shape: None) if place is None else place
        return {name: jax.device_put(x, here(name, x.shape)) for name, x in load_file(self.files[0]).items()}

    def __call__(self, params, said):
        real = jnp.where(said["mask"][..., None], said["states"].sum(axis=-1), 0)
        return {name: jnp.einsum("blc,cd->bld", real, x) for name, x in params.items()}


@pytest.fixture(scope="module")
def projected(gemma, recorded, tmp_path_factory):
    """Gemma with `Sums` of two widths behind it, and their matrices."""
    path, rng = tmp_path_factory.mktemp("sums") / "model.safetensors", np.random.default_rng(0)
    draw = lambda width: rng.standard_normal((gemma.network.width, width), np.float32)
    maps = {"states": draw(5), "audio": draw(3)}
    save_file(maps, path)
    return Encoders((Projected(gemma, Sums((path,), recorded.tokens)),), "float32", rows=2), maps


def test_only_what_a_projection_says_of_the_states_is_fetched_and_kept(projected, recorded, tmp_path, assert_close):
    encoders, maps = projected
    place = on_own_devices(make_mesh(4, MeshConfig(data=1, fsdp=4)))
    make = lambda: EmbeddingCodec(encoders=encoders, kept=EmbeddingsConfig(folder=str(tmp_path)), guided=True, place=place,
                                  notice=lambda words: None)  # fmt: skip
    gc.collect()
    before = len(jax.live_arrays())
    text, said, count = make().prompts(recorded.prompts, 0), recorded.said, len(recorded.prompts)
    assert len(jax.live_arrays()) == before
    summed = np.where(said["attention_mask"][..., None] != 0, said["hidden_states"].astype(np.float64).sum(axis=-1), 0)
    assert text.pooled is None and text.mask is None
    for found, name in ((text.states, "states"), (text.audio, "audio")):
        assert_close(found, summed @ maps[name], name=name)
        empty = getattr(text.empty, name)
        assert (empty == found[recorded.prompts.index("")]).all() and empty.shape == found.shape
    sizes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    known = KnownTexts(states=(recorded.tokens, 5), audio=3, dtype="float32", guided=True)
    assert sizes(text) == sizes(make().shapes(count, 0)) == sizes(known.shapes(count, 0))
    files = list(tmp_path.rglob("*.states"))
    assert {path.stat().st_size for path in files} == {32 + 4 * recorded.tokens * (5 + 3)} and len(files) == count
    again = make().prompts(recorded.prompts, 0)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), again, text))


def test_another_projection_is_another_encoder_on_disk(projected, gemma, recorded, tmp_path):
    encoders, maps = projected
    path = tmp_path / "model.safetensors"
    save_file({name: x + 1 for name, x in maps.items()}, path)
    other = Encoders((Projected(gemma, Sums((path,), recorded.tokens)),), "float32")
    same = Encoders((Projected(gemma, encoders.parts[0].projection),), "float32")
    assert len({encoders.key, other.key, Encoders((gemma,), "float32").key}) == 3 and encoders.key == same.key


def test_a_prompt_that_is_cut_is_said(projected, recorded):
    said = []
    codec = EmbeddingCodec(encoders=projected[0], kept=EmbeddingsConfig(), notice=said.append)
    codec.check_lengths(["x" * (recorded.tokens - 1), " y " * 2], 1)
    assert said == [] and codec.bucket(["a"]) == recorded.tokens
    codec.check_lengths(["x" * recorded.tokens], 1)
    assert f"has {recorded.tokens + 1} tokens; Gemma reads the first {recorded.tokens}," in said.pop()


# ---- the toy


def test_a_toy_is_opened_as_any_folder_and_is_the_same_wherever_it_is_made(tmp_path):
    for name in ("one", "two"):
        toys.save_gemma(tmp_path / name, "a toy", 0)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert_public_ids(tmp_path / "one", toys.GEMMA_TOKENS)
    toy = open_gemma(tmp_path / "one", "bfloat16", 32)
    ids, mask = toy.coder(["a red circle \u732b"])
    tokens = toy.coder.tokenizer.convert_ids_to_tokens(ids[0])
    assert tokens[mask[0].argmax() :] == ["<bos>", "a", "\u2581red", "\u2581circle", "\u2581", "<0xE7>", "<0x8C>", "<0xAB>"]
    assert toy.shapes() == {"states": (32, toys.WIDTH, 4), "mask": (32,)} and toy.unread == ()
    weights = toy.weights.read(f"{toy.network.prefix}norm.weight")
    assert abs(weights.mean()) < 0.1 and set(toy.network.full) == {True, False}  # a norm adds 1
