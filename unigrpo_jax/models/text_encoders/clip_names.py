"""How transformers names CLIP's tensors, and how they are laid out here: what is common to whole models and text towers."""

import dataclasses
from collections.abc import Iterator, Mapping

from unigrpo_jax.models.folders.named import TABLE, Tensor
from unigrpo_jax.models.text_encoders.clip import TowerConfig

Names = tuple[tuple[str, str, int, str], ...]

# (ours, theirs, input axes of ours as in `named.Tensor`, axes): D width, H heads, K head dim, F between the MLP's layers,
# V vocabulary, L tokens.
LAYER: Names = (
    ("norm1/scale", "layer_norm1.weight", 0, "D"),
    ("norm1/bias", "layer_norm1.bias", 0, "D"),
    ("q_proj/kernel", "self_attn.q_proj.weight", 1, "DHK"),
    ("q_proj/bias", "self_attn.q_proj.bias", 0, "HK"),
    ("k_proj/kernel", "self_attn.k_proj.weight", 1, "DHK"),
    ("k_proj/bias", "self_attn.k_proj.bias", 0, "HK"),
    ("v_proj/kernel", "self_attn.v_proj.weight", 1, "DHK"),
    ("v_proj/bias", "self_attn.v_proj.bias", 0, "HK"),
    ("out_proj/kernel", "self_attn.out_proj.weight", 2, "HKD"),
    ("out_proj/bias", "self_attn.out_proj.bias", 0, "D"),
    ("norm2/scale", "layer_norm2.weight", 0, "D"),
    ("norm2/bias", "layer_norm2.bias", 0, "D"),
    ("fc1/kernel", "mlp.fc1.weight", 1, "DF"),
    ("fc1/bias", "mlp.fc1.bias", 0, "F"),
    ("fc2/kernel", "mlp.fc2.weight", 1, "FD"),
    ("fc2/bias", "mlp.fc2.bias", 0, "D"),
)
# Of a text tower, beside its layers.
TEXT: Names = (
    ("text/token_embedding", "text_model.embeddings.token_embedding.weight", TABLE, "VD"),
    ("text/position_embedding", "text_model.embeddings.position_embedding.weight", TABLE, "LD"),
    ("text/final_norm/scale", "text_model.final_layer_norm.weight", 0, "D"),
    ("text/final_norm/bias", "text_model.final_layer_norm.bias", 0, "D"),
)
IGNORED = r".*\.position_ids"  # buffers that older files hold


@dataclasses.dataclass(frozen=True)
class Row:
    """A parameter of this size: its names, its shape, and the names of its axes."""

    tensor: Tensor
    shape: tuple[int, ...]
    axes: str


def tower_rows(name: str, tower: TowerConfig, top: Names, space: Mapping[str, int]) -> Iterator[Row]:
    """Every parameter of a tower.

    Args:
      name: "text" or "vision".
      tower: its sizes.
      top: the names beside those of the layers.
      space: sizes of the axes that the tower does not know.
    """
    sizes = {**space, "D": tower.width, "H": tower.heads, "K": tower.width // tower.heads, "F": tower.mlp}
    shape = lambda axes: tuple(sizes[axis] for axis in axes)
    for path, theirs, inputs, axes in top:
        yield Row(Tensor(path, (theirs,), inputs, False), shape(axes), axes)
    for path, theirs, inputs, axes in LAYER:
        names = tuple(f"{name}_model.encoder.layers.{i}.{theirs}" for i in range(tower.layers))
        yield Row(Tensor(f"{name}/layers/{path}", names, inputs, True), (tower.layers, *shape(axes)), "-" + axes)
