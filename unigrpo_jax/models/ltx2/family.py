"""LTX-2 as a family: what its folder holds, and the folder as the house asks for one."""

import dataclasses
import pathlib

from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models.autoencoders import diffusers_ltx as autoencoders
from unigrpo_jax.models.autoencoders.mel_audio import EVERY
from unigrpo_jax.models.folders import component, pipelines
from unigrpo_jax.models.folders import student as students
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.folders.stored import DTYPES
from unigrpo_jax.models.loaded import Published
from unigrpo_jax.models.ltx2 import config as configs
from unigrpo_jax.models.ltx2 import release, single_file
from unigrpo_jax.models.ltx2 import scheduler as schedulers
from unigrpo_jax.models.ltx2.media import AUDIO, VIDEO, VOCODER, LTX2Media
from unigrpo_jax.models.ltx2.painter import LTX2
from unigrpo_jax.models.ltx2.texts import open_connectors
from unigrpo_jax.models.ltx2.tiny import tiny_folder
from unigrpo_jax.models.ltx2.transformer import LTX2Transformer
from unigrpo_jax.models.text_encoders.codec import EmbeddingCodec, KnownTexts
from unigrpo_jax.models.text_encoders.encoder import Encoders, open_gemma
from unigrpo_jax.models.text_encoders.projected import Projected

NAME, PIPELINE, FROM_PICTURE = "ltx2", "LTX2Pipeline", "LTX2ImageToVideoPipeline"
VERBS = "draws a clip and its sound by a flow, upon what Gemma says of the prompt; goes on from a picture"
FILES = configs.FILES
PART, TOYS, OWN_SETTINGS = "transformer", {"ltx2_tiny": tiny_folder}, ("sound", "second_time")
SINGLE_FILE = single_file
_PARTS = {
    PART: ("LTX2VideoTransformer3DModel",),
    "connectors": ("LTX2TextConnectors",),
    VIDEO: ("AutoencoderKLLTX2Video",),
    AUDIO: ("AutoencoderKLLTX2Audio",),
    VOCODER: ("LTX2Vocoder",),
    "text_encoder": ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", "Gemma3TextModel"),
    "tokenizer": ("GemmaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
    "scheduler": schedulers.CLASSES,
}
_TRANSFORMER, _SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"
HUB_FILES = pipelines.hub_files(*_PARTS)
TOKENS = 1024  # of a prompt's states, where the tokenizer is not for fewer
TEXTS = 4  # of one call of the encoder: of each it says as many states as it has layers
SIZE = {"image_height": 512, "image_width": 768, "frames": 121, "frames_per_second": 24.0, "timestep_shift": 0.0}


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is one of LTX-2's, by its model_index.json; ConfigError where that is damaged.

    Both classes have the same parts, and whether a clip goes on from a picture is said by each prompt.
    """
    return pipelines.pipeline_class(folder) in (PIPELINE, FROM_PICTURE)


def load(config: ModelConfig, folder: pathlib.Path) -> Pipeline:
    """A folder without its weights; ConfigError where a file is missing, does not fit, or asks for what is not built."""
    with pipelines.told():
        parts = {name: classes for name, classes in _PARTS.items() if config.sound or name not in (AUDIO, VOCODER)}
        pipelines.check_parts(folder, parts, FILES)
        transformer = configs.read_transformer(folder / _TRANSFORMER)
        media = LTX2Media(video=autoencoders.read_video_autoencoder(folder / VIDEO / "config.json", FILES))
        if config.sound:
            media = dataclasses.replace(
                media,
                audio=autoencoders.read_mel_autoencoder(folder / AUDIO / "config.json", FILES),
                vocoder=autoencoders.read_vocoder(folder / VOCODER / "config.json", FILES),
            )
        _check_media(folder, transformer, media)
        student = students.read(folder)
        timed, fresh = pipelines.timed(config, transformer, student)
        network = LTX2(
            transformer=timed,
            shift=schedulers.read_scheduler(folder / _SCHEDULER, FILES),
            downsample=media.downsample,
            sound=config.sound,
            fresh_time=fresh,
            **pipelines.computing(config),
        )
        weights = pipelines.open_network(folder / PART, network.stored_network)
        known = {
            _TRANSFORMER: configs.KNOWN,
            "connectors/config.json": configs.CONNECTORS_KNOWN,
            f"{VIDEO}/config.json": autoencoders.VIDEO_KNOWN,
            f"{AUDIO}/config.json": autoencoders.MEL_KNOWN,
            f"{VOCODER}/config.json": autoencoders.VOCODER_KNOWN,
            _SCHEDULER: schedulers.KNOWN,
        }
        known = {name: settings for name, settings in known.items() if name.split("/")[0] in parts}
        return Pipeline(
            family=NAME,
            folder=folder,
            config=config,
            part=PART,
            network=network,
            autoencoder=media,
            codec=EmbeddingCodec(encoders=_encoders(folder, config.dtype, transformer), kept=config.embeddings, guided=True),
            stored=weights,
            usual=Published(rollout=SIZE, evaluation={"flow_steps": 30, "guidance": 3.0}),
            autoencoder_stored=component.open_parts(folder, media.networks),
            stored_dtype=DTYPES[weights.dtype("proj_in.weight")],
            unknown_settings=pipelines.unknown_settings(folder, known),
            unread_files=pipelines.unread_files(folder, _PARTS),
            adapters=pipelines.open_adapters(folder, PART, network.stored_network),
            student=student,
        )


def known(config: ModelConfig) -> Pipeline | None:
    """A published model by its name on the hub, from its sizes alone; None where the name is another."""
    if config.path != release.HUB_NAME:
        return None
    said, media = release.CONNECTORS, release.MEDIA if config.sound else LTX2Media(video=release.MEDIA.video)
    transformer, fresh = pipelines.timed(config, release.TRANSFORMER, None)
    return Pipeline(
        family=NAME,
        folder=pathlib.Path(config.path),
        config=config,
        part=PART,
        network=LTX2(
            transformer=transformer,
            downsample=media.downsample,
            sound=config.sound,
            fresh_time=fresh,
            **pipelines.computing(config),
        ),
        autoencoder=media,
        codec=KnownTexts(states=(TOKENS, said.video.width), audio=said.audio.width, dtype=config.dtype, guided=True),
        stored=None,
        autoencoder_stored=None,
        stored_dtype="bfloat16",
    )


def _encoders(folder: pathlib.Path, dtype: str, transformer: LTX2Transformer) -> Encoders:
    """Gemma with the connectors behind it."""
    gemma = open_gemma(folder, dtype, TOKENS)
    tokens = int(min(TOKENS, gemma.coder.tokenizer.model_max_length))
    gemma = dataclasses.replace(gemma, coder=dataclasses.replace(gemma.coder, tokens=tokens))
    connected = open_connectors(folder / "connectors", tokens, dtype)
    own, (_, *said) = folder / "connectors" / "config.json", gemma.shapes()["states"]
    read = [connected.network.text_width, connected.network.states]
    require(read == said, f"{own}: caption_channels and text_proj_in_factor are {read[0]} and {read[1]}, but the text "
            f"encoder says {said[1]} states of {said[0]} numbers.")  # fmt: skip
    for name, branch in transformer.branches.items():
        wanted, found = transformer.text_width or branch.width, getattr(connected.network, name).width
        require(found == wanted, f"{own}: the {name} connector says {found} numbers, but {folder / _TRANSFORMER} reads "
                f"{wanted}.")  # fmt: skip
    return Encoders((Projected(gemma, connected),), dtype, rows=TEXTS)


def _check_media(folder: pathlib.Path, transformer: LTX2Transformer, media: LTX2Media) -> None:
    """ConfigError where autoencoders, vocoder and transformer do not fit together; of sound only where it is drawn."""
    own, places, video, audio = folder / _TRANSFORMER, transformer.positions, media.video, media.audio
    found = [
        ("in_channels", transformer.video.channels, VIDEO, video.channels),
        ("vae_scale_factors", places.scales, VIDEO, (video.every, video.downsample, video.downsample)),
    ]
    if audio is not None:
        found += [
            ("audio_in_channels", transformer.audio.channels, AUDIO, audio.numbers),
            ("audio_sampling_rate", places.sound_rate, AUDIO, audio.rate),
            ("audio_hop_length", places.sound_hop, AUDIO, audio.hop),
            ("audio_scale_factor", places.sound_scale, AUDIO, EVERY),
        ]
    for name, asked, part, stands in found:
        require(asked == stands, f"{own}: {name} = {asked}, but that of {folder / part} is {stands}.")
    if audio is not None:
        inputs, numbers = media.vocoder.inputs, audio.bins * audio.sides
        require(inputs == numbers, f"{folder / VOCODER / 'config.json'}: in_channels = {inputs}, but spectrograms of "
                f"{folder / AUDIO} have {audio.sides} x {audio.bins} = {numbers} numbers.")  # fmt: skip
