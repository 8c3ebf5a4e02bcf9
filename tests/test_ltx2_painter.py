"""LTX-2 as a painter of two modalities: grids, latents, texts, and recorded runs and transitions by the house's sampler."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.test_flops import counted
from tests.test_ltx2 import BOTH
from tests.test_ltx2_sizes import SMALL, SMALL_NEWER
from unigrpo_jax.config import LoraConfig, MeshConfig, RolloutConfig, RunConfig
from unigrpo_jax.config_evaluation import PassesConfig
from unigrpo_jax.episode import Drawing, Episodes
from unigrpo_jax.learning.policy import Policy
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.ltx2.config import FILES, read_transformer
from unigrpo_jax.models.ltx2.guidance import Scales
from unigrpo_jax.models.ltx2.painter import LTX2
from unigrpo_jax.models.ltx2.scheduler import read_scheduler
from unigrpo_jax.models.ltx2.texts import open_connectors
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout.drawing import FlowSampler, denoise
from unigrpo_jax.rollout.program import training_rollout
from unigrpo_jax.rollout.step_rules import ODE, DanceSDE
from unigrpo_jax.rollout.thinking import TokenSampler

TOY = LTX2(transformer=SMALL)
TEXT = TextStates(states=jnp.zeros((2, 6, 7)), audio=jnp.zeros((2, 6, 7)))


class Recorded:
    """The recorded arrays with the painter, its parameters, and the grid of its clip from pixels and seconds."""

    def __init__(self, folder):
        self.load = lambda name: dict(np.load(folder / f"{name}.npz"))
        own, settings = folder / "pipeline", json.loads((folder / "settings.json").read_text())
        self.settings = settings
        network = read_transformer(own / "transformer" / "config.json")
        weights = component.open_weights(own / "transformer", component.DIFFUSERS, network)
        self.params = component.read(weights, network, np.float32)
        shift = read_scheduler(own / "scheduler" / "scheduler_config.json", FILES)
        self.painter = LTX2(transformer=network, shift=shift, downsample=network.positions.scales[1])
        self.grid = self.painter.grid(*settings["image_hw"], settings["frames"], settings["fps"])
        assert self.grid == (*settings["latent_grid"], settings["audio_latents"], settings["fps"])

    def guidance(self):
        """Of the run with all passes."""
        own, blocks = self.settings["runs"]["full"], tuple(self.settings["stg_blocks"])
        names = {"mixing": "stg_scale", "other": "modality_scale", "rescale": "guidance_rescale"}
        both, sound = ({name: own[f"{pre}{said}"] for name, said in names.items()} for pre in ("", "audio_"))
        passes = PassesConfig(sound=own["audio_guidance_scale"], blocks=blocks, **both)
        found = self.painter.guided_by(own["guidance_scale"], (0.0, 1.0), passes)
        assert found.passes == ("text", "unmixed", "alone")
        return dataclasses.replace(found, audio=dataclasses.replace(found.audio, **sound))

    def text(self):
        run = self.load("run")
        return TextStates(run["video_text"], mask=run["text_mask"] > 0, audio=run["audio_text"])


@pytest.fixture(scope="module")
def recorded(fixtures):
    """Everything."""
    return Recorded(fixtures / "ltx2")


@pytest.mark.parametrize("name", ["plain", "full"])
def test_a_recorded_run_by_the_houses_sampler(recorded, assert_close, name):
    """Without guidance, and with all passes that the released pipeline draws by."""
    run, painter = recorded.load("run"), recorded.painter
    times = painter.times(len(run["sigmas"]) - 1, 0.0, recorded.grid)
    assert_close(times, run["sigmas"], 1e-6, "times")
    guidance = recorded.guidance() if name == "full" else None
    sampler = FlowSampler(schedule=tuple(times.tolist()), rule=ODE(), grid=recorded.grid, guidance=guidance)
    x = {each: run[f"{each}_init"] for each in BOTH}
    assert {each: own.shape[1:] for each, own in x.items()} == painter.latent_shape(recorded.grid)
    text = recorded.text()
    empty = text.replace(states=run["neg_video_text"], audio=run["neg_audio_text"])
    read = lambda text: painter.read({}, text, painter.empty(len(x["video"])))
    draw = lambda params, x: denoise(painter, params, read(text), x, None, jnp.zeros(0, int), sampler, (read(empty),))[0]
    for each, end in tiny.jit(draw)(recorded.params, x).items():
        assert_close(end, run[f"{name}_{each}"][-1], 2e-4, each)


def test_passes_that_a_network_has_not_are_one_sentence():
    silent, unmixed = dataclasses.replace(TOY, sound=False), PassesConfig(mixing=1.0, blocks=(0,))
    perturbed = dataclasses.replace(TOY, transformer=dataclasses.replace(SMALL, perturbed=True))
    for painter, passes, words in (
        (TOY, unmixed, "was not made to go without mixing .*; leave out mixing and blocks.$"),
        (perturbed, PassesConfig(mixing=1.0, blocks=(0, 3)), "no block 3 to leave unmixed; the network has 0 to 2.$"),
        (silent, PassesConfig(other=3.0), "no sound is drawn .*; leave them out.$"),
        (silent, PassesConfig(sound=3.0), "no sound is drawn .*; leave them out.$"),
    ):
        with pytest.raises(ValueError, match=words):
            painter.guided_by(3.0, (0.0, 1.0), passes)
    found = perturbed.guided_by(3.0, (0.2, 1.0), unmixed)
    assert found.unmixed == (True, False, False) and found.passes == ("text", "unmixed") and not found.acts(0.2)
    assert found.video == found.audio == Scales(text=3.0, mixing=1.0)
    assert not TOY.guided_by(1.0, (0.0, 1.0), PassesConfig()).active


def test_a_guided_clip_without_sound_goes_without_mixing_alone():
    """From shapes alone: one array in, one out."""
    painter = LTX2(transformer=dataclasses.replace(SMALL, perturbed=True), sound=False)
    grid = (2, 1, 2, 0, 24.0)
    guidance = painter.guided_by(3.0, (0.0, 1.0), PassesConfig(mixing=1.0, blocks=(0,), rescale=0.5))
    condition = painter.read({}, TEXT, painter.empty(2))
    sampler = FlowSampler(schedule=(1.0, 0.5, 0.0), rule=ODE(), grid=grid, guidance=guidance)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    draw = lambda p: denoise(painter, p, condition, jnp.zeros((2, 4, 5)), None, jnp.zeros(0, int), sampler, (condition,))[0]
    assert jax.eval_shape(draw, params).shape == (2, 4, 5)


def test_a_policys_view_of_recorded_transitions(recorded, assert_close):
    """All of them at once, as an update sees them: means, deviations and log-probabilities of each modality."""
    found, rule = recorded.load("dance"), DanceSDE(noise_level=float(recorded.load("dance")["eta"]))
    steps, count = len(found["sigmas"]) - 1, found["x_video"].shape[1]
    sampler = FlowSampler(schedule=tuple(found["sigmas"].tolist()), rule=rule, grid=recorded.grid)
    window = lambda kind, count: {name: found[f"{kind}_{name}"][:count].swapaxes(0, 1) for name in BOTH}
    drawing = Drawing(steps=np.tile(np.arange(steps), (count, 1)), x=window("x", steps), noise=window("noise", steps),
                      mean=None, latent=None, media={}, finite=np.ones(count, bool))  # fmt: skip
    policy = Policy(model=recorded.painter, tokens=TokenSampler(), flow=sampler)
    (view,) = tiny.jit(policy.view)(recorded.params, Episodes(prompt=recorded.text(), segments=(drawing,)))
    assert_close(view.std, np.tile(found["std"], (count, 1)), name="deviation")
    for name in BOTH:
        assert_close(view.output[name], window("v", steps)[name], name=f"velocity of {name}")
        assert_close(view.mean[name], window("mean", steps)[name], name=f"mean of {name}")
        for i in range(steps):
            log_prob = rule.log_prob(found[f"x_{name}"][i + 1], view.mean[name][:, i], view.std[0, i])
            np.testing.assert_allclose(log_prob, found[f"log_prob_{name}"][i], rtol=0, atol=1e-3)


def test_the_connectors_are_what_stands_behind_the_text_encoder(recorded, fixtures, assert_close):
    found = recorded.load("text")
    own, tokens = fixtures / "ltx2" / "pipeline" / "connectors", found["attention_mask"].shape[1]
    connected = open_connectors(own, tokens, "float32")
    said = tiny.jit(connected)(connected.read(None), {"states": found["hidden_states"], "mask": found["attention_mask"]})
    assert {name: x.shape[1:] for name, x in said.items()} == connected.shapes()
    assert_close(said["states"], found["video_embeds"], name="video")
    assert_close(said["audio"], found["audio_embeds"], name="sound")
    assert {path.name for path in connected.files} == {"config.json", "diffusion_pytorch_model.safetensors"}
    with pytest.raises(ValueError, match=f"registers do not fill texts of {tokens + 1} tokens; pad them to "):
        open_connectors(own, tokens + 1, "float32")


def test_grids_by_hand():
    """A latent is 32 pixels a side and 8 frames, and there are 25 of sound in a second."""
    assert TOY.grid(64, 96, 121, 24.0) == (16, 2, 3, 126, 24.0)  # 121 / 24 s = 5.04 s, 126.04 latents
    assert TOY.grid(32, 32) == (1, 1, 1, 1, 24.0)
    assert TOY.grid(32, 32, 1, 60.0)[3] == 1  # 0.4 of one
    # Halves, as diffusers' pipeline rounds them: seconds times 16000 / 160 / 4, which is 25.0.
    found = [TOY.grid(32, 32, *clip)[3] for clip in ((49, 10.0), (201, 10.0), (153, 30.0), (537, 30.0), (249, 50.0))]
    assert found == [round(frames / fps * 25.0) for frames, fps in ((49, 10), (201, 10), (153, 30), (537, 30), (249, 50))]
    assert found == [123, 503, 127, 447, 125]
    assert TOY.latent_shape((16, 2, 3, 126, 24.0)) == {"video": (96, 5), "audio": (126, 3)}
    for frames, near in ((0, 1), (8, 9), (120, 121)):
        with pytest.raises(ValueError, match=f"a video of {frames} frames cannot be drawn: .* of 8; use {near}.$"):
            TOY.grid(32, 32, frames)
    with pytest.raises(ValueError, match="both sides must be multiples of 32; use 32 x 64.$"):
        TOY.grid(33, 64, 9)


def test_times_of_another_shift_have_no_terminal_one():
    grid = TOY.grid(64, 96, 121)
    assert TOY.times(4, 0.0, grid)[-2] == np.float32(0.1)
    np.testing.assert_allclose(TOY.times(4, 1.0, grid), [1, 0.75, 0.5, 0.25, 0])


def test_tokens_are_latents_frame_by_frame_and_sound_is_tokens():
    rng = np.random.default_rng(0)
    latent = {"video": rng.standard_normal((2, 2, 3, 4, 5)), "audio": rng.standard_normal((2, 6, 3))}
    tokens = TOY.to_tokens(latent)
    assert tokens["video"].shape == (2, 24, 5)
    np.testing.assert_array_equal(tokens["video"][:, 1 * 12 + 2 * 4 + 3], latent["video"][:, 1, 2, 3])
    back = TOY.to_latent(tokens, (2, 3, 4, 6, 24.0))
    for name in BOTH:
        np.testing.assert_array_equal(back[name], latent[name])


@pytest.mark.parametrize("transformer", [SMALL, SMALL_NEWER], ids=["2", "2.3"])
def test_a_fresh_network_predicts_zero_with_its_gates_shut(transformer):
    painter = LTX2(transformer=transformer)
    params = jax.eval_shape(painter.init, jax.random.key(0))
    assert {name: x.shape for name, x in params.items()} == transformer.shapes()
    zero = {name for name in params if re.fullmatch(painter.zero_at_start, name.removesuffix(".weight"))}
    tells = 2 * 4 + 2 * transformer.texts_told  # of time, of scale and shift, of a gate; of texts
    assert len(zero) == 2 + (tells - 2) + len([name for name in params if name.endswith("_table")])


def test_texts_of_both_modalities_reach_it_and_bfloat16_is_the_compute_dtype():
    painter = dataclasses.replace(TOY, dtype="bfloat16", hold=lambda x: held.append(x) or x)
    held, grid = [], (2, 1, 2, 5, 24.0)
    x = {name: jnp.zeros((2, *shape)) for name, shape in painter.latent_shape(grid).items()}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    condition = painter.read({}, TEXT.replace(empty=TEXT), painter.empty(2))
    out = jax.eval_shape(lambda p: painter.predict(p, x, jnp.ones(2), grid, condition), params)
    assert jax.tree.map(lambda v: (v.shape, v.dtype), out) == jax.tree.map(lambda v: (v.shape, jnp.dtype("float32")), x)
    assert {h.dtype for h in held} == {jnp.dtype("bfloat16")}
    assert painter.unread({}, TEXT.replace(empty=TEXT), painter.empty(2)).audio is TEXT.audio
    assert condition.repeat(3).audio.shape == (6, 6, 7)


def test_a_text_that_says_nothing_of_the_sound_is_one_sentence():
    x = {name: jnp.zeros((2, *shape)) for name, shape in TOY.latent_shape((2, 1, 2, 5, 24.0)).items()}
    with pytest.raises(ValueError, match="the text has no states for what is heard"):
        TOY.predict({}, x, jnp.ones(2), (2, 1, 2, 5, 24.0), TEXT.replace(audio=None))


def test_adapters_and_cost():
    settings = LoraConfig(rank=2, targets=(r"transformer_blocks\.(audio_)?attn1\.to_[qkv]",))
    params = jax.eval_shape(lambda: TOY.adapted(TOY.init(jax.random.key(0)), settings, jax.random.key(1)))
    assert params["transformer_blocks.audio_attn1.to_q.lora_A.weight"].shape == (3, 2, 8)
    assert TOY.hits(settings.targets) == {settings.targets[0]: 6 * SMALL.layers}
    rollout = RolloutConfig(image_height=32, image_width=64, frames=9, frames_per_second=24.0, prompt_tokens=6)
    work = TOY.work(RunConfig(rollout=rollout), 0)
    grid = TOY.grid(*rollout.size)
    x = {name: jnp.zeros((1, *shape)) for name, shape in TOY.latent_shape(grid).items()}
    text = TOY.read({}, jax.tree.map(lambda t: t[:1], TEXT), TOY.empty(1))
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    assert work.latents == 4
    assert work.evaluation() == counted(lambda p: TOY.predict(p, x, jnp.ones(1), grid, text), params)


def test_a_mesh_changes_neither_outputs_nor_gradients():
    """Episodes over two pairs of devices, widths over two, heads and MLPs over two; norms of queries are over all heads."""
    branches = {name: dataclasses.replace(own, heads=4) for name, own in SMALL_NEWER.branches.items()}
    painter = LTX2(transformer=dataclasses.replace(SMALL_NEWER, layers=1, **branches))
    rng, grid, rows = np.random.default_rng(0), (2, 1, 2, 5, 24.0), 4
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {name: draw(*shape) / (shape[-1] ** 0.5 if len(shape) > 2 else 3) + ("norm" in name)
              for name, shape in painter.network.shapes().items()}  # fmt: skip
    text = TextStates(draw(rows, 6, 24), audio=draw(rows, 6, 16), mask=jnp.arange(6)[None] < 2 + jnp.arange(rows)[:, None])
    text = painter.read({}, text, painter.empty(rows))
    x = {name: draw(rows, *shape) for name, shape in painter.latent_shape(grid).items()}
    given = x, jnp.linspace(0.1, 1, rows), text

    def loss(painter, p, x, t, text):
        out = painter.predict(p, x, t, grid, text)
        return sum(jnp.mean(jnp.sin(2 * v)) for v in out.values()), out

    step = lambda painter, **places: tiny.jit(jax.value_and_grad(functools.partial(loss, painter), has_aux=True), **places)
    (_, want), gradients = step(painter)(params, *given)
    mesh = meshes.make_mesh(8, MeshConfig(data=2, fsdp=2, tensor=2))
    layout, spread = Layout(mesh, painter.axes), meshes.spread(mesh)
    place = {name: layout.parameter(name, x.shape) for name, x in params.items()}
    placed = dataclasses.replace(painter, hold=layout.activations)
    laid = {name: jax.device_put(x, place[name]) for name, x in params.items()}
    run = step(placed, out_shardings=((None, spread), place))
    (_, got), pulled = run(laid, *jax.device_put(given, spread))
    for found, true in ((got, want), (pulled, gradients)):
        largest = max(float(jnp.abs(x).max()) for x in true.values())
        for name, x in true.items():
            np.testing.assert_allclose(found[name], x, rtol=0, atol=3e-5 * largest, err_msg=name)


class Decoder:
    """Frames and samples of a clip of 9 frames of 32 x 64 pixels, from the first numbers of its latents."""

    rate = 24000

    def decode(self, params, latent):
        frames = jnp.repeat(latent["video"][..., :3], 32, axis=2)
        clip = jnp.repeat(jnp.repeat(frames, 32, axis=3), 8, axis=1)[:, 7:]
        return {"video": clip, "audio": jnp.repeat(latent["audio"][..., :2], 960, axis=1)}


def test_episodes_hold_a_clip_its_sound_and_transitions_of_both():
    """From shapes alone: two prompts, two episodes each."""
    settings = RolloutConfig(thinking=False, image_height=32, image_width=64, frames=9, flow_steps=3, timestep_shift=0.0,
                             window_size=1, window_range=(0, 2))  # fmt: skip
    program = training_rollout(settings, TOY, Decoder(), 2)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    episodes = jax.eval_shape(program.__call__, params, {}, TEXT, 0, 0, 0)
    drawn = episodes.drawing
    assert {name: x.shape for name, x in drawn.media.items()} == {"video": (4, 9, 32, 64, 3), "audio": (4, 9 * 960, 2)}
    assert (episodes.fps, episodes.rate) == (24, 24000)
    for kept in (drawn.x, drawn.noise, drawn.mean):
        assert {name: x.shape for name, x in kept.items()} == {"video": (4, 1, 4, 5), "audio": (4, 1, 9, 3)}
