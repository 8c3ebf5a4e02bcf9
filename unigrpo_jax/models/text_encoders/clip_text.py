"""CLIP's text tower as a network of its own, transformers' CLIPTextModel: what it says of every token and of the end."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from unigrpo_jax.models.folders import component, named, stored
from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import StoredTensors, faults
from unigrpo_jax.models.text_encoders.clip import ACTIVATIONS, TowerConfig, text_states
from unigrpo_jax.models.text_encoders.clip_names import IGNORED, TEXT, Row, tower_rows
from unigrpo_jax.models.tree import flatten, unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipText:
    """Sizes, and the pass.

    Attributes:
      tower: of the transformer.
      vocabulary: token ids.
      tokens: longest text, including the tokens around it.
      eos: id of the token that ends a text, or `clip.OLD_EOS`.
    """

    tower: TowerConfig
    vocabulary: int
    tokens: int
    eos: int

    def __call__(self, params: dict, ids_BL):
        """States [B, L, D] after the last norm, and that of each text's end, [B, D]; padding is seen, too."""
        return text_states(params["text"], self.tower, self.eos, ids_BL, np.ones(ids_BL.shape, np.int32))

    def open_weights(self, folder: pathlib.Path) -> StoredTensors:
        """The weights of a folder, of which only headers are read; ValueError where they do not fit."""
        weights = StoredTensors(folder, "model")
        if found := faults(weights, self.stored_shapes(), (), IGNORED):
            raise ValueError(f"{weights.path} does not fit {folder / 'config.json'}: {'; '.join(found)}.")
        return weights

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file and its shape."""
        return {name: row.tensor.stored_shape(row.shape) for row in self.rows for name in row.tensor.names}

    def read(self, weights: StoredTensors, place: Place | None = None) -> dict:
        """The parameters, float32 and nested, each laid out by `place` (by its path and shape)."""
        shapes = {row.tensor.path: jax.ShapeDtypeStruct(row.shape, np.float32) for row in self.rows}
        table = [row.tensor for row in self.rows]
        return unflatten(named.read(table, shapes, lambda _, name: weights.read(name), place))

    def write(self, folder: pathlib.Path, params: dict, dtype: str) -> None:
        """Writes nested parameters as `open_weights` and `read` take them; `dtype` is safetensors' float."""
        flat = flatten(params)
        layers = lambda row: flat[row.tensor.path] if row.tensor.stacked else (flat[row.tensor.path],)
        tensors = ((name, row.tensor.to_stored(np.asarray(p))) for row in self.rows
                   for name, p in zip(row.tensor.names, layers(row), strict=True))  # fmt: skip
        stored.write(folder, component.TRANSFORMERS, self.stored_shapes(), tensors, dtype)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every parameter."""
        return tuple(tower_rows("text", self.tower, TEXT, {"V": self.vocabulary, "L": self.tokens}))


def read_clip_text(path: pathlib.Path, files: str) -> ClipText:
    """The tower that a `config.json` of transformers describes; `files` says what its folder holds, for messages.

    A name that is left out has the default of the class.  ValueError where the file asks for what is not built.
    """
    found = read_settings(path, files)
    found.only("model_type", "clip_text_model")
    width, heads = found.whole("hidden_size", 512), found.whole("num_attention_heads", 8)
    if width % heads:
        raise found.error("num_attention_heads", f"it must divide hidden_size = {width}")
    tower = TowerConfig(
        width=width,
        mlp=found.whole("intermediate_size", 2048),
        layers=found.layers("num_hidden_layers", 12),
        heads=heads,
        activation=found.word("hidden_act", "quick_gelu", *ACTIVATIONS),
        norm_eps=found.positive("layer_norm_eps", 1e-5),
    )
    return ClipText(
        tower=tower,
        vocabulary=found.whole("vocab_size", 49408),
        tokens=found.whole("max_position_embeddings", 77),
        eos=found.whole("eos_token_id", 49407),
    )
