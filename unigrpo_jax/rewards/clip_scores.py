"""Rewards made of CLIP: how well a picture shows its prompt, and how people would like it.

    clipscore:FOLDER   2.5 max(cos, 0) of any CLIP
    pickscore:FOLDER   exp(logit_scale) cos of PickScore
    hpsv2:FOLDER       cos of HPSv2
    aesthetic:FOLDER   a head over the image embedding of CLIP ViT-L/14

FOLDER is a CLIPModel in transformers' layout: config.json, model.safetensors, tokenizer files, and perhaps
preprocessor_config.json.  cos is the cosine of the picture's and the prompt's embedding.  Products are float32, whatever the
policy computes in: the scores of a group often differ in their third digit only.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unigrpo_jax.config import RunConfig, require
from unigrpo_jax.foreign_files import named
from unigrpo_jax.models.folders.stored import checksum
from unigrpo_jax.models.text_encoders import clip
from unigrpo_jax.models.text_encoders.coder import TOKENIZER_FILES, Text, TextCoder, open_coder
from unigrpo_jax.rewards.aesthetic import HeadFile, rating
from unigrpo_jax.rewards.clip_images import ImageRule, pixel_values, read_rule
from unigrpo_jax.rewards.clip_weights import DEVICES, ClipFolder, open_clip_folder
from unigrpo_jax.rewards.protocol import RewardBatch, RewardFunction

ROWS = 8  # pictures per device and call; a batch's last call is filled up, so that there is one shape

# f(params, sizes, normalised pixels [B, side, side, 3], texts or None, hold) -> [B]; `hold` as in `clip.text_embeddings`.
Score = Callable[[dict, clip.ClipConfig, jax.Array, Text | None, clip.Hold], jax.Array]


def cosine(params: dict, config: clip.ClipConfig, pixels: jax.Array, text: Text, hold: clip.Hold = lambda x: x) -> jax.Array:
    """Cosine [B] of each picture and its text."""
    image = clip.image_embeddings(params, config, pixels, hold)
    return jnp.sum(image * clip.text_embeddings(params, config, *text, hold), axis=1)


def clip_score(params, config, pixels, text, hold=lambda x: x):
    """CLIPScore, w max(cos, 0) with w = 2.5 (arXiv 2104.08718, section 3), of the prompt as it is, without a prefix."""
    return 2.5 * jnp.maximum(cosine(params, config, pixels, text, hold), 0)


def pick_score(params, config, pixels, text, hold=lambda x: x):
    """PickScore (arXiv 2305.01569, section 4), as its authors publish it, about 20; not divided by 26 as elsewhere."""
    return jnp.exp(params["logit_scale"]) * cosine(params, config, pixels, text, hold)


def aesthetic_score(params, config, pixels, text, hold=lambda x: x):
    """The rating of the picture alone, about 1 to 10."""
    return rating(params["head"], clip.image_embeddings(params, config, pixels, hold))


class ClipReward:
    """A score of a CLIP's embeddings, on this process's devices.

    The weights are read at the first call.  Their matrices are cut over the devices where the policy's are (mesh.fsdp,
    mesh.sequence or mesh.tensor other than 1), else each device holds them all; the pictures are spread.
    """

    cost = "device"

    def __init__(self, name: str, score: Score, folder: ClipFolder, rule: ImageRule, coder: TextCoder | None,
                 head: HeadFile | None, config: RunConfig):  # fmt: skip
        """Without `coder` the score gets no texts; `head` becomes params["head"]."""
        self._name, self._score, self._folder, self._rule = name, score, folder, rule
        self._coder, self._head = coder, head
        here = [d for d in jax.devices()[: config.devices or None] if d.process_index == jax.process_index()]
        self._mesh = Mesh(np.array(here or jax.local_devices()), (DEVICES,), axis_types=(AxisType.Auto,))
        self._cut = (config.mesh.fsdp, config.mesh.sequence, config.mesh.tensor) != (1, 1, 1)
        self._spread = NamedSharding(self._mesh, PartitionSpec(DEVICES))
        self._program = jax.jit(self._scores)

    @functools.cached_property
    def identity(self) -> str:
        """Name, rule, and a checksum of config, tokenizer and weights."""
        texts = [self._folder.folder / name for name in ("config.json", *(TOKENIZER_FILES if self._coder else ()))]
        files = (
            [path for path in texts if path.exists()] + self._folder.stored.files + (self._head.files if self._head else [])
        )
        return f"{self._name} {self._rule} {checksum(files)}"

    @functools.cached_property
    def _params(self) -> dict:
        params = self._folder.params(self._mesh, self._cut)
        whole = NamedSharding(self._mesh, PartitionSpec())
        return params | ({"head": self._head.params(whole)} if self._head else {})

    def _scores(self, params: dict, images: jax.Array, text: Text | None) -> jax.Array:
        hold = lambda x: jax.lax.with_sharding_constraint(x, self._spread)  # weights come to the pictures
        with jax.default_matmul_precision("highest"):
            return self._score(params, self._folder.config, pixel_values(images, self._rule), text, hold)

    def __call__(self, batch: RewardBatch) -> dict[str, np.ndarray]:
        """{name: float32 [B]}."""
        size, step = len(batch.images), ROWS * self._mesh.size
        rows = np.arange(-(-size // step) * step) % size
        inputs = np.asarray(batch.images), None if self._coder is None else self._coder(batch.prompts)
        scores = []
        for start in range(0, len(rows), step):
            chunk = jax.tree.map(lambda x, own=rows[start : start + step]: jax.device_put(x[own], self._spread), inputs)
            scores.append(self._program(self._params, *chunk))
        return {self._name: np.concatenate(jax.device_get(scores))[:size]}


def clipscore(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `clipscore:FOLDER`."""
    return _load("clipscore", clip_score, argument, config)


def pickscore(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `pickscore:FOLDER`."""
    return _load("pickscore", pick_score, argument, config)


def hpsv2(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `hpsv2:FOLDER`: the cosine (arXiv 2306.09341), about 0.28; pictures that are not square get black bars."""
    return _load("hpsv2", cosine, argument, config, fit="pad")


def aesthetic(argument: str, config: RunConfig) -> RewardFunction:
    """The reward `aesthetic:FOLDER`; the folder holds aesthetic_head.safetensors, too, and needs no tokenizer."""
    return _load("aesthetic", aesthetic_score, argument, config, alone=True)


def _load(name: str, score: Score, argument: str, config: RunConfig, fit: str = "crop", alone: bool = False) -> ClipReward:
    """A reward of a folder whose weights are not read yet; ConfigError where a file is missing or does not fit.

    `alone` scores look at no text and have a head.
    """
    require(bool(argument), f"rewards: {name} needs the folder of its CLIP in transformers' layout: {name}:FOLDER.")
    path = named(argument, f"rewards: {name}")
    require(
        path.is_dir(), f"rewards: {name}:{argument}: there is no folder {path}; give that of a CLIP in transformers' layout."
    )
    folder = open_clip_folder(path, text=not alone)
    rule = dataclasses.replace(read_rule(path, folder.config.image), fit=fit)
    coder = None if alone else open_coder(path, folder.config.tokens, folder.config.vocabulary, folder.config.eos)
    head = HeadFile(path, folder.config.space) if alone else None
    return ClipReward(name, score, folder, rule, coder, head, config)
