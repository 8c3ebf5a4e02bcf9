"""Stable Diffusion 1.x as a family: what its folder holds, and the folder as the house asks for one."""

import pathlib

from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models.autoencoders import diffusers as autoencoders
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.folders import pipelines, student
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.folders.stored import DTYPES
from unigrpo_jax.models.loaded import Published
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.schedule import DiffusionSchedule
from unigrpo_jax.models.stable_diffusion import config as configs
from unigrpo_jax.models.stable_diffusion import scheduler as schedulers
from unigrpo_jax.models.stable_diffusion.painter import StableDiffusion
from unigrpo_jax.models.stable_diffusion.scheduler import Scheduler
from unigrpo_jax.models.stable_diffusion.tiny import tiny_folder
from unigrpo_jax.models.stable_diffusion.unet import UNet
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.encoder import open_stable_diffusion

NAME, PIPELINE = "stable_diffusion", "StableDiffusionPipeline"
VERBS = "draws by a diffusion, upon what CLIP says of the prompt"
FILES = configs.FILES
PART, TOYS, OWN_SETTINGS = "unet", {"sd_tiny": tiny_folder}, ()
_PARTS = {
    PART: ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": schedulers.CLASSES,
}
_UNET, _VAE, _SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
HUB_FILES = pipelines.hub_files(*_PARTS)
PUBLISHED = ("CompVis/stable-diffusion-v1-4", "stable-diffusion-v1-5/stable-diffusion-v1-5")


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is one of Stable Diffusion's, by its model_index.json; ConfigError where that is damaged."""
    return pipelines.pipeline_class(folder) == PIPELINE


def load(config: ModelConfig, folder: pathlib.Path) -> Pipeline:
    """A folder without its weights; ConfigError where a file is missing, does not fit, or asks for what is not built."""
    with pipelines.told():
        pipelines.check_parts(folder, _PARTS, FILES)
        unet = configs.read_unet(folder / _UNET)
        autoencoder = autoencoders.read_autoencoder(folder / _VAE, FILES)
        scheduler = schedulers.read_scheduler(folder / _SCHEDULER, FILES)
        require(unet.channels == autoencoder.channels, f"{folder / _UNET}: in_channels = {unet.channels}, but latents of "
                f"{folder / 'vae'} have {autoencoder.channels} channels.")  # fmt: skip
        side = configs.latents_a_side(folder / _UNET) * autoencoder.downsample
        encoders = open_stable_diffusion(folder, config.dtype)
        width = encoders.shapes()["states"].shape[-1]
        require(unet.text_width == width, f"{folder / _UNET}: cross_attention_dim = {unet.text_width}, but states of "
                f"{folder / 'text_encoder'} are {width} wide.")  # fmt: skip
        weights = pipelines.open_network(folder / PART, unet)
        known = {_UNET: configs.KNOWN, _VAE: autoencoders.KNOWN, _SCHEDULER: schedulers.KNOWN}
        return Pipeline(
            family=NAME,
            folder=folder,
            config=config,
            part=PART,
            network=_network(config, unet, scheduler, autoencoder.downsample),
            autoencoder=autoencoder,
            codec=EmbeddingCodec(encoders=encoders, kept=config.embeddings, guided=True),
            stored=weights,
            usual=Published(
                rollout={"image_height": side, "image_width": side, "timestep_shift": 0.0},
                evaluation={"flow_steps": 50, "guidance": 7.5},
            ),
            autoencoder_stored=pipelines.open_autoencoder(folder / "vae", autoencoder),
            stored_dtype=DTYPES[weights.dtype("conv_in.weight")],
            unknown_settings=pipelines.unknown_settings(folder, known),
            unread_files=pipelines.unread_files(folder, _PARTS),
            adapters=pipelines.open_adapters(folder, PART, unet),
            student=student.read_with_one_time(folder, NAME),
        )


def known(config: ModelConfig) -> Pipeline | None:
    """A published model by its name on the hub, from its sizes alone; None where the name is another."""
    if config.path not in PUBLISHED:
        return None
    sizes = dict(channels=4, blocks=2)
    widths, attends = (320, 640, 1280, 1280), (True, True, True, False)
    unet = UNet(**sizes, widths=widths, attends=attends, heads=8, text_width=768, groups=32)
    autoencoder = ImageAutoencoder(**sizes, width=128, multipliers=(1, 2, 4, 4), scale=0.18215, shift=0.0, quant=True)
    scheduler = Scheduler(scaled_linear(0.00085, 0.012, 1000), "noise", DiffusionSchedule(to_data=False))
    return Pipeline(
        family=NAME,
        folder=pathlib.Path(config.path),
        config=config,
        part=PART,
        network=_network(config, unet, scheduler, autoencoder.downsample),
        autoencoder=autoencoder,
        codec=KnownTexts(states=(77, 768), dtype=config.dtype, guided=True),
        stored=None,
        autoencoder_stored=None,
        stored_dtype="float32",
    )


def _network(config: ModelConfig, unet: UNet, scheduler: Scheduler, downsample: int) -> StableDiffusion:
    return StableDiffusion(
        unet=unet,
        path=scheduler.path,
        prediction=scheduler.prediction,
        schedule=scheduler.schedule,
        downsample=downsample,
        **pipelines.computing(config),
    )
