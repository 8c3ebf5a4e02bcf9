"""Checkpoints in BAGEL's layout: read onto any mesh, written back to the same bits, and refused in one sentence."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from tests.bagel_reference import published_folder
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models.bagel import Bagel, BagelConfig, VisionConfig, latents, layout
from unigrpo_jax.models.bagel.folder import save_model
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.folders.stored import StoredTensors
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.worlds.shapes import tokenizer

TABLES = {"latent_pos_embed": "latent_pos_embed.pos_embed", "vit_pos_embed": "vit_pos_embed.pos_embed"}
VISION = VisionConfig(hidden_size=16, intermediate_size=24, layers=3, heads=2, patch=2, table_side=3, max_side=3)
LAYER = "language_model.model.layers"
SIGLIP = "vit_model.vision_model.encoder.layers"


def bagel(vocabulary: int, vision: VisionConfig | None) -> BagelConfig:
    """Eight layers, so that some parameters are cut along the layers; latent tokens of 12 numbers, which no cut divides."""
    return BagelConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, layers=8, heads=4, kv_heads=2, pad_token=0, bos_token=1,
        eos_token=2, image_start_token=3, image_end_token=4, latent_channels=3, latent_patch=2, max_latent_size=5,
        frequency_size=16, vision=vision,
    )  # fmt: skip


def random_params(config: BagelConfig) -> dict:
    rng, shapes = np.random.default_rng(0), jax.eval_shape(Bagel(config).init, jax.random.key(0))
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)


@dataclasses.dataclass(frozen=True)
class Made:
    """A folder, and the config and parameters that it was made from."""

    folder: pathlib.Path
    config: BagelConfig
    params: dict


@pytest.fixture(scope="module", params=[None, VISION], ids=["draws", "draws and sees"])
def made(request, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("weights") / "model"
    config = bagel(tokenizer.save(folder), request.param)
    params = random_params(config)
    save_model(folder, config, params)
    return Made(folder, config, params)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory) -> Made:
    """Two layers in the decoder and in the vision encoder."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    config = dataclasses.replace(bagel(tokenizer.save(folder), dataclasses.replace(VISION, layers=2)), layers=2)
    params = random_params(config)
    save_model(folder, config, params)
    return Made(folder, config, params)


@pytest.fixture
def whole(two_layers, tmp_path) -> pathlib.Path:
    """Two layers in one file, to break."""
    return shutil.copytree(two_layers.folder, tmp_path / "model")


@pytest.fixture
def sharded(two_layers, tmp_path) -> pathlib.Path:
    """Two layers in shards, to break."""
    folder = shutil.copytree(two_layers.folder, tmp_path / "model", ignore=lambda *_: ["ema.safetensors"])
    save_model(folder, two_layers.config, two_layers.params, shard_bytes=20_000)
    return folder


@pytest.fixture
def published(fixtures, tmp_path) -> pathlib.Path:
    """The recorded weights in the published layout, to break."""
    folder = published_folder(fixtures / "bagel", tmp_path / "published")
    for name in ("ema.safetensors", "ae.safetensors"):
        file = (folder / name).resolve()
        (folder / name).unlink()
        shutil.copyfile(file, folder / name)
    return folder


def load(folder, **settings):
    return load_model(ModelConfig(path=str(folder), **settings))


def refusal(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def assert_same_bits(actual: dict, expected: dict):
    """Two flat dicts or trees of arrays: the same names, dtypes, shapes and bytes."""
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        a, b = np.asarray(actual[name]), np.asarray(x)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


def header(path: pathlib.Path) -> dict:
    """A safetensors header by the format's own words: 8 bytes of length, then JSON."""
    raw = path.read_bytes()
    entries = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    entries.pop("__metadata__", None)
    return entries


def changed(path: pathlib.Path, change) -> None:
    """Rewrites a safetensors file with its tensors changed."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(devices: int):
    """Each parameter in equal parts along its largest axis that divides by the devices; whole everywhere if none does."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("all",))

    def place(path, shape):
        axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
        axis = max(axes, key=lambda axis: shape[axis], default=None)
        return NamedSharding(mesh, PartitionSpec(*("all" if i == axis else None for i in range(len(shape)))))

    return place


def cut_twice(path, shape):
    """Four parts along the first axis that divides by 4 and two along the last one left, so that some parts lie twice."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    first = next((i for i, size in enumerate(shape) if size % 4 == 0), None)
    last = next((i for i in reversed(range(len(shape))) if i != first and shape[i] % 2 == 0), None)
    names = {first: "a", last: "b"}
    return NamedSharding(mesh, PartitionSpec(*(names.get(axis) for axis in range(len(shape)))))


# Reading


def test_a_folder_loads_to_the_parameters_that_it_was_made_from(made):
    loaded = load(made.folder)
    assert loaded.network.config == made.config
    assert_same_bits(loaded.params(), made.params)


def test_a_linear_weight_is_stored_transposed_and_heads_are_split_out_of_it(reference):
    """By hand, from the recorded file, for one projection of each kind."""
    file, layers = load_file(reference.folder / "model.safetensors"), reference.params["layers"]["gen"]
    llm = json.loads((reference.folder / "config.json").read_text())["llm_config"]
    width, heads, size = llm["hidden_size"], llm["num_attention_heads"], llm["head_dim"]
    for i in range(llm["num_hidden_layers"]):
        q, o = (file[f"{LAYER}.{i}.self_attn.{name}_proj_moe_gen.weight"] for name in "qo")
        down, bias = file[f"{LAYER}.{i}.mlp_moe_gen.down_proj.weight"], file[f"{LAYER}.{i}.self_attn.q_proj_moe_gen.bias"]
        kernels = {name: np.asarray(layers[name]["kernel"][i]) for name in ("q_proj", "o_proj", "down_proj")}
        for d, head, k in ((0, 0, 1), (5, heads - 1, size - 1), (width - 1, heads // 2, size // 2 - 1)):
            assert kernels["q_proj"][d, head, k] == q[size * head + k, d]
            assert kernels["o_proj"][head, k, d] == o[d, size * head + k]
        np.testing.assert_array_equal(kernels["down_proj"], down.T)
        np.testing.assert_array_equal(layers["q_proj"]["bias"][i], bias.reshape(heads, size))
    for ours, theirs in (("norm_und", "norm"), ("norm_gen", "norm_moe_gen")):
        np.testing.assert_array_equal(reference.params[ours]["scale"], file[f"language_model.model.{theirs}.weight"])


def test_eight_devices_hold_one_part_each_of_the_same_bits(made):
    loaded = load(made.folder)
    plain, parts = loaded.params(), loaded.params(cut(8))
    assert_same_bits(parts, plain)
    axes = set()
    for path, x in flatten(parts).items():
        assert len(x.addressable_shards) == 8, path
        divides = [axis for axis, size in enumerate(x.shape) if size % 8 == 0]
        if not divides:
            assert all(shard.data.shape == x.shape for shard in x.addressable_shards), path
            axes.add("whole")
            continue
        axis = divides[int(np.argmax([x.shape[a] for a in divides]))]
        pieces = np.split(np.asarray(flatten(plain)[path]), 8, axis)
        for shard, piece in zip(sorted(x.addressable_shards, key=lambda s: s.device.id), pieces, strict=True):
            assert shard.data.shape == piece.shape and np.asarray(shard.data).tobytes() == piece.tobytes(), path
        axes.add(axis)
    assert axes == {0, 1, 2, 3, "whole"}  # layers, inputs, heads or outputs, outputs


def test_a_mesh_of_two_axes_holds_the_same_bits(made):
    parts = load(made.folder).params(cut_twice)
    assert_same_bits(parts, made.params)
    split = parts["layers"]["und"]["up_proj"]["kernel"]
    assert {shard.data.shape for shard in split.addressable_shards} == {(2, 32, 24)}


def test_bfloat16_parameters_are_the_rounded_ones_but_for_the_fixed_tables(made):
    rounded = {path: x if path in TABLES else x.astype(ml_dtypes.bfloat16) for path, x in flatten(made.params).items()}
    for place in (None, cut(8)):
        loaded = flatten(load(made.folder, param_dtype="bfloat16").params(place))
        assert_same_bits(loaded, rounded)


def test_only_the_wanted_parameters_are_read(two_layers, monkeypatch):
    names, read = [], StoredTensors.read
    monkeypatch.setattr(StoredTensors, "read", lambda self, name: names.append(name) or read(self, name))
    got = flatten(load(two_layers.folder).params(wanted=lambda path: path.endswith("gen/q_proj/bias")))
    assert_same_bits(got, {"layers/gen/q_proj/bias": two_layers.params["layers"]["gen"]["q_proj"]["bias"]})
    assert names == [f"{LAYER}.{i}.self_attn.q_proj_moe_gen.bias" for i in range(2)]


def test_the_autoencoder_loads_to_the_stored_bits_on_one_device_and_on_all(reference, fixtures):
    stored = load_file(fixtures / "bagel" / "ae.safetensors")
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())
    assert_same_bits(reference.loaded.autoencoder_params(), stored)
    assert_same_bits(reference.loaded.autoencoder_params(everywhere), stored)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_tables_that_a_checkpoint_lacks_are_computed(published, fixtures, param_dtype):
    """By the recorded tables: a row depends on its place alone, so the recorded table is a corner of the release's."""
    recorded = load_file(fixtures / "bagel" / "model.safetensors")
    config = json.loads((fixtures / "bagel" / "config.json").read_text())
    side, most, width = config["max_latent_size"], layout.RELEASE_SIDE, config["llm_config"]["hidden_size"]
    changed(published / "ema.safetensors", lambda t: [t.pop(name) for name in TABLES.values()])
    loaded = load(published, param_dtype=param_dtype)
    assert loaded.network.config.max_latent_size == most > side
    assert loaded.network.config.vision.max_side == config["vit_max_num_patch_per_side"]
    params = loaded.params(cut(8))
    assert params["latent_pos_embed"].shape == (most * most, width)
    corner = np.asarray(params["latent_pos_embed"]).reshape(most, most, width)[:side, :side].reshape(-1, width)
    assert_same_bits({"latent": corner}, {"latent": recorded["latent_pos_embed.pos_embed"]})
    assert_same_bits({"vit": params["vit_pos_embed"]}, {"vit": recorded["vit_pos_embed.pos_embed"]})
    assert_same_bits({"latent": params["latent_pos_embed"]}, {"latent": latents.position_table(most, width)})


@pytest.mark.parametrize("lost, left", [tuple(TABLES), tuple(reversed(TABLES))])
def test_one_missing_table_leaves_the_other_as_it_is_stored(published, lost, left):
    kept = np.random.default_rng(0).standard_normal(load_file(published / "ema.safetensors")[TABLES[left]].shape, np.float32)
    changed(published / "ema.safetensors", lambda t: (t.pop(TABLES[lost]), t.update({TABLES[left]: kept})))
    assert_same_bits({left: load(published).params()[left]}, {left: kept})


def test_buffers_and_the_pooling_head_are_passed_over(published):
    loaded = load(published)
    plain, config = loaded.params(), loaded.network.config
    unread = {
        f"{LAYER}.0.self_attn.rotary_emb.inv_freq": np.ones(config.head_dim // 2, np.float32),
        "vit_model.vision_model.embeddings.position_ids": np.arange(config.vision.table_side**2),
        "vit_model.vision_model.head.attention.in_proj_weight": np.ones((3, 2), np.float32),
    }
    changed(published / "ema.safetensors", lambda t: t.update(unread))
    assert_same_bits(load(published).params(), plain)


def test_double_and_half_precision_files_load_to_their_values(two_layers, tmp_path):
    folder = shutil.copytree(two_layers.folder, tmp_path / "model")
    changed(folder / "ema.safetensors", lambda t: t.update({name: x.astype(np.float64) for name, x in t.items()}))
    assert_same_bits(load(folder).params(), two_layers.params)
    changed(folder / "ema.safetensors", lambda t: t.update({name: x.astype(np.float16) for name, x in t.items()}))
    halved = {path: x.astype(np.float16).astype(np.float32) for path, x in flatten(two_layers.params).items()}
    assert_same_bits(flatten(load(folder).params()), halved)


# Writing


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("shard_bytes", [2**40, 100_000], ids=["one file", "shards"])
def test_saved_tensors_equal_the_recorded_ones_byte_for_byte(reference, tmp_path, devices, shard_bytes):
    recorded = load_file(reference.folder / "model.safetensors")
    save_model(tmp_path, reference.config, reference.loaded.params(cut(devices)), shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 2**40)
    saved = {}
    for file in files:
        saved |= load_file(file)
    assert_same_bits(saved, recorded)


def test_a_saved_folder_loads_to_the_same_config_and_bits(two_layers, tmp_path):
    tokenizer.save(tmp_path)
    save_model(tmp_path, two_layers.config, load(two_layers.folder).params())
    again = load(tmp_path)
    assert again.network.config == two_layers.config
    assert_same_bits(again.params(), two_layers.params)
    assert again.checksum() == load(two_layers.folder).checksum()


@pytest.mark.parametrize("dtype, word", [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_weights_are_stored_in_the_asked_dtype(two_layers, tmp_path, dtype, word):
    tokenizer.save(tmp_path)
    save_model(tmp_path, two_layers.config, two_layers.params, dtype=dtype)
    assert {entry["dtype"] for entry in header(tmp_path / "ema.safetensors").values()} == {word}
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert_same_bits(load(tmp_path).params(), jax.tree.map(lambda x: x.astype(kind).astype(np.float32), two_layers.params))


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 60_000])
def test_shards_load_to_the_bits_of_the_single_file(two_layers, tmp_path, shard_bytes):
    tokenizer.save(tmp_path)
    save_model(tmp_path, two_layers.config, two_layers.params, shard_bytes=shard_bytes)
    whole = header(two_layers.folder / "ema.safetensors")
    index = json.loads((tmp_path / "ema.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(4 * math.prod(entry["shape"]) for entry in whole.values())
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 1 and files == [f"ema-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file in files:
        inside = header(tmp_path / file)
        assert set(inside) == {name for name, place in index["weight_map"].items() if place == file}
        size = sum(4 * math.prod(entry["shape"]) for entry in inside.values())
        assert size <= shard_bytes or len(inside) == 1
        assert {name: entry["shape"] for name, entry in inside.items()} == {name: whole[name]["shape"] for name in inside}
    loaded = load(tmp_path)
    assert_same_bits(loaded.params(), two_layers.params)
    assert_same_bits(loaded.params(cut(8)), two_layers.params)
    assert not list(tmp_path.glob(".*")), "a half-written file is left behind"


@pytest.mark.parametrize("before, after", [(2**40, 5_000), (5_000, 2**40), (5_000, 8_000)])
def test_the_weights_saved_last_are_the_ones_that_load(two_layers, tmp_path, before, after):
    """In shards over one file, in one file over shards, in shards over other shards."""
    tokenizer.save(tmp_path)
    new = jax.tree.map(lambda x: x + 1, two_layers.params)
    save_model(tmp_path, two_layers.config, two_layers.params, shard_bytes=before)
    save_model(tmp_path, two_layers.config, new, shard_bytes=after)
    assert_same_bits(load(tmp_path).params(), new)


def test_the_trainers_name_of_the_file_is_read_too(two_layers, tmp_path):
    tokenizer.save(tmp_path)
    save_model(tmp_path, two_layers.config, two_layers.params)
    (tmp_path / "ema.safetensors").rename(tmp_path / "model.safetensors")
    assert_same_bits(load(tmp_path).params(), two_layers.params)


# Refusing


def break_everything(tensors: dict) -> None:
    for i in range(2):
        tensors.pop(f"{LAYER}.{i}.mlp.up_proj.weight")
        tensors[f"{LAYER}.{i}.mlp.extra.weight"] = np.zeros(3, np.float32)
        tensors[f"{LAYER}.{i}.self_attn.q_norm_moe_gen.weight"] = np.zeros(9, np.float32)
        tensors[f"{SIGLIP}.{i}.mlp.fc1.bias"] = np.zeros(24, np.int64)
    tensors.pop(f"{LAYER}.1.self_attn.o_proj.weight")
    tensors.pop("language_model.lm_head.weight")
    tensors["adapter"] = np.zeros((2, 2), np.float32)
    tensors["{}{name}"] = np.zeros(2, np.float32)
    tensors[f"{LAYER}.7.input_layernorm.weight"] = np.zeros(32, np.float32)
    tensors["llm2vae.weight"] = np.zeros((32, 12), np.float32)
    tensors["connector.fc1.weight"] = np.zeros((32, 15), np.int32)


FAULTS = [
    "connector.fc1.weight has dtype I32; convert it to one of F32, F16, BF16, F64",
    "connector.fc1.weight has shape [32, 15], the config asks for [32, 16]",
    f"{LAYER}.{{0..1}}.self_attn.q_norm_moe_gen.weight has shape [9], the config asks for [8]",
    "llm2vae.weight has shape [32, 12], the config asks for [12, 32]",
    f"{SIGLIP}.{{0..1}}.mlp.fc1.bias has dtype I64; convert it to one of F32, F16, BF16, F64",
    "missing language_model.lm_head.weight",
    f"missing {LAYER}.{{0..1}}.mlp.up_proj.weight",
    f"missing {LAYER}.1.self_attn.o_proj.weight",
    "unknown adapter",
    f"unknown {LAYER}.7.input_layernorm.weight",
    f"unknown {LAYER}.{{0..1}}.mlp.extra.weight",
    "unknown {}{name}",
]


def test_one_error_lists_every_fault_and_nothing_is_read(whole, monkeypatch):
    path = whole / "ema.safetensors"
    changed(path, break_everything)
    loaded = load(whole)
    monkeypatch.setattr(StoredTensors, "read", lambda self, name: pytest.fail(f"{name} was read"))
    for function in (loaded.check_weights, loaded.params):
        text = refusal(function)
        start = f"{path} does not fit its llm_config.json and vit_config.json: "
        assert text.startswith(start)
        rest = text.removeprefix(start).removesuffix(".")
        for fault in FAULTS:
            assert rest.count(fault) == 1, (fault, text)
            rest = rest.replace(fault, "")
        assert rest == "; " * (len(FAULTS) - 1), rest


def test_layers_that_lack_the_same_tensor_are_ranges(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "model")
    lost = [f"{LAYER}.{i}.mlp.up_proj.weight" for i in (0, 1, 2, 4, 6, 7)]
    changed(folder / "ema.safetensors", lambda t: [t.pop(name) for name in lost])
    assert f": missing {LAYER}.{{0..2,4,6..7}}.mlp.up_proj.weight." in refusal(load(folder).check_weights)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("encoder.mid.attn_1.q.bias"), ["is not a whole autoencoder", "missing encoder.mid.attn_1.q.bias"]),
        (
            lambda t: t.update({"decoder.conv_out.weight": t["decoder.conv_out.weight"][..., :1, :1].copy()}),
            ["decoder.conv_out.weight has shape [3, WIDTH, 1, 1], the config asks for [3, WIDTH, 3, 3]"],
        ),
        (lambda t: t.update({"decoder.conv_out.bias": np.zeros(3, np.int8)}), ["decoder.conv_out.bias has dtype I8"]),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), ["unknown extra"]),
        (
            lambda t: [t.pop("encoder.norm_out.bias"), t.pop("decoder.conv_out.bias")],
            ["missing decoder.conv_out.bias; missing encoder.norm_out.bias"],
        ),
    ],
    ids=["missing", "shape", "dtype", "unknown", "two missing"],
)
def test_an_autoencoder_that_does_not_fit_is_one_sentence(published, change, words):
    path = published / "ae.safetensors"
    width = load_file(path)["encoder.conv_in.weight"].shape[0]
    changed(path, change)
    text = refusal(load(published).check_weights)
    for word in [str(path), *words]:
        assert word.replace("WIDTH", str(width)) in text, text


def test_neither_network_nor_autoencoder_is_read_where_the_autoencoder_does_not_fit(published, monkeypatch):
    changed(published / "ae.safetensors", lambda t: t.pop("decoder.conv_out.bias"))
    loaded = load(published)
    monkeypatch.setattr(StoredTensors, "read", lambda self, name: pytest.fail(f"{name} was read"))
    for function in (loaded.autoencoder_params, loaded.params):
        assert "missing decoder.conv_out.bias" in refusal(function)


def vision_layers(count):
    def damage(folder):
        record = json.loads((folder / "vit_config.json").read_text())
        (folder / "vit_config.json").write_text(json.dumps(record | {"num_hidden_layers": count}))

    return damage


def keep(name, part):
    """Keeps a part of a file, from its start."""

    def damage(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(part * len(raw))])

    return damage


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: save_file({"weight": np.zeros(3, np.float32)}, f / "ae.safetensors"),
         ["ae.safetensors", "does not hold the tensors of a FLUX autoencoder"]),
        (lambda f: shutil.copyfile(f / "ema.safetensors", f / "ae.safetensors"),
         ["ae.safetensors", "does not hold the tensors of a FLUX autoencoder"]),
        (lambda f: (f / "ae.safetensors").unlink(), ["ema.safetensors", "if ae.safetensors is missing, copy it there"]),
        (lambda f: shutil.copyfile(f / "ae.safetensors", f / "ema.safetensors"),
         ["ema.safetensors", "is no BAGEL checkpoint"]),
        (lambda f: (f / "vit_config.json").unlink(),
         ["vit_config.json does not exist", "ema.safetensors holds a vision encoder"]),
        (keep("ema.safetensors", 0), ["ema.safetensors is not a readable safetensors file"]),
        (keep("ema.safetensors", 0.5), ["ema.safetensors is not a readable safetensors file"]),
        (keep("ae.safetensors", 0), ["ae.safetensors is not a readable safetensors file"]),
        (keep("ae.safetensors", 0.5), ["ae.safetensors is not a readable safetensors file"]),
    ],
    ids=["another file as autoencoder", "network as autoencoder", "no autoencoder", "autoencoder as network",
         "no vit_config", "empty", "half", "empty autoencoder", "half an autoencoder"],
)  # fmt: skip
def test_a_file_that_is_missing_or_another_is_one_sentence(published, damage, words):
    damage(published)
    text = refusal(load, published)
    for word in [str(published), *words]:
        assert word in text, text


@pytest.mark.parametrize(
    "file, name",
    [
        ("ema", "vae2llm.weight"),
        ("ema", "time_embedder.mlp.0.weight"),
        ("ema", "latent_pos_embed.pos_embed"),
        ("ema", "vit_pos_embed.pos_embed"),
        ("ae", "encoder.conv_in.weight"),
        ("ae", "decoder.conv_in.weight"),
    ],
)
def test_a_tensor_of_no_numbers_is_one_sentence(published, file, name):
    """The sizes of the network follow from the shapes of these."""
    for axis in range(2):
        changed(published / f"{file}.safetensors", lambda t, axis=axis: t.update({name: t[name].take([], axis)}))
        assert f"{file}.safetensors holds {name} without a number in it" in refusal(load, published)


def test_a_vit_config_with_another_layer_count_is_one_sentence(published):
    """The file counts one layer more than the checkpoint holds."""
    names = load_file(published / "ema.safetensors")
    layers = 1 + max(int(name.split(".")[4]) for name in names if name.startswith(SIGLIP))
    of_one = sum(name.startswith(f"{SIGLIP}.0.") for name in names)
    assert layers > 1
    vision_layers(layers + 2)(published)
    text = refusal(load(published).check_weights)
    assert str(published / "ema.safetensors") in text and text.count("missing ") == of_one and "unknown" not in text
    assert f"missing {SIGLIP}.{layers}.mlp.fc1.bias" in text
    vision_layers(layers)(published)
    text = refusal(load(published).check_weights)
    assert text.count("unknown ") == of_one and "missing" not in text
    assert f"unknown {SIGLIP}.{layers - 1}.mlp.fc1.bias" in text
    vision_layers(1)(published)
    text = refusal(load, published)
    assert str(published / "vit_config.json") in text and "num_hidden_layers 1" in text


INDEX = "ema.safetensors.index.json"


def shards(folder) -> list[pathlib.Path]:
    return sorted(folder.glob("ema-*.safetensors"))


def redirect(file: str):
    """Lets the index place one tensor in another file."""

    def damage(folder):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["llm2vae.weight"] = file
        (folder / INDEX).write_text(json.dumps(index))

    return damage


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: (f / INDEX).write_text("{"), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_bytes(b""), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_bytes(b"\xff\xfe"), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_text("[" * 100_000), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_text("[1]"), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_text('{"metadata": {}}'), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_text('{"weight_map": ["ema"]}'), [INDEX, "is not a safetensors index"]),
        (redirect(7), [INDEX, "is not a safetensors index"]),
        (redirect(None), [INDEX, "is not a safetensors index"]),
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), [INDEX, "is no BAGEL checkpoint"]),
        (redirect("../x.safetensors"), [INDEX, "names a file outside its folder: ../x.safetensors"]),
        (redirect("/etc/passwd"), [INDEX, "names a file outside its folder: /etc/passwd"]),
        (redirect(".."), [INDEX, "names a file outside its folder"]),
        (redirect(""), [INDEX, "names a file outside its folder"]),
        (redirect("a\0b"), ["is not a readable safetensors file"]),
        (redirect("nowhere.safetensors"), ["nowhere.safetensors is not a readable safetensors file"]),
        (redirect("tokenizer.json"), ["tokenizer.json is not a readable safetensors file"]),
        (redirect("ema-00001-of-00002.safetensors"), ["ema-00001-of-00002.safetensors is not a readable safetensors file"]),
        (lambda f: redirect(shards(f)[0].name)(f), [INDEX, "places llm2vae.weight in ema-00001-of", "does not hold it"]),
        (lambda f: shards(f)[1].unlink(), ["ema-00002-of", "is not a readable safetensors file"]),
        (lambda f: keep(shards(f)[1].name, 0)(f), ["ema-00002-of", "is not a readable safetensors file"]),
        (lambda f: keep(shards(f)[1].name, 0.5)(f), ["ema-00002-of", "is not a readable safetensors file"]),
        (lambda f: shutil.copyfile(shards(f)[0], shards(f)[1]), [INDEX, "which does not hold it"]),
    ],
)
def test_shards_that_do_not_fit_their_index_are_one_sentence(sharded, damage, words):
    damage(sharded)
    text = refusal(load, sharded)
    for word in [str(sharded), *words]:
        assert word in text, text


def test_a_shard_that_is_a_link_out_of_its_folder_is_called_a_link(sharded):
    """The index names it rightly."""
    shard = shards(sharded)[0]
    shard.rename(sharded.parent / shard.name)
    shard.symlink_to(sharded.parent / shard.name)
    text = refusal(load, sharded)
    assert f"{shard} is a link out of its folder" in text and "instead of the link" in text and INDEX not in text
    shard.unlink()
    (sharded.parent / shard.name).rename(sharded / "moved")
    shard.symlink_to("moved")
    load(sharded).params()  # a link inside it is none


def test_a_file_that_vanishes_before_it_is_read_is_one_sentence(whole):
    loaded = load(whole)
    (whole / "ema.safetensors").unlink()
    assert f"{whole / 'ema.safetensors'} cannot be read" in refusal(loaded.params)
