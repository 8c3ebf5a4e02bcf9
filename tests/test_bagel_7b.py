"""BAGEL-7B-MoT at its real size, without its weights: headers, sizes, and the presets' programs as shapes.

The folder is the published one with files that are one large hole: every header is real, no byte of a tensor is stored.
"""

import dataclasses
import importlib
import json
import math
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.config_checks import check
from unigrpo_jax.episode import TokenBlock
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.objective import Objective
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.bagel.release import AUTOENCODER, BAGEL_7B
from unigrpo_jax.models.bagel.text import SPECIAL_TOKENS
from unigrpo_jax.models.bagel.tiny import save_tokenizer
from unigrpo_jax.models.families import load_model
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.training.given import picture_shapes

D, KV, MLP, VOCABULARY, LAYERS = 3584, 512, 18944, 152064, 28
V, V_MLP, V_LAYERS = 1152, 4304, 26


def network_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the main checkpoint, written down from the published table."""
    out = {
        "language_model.model.embed_tokens.weight": (VOCABULARY, D),
        "language_model.lm_head.weight": (VOCABULARY, D),
        "language_model.model.norm.weight": (D,),
        "language_model.model.norm_moe_gen.weight": (D,),
        "time_embedder.mlp.0.weight": (D, 256),
        "time_embedder.mlp.0.bias": (D,),
        "time_embedder.mlp.2.weight": (D, D),
        "time_embedder.mlp.2.bias": (D,),
        "vae2llm.weight": (D, 64),
        "vae2llm.bias": (D,),
        "llm2vae.weight": (64, D),
        "llm2vae.bias": (64,),
        "latent_pos_embed.pos_embed": (4096, D),
        "vit_pos_embed.pos_embed": (4900, D),
        "connector.fc1.weight": (D, V),
        "connector.fc1.bias": (D,),
        "connector.fc2.weight": (D, D),
        "connector.fc2.bias": (D,),
        "vit_model.vision_model.embeddings.patch_embedding.weight": (V, 588),
        "vit_model.vision_model.embeddings.patch_embedding.bias": (V,),
        "vit_model.vision_model.embeddings.position_embedding.weight": (4900, V),
        "vit_model.vision_model.post_layernorm.weight": (V,),
        "vit_model.vision_model.post_layernorm.bias": (V,),
    }
    for i in range(LAYERS):
        layer = f"language_model.model.layers.{i}."
        for e in ("", "_moe_gen"):
            for name, width in (("q", D), ("k", KV), ("v", KV)):
                out[f"{layer}self_attn.{name}_proj{e}.weight"] = (width, D)
                out[f"{layer}self_attn.{name}_proj{e}.bias"] = (width,)
            out[f"{layer}self_attn.o_proj{e}.weight"] = (D, D)
            out |= {f"{layer}self_attn.{n}_norm{e}.weight": (128,) for n in "qk"}
            out |= {f"{layer}mlp{e}.{n}_proj.weight": (MLP, D) for n in ("gate", "up")}
            out[f"{layer}mlp{e}.down_proj.weight"] = (D, MLP)
            out |= {f"{layer}{n}_layernorm{e}.weight": (D,) for n in ("input", "post_attention")}
    for i in range(V_LAYERS):
        layer = f"vit_model.vision_model.encoder.layers.{i}."
        for n in ("q", "k", "v", "out"):
            out |= {f"{layer}self_attn.{n}_proj.weight": (V, V), f"{layer}self_attn.{n}_proj.bias": (V,)}
        for n in ("layer_norm1", "layer_norm2"):
            out |= {f"{layer}{n}.weight": (V,), f"{layer}{n}.bias": (V,)}
        out |= {f"{layer}mlp.fc1.weight": (V_MLP, V), f"{layer}mlp.fc1.bias": (V_MLP,)}
        out |= {f"{layer}mlp.fc2.weight": (V, V_MLP), f"{layer}mlp.fc2.bias": (V,)}
    return out


def hollow(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: str, size: int) -> None:
    """A safetensors file whose data is a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size * math.prod(shape)]}
        end = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    from unigrpo_jax.models.autoencoders.image import ImageAutoencoder

    folder = tmp_path_factory.mktemp("release") / "BAGEL-7B-MoT"
    folder.mkdir()
    llm = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": MLP, "vocab_size": VOCABULARY, "hidden_act": "silu", "rms_norm_eps": 1e-6,
           "rope_theta": 1000000.0, "max_position_embeddings": 32768, "use_sliding_window": False,
           "tie_word_embeddings": False, "architectures": ["Qwen2ForCausalLM"]}  # fmt: skip
    vit = {"hidden_size": V, "image_size": 980, "intermediate_size": V_MLP, "model_type": "siglip_vision_model",
           "num_attention_heads": 16, "num_hidden_layers": V_LAYERS + 1, "patch_size": 14}  # fmt: skip
    (folder / "llm_config.json").write_text(json.dumps(llm))
    (folder / "vit_config.json").write_text(json.dumps(vit))
    hollow(folder / "ema.safetensors", network_shapes(), "BF16", 2)
    release = ImageAutoencoder(width=128, multipliers=(1, 2, 4, 4), blocks=2, channels=16)
    hollow(folder / "ae.safetensors", release.shapes(), "F32", 4)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(ModelConfig(path=str(folder)))


def test_the_published_folder_is_the_published_model(loaded):
    """1223 and 244 tensors, 14,607,260,128 and 83,819,683 numbers: counted from the original program."""
    loaded.check_weights()
    assert len(loaded.stored.names()) == 1223 and len(loaded.autoencoder.shapes()) == 244
    assert sum(x.size for x in jax.tree.leaves(loaded.stored_params())) == 14_607_260_128
    assert sum(map(math.prod, loaded.autoencoder.shapes().values())) == 83_819_683
    c = loaded.network.config
    assert (c.max_latent_size, c.latent_patch, c.latent_width, c.token_pixels) == (64, 2, 64, 16)
    assert (c.vision.layers, c.vision.table_side, c.vision.max_side, c.head_dim) == (26, 70, 70, 128)
    assert c.grid(1024, 1024) == (64, 64)
    tokens = {name: getattr(BAGEL_7B, name) for name in (*SPECIAL_TOKENS, "pad_token")}  # the toy tokenizer has others
    assert dataclasses.replace(c, **tokens) == BAGEL_7B and loaded.autoencoder == AUTOENCODER
    with pytest.raises(ValueError, match="the largest side is 1024 pixels"):
        c.grid(1040, 1024)


def test_the_autoencoder_has_the_published_tensors(loaded):
    """Some of the table of shapes, written down."""
    shapes = loaded.autoencoder.shapes()
    for name, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3), "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3), "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.conv_out.weight": (32, 512, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3),
        "decoder.up.3.block.2.conv1.weight": (512, 512, 3, 3), "decoder.up.1.block.0.conv1.weight": (256, 512, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.bias": (128,), "decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():  # fmt: skip
        assert shapes[name] == shape, name
    assert "encoder.down.3.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes


@pytest.mark.parametrize("name", ["bagel_7b", "bagel_7b_512", "bagel_edit"])
def test_the_presets_programs_fit_together(loaded, name):
    """Rollout and update of the preset, traced as shapes from prompts to new parameters; nothing is computed."""
    preset = importlib.import_module(f"experiments.presets.{name}")
    config = preset.config()
    with pytest.raises(ConfigError, match="no folder|hub|offline|HF_HUB_OFFLINE"):
        load_model(config.model)  # its path is the hub's name, and tests have no network
    check(config)
    r, learn, network = config.rollout, config.learning, loaded.network
    system = tuple(range(40))
    rollout = training_rollout(r, network, loaded.autoencoder, learn.group_size, system)
    params = loaded.stored_params()
    ae = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in loaded.autoencoder.shapes().items()}
    prompts = (r.prompts_per_iteration, r.prompt_tokens)
    block = TokenBlock(tokens=jax.ShapeDtypeStruct(prompts, np.int32), valid=jax.ShapeDtypeStruct(prompts, bool))
    seen = picture_shapes(r.prompts_per_iteration, network, r) if hasattr(preset, "PICTURES") else None
    episodes = jax.eval_shape(rollout.__call__, params, ae, block, np.int32(0), np.int32(0), np.int32(0), seen)
    assert len(episodes.drawings) == r.rounds and (episodes.picture is None) == (seen is None)
    tokens = (r.image_height // 16) * (r.image_width // 16)
    assert episodes.drawing.x.shape == (768, 3, tokens, 64)
    assert episodes.drawing.image.shape == (768, r.image_height, r.image_width, 3)
    assert episodes.thinking.tokens.shape == (768, r.thinking_tokens)

    policy = Policy(model=network, system=system, tokens=rollout.tokens, flow=rollout.flow)
    update = UpdateProgram(objective=Objective(policy=policy, config=learn), config=learn)
    labels = parameters.groups(params, learn, Bagel.trained_by)
    state = jax.eval_shape(lambda p: new_state(p, learn, Bagel.trained_by), params)
    _, frozen = parameters.split(params, labels)
    advantages = jax.ShapeDtypeStruct((768,), jnp.float32)
    after, metrics = jax.eval_shape(update.__call__, state, frozen, params, episodes, advantages)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert "flow/velocity_mse" in metrics and "text/entropy" in metrics


def test_the_presets_train_both_experts_and_freeze_the_rest(loaded):
    learn = importlib.import_module("experiments.presets.bagel_7b").config().learning
    labels = parameters.groups(loaded.stored_params(), learn, Bagel.trained_by)
    trained = {path for path, group in labels.items() if group != parameters.FROZEN}
    projections = {f"layers/{e}/{n}_proj/kernel" for e in ("und", "gen") for n in ("q", "k", "v", "o", "gate", "up", "down")}
    biases = {f"layers/{e}/{n}_proj/bias" for e in ("und", "gen") for n in "qkv"}
    flow = {f"{n}/{x}" for n in ("vae2llm", "llm2vae", "time_embedder/fc1", "time_embedder/fc2") for x in ("kernel", "bias")}
    assert trained == projections | biases | flow


def test_edits_are_judged_with_the_guidance_of_bagels_own_program():
    """Its notebook edits with text 4, image 2, in the whole interval, renormalised before the image's guidance."""
    found = importlib.import_module("experiments.presets.bagel_edit").config().evaluation
    assert (found.guidance, found.guidance_image, found.guidance_interval) == (4.0, 2.0, (0.0, 1.0))
    assert found.guidance_renorm == "text_channel"
