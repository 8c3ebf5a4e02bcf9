"""HunyuanVideo as a family: what its folder holds, and the folder as the house asks for one; SkyReels-V1 from a picture."""

import dataclasses
import pathlib

from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models.autoencoders import diffusers_video as autoencoders
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder
from unigrpo_jax.models.folders import pipelines
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import DTYPES
from unigrpo_jax.models.folders.student import Student
from unigrpo_jax.models.hunyuan_video import config as configs
from unigrpo_jax.models.hunyuan_video import scheduler as schedulers
from unigrpo_jax.models.hunyuan_video.painter import HunyuanVideo
from unigrpo_jax.models.hunyuan_video.tiny import picture_folder, tiny_folder
from unigrpo_jax.models.hunyuan_video.transformer import HunyuanVideoTransformer
from unigrpo_jax.models.loaded import Published
from unigrpo_jax.models.schedule import FlowShift
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.encoder import open_hunyuan_video

NAME, PIPELINE, FROM_PICTURE = "hunyuan_video", configs.PIPELINE, configs.FROM_PICTURE
VERBS = "draws a clip by a flow, upon what Llama and CLIP say of the prompt; SkyReels-V1 goes on from a picture"
FILES = configs.FILES
PART, OWN_SETTINGS = "transformer", ("told_guidance", "second_time")
TOYS = {"hunyuan_tiny": tiny_folder, "skyreels_tiny": picture_folder}
_PARTS = {
    PART: ("HunyuanVideoTransformer3DModel",),
    "vae": ("AutoencoderKLHunyuanVideo",),
    "text_encoder": ("LlamaModel",),
    "text_encoder_2": ("CLIPTextModel",),
    # The last one is what transformers 5 calls the one before, and so writes where it saves a folder.
    "tokenizer": ("LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": schedulers.CLASSES,
}
_TRANSFORMER, _VAE, _SCHEDULER = "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"
HUB_FILES = pipelines.hub_files(*_PARTS)
TEXT_TO_VIDEO, SKYREELS = "hunyuanvideo-community/HunyuanVideo", "Skywork/SkyReels-V1-Hunyuan-I2V"
TOKENS = 256  # of a prompt's states, behind the template's
# Height, width and frames of what is drawn where nobody says otherwise, by whether it goes on from a picture; a folder's
# vae/config.json may say other numbers, under these names.
SIZE_NAMES = ("sample_height", "sample_width", "sample_frames")
SIZES = {False: (720, 1280, 129), True: (544, 960, 97)}
FPS = 24.0
TILE, STRIDE = 32, 24  # latents along the side of a tile: 256 and 192 pixels, as the class has them where it cuts frames


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is one of HunyuanVideo's, by its model_index.json; ConfigError where that is damaged."""
    return pipelines.pipeline_class(folder) in (PIPELINE, FROM_PICTURE)


def load(config: ModelConfig, folder: pathlib.Path) -> Pipeline:
    """A folder without its weights; ConfigError where a file is missing, does not fit, or asks for what is not built."""
    with pipelines.told():
        pipelines.check_parts(folder, _PARTS, FILES)
        transformer = configs.read_transformer(folder / _TRANSFORMER)
        autoencoder = in_tiles(autoencoders.read_autoencoder(folder / _VAE, FILES))
        shift = schedulers.read_scheduler(folder / _SCHEDULER, FILES)
        kind = pipelines.pipeline_class(folder)
        require(transformer.from_picture == (kind == FROM_PICTURE), f"{folder / pipelines.INDEX} is of {kind}, but "
                f"{folder / _TRANSFORMER} is a network from {'image' if transformer.from_picture else 'text'} to video; "
                f"name {FROM_PICTURE if transformer.from_picture else PIPELINE} there.")  # fmt: skip
        numbers = configs.numbers(autoencoder.channels)
        require(transformer.channels == numbers, f"{folder / _TRANSFORMER}: out_channels make tokens of "
                f"{transformer.channels} numbers, but those of latents of {folder / 'vae'} have {numbers}.")  # fmt: skip
        encoders = open_hunyuan_video(folder, config.dtype, TOKENS)
        for name, own, width in (("text_embed_dim", "states", transformer.text_width),
                                 ("pooled_projection_dim", "pooled", transformer.pooled_width)):  # fmt: skip
            found = encoders.shapes()[own].shape[-1]
            require(width == found, f"{folder / _TRANSFORMER}: {name} = {width}, but the text encoder says {found} numbers.")
        student = students.read(folder)
        network = _network(config, transformer, shift, autoencoder.downsample, student)
        weights = pipelines.open_network(folder / PART, network.stored_network)
        known = {_TRANSFORMER: configs.KNOWN, _VAE: autoencoders.KNOWN | set(SIZE_NAMES), _SCHEDULER: schedulers.KNOWN}
        guided = _guided(transformer)
        vae = read_settings(folder / _VAE, FILES)
        height, width, frames = map(vae.whole, SIZE_NAMES, SIZES[transformer.from_picture])
        return Pipeline(
            family=NAME,
            folder=folder,
            config=config,
            part=PART,
            network=network,
            autoencoder=autoencoder,
            codec=EmbeddingCodec(encoders=encoders, kept=config.embeddings, guided=guided),
            stored=weights,
            usual=Published(
                rollout={"image_height": height, "image_width": width, "frames": frames, "frames_per_second": FPS,
                         "timestep_shift": 0.0},
                evaluation={"flow_steps": 50, "guidance": 6.0 if guided else 1.0},
            ),
            autoencoder_stored=pipelines.open_autoencoder(folder / "vae", autoencoder),
            stored_dtype=DTYPES[weights.dtype("x_embedder.proj.weight")],
            unknown_settings=pipelines.unknown_settings(folder, known),
            unread_files=pipelines.unread_files(folder, _PARTS),
            adapters=pipelines.open_adapters(folder, PART, network.stored_network),
            student=student,
        )  # fmt: skip


def known(config: ModelConfig) -> Pipeline | None:
    """A published model by its name on the hub, from its sizes alone; None where the name is another."""
    if config.path not in (TEXT_TO_VIDEO, SKYREELS):
        return None
    transformer = HunyuanVideoTransformer(channels=64, double=20, single=40, heads=24, axes=(16, 56, 56), text_width=4096,
                                          pooled_width=768, guidance=True, refiner=2,
                                          from_picture=config.path == SKYREELS)  # fmt: skip
    autoencoder = in_tiles(VideoAutoencoder(widths=(128, 256, 512, 512), blocks=2, channels=16))
    return Pipeline(
        family=NAME,
        folder=pathlib.Path(config.path),
        config=config,
        part=PART,
        network=_network(config, transformer, FlowShift(shift=7.0), autoencoder.downsample),
        autoencoder=autoencoder,
        codec=KnownTexts(states=(TOKENS, 4096), pooled=768, masked=True, dtype=config.dtype, guided=_guided(transformer)),
        stored=None,
        autoencoder_stored=None,
        stored_dtype="bfloat16",
    )


def in_tiles(autoencoder: VideoAutoencoder) -> VideoAutoencoder:
    """The same, which cuts frames that are larger than a tile, as the public code of DanceGRPO has it do."""
    tiles = Tiles(size=TILE * autoencoder.downsample, stride=STRIDE * autoencoder.downsample)
    return dataclasses.replace(autoencoder, side_tiles=tiles)


def _guided(transformer: HunyuanVideoTransformer) -> bool:
    """Whether it is guided by a second pass: from a picture, as SkyReels-V1 is, and where no guidance can be told."""
    return transformer.from_picture or not transformer.guidance


def _network(
    config: ModelConfig, transformer: HunyuanVideoTransformer, shift: FlowShift, downsample: int,
    student: Student | None = None,
) -> HunyuanVideo:  # fmt: skip
    published = 1.0 if transformer.from_picture else 6.0
    told = published if config.told_guidance is None else config.told_guidance
    transformer, fresh = pipelines.timed(config, transformer, student)
    own = {"guidance_scale": told, "fresh_time": fresh}
    return HunyuanVideo(transformer=transformer, shift=shift, downsample=downsample, **own, **pipelines.computing(config))
