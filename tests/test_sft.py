"""Learning from given examples: what is read, what is refused, the loss by hand, and a run with its resume."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.command_line import preset, presets
from experiments.sft import settings
from tests import oracle, tiny
from tests.command import SMALL, Outcome, command
from tests.test_config import changed, refusal
from tests.test_resume import assert_same_state, metrics
from unigrpo_jax.config import LoraConfig, MeshConfig
from unigrpo_jax.config_checks import check, check_devices
from unigrpo_jax.episode import Thinking
from unigrpo_jax.learning import parameters
from unigrpo_jax.learning.teaching import Lessons, Teaching, left_out, token_weights
from unigrpo_jax.learning.update import UpdateProgram, new_state
from unigrpo_jax.models.autoencoders.pixels import PixelAutoencoder
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.flux.painter import Flux
from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.paths import RECTIFIED, scaled_linear
from unigrpo_jax.models.text_encoders.states import TextStates
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.picture_files import fit
from unigrpo_jax.rollout.drawing import FlowSampler
from unigrpo_jax.rollout.step_rules import ODE
from unigrpo_jax.rollout.thinking import TokenSampler
from unigrpo_jax.training.checkpoint import worth
from unigrpo_jax.training.restore import restore
from unigrpo_jax.training.taught import Pictures, dropped
from unigrpo_jax.worlds.examples import asked, read_examples, thinking_of
from unigrpo_jax.worlds.order import PromptOrder

START = tiny.nearby(tiny.params(), 0.02)
B, DRAWS, LENGTH = 4, 2, 6
H, W = tiny.ROLLOUT.image_height, tiny.ROLLOUT.image_width
LEVELS = np.random.default_rng(2).integers(0, 256, (B, H, W, 3)).astype(np.uint8)
LESSONS = Lessons(model=tiny.MODEL, autoencoder=PixelAutoencoder(), grid=tiny.GRID, shift=3.0, draws=DRAWS)
DROPPED = np.array([False, False, True, False])


def thinking() -> Thinking:
    """Of 3, 6, 2 and 5 tokens, the stop token included."""
    rng, lengths = np.random.default_rng(6), np.array([3, 6, 2, 5])
    mask = np.arange(LENGTH) < lengths[:, None]
    tokens = np.where(mask, rng.integers(5, tiny.CONFIG.vocab_size, mask.shape), tiny.PAD).astype(np.int32)
    tokens[np.arange(B), lengths - 1] = tiny.EOS
    return Thinking(tokens=tokens, mask=mask, log_probs=np.zeros(mask.shape, np.float32))


TEXT, THINKING = left_out(jax.tree.map(np.asarray, tiny.prompts()), thinking(), DROPPED)
WEIGHTS = token_weights(THINKING, B)


@functools.cache
def lessons(step: int = 3):
    return jax.tree.map(np.asarray, tiny.jit(LESSONS.__call__)({}, TEXT, THINKING, LEVELS, 5, step))


def teaching(**changes) -> Teaching:
    config = dataclasses.replace(tiny.LEARNING, text_weight=0.7, flow_weight=1.3, group_size=1, method="sft", **changes)
    policy = dataclasses.replace(tiny.policy(), tokens=TokenSampler())  # no temperature but 1
    return Teaching(policy=policy, config=config)


@functools.cache
def value_and_gradient():
    objective, batch = teaching(), lessons()
    loss = lambda params: objective(params, batch, (None, None), WEIGHTS, True)
    return tiny.jit(jax.value_and_grad(loss, has_aux=True))(START)


def patches(levels):
    """Images as latent tokens [B, N, C] in [-1, 1], by hand."""
    p = tiny.CONFIG.latent_patch
    x = np.asarray(levels, np.float64).reshape(len(levels), H // p, p, W // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(levels), H // p * (W // p), -1) / 127.5 - 1


def loss_by_hand(params) -> tuple[float, float]:
    """Cross-entropy over all tokens, and squared error of the velocity, in float64, one example at a time."""
    nats, errors, drawing = [], [], lessons().drawing
    for row, data in enumerate(patches(LEVELS)):
        prompt, actions = TEXT.tokens[row][TEXT.valid[row]].tolist(), THINKING.tokens[row][THINKING.mask[row]].tolist()
        read = [] if DROPPED[row] else [*prompt, tiny.BOS, *actions]
        for draw in range(DRAWS):
            t, noise = float(drawing.times[row, draw]), np.asarray(drawing.noise[row, draw], np.float64)
            logits, v = oracle.forward(params, read, (1 - t) * data + t * noise, t)
            errors.append(np.mean((v - (noise - data)) ** 2))
        if read:
            rows = oracle.log_softmax(logits[len(prompt) : len(prompt) + len(actions)])
            nats += [-row[token] for row, token in zip(rows, actions, strict=True)]
    assert len(nats) == 3 + 6 + 5
    return float(np.mean(nats)), float(np.mean(errors))


def test_the_loss_by_hand():
    """The mean over all tokens and over all pictures; of what is left out only the drawing upon nothing counts."""
    (loss, found), _ = value_and_gradient()
    text, flow = loss_by_hand(oracle.to64(START))
    np.testing.assert_allclose(found["text/loss"], text, rtol=1e-5)
    np.testing.assert_allclose(found["flow/loss"], flow, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * text + 1.3 * flow, rtol=1e-5)
    by_example = tiny.jit(teaching().losses)(START, lessons())
    np.testing.assert_allclose(np.average(by_example[0], weights=WEIGHTS), text, rtol=1e-5)
    np.testing.assert_allclose(np.mean(by_example[1]), flow, rtol=1e-5)


def test_the_gradient_by_hand():
    """Along a random direction, against central differences of the float64 loss."""
    _, gradient = value_and_gradient()
    rng, exact = np.random.default_rng(0), oracle.to64(START)
    way = jax.tree.map(lambda x: rng.standard_normal(x.shape), exact)
    ends = [jax.tree.map(lambda x, d, h=h: x + h * d, exact, way) for h in (-1e-5, 1e-5)]
    below, above = (0.7 * text + 1.3 * flow for text, flow in map(loss_by_hand, ends))
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(np.asarray(g, np.float64) * d), gradient, way)))
    np.testing.assert_allclose(along, (above - below) / 2e-5, rtol=1e-4)


def test_the_noisy_latents_by_hand():
    drawing, other = lessons().drawing, lessons(4).drawing
    t = np.asarray(drawing.times, np.float64)[:, :, None, None]
    by_hand = (1 - t) * patches(LEVELS)[:, None] + t * np.asarray(drawing.noise, np.float64)
    np.testing.assert_allclose(drawing.x, by_hand, atol=1e-6)
    np.testing.assert_allclose(drawing.latent, patches(LEVELS), atol=1e-6)
    assert len(np.unique(drawing.times)) == B * DRAWS and not set(drawing.times.ravel()) & set(other.times.ravel())


def test_part_of_a_batch_is_learned_as_in_the_whole():
    rows = lambda tree: jax.tree.map(lambda x: np.asarray(x)[2:], tree)
    part = tiny.jit(LESSONS.__call__)({}, rows(TEXT), rows(THINKING), LEVELS[2:], 5, 3, 2)
    tiny.assert_trees_equal(part, rows(lessons()))


def test_examples_spread_over_devices_are_those_of_one(tmp_path, monkeypatch):
    """Pictures are read for two devices, encoded one by one, and get the noise that they have in the whole batch."""
    monkeypatch.setattr("unigrpo_jax.learning.teaching.DECODED_PIXELS", 1)  # as where a picture is large
    place = meshes.spread(meshes.make_mesh(2, MeshConfig()))
    for row, levels in enumerate(LEVELS):
        Image.fromarray(levels).save(tmp_path / f"{row}.png")
    lines = [{"prompt": str(row), "image": f"{row}.png"} for row in range(B)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = read_examples(str(tmp_path / "data.jsonl"), "--data", False).prompts
    image, first = Pictures(tiny.ROLLOUT, B, place)(list(examples))
    assert first is None
    np.testing.assert_array_equal(image, LEVELS)
    spread = tiny.jit(dataclasses.replace(LESSONS, parts=2).__call__, out_shardings=place)
    given = jax.device_put((TEXT, THINKING), place)
    tiny.assert_trees_equal(jax.tree.map(np.asarray, spread({}, *given, image, 5, 3)), lessons())


def test_pieces_learn_as_the_whole_batch_and_again_and_again_lowers_the_loss():
    outcomes = []
    for count in (1, 4):
        objective = teaching(micro_batches=count)
        update = tiny.jit(UpdateProgram(objective=objective, config=objective.config).__call__)
        state = new_state(START, objective.config, Bagel.trained_by)
        _, frozen = parameters.split(START, parameters.groups(START, objective.config, Bagel.trained_by))
        losses = []
        for _ in range(3):
            state, found = update(state, frozen, START, lessons(), WEIGHTS)
            losses.append([float(found[name]) for name in ("loss", "text/loss", "flow/loss")])
        outcomes.append((state.trained, losses))
    (one, losses), (other, others) = outcomes
    for path, x in one.items():
        np.testing.assert_allclose(x, other[path], atol=2e-5, err_msg=path)
    np.testing.assert_allclose(losses, others, rtol=1e-4)
    assert all(after < before for before, after in zip(losses[0], losses[-1], strict=True))


def test_times_of_a_flow_are_shifted_logit_normal_and_those_of_a_diffusion_its_steps():
    keys = jax.random.split(jax.random.key(0), 4000)
    many = dataclasses.replace(LESSONS, draws=1)
    found = np.sort(np.asarray(many.times(keys)).ravel())
    u = np.random.default_rng(0).standard_normal(200_000)
    s = np.sort(1 / (1 + np.exp(-u)))
    by_hand = np.quantile(3 * s / (1 + 2 * s), [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95]), by_hand, atol=0.02)

    @dataclasses.dataclass(frozen=True)
    class Diffusion(Bagel):
        path = scaled_linear(0.00085, 0.012, 10)

    steps = np.asarray(dataclasses.replace(many, model=Diffusion(tiny.CONFIG)).times(keys)).ravel() * 10
    np.testing.assert_allclose(np.unique(steps.round(4)), np.arange(1, 11))
    assert np.bincount(steps.round().astype(int))[1:].min() > 320  # of 400
    assert RECTIFIED.steps == 0


# --- a painter, with adapters ---------------------------------------------------------------------------------------------

FLUX = Flux(
    transformer=FluxTransformer(
        channels=12, text_width=8, pooled_width=6, heads=2, axes=(2, 2, 4), double=1, single=1, guidance=False
    ),
    downsample=1,
)


def test_a_painters_adapters_learn_and_what_is_left_out_is_the_empty_text():
    rng = np.random.default_rng(1)
    make = lambda: TextStates(
        rng.normal(size=(B, 5, 8)).astype(np.float32), rng.normal(size=(B, 6)).astype(np.float32)
    )  # fmt: skip
    whole = make().replace(empty=make())
    text, nothing = left_out(whole, None, DROPPED)
    assert nothing is None and (token_weights(None, B) == 1).all()
    np.testing.assert_array_equal(text.states[2], whole.empty.states[2])
    np.testing.assert_array_equal(text.pooled[[0, 1, 3]], whole.pooled[[0, 1, 3]])

    adapt = lambda key: FLUX.adapted(FLUX.init(key), LoraConfig(rank=2, targets=(r".*attn\.to_(q|k|v)",)), key)
    params = tiny.nearby(jax.jit(adapt)(jax.random.key(0)), 0.1)
    grid = FLUX.grid(H, W)
    given = Lessons(model=FLUX, autoencoder=PixelAutoencoder(), grid=grid, shift=0.0, draws=1)
    flow = FlowSampler(schedule=(1.0, 0.0), rule=ODE(), grid=grid)
    config = dataclasses.replace(tiny.LEARNING, method="sft", denoising_lr=1e-2, group_size=1)
    policy = dataclasses.replace(tiny.policy(), model=FLUX, tokens=TokenSampler(), flow=flow)
    objective = Teaching(policy=policy, config=config)
    labels = parameters.groups(params, config, FLUX.trained_by)
    _, frozen = parameters.split(params, labels)

    def once(state):
        episodes = given({}, text, None, LEVELS, 5, 0)
        update = UpdateProgram(objective=objective, config=config)
        state, found = update(state, frozen, params, episodes, token_weights(None, B))
        return state, (found["flow/loss"], objective.losses(params, episodes)[1], episodes.drawing)

    state, once = new_state(params, config, FLUX.trained_by), tiny.jit(once)
    state, (first, each, drawing) = once(state)
    v = FLUX.predict(params, drawing.x[:, 0], drawing.times[:, 0], grid, text)
    by_hand = np.mean((np.asarray(v, np.float64) - (drawing.noise[:, 0] - drawing.latent)) ** 2, axis=(1, 2))
    np.testing.assert_allclose(each, by_hand, rtol=1e-4)
    np.testing.assert_allclose(first, by_hand.mean(), rtol=1e-4)
    for _ in range(3):
        state, (last, *_) = once(state)
    assert last < first and 0 < len(state.trained) < len(params) and all("lora" in path for path in state.trained)


# --- what is read ---------------------------------------------------------------------------------------------------------


def picture(path, size=(30, 24), colour="red"):
    Image.new("RGB", size, colour).save(path)


def write(folder, *lines):
    """FILE.jsonl of lines, and the picture a.png."""
    folder.mkdir(exist_ok=True)
    picture(folder / "a.png")
    (folder / "data.jsonl").write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return folder / "data.jsonl"


GOOD = {"prompt": "a red circle", "thinking": "red circle : red circle top-left", "image": "a.png"}


def test_a_line_is_a_prompt_a_picture_and_a_thinking(tmp_path):
    file = write(tmp_path, GOOD, {**GOOD, "prompt": "b", "thinking": "longer " * 9, "category": "x", "source": "web"}, GOOD)
    found = read_examples(str(file), "--data", True)
    assert [p.text for p in found.prompts] == ["a red circle", "b", "a red circle"]  # in one group, whatever the category
    assert thinking_of(found.deepest[0]).startswith("longer") and found.longest[0].text == "a red circle"
    assert found.unread == ("source",) and str(found.prompts[1].place) == str(found.deepest[0].place)
    assert found.prompts[0].picture().shape == (24, 30, 3)
    alone = asked(found.prompts[1])
    assert alone.picture is None and "thinking" not in alone.metadata and alone.metadata["category"] == "x"
    bare = read_examples(str(write(tmp_path, {**GOOD, "thinking": None})), "--data", False)
    assert bare.thought is None and thinking_of(bare.prompts[0]) == "" and found.thought is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"image": "a.png", "thinking": "x"}, ['expected an object with a text under "prompt"']),
        ({"prompt": "x", "thinking": "x"}, ['has no "image"', "to be learned"]),
        ({**GOOD, "image": None}, ['has no "image"']),
        ({**GOOD, "image": "b.png"}, ["b.png", "no such file"]),
        ({**GOOD, "image": "../a.png"}, ["leaves the folder"]),
        ({**GOOD, "image": "data.jsonl"}, ["data.jsonl is not a picture that can be read"]),
        ({"prompt": "x", "image": "a.png"}, ['has no "thinking"', "--rollout.no-thinking"]),
        ({**GOOD, "thinking": ""}, ['"thinking" is', "leave it out"]),
        ({**GOOD, "thinking": 3}, ['"thinking" is 3']),
        ({**GOOD, "thinking": "\ud800"}, ['"thinking" is']),
        ({**GOOD, "turns": ["and a cat"]}, ['"turns"', "one"]),
        ("{", ["not JSON"]),
    ],
)
def test_what_is_no_example_is_refused_with_its_line(tmp_path, line, words):
    file = write(tmp_path, GOOD, line)
    text = refusal(read_examples, str(file), "--data", True)
    assert text.startswith(f"{file}, line 2: ") and all(word in text for word in words), text


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path):
    assert "check --data" in refusal(read_examples, str(tmp_path / "none.jsonl"), "--data", True)
    assert "holds no examples" in refusal(read_examples, str(write(tmp_path)), "--data", True)


def test_a_picture_is_scaled_to_fill_the_size_and_cut_out_of_the_middle():
    own = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 8, 3)).astype(np.uint8))
    np.testing.assert_array_equal(fit(own, 12, 8), np.asarray(own))
    wide = np.zeros((20, 100, 3), np.uint8)
    wide[:, 38:62] = 255  # a little more than the middle square
    assert fit(Image.fromarray(wide), 10, 10).min() >= 254
    high = Image.fromarray(np.ascontiguousarray(wide.transpose(1, 0, 2)))
    assert fit(high, 40, 20).shape == (40, 20, 3)


def test_the_order_is_a_function_of_seed_and_step_and_an_epoch_has_every_example_once(tmp_path):
    file = write(tmp_path, *({**GOOD, "prompt": str(i), "category": "ab"[i % 3 == 0]} for i in range(10)))
    order = lambda seed: PromptOrder([read_examples(str(file), "--data", True).prompts], seed)
    texts = lambda order, step: [p.text for p in order.batch(step, 5)]
    one = order(3)
    epochs = [texts(one, step) for step in range(4)]
    assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == [str(i) for i in range(10)]
    assert epochs[0] + epochs[1] != epochs[2] + epochs[3] and texts(order(3), 2) == epochs[2]
    share = np.mean([dropped(0, step, 50, 0.1) for step in range(200)])
    assert 0.09 < share < 0.11 and not dropped(0, 7, 50, 0.0).any()
    np.testing.assert_array_equal(dropped(0, 7, 50, 0.1), dropped(0, 7, 50, 0.1))


def test_pictures_are_read_when_they_are_needed_and_those_read_ahead_are_the_same(tmp_path):
    file = write(tmp_path, *(GOOD | {"prompt": str(i)} for i in range(20)))
    prompts = read_examples(str(file), "--data", True).prompts
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    pictures, batch = Pictures(tiny.ROLLOUT, 2, at), [prompts[5], prompts[19]]
    plain = np.asarray(pictures(batch)[0])
    pictures.ahead(batch)
    np.testing.assert_array_equal(plain, np.asarray(pictures(batch)[0]))
    assert plain.shape == (2, H, W, 3) and plain.dtype == np.uint8 and len(pictures._ahead) == 2
    (file.parent / "a.png").write_bytes(b"no picture")
    pictures.ahead(batch[::-1])
    assert "line 6" in refusal(pictures, batch)


# --- settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_learns_from_examples_in_pieces_of_the_same_size(name):
    of = preset([name], "shapes")[0]
    found = dataclasses.replace(settings(of), data="x.jsonl")
    if of.rollout.rounds > 1:
        text = refusal(check, found)
        assert f"use 1, and evaluation.rounds = {of.rollout.rounds}" in text, text
        found = dataclasses.replace(found, rollout=dataclasses.replace(found.rollout, rounds=1))
    check(found)
    check_devices(found, 1)
    piece = lambda config: config.trained_episodes // (config.learning.minibatches * config.learning.micro_batches)
    assert piece(found) == piece(of) and found.learning.minibatches == 1 and found.name == f"{of.name}_sft"


SFT = dict(method="sft", group_size=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(data="x.jsonl"), ["data = 'x.jsonl'", "experiments.sft"]),
        (dict(evaluation=dict(data="x.jsonl")), ["evaluation.data = 'x.jsonl'", "experiments.sft"]),
        (dict(learning=SFT), ["--data FILE.jsonl"]),
        (dict(learning=SFT | dict(group_size=8), data="x"), ["group_size = 8", "no groups"]),
        (dict(learning=SFT | dict(text_dropout=1.0), data="x"), ["text_dropout = 1.0", "below 1"]),
        (dict(learning=SFT, rollout=dict(rounds=2), data="x"), ["rounds = 2", "use 1"]),
    ],
)
def test_settings_that_cannot_work(changes, words):
    text = refusal(check, changed(**changes))
    assert all(word in text for word in words), text


def test_less_of_a_loss_is_better():
    assert worth("eval/loss", 2.0) < worth("eval/loss", 1.0) and worth("eval/exact", 2.0) == 2.0
    assert worth("eval/loss", None) is None


# --- a run ----------------------------------------------------------------------------------------------------------------


def sft(model, run_dir, file, *arguments) -> Outcome:
    """A small run without rewards, whose held-out prompts are those of the file."""
    small = list(SMALL)
    for option in ("--rewards", "--learning.group-size", "--evaluation.prompts", "--evaluation.batch"):
        at = small.index(option)
        del small[at : at + 2]
    words = ["smoke", "--model.path", model, "--run-dir", run_dir, "--data", file, "--evaluation.data", file, *small]
    words += ["--prompts", "--rewards", "--rollout.prompts-per-iteration", 4, "--evaluation.prompts", 4]
    return command("experiments.sft", *words, "--evaluation.batch", 3, *arguments)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four pictures of 30 x 24 pixels."""
    folder = tmp_path_factory.mktemp("four")
    colours = ("red", "green", "blue", "yellow")
    for colour in colours:
        picture(folder / f"{colour}.png", colour=colour)
    lines = [{"prompt": f"a {c} circle", "thinking": f"{c} circle", "image": f"{c}.png", "category": c} for c in colours]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


def test_a_run_learns_four_pictures_resumes_bit_for_bit_and_leaves_a_model_to_begin_with(tiny_model, four, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    outcome = sft(tiny_model, straight, four)
    assert outcome.code == 0 and not outcome.err, outcome
    summary = json.loads((straight / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    assert list(after) == ["loss", "flow_loss", "text_loss"]
    assert all(after[name]["overall"] < before[name]["overall"] for name in after), summary
    assert set(after["loss"]) == {"overall", "red", "green", "blue", "yellow"}
    lines = metrics(straight)
    assert len(lines) == 6 and lines[-1]["data/epochs"] == 6 and lines[-1]["update/skipped"] == 0
    assert (straight / "report.html").stat().st_size > 10_000 and "Supervised: smoke_sft" in outcome.out

    assert sft(tiny_model, stopped, four, "--iterations", 4).code == 0
    shutil.rmtree(stopped / "checkpoints" / "4")
    resumed = sft(tiny_model, stopped, four, "--resume")
    assert resumed.code == 0 and "Resuming after iteration 2" in resumed.out, resumed
    assert metrics(stopped) == lines and json.loads((stopped / "summary.json").read_text())["after"] == after
    assert_same_state(straight, stopped, 6)

    base = preset([], "shapes")[0]
    learned = restore(str(straight / "model"), base).read()
    jax.tree.map(np.testing.assert_array_equal, learned, restore(str(straight), base).read())


FLUX_TINY = """--model.path flux_tiny --model.family flux --rollout.no-thinking --evaluation.no-thinking
    --rollout.image-height 32 --rollout.image-width 32""".split()


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (lambda lines: lines[0].update(thinking="red " * 9), (), ["line 1", "10 tokens", "thinking_tokens = 4"]),
        (lambda lines: lines[1].update(prompt="red " * 30), (), ["line 2", "32 tokens", "prompt_tokens"]),
        (lambda lines: lines[2].update(image="cut.png"), (), ["line 3", "cut.png is not a picture that can be read"]),
        (lambda lines: lines[3].update(thinking="violet circle"), (), ["line 4", "violet"]),
        (lambda lines: None, FLUX_TINY, ["line 1", "only draws"]),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_said_before_anything_compiles(
    tiny_model, four, tmp_path, monkeypatch, change, arguments, words
):
    monkeypatch.setattr("unigrpo_jax.training.trainer.Trainer.compile", lambda self: pytest.fail("it compiles"))
    folder = shutil.copytree(four.parent, tmp_path / "data")
    lines = [json.loads(line) for line in four.read_text().splitlines()]
    change(lines)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])
    outcome = sft(tiny_model, tmp_path / "run", folder / "data.jsonl", *arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not (tmp_path / "run").exists(), outcome
    assert all(word in outcome.err for word in words), outcome.err
