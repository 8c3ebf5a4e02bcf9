"""A CLIP in transformers' folder: config.json and model.safetensors, checked against each other and read.

One table says of each tensor what it is called, its shape, and along which axis it is cut over the devices: the width D of
the residual stream, where it belongs to a matrix.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.foreign_files import read_json
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.models.folders import named
from unigrpo_jax.models.folders.named import TABLE
from unigrpo_jax.models.folders.stored import StoredTensors, faults
from unigrpo_jax.models.text_encoders.clip import ACTIVATIONS, ClipConfig, TowerConfig
from unigrpo_jax.models.text_encoders.clip_names import IGNORED, TEXT, Row, tower_rows
from unigrpo_jax.models.tree import unflatten

# As in `clip_names`; E the common space, N patches and the class token, C colours, S side of a patch.
_TEXT = (
    *TEXT,
    ("text/projection/kernel", "text_projection.weight", 1, "DE"),
    ("logit_scale", "logit_scale", TABLE, ""),
)
_VISION = (
    ("vision/class_embedding", "vision_model.embeddings.class_embedding", TABLE, "D"),
    ("vision/patch_embedding", "vision_model.embeddings.patch_embedding.weight", TABLE, "DCSS"),
    ("vision/position_embedding", "vision_model.embeddings.position_embedding.weight", TABLE, "ND"),
    ("vision/pre_norm/scale", "vision_model.pre_layrnorm.weight", 0, "D"),
    ("vision/pre_norm/bias", "vision_model.pre_layrnorm.bias", 0, "D"),
    ("vision/post_norm/scale", "vision_model.post_layernorm.weight", 0, "D"),
    ("vision/post_norm/bias", "vision_model.post_layernorm.bias", 0, "D"),
    ("vision/projection/kernel", "visual_projection.weight", 1, "DE"),
)
IGNORED_TEXT = IGNORED + r"|text_.*|logit_scale"
LARGEST_SIZE, MOST_LAYERS = 2**24, 1000  # what is larger is no CLIP's
DEVICES = "devices"  # the mesh's one axis


def rows(config: ClipConfig, text: bool) -> Iterator[Row]:
    """Every parameter; without the text tower where `text` is False."""
    space = {"E": config.space, "V": config.vocabulary, "L": config.tokens, "N": config.grid**2 + 1, "C": 3,
             "S": config.patch}  # fmt: skip
    towers = [("text", config.text, _TEXT)] if text else []
    for name, tower, top in [*towers, ("vision", config.vision, _VISION)]:
        yield from tower_rows(name, tower, top, space)


@dataclasses.dataclass(frozen=True)
class ClipFolder:
    """A CLIP whose weights stay in their files until they are asked for.

    Attributes:
      folder: where it was read.
      config: its sizes.
      stored: its weights.
      text: whether the text tower is read, too.
    """

    folder: pathlib.Path
    config: ClipConfig
    stored: StoredTensors
    text: bool

    def params(self, mesh: Mesh, cut: bool) -> dict:
        """The parameters, float32, over the devices of a mesh with the one axis `DEVICES`.

        Args:
          mesh: the devices.
          cut: matrices are cut along D where it divides over the devices; all else is whole on each of them.
        """
        count = mesh.shape[DEVICES]
        places = {}
        for row in rows(self.config, self.text):
            matrix = len(row.axes.removeprefix("-")) > 1
            axis = [DEVICES if cut and matrix and letter == "D" and size % count == 0 else None
                    for letter, size in zip(row.axes, row.shape, strict=True)]  # fmt: skip
            places[row.tensor.path] = NamedSharding(mesh, PartitionSpec(*axis))
        table = [row.tensor for row in rows(self.config, self.text)]
        shapes = {row.tensor.path: jax.ShapeDtypeStruct(row.shape, np.float32) for row in rows(self.config, self.text)}
        return unflatten(named.read(table, shapes, lambda _, name: self.stored.read(name), lambda path, _: places[path]))


def open_clip_folder(folder: pathlib.Path, text: bool = True) -> ClipFolder:
    """Reads a folder's config and the headers of its weights.

    Args:
      folder: config.json beside model.safetensors or its shards.
      text: also read the text tower.

    Raises:
      ConfigError: a file is missing or damaged, or a tensor is missing, unknown or of another shape than the config says.
    """
    pickles = {"pytorch_model*.bin": from_transformers, "*.pt": from_open_clip, "*.pth": from_open_clip}
    stored = open_weights(folder, "model", pickles)
    config = read_config(folder / "config.json")
    wanted = {name: row.tensor.stored_shape(row.shape) for row in rows(config, text) for name in row.tensor.names}
    found = faults(stored, wanted, (), IGNORED if text else IGNORED_TEXT)
    require(not found, f"{stored.path} does not fit {folder / 'config.json'}: {'; '.join(found)}.")
    return ClipFolder(folder, config, stored, text)


def open_weights(folder: pathlib.Path, stem: str, pickles: Mapping[str, Callable[[pathlib.Path], str]]) -> StoredTensors:
    """A safetensors file or its shards; ConfigError where there are none.

    Args:
      folder: where they are.
      stem: the file's name without `.safetensors`.
      pickles: {pattern of a pickle's name: what converts such a file}, for the error where there are only those.
    """
    found = any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
    instead = [(path, convert) for pattern, convert in pickles.items() for path in sorted(folder.glob(pattern))]
    for path, convert in [] if found else instead[:1]:
        raise ConfigError(f"{folder} holds no {stem}.safetensors but {path.name}, a pickle, which is not loaded here; "
                          f"convert it once where PyTorch is installed: {convert(path)}")  # fmt: skip
    try:
        return StoredTensors(folder, stem)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def from_transformers(pickle: pathlib.Path) -> str:
    """What makes model.safetensors of transformers' pickles."""
    model = f"CLIPModel.from_pretrained('{pickle.parent}')"
    return f'''python -c "from transformers import CLIPModel; {model}.save_pretrained('{pickle.parent}')"'''


def from_open_clip(pickle: pathlib.Path) -> str:
    """What makes a folder of open_clip's pickle."""
    file = pickle.with_suffix(".safetensors")
    first = unpickle(pickle, file, entry="['state_dict']")
    return (f"{first} && python -m experiments.open_clip {file} OUT --like CLIP, where CLIP is the folder of a CLIP of the "
            "same architecture (of HPSv2, laion/CLIP-ViT-H-14-laion2B-s32B-b79K)")  # fmt: skip


def unpickle(pickle: pathlib.Path, file: pathlib.Path, entry: str = "") -> str:
    """What makes a safetensors file of a pickle of tensors, or of an entry of one, and runs nothing that it holds."""
    tensors = f"torch.load('{pickle}', map_location='cpu', weights_only=True){entry}"
    return f'''python -c "import torch, safetensors.torch as s; s.save_file({tensors}, '{file}')"'''


def read_config(path: pathlib.Path) -> ClipConfig:
    """The sizes in transformers' config.json; ConfigError where it is none of a CLIP, or of one that is unknown here."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would warn that there is no PyTorch, which is meant
    from transformers import CLIPConfig

    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable config ({error}); copy the model's config.json there.") from None
    kind = data.get("model_type") if isinstance(data, dict) else None
    require(kind == "clip", f"{path}: model_type = {quoted(kind)}, but only 'clip', transformers' CLIPModel, is known here.")
    try:
        theirs = CLIPConfig.from_dict(data)  # knows the defaults, and configs of older versions
    except Exception as error:  # its checks raise classes of their own
        first = " ".join(str(error).split()).rstrip(" .")[:500]
        raise ConfigError(f"{path} is no CLIP config ({first}); copy the model's config.json there.") from None
    text, vision = theirs.text_config, theirs.vision_config

    def whole(where, name: str) -> int:
        value = getattr(where, name)
        good = isinstance(value, int) and 1 <= value < LARGEST_SIZE
        require(good, f"{path}: {name} = {quoted(value)}, but it must be a whole number above 0 and below 2^24.")
        return value

    def tower(part) -> TowerConfig:
        act = part.hidden_act
        require(isinstance(act, str) and act in ACTIVATIONS,
                f"{path}: hidden_act = {quoted(act)}, but only {', '.join(ACTIVATIONS)} are known here.")  # fmt: skip
        eps = part.layer_norm_eps
        require(isinstance(eps, int | float) and 0 < eps < 1,
                f"{path}: layer_norm_eps = {quoted(eps)}, but it must be above 0 and below 1.")  # fmt: skip
        width, heads = whole(part, "hidden_size"), whole(part, "num_attention_heads")
        require(width % heads == 0, f"{path}: hidden_size = {width} is no multiple of num_attention_heads = {heads}.")
        layers = whole(part, "num_hidden_layers")
        require(layers <= MOST_LAYERS, f"{path}: num_hidden_layers = {layers}, but it must be at most {MOST_LAYERS}.")
        return TowerConfig(
            width=width,
            mlp=whole(part, "intermediate_size"),
            layers=layers,
            heads=heads,
            activation=part.hidden_act,
            norm_eps=eps,
        )

    require(vision.num_channels == 3, f"{path}: num_channels = {quoted(vision.num_channels)}, but pictures have 3.")
    image, patch = whole(vision, "image_size"), whole(vision, "patch_size")
    require(patch <= image, f"{path}: patch_size = {patch} is larger than image_size = {image}.")
    return ClipConfig(
        text=tower(text),
        vision=tower(vision),
        space=whole(theirs, "projection_dim"),
        vocabulary=whole(text, "vocab_size"),
        tokens=whole(text, "max_position_embeddings"),
        eos=whole(text, "eos_token_id"),
        image=image,
        patch=patch,
    )
