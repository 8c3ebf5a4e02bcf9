"""The transformer of LTX-2 by its settings: sizes, places on a mesh, cost, and what is refused."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_flops import counted
from unigrpo_jax.config import MeshConfig, ModelConfig
from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat_adapters import hits, linears
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.ltx2 import family, release
from unigrpo_jax.models.ltx2.axes import AXES
from unigrpo_jax.models.ltx2.branch import Branch
from unigrpo_jax.models.ltx2.config import KNOWN, read_transformer
from unigrpo_jax.models.ltx2.flops import evaluation
from unigrpo_jax.models.ltx2.modulation import said_of
from unigrpo_jax.models.ltx2.transformer import LTX2Transformer, Without
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout

BOTH = ("video", "audio")
SAID = {"rope_type": "split", "timestep_scale_multiplier": 1000, "cross_attn_timestep_scale_multiplier": 1000}
# As LTX-2.3 has them.
NEWER = {"gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
         "use_prompt_embeddings": False, "perturbed_attn": True}  # fmt: skip
SMALL = LTX2Transformer(
    video=Branch(modality="video", channels=5, heads=2, head_dim=6),
    audio=Branch(modality="audio", channels=3, heads=2, head_dim=4),
    layers=3, text_width=7, layout="split", gate_factor=1.0,
)  # fmt: skip
SMALL_NEWER = dataclasses.replace(
    SMALL, text_width=None, perturbed=True,
    **{name: dataclasses.replace(branch, gated=True, times_text=True) for name, branch in SMALL.branches.items()},
)  # fmt: skip


def abstract(network, dtype=jnp.float32):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in network.shapes().items()}


def published(tmp_path, data=None) -> LTX2Transformer:
    (tmp_path / "config.json").write_text(json.dumps(SAID | (data or {})))
    return read_transformer(tmp_path / "config.json")


def test_every_name_and_shape_of_the_published_size(fixtures, tmp_path):
    data = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())
    network = published(tmp_path)
    assert component.wanted(network) == {name: tuple(shape) for name, shape in data["shapes"]["transformer"].items()}
    assert component.count(network) == data["param_count"]["transformer"] == 18_876_174_592
    assert network.cross_times == "other" and not network.perturbed


def test_the_released_model_is_known_by_its_name(fixtures, tmp_path):
    """Every name and shape of its parts, and the recorded times by tokens of a clip; no file is needed for it."""
    shapes = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())["shapes"]
    model = family.known(ModelConfig(path="Lightricks/LTX-2", param_dtype="bfloat16"))
    assert model.network.transformer == published(tmp_path)
    parts = {"transformer": model.network.network, "connectors": release.CONNECTORS, **model.autoencoder.networks}
    for name, network in parts.items():
        found = shapes.pop(name) | shapes.pop(f"{name}/buffers_and_ties", {})
        assert component.wanted(network) == {tensor: tuple(shape) for tensor, shape in found.items()}, name
    assert not shapes and all(x.dtype == "bfloat16" for x in model.stored_params().values())
    decoder = model.autoencoder.video.decoder
    assert (decoder.causal, decoder.edges, model.autoencoder.rate) == (False, "reflect", 24000)
    grid = model.network.grid(512, 768, 121, 24.0)
    assert model.network.latent_shape(grid) == {"video": (6144, 128), "audio": (126, 128)}
    found = np.load(fixtures / "ltx2" / "schedule.npz")
    schedules = [re.fullmatch(r"steps(\d+)_seq(\d+)_sigmas", name) for name in found.files if name.endswith("_sigmas")]
    assert schedules
    for case in schedules:
        times = model.network.times(int(case[1]), 0.0, (1, 1, int(case[2]), *grid[3:]))
        np.testing.assert_allclose(times, found[case[0]], rtol=0, atol=1e-6)
    text = model.codec.shapes(2, 0)
    assert text.states.shape == text.audio.shape == text.empty.audio.shape == (2, 1024, 3840) and text.mask is None
    silent = family.known(ModelConfig(path="Lightricks/LTX-2", sound=False))
    assert silent.network.latent_shape(silent.network.grid(512, 768, 121, 24.0)) == (6144, 128)
    assert list(silent.autoencoder.networks) == ["vae"]
    assert all(family.known(ModelConfig(path=path)) is None for path in ("a/b", "Lightricks/LTX-2.3", None))


def test_every_parameter_has_one_rule_and_every_rule_a_parameter(tmp_path):
    """At the published sizes, of LTX-2 and of what LTX-2.3 has; what a mesh of those sizes cuts divides."""
    hits = {pattern: 0 for pattern, _ in AXES}
    for data in ({}, NEWER):
        network = published(tmp_path, data)
        layout = Layout(meshes.make_mesh(8, MeshConfig(fsdp=4, tensor=2)), AXES)
        for name, shape in network.shapes().items():
            found = [(pattern, axes) for pattern, axes in AXES if re.fullmatch(pattern, name)]
            assert len(found) == 1 and len(found[0][1]) == len(shape), (name, found)
            hits[found[0][0]] += 1
            layout.parameter(name, shape)
        assert network.cuts() == {
            "fsdp": {"width of video": 4096, "width of audio": 2048},
            "sequence": {},
            "tensor": {"heads of video": 32, "heads of audio": 32, "MLP of video": 16384, "MLP of audio": 8192},
        }
    assert [pattern for pattern, count in hits.items() if not count and "lora" not in pattern] == []


def test_adapters_are_for_linear_maps_alone():
    """A block's table has two axes, too, and is none."""
    found = linears(SMALL_NEWER)
    assert not any("table" in name or "norm" in name for name in found)
    assert {f"transformer_blocks.{name}" for name in ("audio_to_video_attn.to_q", "attn1.to_gate_logits")} <= set(found)
    assert hits(SMALL, (r"transformer_blocks\..*_to_.*_attn\.to_[qk]", "proj_out")) == {
        r"transformer_blocks\..*_to_.*_attn\.to_[qk]": 4 * SMALL.layers, "proj_out": 1}  # fmt: skip


def small_call(network, way=PLAIN, dtype=jnp.float32):
    """(function of abstract parameters, those): two samples of 4 video tokens and 5 of sound, texts of 6 tokens."""
    widths = {name: network.text_width or branch.width for name, branch in network.branches.items()}
    x = {"video": jnp.zeros((2, 4, 5), dtype), "audio": jnp.zeros((2, 5, 3), dtype)}
    texts = {name: jnp.zeros((2, 6, width)) for name, width in widths.items()}
    times = dict.fromkeys(BOTH, jnp.ones(2))
    return lambda p: network(p, x, times, texts, (2, 1, 2), 24.0, way=way), abstract(network)


@pytest.mark.parametrize("network", [SMALL, SMALL_NEWER], ids=["2", "2.3"])
def test_an_evaluation_executes_what_the_formula_says(network):
    function, params = small_call(network)
    each = evaluation(network, 4, 5, 6)
    assert counted(function, params) == 2 * (each.layers + each.others) > 0
    matrices = {name: p.shape for name, p in params.items() if name.endswith(".weight") and "norm" not in name}
    assert each.weights == sum(map(math.prod, matrices.values()))


def test_bfloat16_stays_what_it_is_through_the_blocks_and_velocities_are_float32():
    held = []
    way = Computing(hold=lambda x: held.append(x) or x)
    function, params = small_call(SMALL_NEWER, way, jnp.bfloat16)
    out = jax.eval_shape(function, params)
    assert {name: (v.shape, v.dtype) for name, v in out.items()} == {
        "video": ((2, 4, 5), jnp.float32), "audio": ((2, 5, 3), jnp.float32)}  # fmt: skip
    assert {x.dtype for x in held} == {jnp.dtype(jnp.bfloat16)} and {x.shape[0] for x in held} == {2}
    assert {(2, 4, 12), (2, 5, 8)} <= {x.shape for x in held}


# ---- what cannot be done


@pytest.mark.parametrize("changes, words", [
    ({"x": {}}, "latents of nothing cannot be denoised"),
    ({"x": {"smell": jnp.zeros((2, 4, 5))}}, "latents of smell cannot be denoised"),
    ({"grid": (2, 2, 2)}, "the video has 4 tokens, but a grid of 2 x 2 x 2 has 8"),
    ({"times": {"video": jnp.ones((2, 3)), "audio": jnp.ones(2)}}, r"times of video have the shape \(2, 3\); give one for"),
    ({"times": {"video": jnp.ones((2, 4)), "audio": jnp.ones(2)}}, "video has a time for each token, and .*; give sigmas"),
    ({"without": Without(mixing=jnp.ones((3, 2), bool))}, "was not made to go without mixing"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, words):
    given = {"x": {"video": jnp.zeros((2, 4, 5)), "audio": jnp.zeros((2, 5, 3))}, "times": dict.fromkeys(BOTH, jnp.ones(2)),
             "texts": dict.fromkeys(BOTH, jnp.zeros((2, 6, 7))), "grid": (2, 1, 2), "fps": 24.0} | changes  # fmt: skip
    with pytest.raises(ValueError, match=words):
        SMALL({}, **given)


def test_an_unknown_reading_is_refused():
    times = dict.fromkeys(BOTH, jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="'neither'. There are: own, other, gate_of_other"):
        jax.eval_shape(lambda p: said_of(p, "video", times, times, "neither", 1.0, np.float32, PLAIN), abstract(SMALL))


def test_blocks_to_leave_unmixed():
    np.testing.assert_array_equal(SMALL.mixing((0, 2), [True, False]), [[True, False], [False, False], [True, False]])
    for block in (3, -1):
        with pytest.raises(ValueError, match=f"there is no block {block} to leave unmixed; the network has 0 to 2"):
            SMALL.mixing((block,), [True])


@pytest.mark.parametrize("data, words", [
    ({"_class_name": "HunyuanVideoTransformer3DModel"}, "this network knows only 'LTX2VideoTransformer3DModel'"),
    ({"rope_type": None}, "rope_type = None, but it must be said"),
    ({"rope_type": "halves"}, "rope_type = 'halves'"),
    ({"cross_attn_timestep_scale_multiplier": None}, "it must be said"),
    ({"timestep_scale_multiplier": 0}, "it must be a number above 0"),
    ({"patch_size": 2}, "patch_size = 2, but this network knows only 1"),
    ({"qk_norm": "rms_norm"}, "this network knows only 'rms_norm_across_heads'"),
    ({"norm_eps": 1e-5}, "this network knows only 1e-06"),
    ({"ff_bias": False}, "this network knows only True"),
    ({"out_channels": 64}, "this network knows only 128"),
    ({"cross_attention_dim": 2048}, "it must be the branch's width, 32 x 128 = 4096"),
    ({"audio_num_attention_heads": 16, "audio_attention_head_dim": 128}, "it must be num_attention_heads = 32"),
    ({"attention_head_dim": 127, "cross_attention_dim": 4064}, "it must be even"),
    ({"vae_scale_factors": [8, 32]}, "it must be three"),
    ({"cross_attn_mod": True, "use_prompt_adaln_single": False}, "use_prompt_adaln_single = False"),
    ({"use_keyframes_abs_pos_embedding": True}, "this network knows only False"),
])  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path, data, words):
    with pytest.raises(ValueError) as error:
        published(tmp_path, data)
    assert words in str(error.value)


def test_every_setting_of_the_recorded_files_is_known(fixtures):
    for own in ("pipeline", "alt"):
        assert set(json.loads((fixtures / "ltx2" / own / "transformer" / "config.json").read_text())) <= KNOWN
