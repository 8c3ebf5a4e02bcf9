"""Folders of the painters in diffusers' layout: read, written again, and refused in a sentence."""

import json
import pathlib
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from unigrpo_jax.config import ConfigError, LoraConfig, ModelConfig, RolloutConfig
from unigrpo_jax.models.autoencoders import diffusers as autoencoders
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.families import load_model
from unigrpo_jax.models.flux import family as flux
from unigrpo_jax.models.flux.tiny import make_tiny as make_flux
from unigrpo_jax.models.folders import component, pipelines
from unigrpo_jax.models.hunyuan_video import family as video
from unigrpo_jax.models.hunyuan_video.tiny import make_tiny as make_video
from unigrpo_jax.models.stable_diffusion import family as sd
from unigrpo_jax.models.stable_diffusion.tiny import make_tiny as make_sd
from unigrpo_jax.models.text_encoders.clip_text import read_clip_text
from unigrpo_jax.models.text_encoders.encoder import TIED
from unigrpo_jax.models.text_encoders.t5 import read_t5

FAMILY = {"sd": sd, "flux": flux, "video": video}
MAKE = {"sd": make_sd, "flux": make_flux, "video": make_video}
TARGETS = {"sd": (r".*\.attn2\.to_[qv]", r".*\.ff\.net\.2"),
           "flux": (r"transformer_blocks\.attn\.(to_q|add_v_proj)", r"single_transformer_blocks\.proj_mlp")}  # fmt: skip
TARGETS["video"] = TARGETS["flux"]
HITS = {"sd": (8, 4), "flux": (4, 2), "video": (2, 1)}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """{family: the folder of its toy}."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FAMILY}
    for name, make in MAKE.items():
        make(folders[name])
    return folders


@pytest.fixture(params=FAMILY)
def name(request):
    return request.param


def load(name, folder, **settings):
    return FAMILY[name].load(ModelConfig(path=str(folder), **settings), folder)


def copy(toys, name, tmp_path):
    return pathlib.Path(shutil.copytree(toys[name], tmp_path / name))


def change(path, **settings):
    """Of a JSON file; a value None takes the name away."""
    data = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def weights(folder):
    return {name: x for path in folder.glob("*.safetensors") for name, x in load_file(path).items()}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- reading and writing


def test_a_toy_is_a_whole_folder_of_its_family(toys, name):
    loaded = load(name, toys[name])
    assert [other for other, family in FAMILY.items() if family.is_here(toys[name])] == [name]
    assert loaded.unknown_settings == loaded.unread_files == ()
    assert (loaded.stored_dtype, loaded.family) == ("float32", FAMILY[name].NAME)
    loaded.check_image_size(RolloutConfig(image_height=32, image_width=64))
    text = loaded.codec.shapes(3, 0)
    assert text.states.shape == (3, 256 if name == "video" else 64, 24)
    assert sum(path.stat().st_size for path in toys[name].rglob("*") if path.is_file()) < 1.3e6


def test_a_toy_is_the_same_wherever_it_is_made(toys, name, tmp_path):
    MAKE[name](tmp_path)
    assert files(tmp_path) == files(toys[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_read_is_written_again(toys, name, tmp_path, dtype):
    """All other files byte by byte; the network in shards, which are read again."""
    loaded, out, before = load(name, toys[name]), tmp_path / "out", files(toys[name])
    params = loaded.params()
    written = loaded.export(params, out, dtype, shard_bytes=100_000)
    after, part = files(out), loaded.part
    assert {str(path.relative_to(out)) for path in written} == set(after)
    own = f"{part}/{component.DIFFUSERS}"
    same = {file for file in before if not file.startswith(own)} - {"model_index.json"}
    assert {file for file in after if not file.startswith(own)} - {"model_index.json"} == same
    assert all(after[file] == before[file] for file in same)
    assert json.loads(after["model_index.json"]) == json.loads(before["model_index.json"])
    kept, then = weights(toys[name] / part), weights(out / part)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    assert len(list((out / part).glob("*.safetensors"))) > 2 and kept.keys() == then.keys()
    for tensor, x in kept.items():
        np.testing.assert_array_equal(then[tensor], x.astype(kind))
    again = load(name, out)
    assert again.stored_dtype == dtype
    for tensor, x in again.params(wanted=lambda path: path.endswith("bias")).items():
        np.testing.assert_array_equal(x, params[tensor].astype(kind).astype(np.float32))


def test_adapters_are_folded_in_and_read_back(toys, name, tmp_path):
    """W + alpha / r B A of each layer, in numpy; the adapters by themselves stand in a folder beside."""
    loaded = load(name, toys[name], lora=LoraConfig(rank=2, alpha=3.0, targets=TARGETS[name]))
    assert loaded.adapted_layers() == dict(zip(TARGETS[name], HITS[name], strict=True))
    rng, params = np.random.default_rng(0), dict(loaded.params())
    for path, like in loaded.abstract_params().items():
        if path not in params:
            params[path] = rng.standard_normal(like.shape, np.float32)
    loaded.export(params, tmp_path, "float32")
    before, after = weights(toys[name] / loaded.part), weights(tmp_path / loaded.part)
    network, changed = loaded.network.network, set()
    for path in params:
        module = path.removesuffix(".lora_A.weight")
        if module != path:
            for layer, tensor in enumerate(network.stored_names(f"{module}.weight")):
                a, b = (params[f"{module}.lora_{which}.weight"] for which in "AB")
                a, b = (a, b) if a.ndim == 2 else (a[layer], b[layer])
                np.testing.assert_allclose(after[tensor], before[tensor] + 1.5 * b @ a, rtol=1e-5, atol=1e-6)
                changed.add(tensor)
    assert len(changed) == sum(loaded.adapted_layers().values())
    assert all((after[tensor] == x).all() for tensor, x in before.items() if tensor not in changed)
    assert load(name, tmp_path).adapters is None  # the folder of adapters is no part of the model


@pytest.mark.parametrize("stem", ["adapter_model", "pytorch_lora_weights"])
def test_adapters_beside_a_model_are_read_as_a_part_of_it(toys, name, tmp_path, stem):
    """They are what an export puts beside, for the model that training began with."""
    folder, out = copy(toys, name, tmp_path), tmp_path / "out"
    loaded = load(name, folder, lora=LoraConfig(rank=2, alpha=3.0, targets=TARGETS[name]))
    plain, rng, params = loaded.checksum(), np.random.default_rng(0), dict(loaded.params())
    params |= {path: rng.standard_normal(x.shape, np.float32) for path, x in loaded.abstract_params().items()
               if path not in params}  # fmt: skip
    loaded.export(params, out, "float32")
    for file in ("adapter_config.json", f"{stem}.safetensors"):
        shutil.copyfile(out / pipelines.ADAPTERS / file, folder / file)
    both, folded = load(name, folder), load(name, out).params()
    assert both.unread_files == () and both.checksum() != plain
    for path, x in both.params().items():
        np.testing.assert_allclose(x, folded[path], rtol=1e-6, atol=1e-6)
    both.export(folded, tmp_path / "again", "float32")
    assert set(files(tmp_path / "again")) == set(files(toys[name]))
    (folder / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    (folder / f"{stem}.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="peft_type = 'LOHA', but this network knows only 'LORA'"):
        load(name, folder)


def test_an_autoencoder_with_the_names_of_before_2023_is_read_and_copied(fixtures, tmp_path):
    folder = pathlib.Path(shutil.copytree(fixtures / "sd" / "pipeline", tmp_path / "sd", copy_function=shutil.copyfile))
    new = load("sd", folder).autoencoder_params()
    shutil.copyfile(fixtures / "sd" / "old_names" / "vae" / "diffusion_pytorch_model.safetensors",
                    folder / "vae" / "diffusion_pytorch_model.safetensors")  # fmt: skip
    loaded = load("sd", folder)
    old = loaded.autoencoder_params()
    assert old.keys() == new.keys() and all((old[path] == new[path]).all() for path in old)
    loaded.export(loaded.params(), tmp_path / "out", "float32")
    assert files(folder / "vae") == files(tmp_path / "out" / "vae")


@pytest.mark.parametrize("family, path", [("sd", sd.PUBLISHED[0]), ("sd", sd.PUBLISHED[1]), ("flux", flux.DEV)])
def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path, family, path):
    """Every one is filled, and none is left over; no file is needed for it."""
    data = json.loads((fixtures / family / "param_shapes_full.json").read_text())["shapes"]
    published = {part: {name: tuple(shape) for name, shape in shapes.items()} for part, shapes in data.items()}
    model = FAMILY[family].known(ModelConfig(path=path, param_dtype="bfloat16"))
    assert component.wanted(model.network.network) == published.pop(model.part)
    assert all(x.dtype == "bfloat16" for x in model.stored_params().values())
    assert dict(autoencoders.stored_shapes(model.autoencoder).values()) == published.pop("vae")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(dict(model_type="clip_text_model", hidden_size=768, intermediate_size=3072,
                                      num_attention_heads=12)))  # fmt: skip
    assert read_clip_text(config, "").stored_shapes() == published.pop("text_encoder")
    if family == "flux":
        config.write_text(json.dumps(dict(model_type="t5", feed_forward_proj="gated-gelu", d_model=4096, d_ff=10240, d_kv=64,
                                          num_heads=64, num_layers=24)))  # fmt: skip
        assert component.wanted(read_t5(config, "")) == published.pop("text_encoder_2")
        assert all(map(re.compile(TIED).fullmatch, published.pop("text_encoder_2/buffers_and_ties")))
    assert not published


@pytest.mark.parametrize("path, part", [(video.TEXT_TO_VIDEO, "transformer"), (video.SKYREELS, "transformer_skyreels_i2v")])
def test_every_name_and_shape_of_the_published_videos(fixtures, path, part):
    data = json.loads((fixtures / "hunyuan_video" / "param_shapes_full.json").read_text())["shapes"]
    published = {part: {name: tuple(shape) for name, shape in shapes.items()} for part, shapes in data.items()}
    model = video.known(ModelConfig(path=path, param_dtype="bfloat16"))
    assert component.wanted(model.network.network) == published[part]
    assert component.wanted(model.autoencoder) == published["vae"]
    text = model.codec.shapes(2, 0)
    assert text.states.shape == (2, 256, 4096) and text.mask.shape == (2, 256) and text.pooled.shape == (2, 768)
    assert model.codec.guided == model.network.begins == (path == video.SKYREELS)
    assert model.network.guidance_scale == (1 if path == video.SKYREELS else 6)


def test_a_clip_is_decoded_in_tiles_of_256_pixels_and_16_frames(toys):
    found = load("video", toys["video"]).autoencoder
    assert (found.time_tiles, found.side_tiles) == (Tiles(size=16, stride=12), Tiles(size=256, stride=192))


def test_guidance_that_is_told_is_the_published_one_where_nobody_says_another(toys, tmp_path):
    make_video(tmp_path, from_picture=True)
    scale = lambda name, folder, **settings: load(name, folder, **settings).network.guidance_scale
    assert (scale("flux", toys["flux"]), scale("video", toys["video"]), scale("video", tmp_path)) == (3.5, 6, 1)
    assert scale("video", tmp_path, told_guidance=2.5) == scale("flux", toys["flux"], told_guidance=2.5) == 2.5
    assert load_model(ModelConfig(path=str(toys["sd"]), told_guidance=3.5)).family == "stable_diffusion"  # of a former run


def test_of_published_models_dev_is_told_its_guidance_and_shifts_by_size():
    dev, schnell = (flux.known(ModelConfig(path=path)).network for path in (flux.DEV, flux.SCHNELL))
    assert dev.transformer.guidance and not schnell.transformer.guidance
    assert (dev.shift.of(256), dev.shift.of(4096)) == (pytest.approx(np.exp(0.5)), pytest.approx(np.exp(1.15)))
    assert schnell.shift.of(4096) == 1.0
    assert all(family.known(ModelConfig(path="a/b")) is None for family in FAMILY.values())


def test_parts_that_a_folder_names_and_lacks_are_named_no_more_in_an_export(toys, tmp_path):
    folder = copy(toys, "sd", tmp_path)
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
           feature_extractor=["transformers", "CLIPImageProcessor"])  # fmt: skip
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    for file in ("unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin", "v1-4.ckpt"):
        (folder / file).write_bytes(b"0")
    loaded, out = load("sd", folder), tmp_path / "out"
    assert set(loaded.unread_files) == {"unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin",
                                        "v1-4.ckpt"}  # fmt: skip
    loaded.export(loaded.params(), out, "float32")
    index = json.loads((out / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and index["feature_extractor"][1] == "CLIPImageProcessor"
    assert set(files(out)) == set(files(toys["sd"])) | {"feature_extractor/preprocessor_config.json"}


def test_what_is_fetched_of_a_published_repository(toys):
    shards = [f"{part}-0000{i}-of-00002.safetensors" for i in (1, 2)
              for part in ("transformer/diffusion_pytorch_model", "text_encoder_2/model")]  # fmt: skip
    wanted = [*shards, *(file for file in files(toys["flux"]) if not file.startswith("transformer/diffusion")),
              "transformer/diffusion_pytorch_model.safetensors.index.json", "tokenizer_2/spiece.model"]  # fmt: skip
    others = ["flux1-dev.safetensors", "ae.safetensors", "README.md", "dev_grid.jpg", "vae/diffusion_pytorch_model.bin",
              "transformer/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors",
              "text_encoder/model.fp16.safetensors"]  # fmt: skip
    assert set(filter_repo_objects([*wanted, *others], allow_patterns=list(flux.HUB_FILES))) == set(wanted)


def test_another_weight_of_any_part_is_another_checksum(toys, name, tmp_path):
    folder = copy(toys, name, tmp_path)
    before = load(name, folder).checksum()
    assert before == load(name, toys[name]).checksum()
    save_file({n: x + 1 for n, x in load_file(folder / "text_encoder" / "model.safetensors").items()},
              folder / "text_encoder" / "model.safetensors")  # fmt: skip
    assert load(name, folder).checksum() != before


def test_a_network_is_placed_without_reading_again(toys, name):
    loaded = load(name, toys[name], lora=LoraConfig(rank=2, alpha=3.0, targets=TARGETS[name]))
    placed = loaded.placed(jax.lax.stop_gradient, loaded.network.attend)
    assert placed.network.hold is jax.lax.stop_gradient and placed.stored is loaded.stored
    assert placed.network.lora_scale == 1.5


# ---- what is refused


def spoil_index(**settings):
    return lambda folder: change(folder / "model_index.json", **settings)


def without(*parts):
    return lambda folder: [shutil.rmtree(folder / part) for part in parts]


def renamed(part, to):
    stem = component.DIFFUSERS
    return lambda folder: (folder / part / f"{stem}.safetensors").rename(folder / part / to)


@pytest.mark.parametrize(
    "name, spoil, words",
    [
        ("sd", spoil_index(_class_name="StableDiffusionXLPipeline"), ["'StableDiffusionXLPipeline', which is not built",
                                                                      "FluxPipeline or StableDiffusionPipeline"]),
        ("sd", spoil_index(_class_name=None), ["names no pipeline"]),
        ("video", spoil_index(_class_name="HunyuanVideoImageToVideoPipeline"), ["not built", "HunyuanVideoPipeline"]),
        ("video", spoil_index(_class_name="HunyuanSkyreelsImageToVideoPipeline"), ["is a network from text to video",
                                                                                  "name HunyuanVideoPipeline there"]),
        ("video", spoil_index(text_encoder=["transformers", "LlavaForConditionalGeneration"]), ["only LlamaModel is built"]),
        ("video", lambda folder: change(folder / "vae" / "config.json", latent_channels=8),
         ["out_channels make tokens of 64 numbers", "have 32"]),
        ("video", lambda folder: change(folder / "vae" / "config.json", sample_frames=0), ["sample_frames = 0"]),
        ("video", lambda folder: change(folder / "transformer" / "config.json", text_embed_dim=8),
         ["text_embed_dim = 8", "24 numbers"]),
        ("video", lambda folder: change(folder / "transformer" / "config.json", num_layers=2),
         ["missing transformer_blocks.1.attn.to_q.weight"]),
        ("video", lambda folder: change(folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True),
         ["use_dynamic_shifting = True", "knows only False"]),
        ("sd", lambda folder: (folder / "model_index.json").write_text("{"), ["is not JSON", "download or copy it again"]),
        ("sd", lambda folder: (folder / "model_index.json").write_text("[]"), ["is not a mapping"]),
        ("sd", spoil_index(unet=["diffusers", "UNet3D"]), ["unet is 'UNet3D'", "only UNet2DConditionModel is built"]),
        ("sd", spoil_index(unet=None), ["unet is None"]),
        ("sd", spoil_index(scheduler=["diffusers", "LCMScheduler"]), ["scheduler is 'LCMScheduler'", "DDIMScheduler"]),
        ("flux", spoil_index(text_encoder_2=["transformers", "UMT5EncoderModel"]), ["T5EncoderModel is built"]),
        ("flux", without("tokenizer_2"), ["holds no folder tokenizer_2", "scheduler"]),
        ("flux", without("transformer"), ["holds no folder transformer"]),
        ("sd", lambda folder: (folder / "unet" / "config.json").unlink(), ["config.json cannot be read"]),
        ("sd", renamed("unet", "diffusion_pytorch_model.bin"), ["diffusion_pytorch_model.bin cannot be read", "convert it"]),
        ("sd", renamed("unet", "diffusion_pytorch_model.fp16.safetensors"), ["fp16.safetensors cannot be read"]),
        ("sd", renamed("vae", "../vae.safetensors"), ["neither diffusion_pytorch_model.safetensors nor its index"]),
        ("sd", lambda folder: change(folder / "vae" / "config.json", latent_channels=8),
         ["in_channels = 4, but latents of", "8 channels"]),
        ("flux", lambda folder: change(folder / "transformer" / "config.json", in_channels=16),
         ["in_channels = 16", "have 64 numbers"]),
        ("sd", lambda folder: change(folder / "unet" / "config.json", cross_attention_dim=32),
         ["cross_attention_dim = 32", "24 wide"]),
        ("flux", lambda folder: change(folder / "transformer" / "config.json", pooled_projection_dim=8),
         ["pooled_projection_dim = 8", "24 numbers"]),
        ("flux", lambda folder: change(folder / "transformer" / "config.json", num_layers=4),
         ["missing transformer_blocks.{2..3}.attn.to_q.weight"]),
        ("flux", lambda folder: change(folder / "transformer" / "config.json", num_single_layers=10**6),
         ["num_single_layers = 1000000, but it must be at most 1000"]),
        ("sd", lambda folder: change(folder / "unet" / "config.json", layers_per_block=10**7), ["it must be at most 1000"]),
        ("sd", lambda folder: change(folder / "vae" / "config.json", layers_per_block=10**7), ["it must be at most 1000"]),
        ("sd", lambda folder: change(folder / "vae" / "config.json", block_out_channels=[8] * 1000), ["at most 100"]),
        ("sd", lambda folder: change(folder / "unet" / "config.json", block_out_channels=[15, 32], attention_head_dim=1,
                                     norm_num_groups=1), ["the first must be even"]),
        ("flux", lambda folder: change(folder / "text_encoder_2" / "config.json", num_layers=10**7), ["at most 1000"]),
        ("flux", lambda folder: change(folder / "text_encoder" / "config.json", num_hidden_layers=10**7), ["at most 1000"]),
        ("flux", lambda folder: change(folder / "scheduler" / "scheduler_config.json", shift_terminal=0.02),
         ["shift_terminal = 0.02", "does not have that"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_sentence(toys, tmp_path, name, spoil, words):
    folder = copy(toys, name, tmp_path)
    spoil(folder)
    with pytest.raises(ConfigError) as error:
        load_model(ModelConfig(path=str(folder)))
    text = str(error.value)
    assert all(word in text for word in words) and "\n" not in text and text.endswith("."), text


def test_a_folder_without_an_index_is_of_neither_family(tmp_path):
    assert not sd.is_here(tmp_path) and not flux.is_here(tmp_path)


def test_settings_that_nothing_here_knows_are_listed(toys, tmp_path):
    folder = copy(toys, "sd", tmp_path)
    change(folder / "unet" / "config.json", magic=1)
    change(folder / "scheduler" / "scheduler_config.json", spell=True, charm=2)
    found = load("sd", folder).unknown_settings
    assert found == ("unet/config.json: magic", "scheduler/scheduler_config.json: spell, charm")


def test_what_the_settings_ask_for_in_vain_is_one_sentence(toys, name):
    loaded = load(name, toys[name], lora=LoraConfig(rank=2, targets=("nothing",)))
    with pytest.raises(ConfigError, match=r"model.lora.targets: 'nothing' matches no linear map"):
        loaded.check_weights()
    with pytest.raises(ConfigError, match=r"rollout.image_height, rollout.image_width: .* cannot be drawn"):
        loaded.check_image_size(RolloutConfig(image_height=30, image_width=32))
    words = "a video of 8 frames .* use 9" if name == "video" else "draws images, not clips of 8 frames; use 1"
    with pytest.raises(ConfigError, match=f"rollout.frames: .*{words}.$"):
        loaded.check_image_size(RolloutConfig(image_height=32, image_width=32, frames=8))


def test_an_export_takes_no_file_from_elsewhere(toys, tmp_path):
    folder = copy(toys, "sd", tmp_path)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "vae" / "more.json").symlink_to(tmp_path / "secret.json")
    loaded = load("sd", folder)
    with pytest.raises(ConfigError, match="more.json is a link out of its folder"):
        loaded.export(loaded.params(), tmp_path / "out", "float32")
