"""Prompts as frozen encoders' states of them: the recorded ones, whatever way they come, and nothing left on the devices."""

import contextlib
import gc
import json
import math
import shutil
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unigrpo_jax.config import ConfigError, EmbeddingsConfig, MeshConfig, RolloutConfig
from unigrpo_jax.models.text_encoders import encoder as encoders
from unigrpo_jax.models.text_encoders.codec import PART, EmbeddingCodec, in_turn
from unigrpo_jax.models.text_encoders.encoder import ROWS, Encoders, open_flux, open_stable_diffusion
from unigrpo_jax.parallel.frozen import on_own_devices
from unigrpo_jax.parallel.mesh import make_mesh


class Counted(Encoders):
    """Notes how often the weights are loaded and how many texts are encoded together."""

    loads, calls = 0, ()

    @contextlib.contextmanager
    def on_devices(self, place=None):
        vars(self).update(loads=self.loads + 1)
        with super().on_devices(place) as encode:

            def counted(texts):
                vars(self).update(calls=(*self.calls, len(texts)))
                return encode(texts)

            yield counted


def counted(found, program=None):
    """The encoders, counted; `program` is that of others with the same sizes."""
    own = Counted(found.parts, found.dtype)
    if program is not None:
        vars(own)["_program"] = program
    return own


@pytest.fixture(scope="module")
def sd(fixtures):
    return open_stable_diffusion(fixtures / "sd" / "pipeline", "float32")


@pytest.fixture(scope="module")
def recorded(fixtures):
    """Prompts and arrays of a family."""

    def read(family):
        prompts = json.loads((fixtures / family / "settings.json").read_text())["prompts"]
        return prompts, dict(np.load(fixtures / family / "text.npz"))

    return read


@pytest.fixture(scope="module")
def t5_tokens(recorded):
    """Of each recorded text."""
    return recorded("flux")[1]["t5_input_ids"].shape[1]


@pytest.fixture(scope="module")
def flux(fixtures, t5_tokens):
    return open_flux(fixtures / "flux" / "pipeline", "float32", t5_tokens)


@pytest.fixture
def codec(sd, tmp_path):
    """A codec of Stable Diffusion's encoder with a folder of its own, counted, and what it gave notice of."""

    def make(gigabytes=1.0, **settings):
        kept = EmbeddingsConfig(folder=str(tmp_path / "kept"), gigabytes=gigabytes)
        settings = {"encoders": counted(sd, sd._program)} | settings
        return EmbeddingCodec(kept=kept, **settings)

    return make


def same(left, right):
    leaves = jax.tree.leaves(left), jax.tree.leaves(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(*leaves, strict=True))


def test_stable_diffusion_s_recorded_states_with_those_of_the_empty_prompt(codec, recorded, assert_close):
    prompts, found = recorded("sd")
    text = codec(guided=True).prompts(prompts, 77)
    assert_close(text.states, found["last_hidden_state"])
    assert text.pooled is None and text.empty.pooled is None
    empty = found["last_hidden_state"][prompts.index("")]
    assert_close(text.empty.states, np.broadcast_to(empty, text.states.shape))
    assert codec().prompts(prompts, 77).empty is None


def test_flux_s_recorded_states_and_pooled(flux, tmp_path, recorded, assert_close):
    prompts, found = recorded("flux")
    codec = EmbeddingCodec(encoders=flux, kept=EmbeddingsConfig(folder=str(tmp_path)), notice=lambda words: None)
    text = codec.prompts(prompts, 77)
    assert_close(text.states, found["t5_last_hidden_state"])
    assert_close(text.pooled, found["clip_pooled"])
    sizes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert sizes(text) == sizes(codec.shapes(len(prompts), 77))
    same(codec.prompts(prompts[::-1], 77), jax.tree.map(lambda x: x[::-1], text))


def test_what_comes_from_disk_or_in_other_company_has_the_same_bits(codec):
    first, texts = codec(guided=True), ["a cat", "a dog", "a cat"]
    fresh = first.prompts(texts, 77)
    assert first.encoders.loads == 1 and first.encoders.calls == (3,)  # two texts and the empty one
    same(first.prompts(texts, 77), fresh)
    again = codec(guided=True)
    same(again.prompts(texts, 5), fresh)
    assert again.encoders.loads == 0 and first.encoders.loads == 1
    shutil.rmtree(first._store.folder)
    others = codec().prompts([*(f"{i} birds" for i in range(ROWS + 3)), "a dog"], 77)
    assert (others.states[-1] == fresh.states[1]).all()
    assert first.encoders._program._cache_size() == 1  # compiled once


def test_after_preparing_nothing_is_encoded_and_nothing_of_the_encoder_is_left_on_the_devices(codec):
    one, texts = codec(guided=True), [f"{i} cats" for i in range(2 * ROWS + 5)]
    gc.collect()
    before = len(jax.live_arrays())
    one.prepare(iter(texts * 2))
    assert len(jax.live_arrays()) == before
    assert one.encoders.loads == 1 and sum(one.encoders.calls) == len(texts) + 1 and max(one.encoders.calls) == ROWS
    one.prepare(texts)
    one.prompts(texts[5:9], 77)
    assert one.encoders.loads == 1 and len(jax.live_arrays()) == before


def test_the_weights_leave_the_devices_where_encoding_fails(sd):
    gc.collect()
    before = len(jax.live_arrays())
    with pytest.raises(ZeroDivisionError), sd.on_devices() as encode:
        assert encode is not None  # and is held beyond the end
        assert len(jax.live_arrays()) > before
        raise ZeroDivisionError
    gc.collect()
    assert len(jax.live_arrays()) == before


class Text(str):
    """A text that can be watched."""


def test_many_prompts_are_held_some_at_a_time(codec):
    one, living, most = codec(), weakref.WeakSet(), 0

    def texts():
        nonlocal most
        for i in range(5 * PART):
            text = Text(f"{i % (2 * PART)} cats")
            living.add(text)
            most = max(most, len(living))
            yield text

    watched, said, encode = [], 0, one.encoders.on_devices

    @contextlib.contextmanager
    def watch(place=None):
        with encode(place) as run:

            def held(texts):
                nonlocal said
                found = run(texts)
                watched.extend(weakref.ref(arrays["states"].base) for arrays in found)
                said = max(said, len({id(ref()) for ref in watched if ref() is not None}))
                return found

            yield held

    vars(one.encoders)["on_devices"] = watch
    one.prepare(texts())
    assert most <= 2 * PART + 2 * ROWS and sum(one.encoders.calls) == 2 * PART and said <= 2


def test_a_prompt_whose_file_is_damaged_is_encoded_again(codec):
    first, texts = codec(), ["a cat", "a dog"]
    fresh = first.prompts(texts, 77)
    path = first._store._path("a dog")
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    second = codec()
    same(second.prompts(texts, 77), fresh)
    assert second.encoders.calls == (1,)
    same(codec().prompts(texts, 77), fresh)
    assert first._store.read("a dog") is not None


CHANGES = ["weights", "stored dtype", "config", "tokenizer", "length", "dtype"]


@pytest.mark.parametrize("change", CHANGES)
def test_another_encoder_s_states_are_never_used(fixtures, tmp_path, flux, t5_tokens, change):
    folder, tokens, dtype = tmp_path / "model", t5_tokens, "float32"
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(fixtures / "flux" / "pipeline" / name, folder / name, copy_function=shutil.copyfile)
        (folder / name).chmod(0o755)
    assert open_flux(folder, dtype, tokens).key == flux.key  # wherever the files lie
    weights = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(weights)
    if change == "weights":
        tensors["encoder.final_layer_norm.weight"][0] += 1e-3
        save_file(tensors, weights)
    elif change == "stored dtype":
        save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}, weights)
    elif change == "config":
        path = folder / "text_encoder" / "config.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps(data | {"hidden_act": {"gelu": "quick_gelu"}.get(data["hidden_act"], "gelu")}))
    elif change == "tokenizer":
        path = folder / "tokenizer" / "merges.txt"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    elif change == "length":
        tokens -= 1
    else:
        dtype = "bfloat16"
    changed = open_flux(folder, dtype, tokens)
    assert changed.key != flux.key and changed.key == open_flux(folder, dtype, tokens).key


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_weights_of_other_dtypes_in_shards_give_the_states(fixtures, tmp_path, sd, recorded, assert_close, dtype):
    shutil.copytree(fixtures / "sd" / "pipeline", tmp_path / "sd", copy_function=shutil.copyfile)
    own = tmp_path / "sd" / "text_encoder"
    own.chmod(0o755)
    tensors = {name: x.astype(dtype) for name, x in load_file(own / "model.safetensors").items()}
    (own / "model.safetensors").unlink()
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, own / file)
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    prompts, found = recorded("sd")
    kept = EmbeddingsConfig(folder=str(tmp_path / "kept"))
    other = open_stable_diffusion(tmp_path / "sd", "float32")
    text = EmbeddingCodec(encoders=counted(other), kept=kept, notice=lambda words: None).prompts(prompts, 77)
    assert_close(text.states, found["last_hidden_state"], limit=0.05)


def test_bfloat16_states_are_kept_as_such_and_are_near(fixtures, tmp_path, recorded, t5_tokens, assert_close):
    prompts, found = recorded("flux")
    short = open_flux(fixtures / "flux" / "pipeline", "bfloat16", t5_tokens)
    codec = EmbeddingCodec(encoders=short, kept=EmbeddingsConfig(folder=str(tmp_path)), notice=lambda words: None)
    text = codec.prompts(prompts, 77)
    assert text.states.dtype == text.pooled.dtype == ml_dtypes.bfloat16
    # Of 18 encoders with random weights, of 2 to 4 layers, the farthest is away by 0.064: T5 does not scale its scores.
    assert_close(text.states, found["t5_last_hidden_state"], limit=0.1)
    assert_close(text.pooled, found["clip_pooled"], limit=0.01)
    same(codec.prompts(prompts, 77), text)


def test_an_encoder_over_a_mesh_is_cut_and_says_the_same(flux, tmp_path, recorded, assert_close):
    prompts, found = recorded("flux")
    place = on_own_devices(make_mesh(4, MeshConfig(data=2, fsdp=2)))
    for name, x in flux.parts[0].read(place).items():
        divides = x.ndim > 1 and any(size % 4 == 0 for size in x.shape)
        assert x.size // x.addressable_shards[0].data.size == (4 if divides else 1), name
    codec = EmbeddingCodec(encoders=flux, kept=EmbeddingsConfig(folder=str(tmp_path)), place=place,
                           notice=lambda words: None)  # fmt: skip
    text = codec.prompts(prompts, 77)
    assert_close(text.states, found["t5_last_hidden_state"])
    assert_close(text.pooled, found["clip_pooled"])


def test_processes_that_share_a_folder_begin_at_different_texts_and_skip_what_others_have_done(codec):
    texts = [f"{i} cats" for i in range(4 * ROWS - 1)]
    orders = [[batch[0] for batch in in_turn(texts, process, 2)] for process in range(2)]
    starts = [texts[row * ROWS] for row in range(4)]
    assert orders == [starts, starts[2:] + starts[:2]] and in_turn([], 1, 2) == []
    assert sorted(text for batch in in_turn(texts, 7, 9) for text in batch) == sorted(texts)
    slow, fast = codec(), codec()
    encode = slow.encoders.on_devices

    @contextlib.contextmanager
    def overtaken(place=None):
        fast.prepare(texts[ROWS:])
        with encode(place) as run:
            yield run

    vars(slow.encoders)["on_devices"] = overtaken
    slow.prepare(texts)
    assert slow.encoders.calls == (ROWS,) and sum(fast.encoders.calls) == 3 * ROWS - 1


def test_more_than_the_limit_is_not_kept_and_is_said_with_what_would_do(codec, recorded):
    said, texts = [], [f"{i} cats" for i in range(3 * ROWS)]
    size = 32 + recorded("sd")[1]["last_hidden_state"][0].nbytes
    small = codec(gigabytes=1.5 * ROWS * size / 1e9, notice=said.append)
    small.prepare(texts)
    assert small.encoders.calls == (ROWS,) and len(said) == 1 and "\n" not in said[0]
    assert f"{3 * ROWS} prompts" in said[0] and "model.embeddings.gigabytes" in said[0] and "Use 1 " in said[0]
    text = small.prompts(texts, 77)  # more than can be kept: all there, and the limit stands
    assert text.states.shape[0] == 3 * ROWS and small.encoders.loads == 2
    assert sum(path.stat().st_size for path in small._store.folder.iterdir()) <= 1.5 * ROWS * size
    same(text, codec().prompts(texts, 77))


def test_a_disk_that_cannot_be_written_stops_preparing_but_no_run(codec):
    said = []
    one = codec(notice=said.append)
    one._store.folder.write_text("not a folder")
    with pytest.raises(ConfigError) as error:
        one.prepare(["a cat"])
    assert "model.embeddings.folder" in str(error.value)
    assert one.prompts(["a cat"], 77).states.shape[0] == 1 and one.prompts(["a dog"], 77).states.shape[0] == 1
    assert len(said) == 1 and "cannot be written" in said[0]


def test_a_prompt_that_is_cut_is_said_once_of_each_encoder(flux, recorded):
    said, found = [], recorded("flux")[1]
    t5_tokens, clip_tokens = (found[f"{which}_input_ids"].shape[1] for which in ("t5", "clip"))
    long = "the cat " * max(t5_tokens, clip_tokens)
    codec = EmbeddingCodec(encoders=flux, kept=EmbeddingsConfig(), notice=said.append)
    codec.check_lengths(["a", ""], 1)
    assert said == []
    for _ in range(2):
        codec.check_lengths(["", long, "a"], 1, lambda row: f"line {row}")
    t5, clip = said
    assert "(line 1)" in t5 and f"T5 reads the first {t5_tokens}," in t5 and f"CLIP reads the first {clip_tokens}," in clip
    assert long[:60] in t5


def test_what_a_codec_of_embeddings_has_no_part_in(codec, recorded):
    one, tokens = codec(), recorded("sd")[1]["input_ids"].shape[1]
    assert one.system(RolloutConfig()) == () and one.thoughts(None, 2) == ["", ""] and one.bucket(["a"] * 3) == tokens


def test_words_that_an_encoder_does_not_know_are_named(flux):
    codec = EmbeddingCodec(encoders=flux, kept=EmbeddingsConfig())
    assert codec.unknown_words(["the RED cat", "the 猫 cat", "</s> the"]) == ["猫"]


def test_names_of_tokens_in_a_prompt_are_its_letters(flux, t5_tokens):
    """T5's tokenizer knows <extra_id_3>, whose id lies beyond the tiny encoder's embeddings, and </s>, which ends a text."""
    coder = flux.parts[0].coder
    (named,), end = coder.tokenizer.encode("<extra_id_3>", add_special_tokens=False), coder.tokenizer.eos_token_id
    ids = coder(["a <extra_id_3> cat", "a </s> cat"])[0]
    assert ids.max() < coder.vocabulary <= named and (ids == end).sum(axis=1).tolist() == [1, 1]
    assert ids.shape == (2, t5_tokens)


@pytest.mark.parametrize(
    "lost, words",
    [
        ("text_encoder/config.json", "such a model holds text_encoder, text_encoder_2, tokenizer and tokenizer_2"),
        ("text_encoder_2/model.safetensors", "there is neither model.safetensors nor its index in"),
        ("text_encoder/model.safetensors", "there is neither model.safetensors nor its index in"),
        ("tokenizer_2/tokenizer.json", "holds no tokenizer"),
        ("tokenizer/vocab.json", "holds no tokenizer"),
    ],
)
def test_a_file_that_is_missing_is_a_sentence(fixtures, tmp_path, lost, words):
    folder = tmp_path / "flux"
    shutil.copytree(fixtures / "flux" / "pipeline", folder, copy_function=shutil.copyfile)
    (folder / lost).parent.chmod(0o755)
    (folder / lost).unlink()
    with pytest.raises(ConfigError) as error:
        open_flux(folder, "float32", 14)
    assert words in str(error.value) and "\n" not in str(error.value)


ALL = -1  # that the encoder has places for


@pytest.mark.parametrize(
    "longest, tokens", [(5, 5), (None, ALL), (1e30, ALL), (1000, ALL), (2, 0), (2.5, 0), ("10", 0), ([9], 0), (math.inf, 0)]
)
def test_clip_s_rows_are_as_long_as_the_tokenizer_says(fixtures, tmp_path, longest, tokens):
    folder, data = tmp_path / "sd", json.loads((fixtures / "sd" / "pipeline" / "text_encoder" / "config.json").read_text())
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(fixtures / "sd" / "pipeline" / name, folder / name, copy_function=shutil.copyfile)
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": longest}))
    if tokens:
        found = open_stable_diffusion(folder, "float32")
        tokens = data["max_position_embeddings"] if tokens == ALL else tokens
        assert found.shapes()["states"].shape == (tokens, data["hidden_size"])
        assert found.parts[0].coder(["a cat"])[0].shape == (1, tokens)
        return
    with pytest.raises(ConfigError) as error:
        open_stable_diffusion(folder, "float32")
    assert "model_max_length" in str(error.value) and "\n" not in str(error.value)


def test_a_call_takes_a_row_for_each_device():
    over = lambda count: on_own_devices(make_mesh(count, MeshConfig(data=1, fsdp=count)))("x", (4, 4))
    assert [encoders.rows_per_call(over(count)) for count in (1, 3, 8)] == [16, 18, 16]
    assert [encoders.rows_per_call(over(count), 4) for count in (1, 3, 8)] == [4, 6, 8]
