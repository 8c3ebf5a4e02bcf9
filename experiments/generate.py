"""Thinks about a prompt, draws it, prints the thinking and writes the picture or clip; edits a picture, or answers about it.

    python -m experiments.generate [CHECKPOINT] "three green circles"
    python -m experiments.generate --model.path DIR "a lighthouse at dusk"
    python -m experiments.generate --model.path DIR --image photo.jpg "make it winter"
    python -m experiments.generate --model.path DIR --image photo.jpg --answer "what is on the table?"
    python -m experiments.generate --chat [CHECKPOINT]

--chat holds a conversation at the terminal: each line is thought about and drawn upon all that came before; /help there
lists what else may be typed.

What a model can do depends on its family:

    bagel              thinks, draws, looks at pictures, answers
    flux               draws by a flow, upon what T5 and CLIP say of the prompt
    stable_diffusion   draws by a diffusion, upon what CLIP says of the prompt
    hunyuan_video      draws a clip by a flow, upon what Llama and CLIP say of the prompt; SkyReels-V1 goes on from a picture
    ltx2               draws a clip and its sound by a flow, upon what Gemma says of the prompt; goes on from a picture

CHECKPOINT is a run folder (its newest checkpoint), RUN/checkpoints/N, a model folder, or one in the package: `base`, the
shapes base, `rounds_base`, that of several rounds, `shapes_few_base`, a student of few steps, `shapes_flux_base` or
`shapes_sd_base`.
"""

import dataclasses
import pathlib
from typing import Literal

import tyro

from experiments.command_line import command_line, preset
from experiments.destination import file_to_write, folder_to_write
from experiments.to_judge import SAMPLER
from unigrpo_jax.config import EvaluationConfig, MeshConfig, ModelConfig, RolloutConfig, require
from unigrpo_jax.config_evaluation import EDITING, PassesConfig
from unigrpo_jax.foreign_text import tell


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw and how; what is not given follows the model, and what it was published with."""

    words: tyro.conf.Positional[tuple[str, ...]]
    """[CHECKPOINT] PROMPT; without a checkpoint --model.path says which model, and else it is the shapes base."""
    out: pathlib.Path | None = None
    """PNG file, of a clip .mp4 or .webp; default the prompt's words in the current folder.  With --chat the folder of the
    pictures."""
    image: pathlib.Path | None = None
    """A picture to edit, to answer about (which takes a vision encoder), or to go on from: a clip's first frame."""
    answer: bool = False
    """Answer in words instead of drawing."""
    chat: bool = False
    """Hold a conversation: any number of texts, each drawn upon the one before; needs no PROMPT."""
    chat_slots: int = 32768
    """Tokens of texts, thinking and images that a conversation may hold in memory."""
    chat_tokens: int = 512
    """Longest text of a conversation, in tokens."""
    thinking: bool = True
    """Think before drawing, where the model can."""
    thinking_as_text: bool = False
    """Draw upon the thinking's words, encoded again, as PyTorch's BAGEL does, and not upon the tokens that were sampled."""
    thinking_tokens: int | None = None
    """Largest number of tokens; default the run's, or 999."""
    temperature: float = 0.0
    """Of the thinking; 0 is greedy."""
    flow_steps: int | None = None
    """Denoising transitions; default the model's (49 of BAGEL, 50 of Stable Diffusion, 28 of FLUX.1-dev), or 20, and after a
    run on a student those of its evaluations."""
    guidance: float | None = None
    """Text classifier-free guidance scale, 1 is off; default the model's (4 of BAGEL, 7.5 of Stable Diffusion), or 1."""
    guidance_image: float | None = None
    """Image guidance scale; default 1, or 2 for an edit."""
    quantised: Literal["none", "int8"] = "none"
    """Compute the products of the network's blocks in int8 (extra `int8`)."""
    passes: PassesConfig = dataclasses.field(default_factory=PassesConfig)
    """What guidance compares with beside the empty text, where a model has such passes (LTX-2)."""
    height: int | None = None
    """Pixels; default the run's, the picture's, or the model's."""
    width: int | None = None
    """Pixels."""
    frames: int | None = None
    """Of a clip, where the model draws such, 1 more than a multiple of 4, or of 8 of LTX-2; default the run's, or
    the model's."""
    fps: float | None = None
    """Frames per second of the clip; default the run's, or the model's."""
    seed: int = 0
    """Seed of tokens and noise."""
    enlarge: int | None = None
    """Each pixel becomes this many on a side; default 1, or 8 for a small model of a world."""
    devices: int = 1
    """Devices that are used; 0 is all."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The model, where no checkpoint is named."""


def settings(arguments: Arguments, restored, picture) -> tuple[EvaluationConfig, RolloutConfig]:
    """The sampler's settings: what was given, else the run's, else what the model was published with."""
    chosen = lambda value, default: default if value is None else value
    loaded, rollout = restored.loaded, restored.config.rollout
    published, thinks = loaded.published, arguments.thinking and loaded.network.thinks
    edits = picture is not None and not loaded.network.begins
    height, width = picture.pixels.shape[1:3] if edits else (rollout.image_height, rollout.image_width)
    rollout = dataclasses.replace(
        rollout,
        thinking=thinks,
        thinking_tokens=chosen(arguments.thinking_tokens, rollout.thinking_tokens),
        image_height=chosen(arguments.height, height),
        image_width=chosen(arguments.width, width),
        frames=chosen(arguments.frames, rollout.frames),
        frames_per_second=chosen(arguments.fps, rollout.frames_per_second),
    )
    usual = published.evaluation if published is not None else {}
    if loaded.student is not None and not restored.is_bare:  # as its run judges it
        usual = {name: getattr(restored.config.evaluation, name) for name in SAMPLER}
    evaluation = EvaluationConfig(**{"flow_steps": 20, **usual})
    if edits:
        evaluation = dataclasses.replace(evaluation, **EDITING)
    evaluation = dataclasses.replace(
        evaluation,
        thinking=thinks,
        thinking_as_text=arguments.thinking_as_text,
        temperature=arguments.temperature,
        flow_steps=chosen(arguments.flow_steps, evaluation.flow_steps),
        guidance=chosen(arguments.guidance, evaluation.guidance),
        guidance_image=chosen(arguments.guidance_image, evaluation.guidance_image),
        quantised=arguments.quantised,
        passes=arguments.passes,
        seed=arguments.seed,
    )
    return evaluation, rollout


def restored_model(arguments: Arguments, words: tuple[str, ...]):
    """The model that [CHECKPOINT] or --model names; its weights are not read yet."""
    from unigrpo_jax.training.restore import restore

    require(not words or arguments.model == ModelConfig(),
            "a checkpoint knows its model; give either CHECKPOINT or --model settings.")  # fmt: skip
    bare = dataclasses.replace(preset([], "shapes")[0], model=arguments.model)
    source = words[0] if words else arguments.model.path or "base"
    return restore(source, bare, arguments.devices, arguments.mesh).as_published


def checked(arguments: Arguments, restored, picture) -> tuple[EvaluationConfig, RolloutConfig]:
    """`settings`; ConfigError where one of them cannot be, and a warning where a student was not made for them."""
    from unigrpo_jax.config_checks import check
    from unigrpo_jax.training import student_checks

    evaluation, rollout = settings(arguments, restored, picture)
    check(dataclasses.replace(restored.config, evaluation=evaluation, rollout=rollout))
    for words in () if arguments.answer else student_checks.warnings(restored.loaded, rollout, evaluation):
        tell(words)
    return evaluation, rollout


def sampled(arguments: Arguments, restored):
    """The weights as words are sampled with them; ConfigError where they do not fit, or int8 is not there."""
    import jax

    from unigrpo_jax.models.building import int8

    if arguments.quantised == "none":
        return restored.read()
    int8.check_installed("quantised")
    return jax.jit(restored.loaded.network.in_int8)(restored.read())


def look_at(path: pathlib.Path, restored):
    """A file as the network looks at it; ConfigError where it is no picture."""
    from unigrpo_jax.picture_files import open_rgb

    return restored.loaded.network.look_at(open_rgb(path))


@command_line
def main(arguments: Arguments) -> None:
    """Reads, thinks, draws, writes."""
    enlarge, words = arguments.enlarge, arguments.words
    require(enlarge is None or enlarge >= 1, f"enlarge = {enlarge}, but it must be at least 1.")
    if arguments.chat:
        converse(arguments)
        return
    require(1 <= len(words) <= 2, "expected [CHECKPOINT] PROMPT; put the prompt in quotes.")
    require(bool(words[-1].strip()), "the prompt is empty; write what to draw, or to ask, in quotes.")
    require(not arguments.answer or arguments.image is not None, "--answer is about a picture; give one with --image.")
    generate(arguments, restored_model(arguments, words[:-1]), words[-1])


def generate(arguments: Arguments, restored, prompt: str) -> None:
    """One prompt: an answer, or a thinking and a picture."""
    import jax

    from experiments.chat import slug
    from unigrpo_jax.clip_files import WITHOUT_PYAV, has_pyav
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.picture_files import open_rgb
    from unigrpo_jax.rollout.answer import answer
    from unigrpo_jax.training.evaluation import evaluation_rollout
    from unigrpo_jax.training.given import first_frame

    loaded, picture = restored.loaded, None
    begins = loaded.network.begins and arguments.image is not None
    require(not loaded.network.needs_picture or arguments.image is not None,
            f"{loaded.folder} goes on from a picture, the first frame of what it draws; give one with --image.")  # fmt: skip
    if arguments.image is not None and (not begins or arguments.answer):
        _check_thinks(loaded, "--answer" if arguments.answer else "--image")
        require(loaded.network.sees or not arguments.answer,
                f"{loaded.folder} has no vision encoder, so it cannot answer about a picture; use a model with "
                "vit_config.json, or edit without --answer.")  # fmt: skip
        picture = look_at(arguments.image, restored)
    evaluation, rollout = checked(arguments, restored, picture)
    if begins:
        picture = first_frame(open_rgb(arguments.image), loaded.network, rollout)
    if arguments.answer:
        require(not arguments.thinking_as_text, "--thinking-as-text is about drawing; leave it out with --answer.")
        system = loaded.published.answer if loaded.published is not None and rollout.thinking else ""
        tell(answer(loaded.network, sampled(arguments, restored), loaded.codec, picture.patches, prompt, system,
                     rollout.thinking_tokens, arguments.temperature, arguments.seed))  # fmt: skip
        return
    loaded.check_image_size(rollout)
    require(arguments.fps is None or rollout.frames > 1,
            "--fps is for clips, and one frame is drawn; leave it out, or say with --frames how many.")  # fmt: skip
    drawing = evaluation_rollout(evaluation, rollout, loaded)
    block = loaded.codec.prompts([prompt], loaded.codec.bucket([prompt]))
    out = file_to_write(arguments.out or f"{slug(prompt)}.png", "--out")
    require(out.suffix.lower() != ".mp4" or has_pyav(), f"--out {out}: {WITHOUT_PYAV}; or give a name that ends in .webp.")
    params, autoencoder_params = restored.read(), loaded.autoencoder_params(meshes.replicated(restored.layout.mesh))
    out.parent.mkdir(parents=True, exist_ok=True)
    program = jax.jit(drawing.__call__)
    episodes = program(params, autoencoder_params, block, arguments.seed, 0, 0, picture)
    if rollout.thinking:
        tell(loaded.codec.thoughts(episodes.thinking, 1)[0])
    files = write_drawn(episodes, out, arguments.enlarge or _times(loaded))
    tell(f"Wrote {' and '.join(map(str, files))}")


def write_drawn(episodes, out: pathlib.Path, times: int) -> list[pathlib.Path]:
    """Writes the first image as PNG, or the first clip; each pixel becomes `times` on a side.  The files that were written.

    A clip is what `out` ends in, .mp4 or .webp; any other name gets a clip's suffix, in the place of .png.  Its sound is in
    an MP4, or in a WAV file beside a WebP; numbers of it that are not finite are silent.
    """
    import numpy as np

    from experiments.chat import enlarged
    from unigrpo_jax import clip_files, sound_files

    first = np.asarray(episodes.drawing.seen)[0]
    if "video" not in episodes.drawing.media:
        enlarged(first, times).save(out, format="PNG")
        return [out]
    if out.suffix.lower().removeprefix(".") not in clip_files.KINDS:
        out = out.with_name(f"{out.name.removesuffix('.png')}.{clip_files.best_kind()}")
    frames, sound = first.repeat(times, axis=1).repeat(times, axis=2), None
    if "audio" in episodes.drawing.media:
        sound = sound_files.audible(np.asarray(episodes.drawing.media["audio"])[0]), int(episodes.rate)
    inside = sound is not None and out.suffix.lower() == ".mp4"
    clip_files.save_clip(out, frames, episodes.fps, sound if inside else None)
    if sound is None or inside:
        return [out]
    sound_files.save_sound(out.with_suffix(".wav"), *sound)
    return [out, out.with_suffix(".wav")]


def converse(arguments: Arguments) -> None:
    """A conversation, from the pipe or the keyboard."""
    from experiments.chat import HELP, Chat
    from unigrpo_jax.parallel import mesh as meshes
    from unigrpo_jax.rollout.conversation import Conversation, rounds_that_fit, slot_bytes
    from unigrpo_jax.training.evaluation import evaluation_rollout

    require(len(arguments.words) <= 1, "--chat takes a CHECKPOINT at most; what to draw is written when it asks.")
    require(not arguments.answer, "--chat draws; leave --answer out.")
    slots, tokens, out = arguments.chat_slots, arguments.chat_tokens, arguments.out or pathlib.Path()
    require(tokens >= 3, f"chat_tokens = {tokens}, but a word and the two tokens around it are 3.")
    out = folder_to_write(out, "--out")
    restored = restored_model(arguments, arguments.words)
    loaded = restored.loaded
    _check_thinks(loaded, "--chat")

    def make(picture):
        evaluation, rollout = checked(arguments, restored, picture)
        loaded.check_image_size(rollout)
        return evaluation_rollout(evaluation, rollout, loaded)

    program = make(None)
    first = None if arguments.image is None else look_at(arguments.image, restored)
    params = sampled(arguments, restored)
    autoencoder_params = loaded.autoencoder_params(meshes.replicated(restored.layout.mesh))
    conversation = Conversation(
        program, params, autoencoder_params, loaded.codec, seed=arguments.seed, slots=slots, text_tokens=tokens
    )
    chat = Chat(
        conversation=conversation, make=make, open=lambda path: look_at(path, restored), out=out,
        enlarge=arguments.enlarge or _times(loaded), facts={"model": restored.name, "seed": arguments.seed},
    )  # fmt: skip
    size = slot_bytes(program) * slots / 2**20
    tell(f"{restored.name}: at least {rounds_that_fit(program, slots)} rounds of short texts fit into {slots} slots "
         f"({size:.4g} MiB).")  # fmt: skip
    tell(HELP)
    if first is not None:
        chat.image(str(arguments.image))
    chat.run()


def _times(loaded) -> int:
    """How often a pixel is repeated where nobody says it."""
    return 1 if loaded.published is not None and "image_height" in loaded.published.rollout else 8


def _check_thinks(loaded, option: str) -> None:
    require(loaded.network.thinks, f"{option} is for a model that reads and writes words, but {loaded.folder} "
            f"({loaded.family}) only draws upon a prompt; leave it out.")  # fmt: skip


if __name__ == "__main__":
    main()
