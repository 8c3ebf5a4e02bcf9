"""The transformer of LTX-2 against diffusers: passes of video with sound, runs, transitions, gradients."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import recorded_gradients
from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import linear, of_stack
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.ltx2.branch import Given
from unigrpo_jax.models.ltx2.config import FILES, read_transformer
from unigrpo_jax.models.ltx2.guidance import Guidance, Scales
from unigrpo_jax.models.ltx2.layers import attention, rms
from unigrpo_jax.models.ltx2.modulation import CROSS, GATE, OTHER, parts, said_of, told
from unigrpo_jax.models.ltx2.positions import Positions
from unigrpo_jax.models.ltx2.scheduler import read_scheduler
from unigrpo_jax.models.ltx2.transformer import NOTHING, Without
from unigrpo_jax.models.schedule import stretched
from unigrpo_jax.rollout.step_rules import ODE, DanceSDE

BOTH = ("video", "audio")
PASSES = (None, "text", "unmixed", "alone")  # in the recorded runs, one after the other in a batch


class Recorded:
    """The recorded arrays, the networks that they are of, and the parameters.

    Attributes:
      grid: latents of the video (frames, rows, columns).
      networks: {"main", "alt"}: with the reading of times that the class takes where nobody says otherwise.
      params: of each.
    """

    def __init__(self, folder):
        self.folder = folder
        self.settings = json.loads((folder / "settings.json").read_text())
        self.grid, self.fps = tuple(self.settings["latent_grid"]), float(self.load("rope")["fps"])
        self.networks, self.params, self._passes = {}, {}, {}
        for name, own in (("main", "pipeline"), ("alt", "alt")):
            network = read_transformer(folder / own / "transformer" / "config.json")
            weights = component.open_weights(folder / own / "transformer", component.DIFFUSERS, network)
            self.networks[name] = dataclasses.replace(network, cross_times="own")
            self.params[name] = component.read(weights, network, np.float32)

    def load(self, name):
        return dict(np.load(self.folder / f"{name}.npz"))

    def case(self, times=("t_video", "t_audio"), before=""):
        """What single passes are given: latents, times, texts, and which of those are seen."""
        found = self.load("transformer")
        both = lambda names: {modality: found[name] for modality, name in zip(BOTH, names, strict=True)}
        mask = found[f"{before}text_mask"] > 0
        return both(BOTH), both(times), both((f"{before}video_text", f"{before}audio_text")), dict.fromkeys(BOTH, mask)

    def network(self, which="main", reading="own", remat="none"):
        """A network as a function of (params, x, times, texts, seen, sigmas, without)."""
        network = dataclasses.replace(self.networks[which], cross_times=reading)
        way = Computing(remat=remat)
        return lambda p, x, times, texts, seen=None, sigmas=None, without=NOTHING: network(
            p, x, times, texts, self.grid, self.fps, seen, sigmas, without, way)  # fmt: skip

    def run(self, *given, which="main", reading="own", **more):
        """The same, jitted once, upon its parameters."""
        key = which, reading
        if key not in self._passes:
            self._passes[key] = jax.jit(self.network(which, reading))
        return self._passes[key](self.params[which], *given, **more)

    def without(self, alone=(), unmixed=(), samples=None, blocks=None):
        """`Without`, of these samples; where nobody says otherwise, of those of single passes and in the runs' blocks."""
        rows = np.arange(len(self.load("transformer")["video"]) if samples is None else samples)
        blocks = self.settings["stg_blocks"] if blocks is None else blocks
        mixing = self.networks["main"].mixing(blocks, np.isin(rows, unmixed))
        return Without(other=np.isin(rows, alone), mixing=mixing)

    def unmixed(self):
        """Of the recorded single pass without mixing its name, which says in which block, and that block."""
        (case,) = (re.fullmatch(r"(stg(\d+))_video_out", name) for name in self.load("transformer") if name.startswith("stg")
                   and "video" in name)  # fmt: skip
        return case[1], [int(case[2])]

    def passes(self, x, t):
        """Velocities at one state of a recorded run, {pass: {modality: [B, N, C]}}, all from one batch."""
        run, count = self.load("run"), len(x["video"])
        rows = {row: range(i * count, (i + 1) * count) for i, row in enumerate(PASSES)}
        repeated = {name: np.concatenate([own] * len(PASSES)) for name, own in x.items()}
        texts = {name: np.concatenate([run[f"{'neg_' if row == 'text' else ''}{name}_text"] for row in PASSES])
                 for name in BOTH}  # fmt: skip
        seen = dict.fromkeys(BOTH, np.concatenate([run["text_mask"] > 0] * len(PASSES)))
        times = dict.fromkeys(BOTH, np.full(len(PASSES) * count, 1000 * np.float32(t), np.float32))
        without = self.without(rows["alone"], rows["unmixed"], len(PASSES) * count)
        out = self.run(repeated, times, texts, seen, without=without, reading="other")
        return {row: {name: v[own.start : own.stop] for name, v in out.items()} for row, own in rows.items()}


@pytest.fixture(scope="module")
def recorded(fixtures):
    """Everything."""
    return Recorded(fixtures / "ltx2")


@pytest.fixture(scope="module")
def close(recorded, assert_close):
    """Asserts that both velocities are those of a case."""
    found = recorded.load("transformer")

    def check(out, case, limit=5e-5):
        assert set(out) == set(BOTH)
        for name, v in out.items():
            assert_close(v, found[f"{case}_{name}_out"], limit, f"{case}: {name}")

    return check


def test_single_passes(recorded, close):
    x, times, texts, seen = recorded.case()
    unmixed, blocks = recorded.unmixed()
    rows, nothing = range(len(x["video"])), recorded.without()
    everything = recorded.without(rows, rows, blocks=blocks)
    close(recorded.run(x, times, texts, seen, without=nothing), "diff")
    close(recorded.run(x, recorded.case(("t_same", "t_same"))[1], texts, seen, without=nothing), "same")
    whole = {name: np.ones_like(mask) for name, mask in seen.items()}
    close(recorded.run(x, times, texts, whole, without=nothing), "nomask")
    close(recorded.run(x, times, texts, seen, without=dataclasses.replace(nothing, other=everything.other)), "isolated")
    close(recorded.run(x, times, texts, seen, without=dataclasses.replace(nothing, mixing=everything.mixing)), unmixed)


def test_a_time_for_each_token(recorded, close):
    x, times, texts, seen = recorded.case(("t_video_tokens", "t_audio"))
    close(recorded.run(x, times, texts, seen, without=recorded.without()), "tokens")


def test_the_time_of_the_other_modality(recorded, close):
    x, times, texts, seen = recorded.case()
    close(recorded.run(x, times, texts, seen, sigmas=times, reading="other"), "cross")


def test_each_sample_goes_without_its_own(recorded, assert_close):
    """The first hears nothing of the other modality, the others do not mix."""
    found, (x, times, texts, seen) = recorded.load("transformer"), recorded.case()
    (unmixed, blocks), rows = recorded.unmixed(), range(len(x["video"]))
    out = recorded.run(x, times, texts, seen, without=recorded.without([0], rows[1:], blocks=blocks))
    for name, v in out.items():
        want = np.concatenate([found[f"isolated_{name}_out"][:1], found[f"{unmixed}_{name}_out"][1:]])
        assert_close(v, want, name=name)


def test_one_modality_alone_is_the_network_that_hears_nothing_of_the_other(recorded):
    given = recorded.case()
    apart = recorded.run(*given, without=recorded.without(range(len(given[0]["video"]))))
    for name in BOTH:
        x, times, texts, seen = ({name: own[name]} for own in given)
        out = recorded.run(x, times, texts, seen, without=recorded.without())
        assert set(out) == {name}
        np.testing.assert_array_equal(out[name], apart[name])


@pytest.mark.parametrize("reading, case", [("own", "alt_legacy"), ("other", "alt_cross")])
def test_what_ltx_2_3_has(recorded, close, reading, case):
    """Gated attention, texts and queries to them told the time, no projection of texts, neighbours that turn."""
    x, times, texts, seen = recorded.case(before="alt_")
    network = recorded.networks["alt"]
    assert network.video.gated and network.audio.times_text and network.text_width is None
    assert network.layout == "interleaved"
    close(recorded.run(x, times, texts, seen, times, which="alt", reading=reading), case)


def test_stages(recorded, assert_close):
    """What comes before the blocks, the attentions of the first, and what leaves each block: all that is recorded."""
    network, params, found = recorded.networks["main"], recorded.params["main"], recorded.load("transformer")
    x, times, texts, seen = recorded.case()
    close = lambda got, name: assert_close(got, found[f"diff_stage/{name}"], name=name)
    start = {name: found[f"diff_stage/{branch.prefix}proj_in"] for name, branch in network.branches.items()}

    def stages(params):
        out, p = {}, {name: own[0] for name, own in of_stack(params, "transformer_blocks").items()}
        column = {name: jnp.asarray(time)[:, None] for name, time in times.items()}
        said = {name: said_of(params, name, column, column, "own", network.gate_factor, np.float32, PLAIN) for name in BOTH}
        turns = network.turns(BOTH, x["audio"].shape[1], recorded.grid, recorded.fps)
        h, entered = start, {}
        for name, branch in network.branches.items():
            pre = branch.prefix
            out[f"{pre}proj_in"] = linear(params, f"{pre}proj_in", x[name])
            out[f"{pre}caption_projection"] = network.text(params, name, texts[name])
            for module, factor in ((f"{pre}time_embed", 1), (CROSS[name], 1), (GATE[name], network.gate_factor)):
                own = told(params, module, column[name] * jnp.float32(factor), np.float32)
                out |= {f"{module}.{i}": part[:, 0] for i, part in enumerate(own)}
            # Attention among themselves, by the tables: shift, scale, gate; then to the text, without any of it.
            shift, scale, gate, *_ = parts(p[f"{pre}scale_shift_table"], said[name].own)
            own = rms(h[name]) * (1 + scale) + shift
            mixed = attention(p, f"{pre}attn1", branch.heads, own, own, PLAIN, (turns[name][0],) * 2)
            text = found[f"diff_stage/{pre}caption_projection"]
            asked = attention(p, f"{pre}attn2", branch.heads, rms(h[name] + gate * mixed), text, PLAIN,
                              seen_BS=seen[name])  # fmt: skip
            out |= {f"transformer_blocks.0.{pre}attn1": mixed, f"transformer_blocks.0.{pre}attn2": asked}
            entered[name] = rms(h[name] + gate * mixed + asked)
        for name, at in (("video", 0), ("audio", 2)):  # rows of scale and shift in both tables
            rows = {each: parts(p[f"{each}_a2v_cross_attn_scale_shift_table"][:4], said[each].cross) for each in BOTH}
            query, context = (entered[each] * (1 + rows[each][at]) + rows[each][at + 1] for each in (name, OTHER[name]))
            module = f"{OTHER[name]}_to_{name}_attn"
            out[f"transformer_blocks.0.{module}"] = attention(p, module, network.audio.heads, query, context, PLAIN,
                                                              (turns[name][1], turns[OTHER[name]][1]))  # fmt: skip
        given = {name: Given(out[f"{branch.prefix}caption_projection"], seen[name], said[name], *turns[name])
                 for name, branch in network.branches.items()}  # fmt: skip
        for i in range(network.layers):
            p = {name: own[i] for name, own in of_stack(params, "transformer_blocks").items()}
            h = network.block((p, None), h, given)
            out |= {f"transformer_blocks.{i}.{j}": h[name] for j, name in enumerate(BOTH)}
        return out

    out = jax.jit(stages)(params)
    stages = [name.removeprefix("diff_stage/") for name in found if name.startswith("diff_stage/")]
    assert stages
    for name in stages:
        close(out[name], name)


def test_places_and_angles(recorded, assert_close):
    found, (x, *_) = recorded.load("rope"), recorded.case()
    network, grid, sounds = recorded.networks["main"], recorded.grid, x["audio"].shape[1]
    edges = network.positions.video(grid, recorded.fps)
    spread = [np.broadcast_to(np.expand_dims(own, [j for j in range(3) if j != i]), (*grid, 2)).reshape(-1, 2)
              for i, own in enumerate(edges)]  # fmt: skip
    assert_close(np.stack(spread), found["video_coords"], 1e-7, "intervals of the video")
    assert_close(network.positions.sound(sounds)[None], found["audio_coords"], 1e-7, "intervals of the sound")
    assert_close(spread[0].mean(axis=1), found["video_mid_seconds"], 1e-7, "seconds of the video")
    assert_close(network.positions.sound(sounds).mean(axis=1), found["audio_mid_seconds"], 1e-7, "seconds of the sound")
    for name, which in (("main", ""), ("alt", "alt_")):
        network = recorded.networks[name]
        turns = network.turns(BOTH, sounds, grid, recorded.fps)
        for modality, branch in network.branches.items():
            for kind, own in (("", turns[modality][0]), ("cross_", turns[modality][1])):
                if which and kind:
                    continue  # is not recorded
                for part in ("cos", "sin"):
                    table, want = getattr(own, part), found[f"{which}{kind}{modality}_{part}"]
                    heads = table.reshape(len(table), branch.heads, -1).swapaxes(0, 1)
                    table = heads if network.layout == "split" else np.repeat(table, 2, axis=1)
                    np.testing.assert_allclose(table, want, rtol=0, atol=2e-6, err_msg=f"{which}{kind}{modality}_{part}")


def test_seconds_of_a_clip_by_hand():
    """The first latent frame is one frame, each later one eight; sound at 100 frames of a spectrum a second."""
    places = Positions()
    time, rows, columns = places.video((3, 2, 1), 25.0)
    np.testing.assert_allclose(time, np.array([[0, 1], [1, 9], [9, 17]]) / 25, rtol=1e-6)
    np.testing.assert_array_equal(rows, [[0, 32], [32, 64]])
    np.testing.assert_array_equal(columns, [[0, 32]])
    np.testing.assert_allclose(places.sound(3), np.array([[0, 1], [1, 5], [5, 9]]) / 100, rtol=1e-6)
    frames, sounds = Positions(sound_seconds=40).shared_places((2, 1, 1), 25.0, 2)  # one clock for both
    np.testing.assert_allclose(frames, np.array([0.5, 5]) / 25 / 40, rtol=1e-6)
    np.testing.assert_allclose(sounds, np.array([0.5, 3]) / 100 / 40, rtol=1e-6)


@pytest.mark.parametrize("reading, scale, gate", [
    ("own", "own", "own"), ("other", "other", "other"), ("gate_of_other", "own", "other"),
])  # fmt: skip
def test_each_reading_of_whose_time_says_how_modalities_meet(recorded, assert_close, reading, scale, gate):
    """By hand, in float64: a time for each token of the video, another for each sample of the sound, noise levels beside."""
    params, factor = recorded.params["main"], recorded.networks["main"].gate_factor
    times = {"video": np.array([[900.0, 0.0, 30.5], [250.0, 700.0, 0.0]], np.float32), "audio": np.float32([[333], [41]])}
    sigmas = {"video": np.float32([[900], [700]]), "audio": np.float32([[800], [410]])}

    def said(module, time):
        get = lambda name: np.asarray(params[f"{module}.{name}"], np.float64)
        frequency = np.exp(-np.log(10000) * np.arange(128) / 128)
        angle = np.asarray(time, np.float64)[..., None] * frequency
        silu = lambda h: h / (1 + np.exp(-h))
        through = lambda name, h: h @ get(f"{name}.weight").T + get(f"{name}.bias")
        h = silu(through("emb.timestep_embedder.linear_1", np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)))
        return through("linear", silu(through("emb.timestep_embedder.linear_2", h)))

    for name in BOTH:
        found = said_of(params, name, times, sigmas, reading, factor, np.float32, PLAIN)
        whose = {"own": times[name], "other": sigmas[OTHER[name]]}
        assert_close(found.cross, said(CROSS[name], whose[scale]), name=f"{name}: scale and shift")
        assert_close(found.gate, said(GATE[name], np.float64(factor) * whose[gate]), name=f"{name}: gate")


@pytest.mark.parametrize("name", ["plain", "cfg", "full"])
def test_whole_runs(recorded, assert_close, name):
    run, asked = recorded.load("run"), recorded.settings["runs"][name]
    scales = lambda pre: Scales(text=asked[f"{pre}guidance_scale"], mixing=asked[f"{pre}stg_scale"],
                                other=asked[f"{pre}modality_scale"], rescale=asked[f"{pre}guidance_rescale"])  # fmt: skip
    guidance = Guidance(video=scales(""), audio=scales("audio_"))
    assert guidance.passes == {"plain": (), "cfg": ("text",), "full": ("text", "unmixed", "alone")}[name]
    x, times = {each: run[f"{each}_init"] for each in BOTH}, run["sigmas"]
    for i in range(len(times) - 1):
        v = recorded.passes(x, times[i])
        v = guidance.apply(x, times[i], v[None], **{which: v[which] for which in guidance.passes})
        for each in BOTH:
            assert_close(v[each], run[f"{name}_v_{each}"][i], 2e-4, f"velocity {i} of {each}")
            x[each], _ = ODE().transition(x[each], v[each], times[i], times[i + 1], times[1])
            assert_close(x[each], run[f"{name}_{each}"][i], 2e-4, f"{each} after step {i}")


def test_guidance_by_hand():
    """Two tokens of one number, t = 0.5; data of 1 and 3, of poorer passes 1 less, 2 less and twice as far apart."""
    x, data = np.float32([[[2], [4]]]), np.float32([[[1], [3]]])
    velocity = lambda data: (x - data) / np.float32(0.5)
    poorer = data - 1, data - 2, np.float32([[[0], [4]]])
    scales = Scales(text=3.0, mixing=0.5, other=2.0)
    pushed = np.float32([[[1 + 2 * 1 + 0.5 * 2 + 1 * 1], [3 + 2 * 1 + 0.5 * 2 + 1 * -1]]])  # 5 and 5
    out = scales.apply(x, 0.5, velocity(data), *map(velocity, poorer))
    np.testing.assert_allclose(out, velocity(pushed), rtol=1e-6)
    wide = Scales(other=0.0, rescale=0.25)  # data of 0 and 4 again, whose deviation is twice that of 1 and 3
    out = wide.apply(x, 0.5, velocity(data), v_alone=velocity(np.float32([[[0], [4]]])))
    np.testing.assert_allclose(out, velocity(0.25 * np.float32([[[0], [2]]]) + 0.75 * np.float32([[[0], [4]]])), rtol=1e-6)
    np.testing.assert_allclose(Scales().apply(x, 0.5, velocity(data)), velocity(data), rtol=1e-6)
    assert Guidance(audio=scales).passes == ("text", "unmixed", "alone") and Guidance(video=wide).passes == ("alone",)


def test_times_of_the_sampler(recorded, assert_close):
    found = recorded.load("schedule")
    shift = read_scheduler(recorded.folder / "pipeline" / "scheduler" / "scheduler_config.json", FILES)
    cases = [re.fullmatch(r"steps(\d+)_seq(\d+)_sigmas", name) for name in found]
    for steps, tokens in (map(int, case.groups()) for case in cases if case):
        name = f"steps{steps}_seq{tokens}"
        assert_close(np.log(shift.of(tokens)), found[f"{name}_mu"], 1e-6, "mu")
        assert_close(shift.times(steps, tokens), found[f"{name}_sigmas"], 1e-6, name)
    run = recorded.load("run")
    assert_close(shift.times(len(run["sigmas"]) - 1, run["video_init"].shape[1]), run["sigmas"], 1e-6, "of the run")
    np.testing.assert_array_equal(shift.times(1, 16), [1, 0])


def test_stretched_times_by_hand():
    times = stretched(np.float32([1, 0.75, 0.5, 0]), 0.2)
    np.testing.assert_allclose(times, [1, 0.6, 0.2, 0], rtol=1e-6)


def test_transitions_with_noise(recorded, assert_close):
    found = recorded.load("dance")
    rule, times = DanceSDE(noise_level=float(found["eta"])), found["sigmas"]
    for i in range(len(times) - 1):
        v = recorded.passes({name: found[f"x_{name}"][i] for name in BOTH}, times[i])[None]
        for name in BOTH:
            x, x_next = found[f"x_{name}"][i : i + 2]
            assert_close(v[name], found[f"v_{name}"][i], name=f"velocity {i} of {name}")
            mean, std = rule.transition(x, v[name], times[i], times[i + 1], times[1])
            assert_close(mean, found[f"mean_{name}"][i], name=f"mean {i} of {name}")
            assert_close(std, found["std"][i], name=f"std {i}")
            assert_close(mean + std * found[f"noise_{name}"][i], x_next, name=f"{name} after {i}")
            log_prob = rule.log_prob(x_next, mean, std)
            np.testing.assert_allclose(log_prob, found[f"log_prob_{name}"][i], rtol=0, atol=1e-3)


def test_the_gradient_of_the_error_in_the_velocities(recorded, assert_close):
    target, given, network = recorded.load("mse_inputs"), recorded.case(), recorded.network()

    def loss(params):
        v = network(params, *given)
        return sum(jnp.mean((v[name] - target[f"target_{name}"]) ** 2) for name in BOTH)

    names = recorded.networks["main"].stored_names
    recorded_gradients.check(loss, recorded.params["main"], names, recorded.folder, "grad_mse", assert_close)


def test_the_gradient_of_a_transitions_log_probabilities(recorded, assert_close):
    """Blocks are computed again in the backward pass, which changes nothing."""
    found, run = recorded.load("dance"), recorded.load("run")
    step = recorded_gradients.step_of(recorded.folder, "grad_logprob", sum(found[f"log_prob_{name}"] for name in BOTH))
    rule, network = DanceSDE(noise_level=float(found["eta"])), recorded.network(reading="other", remat="full")
    t, t_next, t_second = *found["sigmas"][step : step + 2], found["sigmas"][1]
    x, x_next = ({name: found[f"x_{name}"][i] for name in BOTH} for i in (step, step + 1))
    texts = {name: run[f"{name}_text"] for name in BOTH}

    def loss(params):
        v = network(params, x, dict.fromkeys(BOTH, jnp.full(len(x["video"]), 1000 * t)), texts)
        stepped = {name: rule.transition(x[name], v[name], t, t_next, t_second) for name in BOTH}
        return sum(jnp.sum(rule.log_prob(x_next[name], *stepped[name])) for name in BOTH)

    names = recorded.networks["main"].stored_names
    recorded_gradients.check(loss, recorded.params["main"], names, recorded.folder, "grad_logprob", assert_close)


def test_each_modality_is_pulled_through_the_other(recorded, assert_close):
    found, (x, times, texts, seen) = recorded.load("grad_cross"), recorded.case()
    network = recorded.network()

    @jax.jit
    def pulled(params):
        v, back = jax.vjp(lambda x: network(params, x, times, texts, seen), x)
        only = lambda name: {each: found[f"cot_{each}"] if each == name else jnp.zeros_like(v[each]) for each in BOTH}
        return {name: back(only(name))[0] for name in BOTH}

    for name, gradient in pulled(recorded.params["main"]).items():
        for each in BOTH:
            assert_close(gradient[each], found[f"d_{name}_out_d_{each}_in"], name=f"{name} by {each}")
