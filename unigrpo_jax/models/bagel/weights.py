"""BAGEL's safetensors and our parameter tree: one table of names, read in both directions.

A linear weight is stored [out, in] and used [in, out]; heads are split out of the projections; layers are stacked along
a leading axis for the scan.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from unigrpo_jax.models.bagel.config import BagelConfig

# Names of one decoder layer: (ours inside an expert, theirs with {e} = "" or "_moe_gen", kind).
_LAYER = (
    ("input_norm/scale", "input_layernorm{e}.weight", "vector"),
    ("post_norm/scale", "post_attention_layernorm{e}.weight", "vector"),
    ("q_norm/scale", "self_attn.q_norm{e}.weight", "vector"),
    ("k_norm/scale", "self_attn.k_norm{e}.weight", "vector"),
    ("q_proj/kernel", "self_attn.q_proj{e}.weight", "to_heads"),
    ("q_proj/bias", "self_attn.q_proj{e}.bias", "head_bias"),
    ("k_proj/kernel", "self_attn.k_proj{e}.weight", "to_heads"),
    ("k_proj/bias", "self_attn.k_proj{e}.bias", "head_bias"),
    ("v_proj/kernel", "self_attn.v_proj{e}.weight", "to_heads"),
    ("v_proj/bias", "self_attn.v_proj{e}.bias", "head_bias"),
    ("o_proj/kernel", "self_attn.o_proj{e}.weight", "from_heads"),
    ("gate_proj/kernel", "mlp{e}.gate_proj.weight", "linear"),
    ("up_proj/kernel", "mlp{e}.up_proj.weight", "linear"),
    ("down_proj/kernel", "mlp{e}.down_proj.weight", "linear"),
)
_TOP = (
    ("embed/embedding", "language_model.model.embed_tokens.weight", "vector"),
    ("lm_head/kernel", "language_model.lm_head.weight", "linear"),
    ("norm_und/scale", "language_model.model.norm.weight", "vector"),
    ("norm_gen/scale", "language_model.model.norm_moe_gen.weight", "vector"),
    ("time_embedder/fc1/kernel", "time_embedder.mlp.0.weight", "linear"),
    ("time_embedder/fc1/bias", "time_embedder.mlp.0.bias", "vector"),
    ("time_embedder/fc2/kernel", "time_embedder.mlp.2.weight", "linear"),
    ("time_embedder/fc2/bias", "time_embedder.mlp.2.bias", "vector"),
    ("vae2llm/kernel", "vae2llm.weight", "linear"),
    ("vae2llm/bias", "vae2llm.bias", "vector"),
    ("llm2vae/kernel", "llm2vae.weight", "linear"),
    ("llm2vae/bias", "llm2vae.bias", "vector"),
    ("latent_pos_embed", "latent_pos_embed.pos_embed", "vector"),
)
# Parts of the published checkpoint that this network does not read.
IGNORED_PREFIXES = ("vit_model.", "connector.", "vit_pos_embed.")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our parameters and where it stands in the file.

    Attributes:
      path: our path, joined by "/".
      names: the file's names, one per layer for a stacked parameter, else one.
      kind: how the stored array becomes ours.
      stacked: whether ours has a leading layer axis.
    """

    path: str
    names: tuple[str, ...]
    kind: str
    stacked: bool


def name_table(config: BagelConfig) -> Iterator[Tensor]:
    """Every parameter of the network with its name in BAGEL's checkpoint."""
    for path, name, kind in _TOP:
        yield Tensor(path, (name,), kind, False)
    for expert, suffix in (("und", ""), ("gen", "_moe_gen")):
        for path, name, kind in _LAYER:
            name = name.format(e=suffix)
            names = tuple(f"language_model.model.layers.{i}.{name}" for i in range(config.layers))
            yield Tensor(f"layers/{expert}/{path}", names, kind, True)


def from_stored(array: np.ndarray, kind: str, config: BagelConfig) -> np.ndarray:
    """A stored array in our layout."""
    if kind == "vector":
        return array
    if kind == "head_bias":
        return array.reshape(-1, config.head_dim)
    if kind == "linear":
        return array.T
    if kind == "to_heads":
        return array.T.reshape(array.shape[1], -1, config.head_dim)
    return array.T.reshape(-1, config.head_dim, array.shape[0])  # from_heads


def to_stored(array: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of `from_stored`."""
    if kind == "vector":
        return array
    if kind == "head_bias":
        return array.reshape(-1)
    if kind == "linear":
        return array.T
    if kind == "to_heads":
        return array.reshape(array.shape[0], -1).T
    return array.reshape(-1, array.shape[-1]).T  # from_heads


def put(tree: dict, path: str, value) -> None:
    """Sets tree["a"]["b"] for the path "a/b", making the dicts on the way."""
    *parents, leaf = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


def get(tree: dict, path: str):
    """tree["a"]["b"] for the path "a/b"."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _stored_shape(tensor: Tensor, shape: tuple[int, ...], config: BagelConfig) -> tuple[int, ...]:
    shape = shape[1:] if tensor.stacked else shape
    return to_stored(np.broadcast_to(np.float32(0), shape), tensor.kind).shape


def load_params(path: pathlib.Path, config: BagelConfig, shapes: dict) -> dict:
    """Reads a safetensors file into our parameter tree, as float32 numpy arrays.

    Args:
      path: the file, with BAGEL's names.
      config: the sizes that the file must have.
      shapes: the tree of our parameters' shapes (`jax.eval_shape` of `init`).

    Raises:
      ValueError: one sentence that names the first missing, unknown and misshaped tensors and counts the rest.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            present = set(file.keys())
            table = list(name_table(config))
            wanted = {name: _stored_shape(t, get(shapes, t.path).shape, config) for t in table for name in t.names}
            faults = [f"missing {name}" for name in sorted(wanted.keys() - present)]
            extra = sorted(n for n in present - wanted.keys() if not n.startswith(IGNORED_PREFIXES))
            faults += [f"unknown {name}" for name in extra]
            for name in sorted(wanted.keys() & present):
                found = tuple(file.get_slice(name).get_shape())
                if found != wanted[name]:
                    faults.append(f"{name} has shape {list(found)}, the config asks for {list(wanted[name])}")
            if faults:
                rest = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
                raise ValueError(f"{path} does not fit its config.json: {'; '.join(faults[:4])}{rest}.")
            params: dict = {}
            for t in table:
                parts = [from_stored(file.get_tensor(n).astype(np.float32), t.kind, config) for n in t.names]
                put(params, t.path, np.stack(parts) if t.stacked else np.ascontiguousarray(parts[0]))
            return params
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from None


def save_params(path: pathlib.Path, config: BagelConfig, params: dict) -> None:
    """Writes the parameter tree as one safetensors file with BAGEL's names and shapes, float32."""
    from safetensors.numpy import save_file

    arrays = {}
    for t in name_table(config):
        value = np.asarray(get(params, t.path), np.float32)
        for i, name in enumerate(t.names):
            arrays[name] = np.ascontiguousarray(to_stored(value[i] if t.stacked else value, t.kind))
    save_file(arrays, path, metadata={"format": "pt"})
