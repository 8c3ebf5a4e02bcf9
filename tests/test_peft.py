"""Files of adapters: each layer under the names of peft and of diffusers, read back, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from unigrpo_jax.models.building import flat_adapters
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders import peft
from unigrpo_jax.models.stable_diffusion.unet import UNet

FLUX = FluxTransformer(channels=4, double=2, single=3, heads=2, axes=(2, 4, 2), text_width=6, pooled_width=5, guidance=True)
UNET = UNet(channels=4, widths=(8, 16), attends=(True, False), blocks=1, heads=2, text_width=6, groups=4)
NETWORKS = {
    "transformer": (FLUX, ("single_transformer_blocks.attn.to_q", "context_embedder")),
    "unet": (UNET, ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "time_embedding.linear_1")),
}


@pytest.fixture(params=NETWORKS)
def part(request):
    return request.param


def random(part, rank=3):
    """Parameters with adapters of the modules in `NETWORKS`."""
    network, modules = NETWORKS[part]
    rng, out = np.random.default_rng(0), {"proj_out.bias": np.zeros(4, np.float32)}
    for module in modules:
        *layers, width_out, width = flat_adapters.linears(network)[module]
        out[f"{module}.lora_A.weight"] = rng.standard_normal((*layers, rank, width), np.float32)
        out[f"{module}.lora_B.weight"] = rng.standard_normal((*layers, width_out, rank), np.float32)
    return out


def write(folder, part, **settings):
    peft.write(folder, part, NETWORKS[part][0], random(part), 6.0)
    if settings:
        data = json.loads((folder / "adapter_config.json").read_text()) | settings
        (folder / "adapter_config.json").write_text(json.dumps(data))


def only(folder, stem):
    for path in folder.iterdir():
        if path.name != f"{stem}.safetensors" and (stem == "pytorch_lora_weights" or path.name != "adapter_config.json"):
            path.unlink()


@pytest.mark.parametrize("stem", ["adapter_model", "pytorch_lora_weights"])
def test_what_is_written_is_read_back(tmp_path, part, stem):
    write(tmp_path, part)
    only(tmp_path, stem)
    found, wanted = peft.open_adapters(tmp_path, part, NETWORKS[part][0]), random(part)
    assert (found.rank, found.alpha) == (3, 6.0)
    params = found.params()
    assert params.keys() == wanted.keys() - {"proj_out.bias"}
    for name, x in params.items():
        np.testing.assert_array_equal(x, wanted[name])


def test_layers_stand_by_themselves_under_each_programs_names(tmp_path):
    write(tmp_path, "transformer")
    wanted = random("transformer")
    modules = {"context_embedder": wanted["context_embedder.lora_B.weight"]}
    stacked = wanted["single_transformer_blocks.attn.to_q.lora_B.weight"]
    modules |= {f"single_transformer_blocks.{layer}.attn.to_q": stacked[layer] for layer in range(3)}
    for stem, prefix in (("adapter_model", "base_model.model"), ("pytorch_lora_weights", "transformer")):
        found = load_file(tmp_path / f"{stem}.safetensors")
        assert len(found) == 2 * len(modules)
        for module, b in modules.items():
            np.testing.assert_array_equal(found[f"{prefix}.{module}.lora_B.weight"], b)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["target_modules"] == sorted(modules)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", framework="numpy") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said == {"transformer.r": 3, "transformer.lora_alpha": 6.0, "transformer.target_modules": sorted(modules)}


def test_a_file_of_diffusers_that_says_no_alpha_means_the_rank(tmp_path):
    write(tmp_path, "unet")
    path = tmp_path / "pytorch_lora_weights.safetensors"
    only(tmp_path, path.stem)
    save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in load_file(path).items()}, path)
    found = peft.open_adapters(tmp_path, "unet", UNET)
    assert (found.rank, found.alpha) == (3, 3.0)
    assert all(x.dtype == ml_dtypes.bfloat16 for x in found.params().values())


def renamed(old, new):
    return lambda arrays: {name.replace(old, new): x for name, x in arrays.items()}


@pytest.mark.parametrize(
    "settings, spoil, words",
    [
        ({"peft_type": "LOHA"}, None, "peft_type = 'LOHA', but this network knows only 'LORA'"),
        ({"use_dora": True}, None, "use_dora = True"),
        ({"use_rslora": True}, None, "use_rslora = True"),
        ({"rank_pattern": {"x": 2}}, None, "rank_pattern"),
        ({"modules_to_save": ["proj_out"]}, None, "modules_to_save"),
        ({"r": 4}, None, "at rank 4: base_model.model.context_embedder.lora_A.weight has shape [3, 6]"),
        ({"lora_alpha": 0}, None, "lora_alpha = 0"),
        ({}, renamed("lora_", "lokr_"), "adapts nothing of this network: it holds base_model.model.context_embedder.lokr_A"),
        ({}, renamed("context_embedder", "context_refiner"), "unknown base_model.model.context_refiner.lora_A.weight"),
        ({}, renamed("blocks.2", "blocks.3"), "missing base_model.model.single_transformer_blocks.2.attn.to_q.lora_A"),
        ({}, lambda arrays: arrays | {"text_encoder.x.lora_A.weight": np.zeros(3)}, "unknown text_encoder.x"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, settings, spoil, words):
    write(tmp_path, "transformer", **settings)
    path = tmp_path / "adapter_model.safetensors"
    if spoil:
        save_file(spoil(load_file(path)), path)
    with pytest.raises(ValueError) as error:
        peft.open_adapters(tmp_path, "transformer", FLUX)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_adapters_and_a_damaged_header_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no adapters; a folder of adapters holds adapter_config.json and"):
        peft.open_adapters(tmp_path, "unet", UNET)
    assert not peft.is_here(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert peft.is_here(tmp_path)
    with pytest.raises(ValueError, match="holds adapter_config.json, but no adapter_model.safetensors beside it; copy it"):
        peft.open_adapters(tmp_path, "unet", UNET)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    for text, words in (("{", "holds no settings"), ("[]", "holds no mapping of settings")):
        save_file({"unet.x.lora_A.weight": np.zeros(1, np.float32)}, path, metadata={"lora_adapter_metadata": text})
        with pytest.raises(ValueError, match=words):
            peft.open_adapters(tmp_path, "unet", UNET)


def test_adapters_of_one_network_are_none_of_another(tmp_path):
    write(tmp_path, "transformer")
    only(tmp_path, "pytorch_lora_weights")
    with pytest.raises(ValueError, match=r"it holds transformer.context_embedder.* but no unet.MODULE.lora_A.weight"):
        peft.open_adapters(tmp_path, "unet", UNET)
