"""CLIP once more in plain numpy, float64, one image or text at a time, by transformers' names; and tiny model folders.

Written from the paper; nothing of it is imported from the package.
"""

import json
import math
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_erf = np.vectorize(math.erf, otypes=[float])
_ACTIVATIONS = {
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
MERGES = ["r e", "re d</w>"]
WORDS = [*LETTERS, *(c + "</w>" for c in LETTERS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
ID = {word: i for i, word in enumerate(WORDS)}
START, END = ID["<|startoftext|>"], ID["<|endoftext|>"]


class Oracle:
    """A model folder, or just its config and weights, in float64."""

    def __init__(self, folder: pathlib.Path):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()}

    def text(self, ids, mask):
        """Embedding [E] of one row of ids and its mask."""
        c, w = self.config["text_config"], self.weights
        x = w["text_model.embeddings.token_embedding.weight"][ids]
        x = x + w["text_model.embeddings.position_embedding.weight"][: len(ids)]
        seen = [[key <= query and mask[key] != 0 for key in range(len(ids))] for query in range(len(ids))]
        x = self._norm(self._layers(x, "text_model", c, np.array(seen)), "text_model.final_layer_norm", c)
        where = int(np.argmax(ids)) if c["eos_token_id"] == 2 else list(ids).index(c["eos_token_id"])
        return _unit(w["text_projection.weight"] @ x[where])

    def image(self, pixels_CHW):
        """Embedding [E] of one picture's normalised pixels."""
        c, w = self.config["vision_config"], self.weights
        kernel, patch = w["vision_model.embeddings.patch_embedding.weight"], c["patch_size"]
        side = c["image_size"] // patch
        rows = [w["vision_model.embeddings.class_embedding"]]
        for y in range(side):
            for x in range(side):
                piece = pixels_CHW[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                rows.append((kernel * piece).sum(axis=(1, 2, 3)))
        x = np.stack(rows) + w["vision_model.embeddings.position_embedding.weight"]
        x = self._layers(self._norm(x, "vision_model.pre_layrnorm", c), "vision_model", c, np.ones((len(x), len(x)), bool))
        return _unit(w["visual_projection.weight"] @ self._norm(x[0], "vision_model.post_layernorm", c))

    def cosines(self, images, ids, masks):
        """Cosine [B] of uint8 pictures, prepared by Pillow, and their texts."""
        side = self.config["vision_config"]["image_size"]
        pairs = zip(images, ids, masks, strict=True)
        return np.array([self.image(prepared(image, side)) @ self.text(i, m) for image, i, m in pairs])

    @property
    def scale(self):
        """exp(logit_scale)."""
        return np.exp(self.weights["logit_scale"])

    def _norm(self, x, name, c):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c["layer_norm_eps"])
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _layers(self, x, tower, c, seen):
        size = c["hidden_size"] // c["num_attention_heads"]
        for i in range(c["num_hidden_layers"]):
            name = f"{tower}.encoder.layers.{i}"
            h = self._norm(x, f"{name}.layer_norm1", c)
            q, k, v = (self._linear(h, f"{name}.self_attn.{part}_proj") for part in "qkv")
            out = np.empty_like(x)
            for head in range(c["num_attention_heads"]):
                cut = slice(head * size, (head + 1) * size)
                scores = np.where(seen, q[:, cut] @ k[:, cut].T / math.sqrt(size), -np.inf)
                e = np.exp(scores - scores.max(-1, keepdims=True))
                out[:, cut] = e / e.sum(-1, keepdims=True) @ v[:, cut]
            x = x + self._linear(out, f"{name}.self_attn.out_proj")
            h = _ACTIVATIONS[c["hidden_act"]](self._linear(self._norm(x, f"{name}.layer_norm2", c), f"{name}.mlp.fc1"))
            x = x + self._linear(h, f"{name}.mlp.fc2")
        return x


def _unit(x):
    return x / np.sqrt((x**2).sum())


def prepared(image, side, edge=None):
    """Pixels [3, side, side] of a uint8 picture by way of Pillow: short edge resized, middle cut out, normalised."""
    edge, (height, width) = edge or side, image.shape[:2]
    long = int(edge * max(height, width) / min(height, width))
    size = (long, edge) if height <= width else (edge, long)  # width, height
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return normalised(resized[top : top + side, left : left + side])


def normalised(square):
    """Pixels [3, H, W] of a uint8 square."""
    return ((square / 255.0 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def pictures(count, height=20, width=20, seed=0):
    """uint8 pictures that are smooth with some noise, each of other colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase = rng.uniform(0, 6, (count, 1, 1, 3))
    waves = np.sin(7 * rng.normal(size=(count, 1, 1, 3)) * x[..., None] + 5 * y[..., None] + phase)
    return np.clip(128 + 100 * waves + rng.normal(0, 20, (count, height, width, 3)), 0, 255).astype(np.uint8)


def make_folder(
    folder: pathlib.Path, activation: str = "quick_gelu", eos: int = END, image: int = 16, tokenizer: bool = True
) -> pathlib.Path:
    """A random CLIP in transformers' layout with CLIP's own kind of tokenizer over 56 words."""
    common = {"num_hidden_layers": 2, "hidden_act": activation, "layer_norm_eps": 1e-5}
    text = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2,
            "max_position_embeddings": 8, "eos_token_id": eos}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 56, "num_attention_heads": 3, "image_size": image, "patch_size": 4}
    config = {"model_type": "clip", "projection_dim": 24, "text_config": text | common, "vision_config": vision | common}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"logit_scale": (), "text_projection.weight": (24, 32), "visual_projection.weight": (24, 48)}
    shapes |= {"text_model.embeddings.token_embedding.weight": (len(WORDS), 32),
               "text_model.embeddings.position_embedding.weight": (8, 32),
               "vision_model.embeddings.class_embedding": (48,),
               "vision_model.embeddings.patch_embedding.weight": (48, 3, 4, 4),
               "vision_model.embeddings.position_embedding.weight": ((image // 4) ** 2 + 1, 48)}  # fmt: skip
    norms = {"text_model.final_layer_norm": 32, "vision_model.pre_layrnorm": 48, "vision_model.post_layernorm": 48}
    for tower, width, mlp in (("text_model", 32, 40), ("vision_model", 48, 56)):
        for layer in (f"{tower}.encoder.layers.{i}" for i in range(2)):
            norms |= {f"{layer}.layer_norm{n}": width for n in (1, 2)}
            linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            for name, shape in (linear | {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}).items():
                shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    shapes |= {f"{name}.{part}": (width,) for name, width in norms.items() for part in ("weight", "bias")}
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(0, 0.5 / max(1, math.prod(shape[1:])) ** 0.25, shape)
    tensors = {name: np.asarray(draw(shape), np.float32) for name, shape in shapes.items()}
    tensors = {name: x + 1 if ".weight" in name and "norm" in name else x for name, x in tensors.items()}
    tensors["logit_scale"] = np.array(2.5, np.float32)
    save_file(tensors, folder / "model.safetensors")
    if tokenizer:
        (folder / "vocab.json").write_text(json.dumps(ID))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder
