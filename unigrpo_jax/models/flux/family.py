"""FLUX.1 as a family: what its folder holds, and the folder as the house asks for one."""

import pathlib

from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models.autoencoders import diffusers as autoencoders
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.flux import config as configs
from unigrpo_jax.models.flux.painter import PATCH, Flux
from unigrpo_jax.models.flux.tiny import tiny_folder
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders import flow_scheduler as schedulers
from unigrpo_jax.models.folders import pipelines
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import DTYPES
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.loaded import Published
from unigrpo_jax.models.schedule import FlowShift
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.encoder import open_flux

NAME, PIPELINE = "flux", "FluxPipeline"
VERBS = "draws by a flow, upon what T5 and CLIP say of the prompt"
FILES = configs.FILES
PART, TOYS, OWN_SETTINGS = "transformer", {"flux_tiny": tiny_folder}, ("told_guidance", "floor_time", "second_time")
_PARTS = {
    PART: ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("T5Tokenizer", "T5TokenizerFast"),
    "scheduler": schedulers.CLASSES,
}
_TRANSFORMER, _VAE, _SCHEDULER = "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"
HUB_FILES = pipelines.hub_files(*_PARTS)
DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
TOKENS = {True: 512, False: 256}  # of a prompt's states, by whether guidance is told: dev, and schnell
TOLD = 3.5  # guidance, where nobody says otherwise
DYNAMIC = FlowShift(line=((256, 0.5), (4096, 1.15)))


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is one of FLUX.1's, by its model_index.json; ConfigError where that is damaged."""
    return pipelines.pipeline_class(folder) == PIPELINE


def load(config: ModelConfig, folder: pathlib.Path) -> Pipeline:
    """A folder without its weights; ConfigError where a file is missing, does not fit, or asks for what is not built."""
    with pipelines.told():
        pipelines.check_parts(folder, _PARTS, FILES)
        transformer = configs.read_transformer(folder / _TRANSFORMER)
        autoencoder = autoencoders.read_autoencoder(folder / _VAE, FILES)
        shift = schedulers.read_scheduler(folder / _SCHEDULER, FILES)
        numbers = PATCH**2 * autoencoder.channels
        require(transformer.channels == numbers, f"{folder / _TRANSFORMER}: in_channels = {transformer.channels}, but "
                f"squares of {PATCH} x {PATCH} pixels of latents of {folder / 'vae'} have {numbers} numbers.")  # fmt: skip
        encoders = open_flux(folder, config.dtype, TOKENS[transformer.guidance])
        for name, own, width in (("joint_attention_dim", "states", transformer.text_width),
                                 ("pooled_projection_dim", "pooled", transformer.pooled_width)):  # fmt: skip
            found = encoders.shapes()[own].shape[-1]
            require(width == found, f"{folder / _TRANSFORMER}: {name} = {width}, but the text encoder says {found} numbers.")
        student = students.read(folder)
        network = _network(config, transformer, shift, autoencoder.downsample, student)
        weights = pipelines.open_network(folder / PART, network.stored_network)
        known = {_TRANSFORMER: configs.KNOWN, _VAE: autoencoders.KNOWN, _SCHEDULER: schedulers.KNOWN}
        return Pipeline(
            family=NAME,
            folder=folder,
            config=config,
            part=PART,
            network=network,
            autoencoder=autoencoder,
            codec=EmbeddingCodec(encoders=encoders, kept=config.embeddings),
            stored=weights,
            usual=Published(
                rollout=_drawn_size(folder) | {"timestep_shift": 0.0},
                evaluation={"flow_steps": 28 if transformer.guidance else 4, "guidance": 1.0},
            ),
            autoencoder_stored=pipelines.open_autoencoder(folder / "vae", autoencoder),
            stored_dtype=DTYPES[weights.dtype("x_embedder.weight")],
            unknown_settings=pipelines.unknown_settings(folder, known),
            unread_files=pipelines.unread_files(folder, _PARTS),
            adapters=pipelines.open_adapters(folder, PART, network.stored_network),
            student=student,
        )


def known(config: ModelConfig) -> Pipeline | None:
    """A published model by its name on the hub, from its sizes alone; None where the name is another."""
    if config.path not in (DEV, SCHNELL):
        return None
    told = config.path == DEV
    transformer = FluxTransformer(channels=64, double=19, single=38, heads=24, axes=(16, 56, 56), text_width=4096,
                                  pooled_width=768, guidance=told)  # fmt: skip
    autoencoder = ImageAutoencoder(width=128, multipliers=(1, 2, 4, 4), blocks=2, channels=16)
    return Pipeline(
        family=NAME,
        folder=pathlib.Path(config.path),
        config=config,
        part=PART,
        network=_network(config, transformer, DYNAMIC if told else FlowShift(), autoencoder.downsample),
        autoencoder=autoencoder,
        codec=KnownTexts(states=(TOKENS[told], 4096), pooled=768, dtype=config.dtype),
        stored=None,
        autoencoder_stored=None,
        stored_dtype="bfloat16",
    )


def _network(
    config: ModelConfig, transformer: FluxTransformer, shift: FlowShift, downsample: int, student: Student | None = None
) -> Flux:
    told = TOLD if config.told_guidance is None else config.told_guidance
    transformer, fresh = pipelines.timed(config, transformer, student)
    require(not (config.floor_time and transformer.second_time), "model.floor_time rounds the time, and a network with two "
            "times is learned by its derivative; leave it out.")  # fmt: skip
    own = {"guidance_scale": told, "floor_time": config.floor_time, "fresh_time": fresh}
    return Flux(transformer=transformer, shift=shift, downsample=downsample, **own, **pipelines.computing(config))


def _drawn_size(folder: pathlib.Path) -> dict[str, int]:
    """Settings of the square image that the autoencoder was made for."""
    side = read_settings(folder / _VAE, FILES).whole("sample_size", 1024)
    return {"image_height": side, "image_width": side}
