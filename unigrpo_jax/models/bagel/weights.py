"""BAGEL's tensors and our parameter tree: one table of names, read in both directions."""

from collections.abc import Callable, Iterator

import numpy as np

from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.building import lora
from unigrpo_jax.models.building.second_time import NAME
from unigrpo_jax.models.folders import named
from unigrpo_jax.models.folders.named import TABLE, Place, Tensor
from unigrpo_jax.models.folders.stored import StoredTensors, faults
from unigrpo_jax.models.tree import flatten, unflatten

# (ours, theirs, input axes of ours) as in `named.Tensor`; {e} is "" or "_moe_gen".
_LAYER = (
    ("input_norm/scale", "input_layernorm{e}.weight", 0),
    ("post_norm/scale", "post_attention_layernorm{e}.weight", 0),
    ("q_norm/scale", "self_attn.q_norm{e}.weight", 0),
    ("k_norm/scale", "self_attn.k_norm{e}.weight", 0),
    ("q_proj/kernel", "self_attn.q_proj{e}.weight", 1),
    ("q_proj/bias", "self_attn.q_proj{e}.bias", 0),
    ("k_proj/kernel", "self_attn.k_proj{e}.weight", 1),
    ("k_proj/bias", "self_attn.k_proj{e}.bias", 0),
    ("v_proj/kernel", "self_attn.v_proj{e}.weight", 1),
    ("v_proj/bias", "self_attn.v_proj{e}.bias", 0),
    ("o_proj/kernel", "self_attn.o_proj{e}.weight", 2),
    ("gate_proj/kernel", "mlp{e}.gate_proj.weight", 1),
    ("up_proj/kernel", "mlp{e}.up_proj.weight", 1),
    ("down_proj/kernel", "mlp{e}.down_proj.weight", 1),
)
_TOP = (
    ("embed/embedding", "language_model.model.embed_tokens.weight", TABLE),
    ("lm_head/kernel", "language_model.lm_head.weight", 1),
    ("norm_und/scale", "language_model.model.norm.weight", 0),
    ("norm_gen/scale", "language_model.model.norm_moe_gen.weight", 0),
    ("time_embedder/fc1/kernel", "time_embedder.mlp.0.weight", 1),
    ("time_embedder/fc1/bias", "time_embedder.mlp.0.bias", 0),
    ("time_embedder/fc2/kernel", "time_embedder.mlp.2.weight", 1),
    ("time_embedder/fc2/bias", "time_embedder.mlp.2.bias", 0),
    ("vae2llm/kernel", "vae2llm.weight", 1),
    ("vae2llm/bias", "vae2llm.bias", 0),
    ("llm2vae/kernel", "llm2vae.weight", 1),
    ("llm2vae/bias", "llm2vae.bias", 0),
    ("latent_pos_embed", "latent_pos_embed.pos_embed", TABLE),
)
_SECOND_TIME = tuple((f"{NAME}/fc{fc}/{kind}", f"{NAME}.mlp.{place}.{end}", inputs) for fc, place in ((1, 0), (2, 2))
                     for kind, end, inputs in (("kernel", "weight", 1), ("bias", "bias", 0)))  # fmt: skip
_VISION = "vit_model.vision_model."
_VISION_TOP = (
    ("vision/patch_embed/kernel", f"{_VISION}embeddings.patch_embedding.weight", 1),
    ("vision/patch_embed/bias", f"{_VISION}embeddings.patch_embedding.bias", 0),
    ("vision/position_embedding", f"{_VISION}embeddings.position_embedding.weight", TABLE),
    ("vision/post_norm/scale", f"{_VISION}post_layernorm.weight", 0),
    ("vision/post_norm/bias", f"{_VISION}post_layernorm.bias", 0),
    ("connector/fc1/kernel", "connector.fc1.weight", 1),
    ("connector/fc1/bias", "connector.fc1.bias", 0),
    ("connector/fc2/kernel", "connector.fc2.weight", 1),
    ("connector/fc2/bias", "connector.fc2.bias", 0),
    ("vit_pos_embed", "vit_pos_embed.pos_embed", TABLE),
)
_VISION_LAYER = (
    ("norm1/scale", "layer_norm1.weight", 0),
    ("norm1/bias", "layer_norm1.bias", 0),
    ("norm2/scale", "layer_norm2.weight", 0),
    ("norm2/bias", "layer_norm2.bias", 0),
    ("q_proj/kernel", "self_attn.q_proj.weight", 1),
    ("q_proj/bias", "self_attn.q_proj.bias", 0),
    ("k_proj/kernel", "self_attn.k_proj.weight", 1),
    ("k_proj/bias", "self_attn.k_proj.bias", 0),
    ("v_proj/kernel", "self_attn.v_proj.weight", 1),
    ("v_proj/bias", "self_attn.v_proj.bias", 0),
    ("out_proj/kernel", "self_attn.out_proj.weight", 2),
    ("out_proj/bias", "self_attn.out_proj.bias", 0),
    ("fc1/kernel", "mlp.fc1.weight", 1),
    ("fc1/bias", "mlp.fc1.bias", 0),
    ("fc2/kernel", "mlp.fc2.weight", 1),
    ("fc2/bias", "mlp.fc2.bias", 0),
)
# Tables with fixed values; trainers drop them from checkpoints, and they are computed where they are missing.
FIXED_TABLES = ("latent_pos_embed", "vit_pos_embed")
# Tensors that a checkpoint may hold and nothing here reads: buffers that follow from the config, and SigLIP's pooling head,
# which BAGEL does not run.
IGNORED = r".*\.rotary_emb\.inv_freq|.*\.position_ids|vit_model\.vision_model\.head\..*"


def name_table(config: BagelConfig) -> Iterator[Tensor]:
    """Every parameter of the network with its names in BAGEL's checkpoint."""
    blocks = [("layers/und/", "language_model.model.layers.", "", _LAYER, config.layers),
              ("layers/gen/", "language_model.model.layers.", "_moe_gen", _LAYER, config.layers)]  # fmt: skip
    if config.vision is not None:
        blocks.append(("vision/layers/", f"{_VISION}encoder.layers.", "", _VISION_LAYER, config.vision.layers))
    second, vision = _SECOND_TIME if config.second_time else (), _VISION_TOP if config.vision is not None else ()
    for path, name, inputs in _TOP + second + vision:
        yield Tensor(path, (name,), inputs, False)
    for prefix, layers, suffix, rows, count in blocks:
        for path, name, inputs in rows:
            names = tuple(f"{layers}{i}.{name.format(e=suffix)}" for i in range(count))
            yield Tensor(prefix + path, names, inputs, True)


def check(stored: StoredTensors, config: BagelConfig, shapes: dict) -> None:
    """ValueError that names every tensor which is missing, unknown, misshaped or of an unknown dtype."""
    flat, wanted, optional = flatten(shapes), {}, []
    for t in name_table(config):
        wanted |= dict.fromkeys(t.names, t.stored_shape(flat[t.path].shape))
        optional += t.names if t.path in FIXED_TABLES else ()
    if found := faults(stored, wanted, optional, IGNORED):
        student = ", nor student.json" if config.second_time else ""
        raise ValueError(
            f"{stored.path} does not fit its llm_config.json and vit_config.json{student}: {'; '.join(found)}."
        )


def load_params(
    stored: StoredTensors,
    config: BagelConfig,
    shapes: dict,
    tables: Callable[[str], np.ndarray],
    place: Place | None = None,
    wanted: Callable[[str], bool] = lambda path: True,
) -> dict:
    """Reads a checkpoint into our parameter tree, one parameter at a time.

    The host holds this process's shards of one parameter and one stored tensor beside what lies on the devices.

    Args:
      stored: the file, with BAGEL's names; call `check` first.
      config: the sizes that the file has.
      shapes: the tree of our parameters' shapes and dtypes (`jax.eval_shape` of `init`).
      tables: the values of a fixed table, by path, where the file has none.
      place: our path and shape to the sharding that a parameter is born with; None is the default device.
      wanted: which paths are read; others are left out of the tree.

    Raises:
      ValueError: a tensor cannot be read.
    """
    table = (t for t in name_table(config) if wanted(t.path))
    read = lambda t, name: stored.read(name) if name in stored.names() else tables(t.path)
    return unflatten(named.read(table, flatten(shapes), read, place))


def stored_shapes(config: BagelConfig, shapes: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that `stored_tensors` gives, in its order."""
    flat = flatten(shapes)
    return {name: t.stored_shape(flat[t.path].shape) for t in name_table(config) for name in t.names}


def stored_tensors(config: BagelConfig, params: dict, lora_scale: float = 1.0) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the checkpoint under BAGEL's name, fetched from the devices one layer at a time.

    Where a kernel has an adapter, lora_scale * A B is added to it, in float32.
    """
    flat = flatten(params)
    for t in name_table(config):
        place = t.path.removesuffix("/kernel")
        adapter = [flat[f"{place}/{name}"] for name in lora.NAMES] if f"{place}/{lora.NAMES[0]}" in flat else None
        for i, name in enumerate(t.names):
            value = np.asarray(flat[t.path][i] if t.stacked else flat[t.path])
            if adapter is not None:
                a, b = (np.asarray(x[i], np.float32) for x in adapter)
                value = value.astype(np.float32) + np.float32(lora_scale) * np.tensordot(a, b, 1)
            yield name, t.to_stored(value)
