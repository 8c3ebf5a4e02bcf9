"""The text encoders of a family as one program of their own, whose weights are on the devices only while it is used.

The folders are diffusers': `text_encoder` and `text_encoder_2` hold weights, `tokenizer` and `tokenizer_2` say how a text
becomes ids.  CLIP and T5 see padding like any other token, as the public pipelines have it; Llama and Gemma do not.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from unigrpo_jax.config import ConfigError, require
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.named import Place
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import StoredTensors, checksum
from unigrpo_jax.models.text_encoders.clip_text import ClipText, read_clip_text
from unigrpo_jax.models.text_encoders.coder import TOKENIZER_FILES, Template, TextCoder, open_coder
from unigrpo_jax.models.text_encoders.gemma import Gemma, open_gemma_weights, read_gemma, unread_parts
from unigrpo_jax.models.text_encoders.llama import BUFFERS, Llama, read_llama
from unigrpo_jax.models.text_encoders.t5 import T5Encoder, read_t5

ROWS = 16  # texts of one call of the program where nothing else is said
MEANING = 1  # raised whenever this code comes to say anything else of a text
TIED = r"encoder\.embed_tokens\.weight"  # T5's embedding once more, which older files hold
PROMPT_TOKENS = "prompt_tokens"  # a name of this house in the config.json of a Llama
SKIPPED = 2  # layers of Llama behind that whose states HunyuanVideo draws upon
# Of HunyuanVideo: 95 of Llama 3's tokens stand before the prompt.  No blank follows the points before a number.
VIDEO = Template(
    before="<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n",
    behind="<|eot_id|>",
)

Arrays = dict[str, np.ndarray]


class Encoder(Protocol):
    """One encoder of a folder.

    Attributes:
      name: for messages.
      coder: texts as rows of ids.
      files: all that decides what it says.
    """

    name: str
    coder: TextCoder
    files: tuple[pathlib.Path, ...]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What it says of one text: arrays of `TextStates` by name, and their shapes without the batch."""

    def read(self, place: Place | None) -> Any:
        """Its parameters."""

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Mapping[str, jax.Array]:
        """What it says of B texts; `mask_BL` is 0 for padding."""


@dataclasses.dataclass(frozen=True)
class ClipEncoder:
    """CLIP's text tower, in float32 whatever is asked for, since its norms are those of the parameters' dtype.

    Attributes:
      network: its sizes.
      weights: its file.
      coder: texts as rows of ids.
      files: all that decides what it says.
      pooled: whether it says the state of a text's end, or those of all tokens.
    """

    network: ClipText
    weights: StoredTensors
    coder: TextCoder
    files: tuple[pathlib.Path, ...]
    pooled: bool
    name = "CLIP"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Encoder`."""
        width = self.network.tower.width
        return {"pooled": (width,)} if self.pooled else {"states": (self.coder.tokens, width)}

    def read(self, place: Place | None) -> Any:
        """As `Encoder`."""
        return self.network.read(self.weights, place)

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Mapping[str, jax.Array]:
        """As `Encoder`."""
        states, end = self.network(params, ids_BL)
        return {"pooled": end} if self.pooled else {"states": states}


@dataclasses.dataclass(frozen=True)
class T5States:
    """T5's encoder.

    Attributes:
      network: its sizes.
      weights: its file.
      coder: texts as rows of ids.
      files: all that decides what it says.
      dtype: of the pass.
    """

    network: T5Encoder
    weights: StoredTensors
    coder: TextCoder
    files: tuple[pathlib.Path, ...]
    dtype: str
    name = "T5"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Encoder`."""
        return {"states": (self.coder.tokens, self.network.width)}

    def read(self, place: Place | None) -> Any:
        """As `Encoder`."""
        return component.read(self.weights, self.network, jnp.dtype(self.dtype), place)

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Mapping[str, jax.Array]:
        """As `Encoder`."""
        return {"states": self.network(params, ids_BL)[0]}


@dataclasses.dataclass(frozen=True)
class LlamaStates:
    """Llama's states behind some of its layers, of what follows the template's tokens, and which of them are padding's.

    Attributes:
      network: its sizes, with the layers that are read alone.
      weights: its file, of all layers.
      coder: texts as rows of ids.
      files: all that decides what it says.
      dtype: of the pass.
    """

    network: Llama
    weights: StoredTensors
    coder: TextCoder
    files: tuple[pathlib.Path, ...]
    dtype: str
    name = "Llama"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Encoder`."""
        return {"states": (self.coder.tokens, self.network.width), "mask": (self.coder.tokens,)}

    def read(self, place: Place | None) -> Any:
        """As `Encoder`."""
        return component.read(self.weights, self.network, jnp.dtype(self.dtype), place)

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Mapping[str, jax.Array]:
        """As `Encoder`."""
        states, _ = self.network(params, ids_BL, mask_BL)
        return {"states": states[:, self.coder.crop :], "mask": mask_BL[:, self.coder.crop :] != 0}


@dataclasses.dataclass(frozen=True)
class GemmaStates:
    """Gemma's states of the embedding and behind every layer, side by side, and which of them are padding's.

    They are many numbers a text, to be read by a projection in the same program (`projected.Projected`).

    Attributes:
      network: its sizes.
      weights: its file.
      coder: texts as rows of ids.
      files: all that decides what it says.
      dtype: of the pass.
      unread: parts of the whole model that its file holds beside.
    """

    network: Gemma
    weights: StoredTensors
    coder: TextCoder
    files: tuple[pathlib.Path, ...]
    dtype: str
    unread: tuple[str, ...] = ()
    name = "Gemma"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Encoder`; "states" are [L, D, layers + 1]."""
        return {"states": (self.coder.tokens, self.network.width, len(self.network.full) + 1), "mask": (self.coder.tokens,)}

    def read(self, place: Place | None) -> Any:
        """As `Encoder`."""
        return component.read(self.weights, self.network, jnp.dtype(self.dtype), place)

    def __call__(self, params: Any, ids_BL: jax.Array, mask_BL: jax.Array) -> Mapping[str, jax.Array]:
        """As `Encoder`."""
        return {"states": self.network(params, ids_BL, mask_BL), "mask": mask_BL != 0}


@dataclasses.dataclass(frozen=True)
class Encoders:
    """All encoders of a family.

    Attributes:
      parts: the encoders.
      dtype: of what they say, "float32" or "bfloat16", but for a mask.
      rows: texts of one call of the program, or one for each device where there are more.
    """

    parts: tuple[Encoder, ...]
    dtype: str
    rows: int = ROWS

    @functools.cached_property
    def key(self) -> str:
        """Says which encoders these are, in hexadecimal digits: another one whenever they would say anything else.

        It covers the content of weights, configs and tokenizers, lengths, templates, and dtype.  Computing it reads the
        files.
        """
        about = [(part.name, part.coder.tokens, sorted(part.shapes()), checksum(part.files), *(part.coder.template or ()))
                 for part in self.parts]  # fmt: skip
        return hashlib.sha256(repr((MEANING, self.dtype, about)).encode()).hexdigest()

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arrays of one text: those of `TextStates` that an encoder says, without the batch."""
        found = {name: shape for part in self.parts for name, shape in part.shapes().items()}
        return {name: jax.ShapeDtypeStruct(shape, self._dtype(name)) for name, shape in found.items()}

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(bool) if name == "mask" else jnp.dtype(self.dtype)

    @contextlib.contextmanager
    def on_devices(self, place: Place | None = None) -> Iterator[Callable[[Sequence[str]], list[Arrays]]]:
        """Reads the weights, one tensor at a time, gives what encodes texts, and lets go of the devices' memory afterwards.

        What is given encodes `rows_per_call` texts at once, and fewer in the same time: {name: array of the host} a text.

        Args:
          place: path and shape to the sharding of a parameter; None is the default device.
        """
        params = tuple(part.read(place) for part in self.parts)
        leaves = jax.tree.leaves(params)
        over = leaves[0].sharding
        try:
            yield lambda texts: self._encode(params, over, texts)
        finally:
            for leaf in leaves:
                leaf.delete()

    def _encode(self, params, over: Sharding, texts: Sequence[str]) -> list[Arrays]:
        count, said = rows_per_call(over, self.rows), []
        for start in range(0, len(texts), count):
            part = list(texts[start : start + count])
            filled = part + [""] * (count - len(part))
            rows = tuple(tuple(_spread(x, over) for x in one.coder(filled)) for one in self.parts)
            found = jax.device_get(self._program(params, rows, over))
            said += [{name: x[row] for name, x in found.items()} for row in range(len(part))]
        return said

    @functools.cached_property
    def _program(self) -> Callable:
        return jax.jit(self._said, static_argnums=2)

    def _said(self, params, rows: tuple[tuple[jax.Array, jax.Array], ...], over: Sharding) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            each = [one(p, *row) for one, p, row in zip(self.parts, params, rows, strict=True)]
        said = {name: x.astype(self._dtype(name)) for part in each for name, x in part.items()}
        if isinstance(over, NamedSharding):  # the host takes it from one device
            said = jax.lax.with_sharding_constraint(said, NamedSharding(over.mesh, PartitionSpec()))
        return said


def rows_per_call(over: Sharding, rows: int = ROWS) -> int:
    """Texts of one call, `rows` or more, a multiple of the devices that a sharding spans."""
    devices = over.num_devices
    return math.ceil(rows / devices) * devices


def _spread(ids_BL: np.ndarray, over: Sharding) -> jax.Array:
    """The rows cut over all devices of a mesh, so that weights come to texts."""
    if isinstance(over, NamedSharding):
        over = NamedSharding(over.mesh, PartitionSpec(over.mesh.axis_names))
    return jax.make_array_from_callback(ids_BL.shape, over, lambda index: ids_BL[index])


def open_stable_diffusion(folder: pathlib.Path, dtype: str) -> Encoders:
    """The encoder of a Stable Diffusion 1.x folder: CLIP's states of all tokens after its last norm.

    ConfigError where a file is missing or does not fit; only headers of weights are read.
    """
    files = "text_encoder and tokenizer"
    return Encoders((_clip(folder / "text_encoder", folder / "tokenizer", files, pooled=False),), dtype)


def open_flux(folder: pathlib.Path, dtype: str, tokens: int) -> Encoders:
    """The encoders of a FLUX.1 folder: T5's states of `tokens` tokens (512 of dev, 256 of schnell), and CLIP's of the end.

    A tokenizer that is for fewer tokens says how many.
    ConfigError where a file is missing or does not fit; only headers of weights are read.
    """
    files = "text_encoder, text_encoder_2, tokenizer and tokenizer_2"
    own, words = folder / "text_encoder_2", folder / "tokenizer_2"
    try:
        network = read_t5(own / "config.json", files)
        weights = component.open_weights(own, component.TRANSFORMERS, network, TIED)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    coder = open_coder(words, tokens, network.vocabulary)
    coder = dataclasses.replace(coder, tokens=min(tokens, coder.tokenizer.model_max_length))
    t5 = T5States(network, weights, coder, _files(own, weights, words), dtype)
    return Encoders((t5, _clip(folder / "text_encoder", folder / "tokenizer", files, pooled=True)), dtype)


def open_hunyuan_video(folder: pathlib.Path, dtype: str, tokens: int, template: Template = VIDEO) -> Encoders:
    """The encoders of a HunyuanVideo folder: Llama's states of `tokens` tokens (256 as published), and CLIP's of the end.

    Llama reads the prompt inside a template, whose tokens before it are cut from the states and from their mask.  The states
    are those before the last `SKIPPED` layers, which are not loaded; no norm was applied to them.  How long the tokenizer
    says that a text may be decides nothing, as in the public pipeline; fewer tokens are read where text_encoder/config.json
    names `PROMPT_TOKENS`, of a small model of short prompts: all others would be padding, which nothing sees.
    ConfigError where a file is missing or does not fit; only headers of weights are read.
    """
    files = "text_encoder, text_encoder_2, tokenizer and tokenizer_2"
    own, words = folder / "text_encoder", folder / "tokenizer"
    try:
        network = read_llama(own / "config.json", files)
        tokens = min(tokens, read_settings(own / "config.json", files).whole(PROMPT_TOKENS, tokens))
        weights = component.open_weights(own, component.TRANSFORMERS, network, BUFFERS)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    require(network.layers > SKIPPED, f"{own / 'config.json'}: num_hidden_layers = {network.layers}, but the states before "
            f"the last {SKIPPED} layers are read, so it must be at least {SKIPPED + 1}.")  # fmt: skip
    coder = open_coder(words, tokens, network.vocabulary, template=template, as_stored=True)
    least = coder.lengths([""])[0] + 1
    require(tokens >= least, f"{own / 'config.json'}: {PROMPT_TOKENS} = {tokens}, but with what follows every prompt it "
            f"must be at least {least}.")  # fmt: skip
    read = dataclasses.replace(network, layers=network.layers - SKIPPED)
    llama = LlamaStates(read, weights, coder, _files(own, weights, words), dtype)
    return Encoders((llama, _clip(folder / "text_encoder_2", folder / "tokenizer_2", files, pooled=True)), dtype)


def open_gemma(folder: pathlib.Path, dtype: str, tokens: int) -> GemmaStates:
    """Gemma of an LTX-2 folder, reading `tokens` tokens (1024 as published), for a family to put its projection behind.

    Padding comes before a text, and blanks around it are left out, as in the public pipeline; how long the tokenizer says
    that a text may be decides nothing there, either.
    ConfigError where a file is missing or does not fit; only headers of weights are read.
    """
    own, words = folder / "text_encoder", folder / "tokenizer"
    try:
        network = read_gemma(own / "config.json", "text_encoder and tokenizer")
        network, weights = open_gemma_weights(own, network)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    coder = open_coder(words, tokens, network.vocabulary, as_stored=True)
    first = coder(["a"])[0][0, 0]
    require(first == coder.tokenizer.bos_token_id, f"the tokenizer in {words} does not put its bos_token before a text, as "
            "Gemma's does; copy the tokenizer files of the model there.")  # fmt: skip
    coder = dataclasses.replace(coder, left=True, stripped=True)
    return GemmaStates(network, weights, coder, _files(own, weights, words), dtype, unread_parts(weights))


def _clip(own: pathlib.Path, words: pathlib.Path, files: str, pooled: bool) -> ClipEncoder:
    try:
        network = read_clip_text(own / "config.json", files)
        weights = network.open_weights(own)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    coder = open_coder(words, network.tokens, network.vocabulary, network.eos)
    tokens = int(min(network.tokens, coder.tokenizer.model_max_length))  # which the public pipelines pad to
    coder = dataclasses.replace(coder, tokens=tokens)
    return ClipEncoder(network, weights, coder, _files(own, weights, words), pooled)


def _files(own: pathlib.Path, weights: StoredTensors, words: pathlib.Path) -> tuple[pathlib.Path, ...]:
    texts = [own / "config.json", *(words / name for name in TOKENIZER_FILES)]
    return (*(path for path in texts if path.exists()), *weights.files)
