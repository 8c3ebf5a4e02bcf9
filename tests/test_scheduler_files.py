"""Scheduler files: what they say of path and times, as diffusers takes them, and what is refused by name."""

import json
import re

import numpy as np
import pytest

from unigrpo_jax.models.folders import flow_scheduler as flux
from unigrpo_jax.models.paths import scaled_linear
from unigrpo_jax.models.schedule import DiffusionSchedule, FlowShift
from unigrpo_jax.models.stable_diffusion import scheduler as sd

FILES = "model_index.json and scheduler"
# As Stable Diffusion 1.4 is published.
PNDM = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}  # fmt: skip
# As FLUX.1-dev is.
DYNAMIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
           "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
           "use_dynamic_shifting": True}  # fmt: skip


def read(module, tmp_path, data):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(data))
    return module.read_scheduler(path, FILES)


def test_the_published_file_of_stable_diffusion(tmp_path):
    found = read(sd, tmp_path, PNDM)
    assert (found.path, found.prediction) == (scaled_linear(0.00085, 0.012, 1000), "noise")
    assert found.schedule == DiffusionSchedule(train_steps=1000, spacing="leading", to_data=False)
    assert set(PNDM) < sd.KNOWN


def test_the_recorded_files(fixtures):
    name = "scheduler/scheduler_config.json"
    found = sd.read_scheduler(fixtures / "sd" / "pipeline" / name, FILES)
    run = np.load(fixtures / "sd" / "ddim.npz")
    times, kind = found.schedule.times(len(run["timesteps"])), "a1T" if found.schedule.to_data else "a1F"
    np.testing.assert_allclose(times[:-1] * found.schedule.train_steps - 1, run["timesteps"], rtol=1e-5, atol=1e-4)
    alpha, _ = found.path.coefficients(times)
    np.testing.assert_allclose(alpha[:-1] ** 2, run[f"{kind}_alpha_t"], rtol=1e-5)
    np.testing.assert_allclose(alpha[1:] ** 2, run[f"{kind}_alpha_prev"], rtol=1e-5)
    shift = flux.read_scheduler(fixtures / "flux" / "pipeline" / name, FILES)
    run = np.load(fixtures / "flux" / "schedule.npz")
    cases = [re.fullmatch(r"steps\d+_seq(\d+)_mu", name) for name in run.files if name.endswith("_mu")]
    assert cases
    for case in cases:
        assert shift.of(int(case[1])) == pytest.approx(np.exp(run[case[0]]), rel=1e-6)


@pytest.mark.parametrize("kind", [name.removesuffix("Scheduler") for name in sd.CLASSES])
def test_any_solvers_file_holds_the_same_diffusion(tmp_path, kind):
    assert read(sd, tmp_path, PNDM | {"_class_name": f"{kind}Scheduler"}) == read(sd, tmp_path, PNDM)


def test_the_pipeline_overrules_an_offset_and_a_clipping_that_old_files_have(tmp_path):
    """diffusers' StableDiffusionPipeline sets steps_offset to 1 and clip_sample to False, whatever the file says."""
    assert read(sd, tmp_path, PNDM | {"steps_offset": 0, "clip_sample": True}) == read(sd, tmp_path, PNDM)


def test_what_a_file_can_say_beside_that(tmp_path):
    asked = {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "set_alpha_to_one": True}
    found = read(sd, tmp_path, PNDM | asked)
    assert (found.prediction, found.schedule.spacing, found.schedule.to_data) == ("v", "trailing", True)
    assert read(sd, tmp_path, PNDM | {"prediction_type": "sample"}).prediction == "data"
    linear = read(sd, tmp_path, PNDM | {"beta_schedule": "linear", "num_train_timesteps": 5, "beta_end": 0.00485})
    np.testing.assert_allclose(linear.path.betas, [0.00085, 0.00185, 0.00285, 0.00385, 0.00485])
    assert linear.schedule.train_steps == 5


def test_a_name_that_is_left_out_is_ddims_default_and_the_pipelines_offset(tmp_path):
    found = read(sd, tmp_path, {"_class_name": "DDIMScheduler"})
    assert (found.path.betas[0], found.path.betas[-1], len(found.path.betas)) == (0.0001, 0.02, 1000)
    assert found.schedule == DiffusionSchedule(train_steps=1000, spacing="leading", to_data=True)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"_class_name": "LCMScheduler"}, "_class_name = 'LCMScheduler', but this network knows only 'PNDMScheduler'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule = 'squaredcos_cap_v2'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
        ({"prediction_type": ["epsilon"]}, "prediction_type"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing = 'linspace'"),
        ({"trained_betas": [0.1]}, "trained_betas = [0.1]"),
        ({"thresholding": True}, "thresholding = True"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas = True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas = True"),
        ({"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ({"beta_end": 1.5}, "beta_end = 1.5, but it must be below 1"),
        ({"beta_start": 0}, "beta_start = 0"),
        ({"beta_start": 1e-20}, "beta_start = 1e-20, but the first step adds no noise then; use a larger one"),
        ({"beta_end": 0.999}, "beta_end = 0.999, but nothing of the data is left after 1000 steps then; use a smaller one"),
        ({"num_train_timesteps": 10**6}, "num_train_timesteps = 1000000, but it must be at most 100000"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one = 'no', but it must be true or false"),
    ],
)
def test_another_diffusion_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        read(sd, tmp_path, PNDM | changes)
    assert words in str(error.value) and "scheduler_config.json" in str(error.value)


def test_the_shift_of_flux_is_of_the_file(tmp_path):
    assert read(flux, tmp_path, DYNAMIC) == FlowShift(line=((256, 0.5), (4096, 1.15)))
    assert read(flux, tmp_path, DYNAMIC | {"use_dynamic_shifting": False}) == FlowShift(shift=3.0)
    assert read(flux, tmp_path, {}) == FlowShift(shift=1.0)
    other = read(flux, tmp_path, DYNAMIC | {"base_shift": 0.25, "base_image_seq_len": 64})
    assert other.line == ((64, 0.25), (4096, 1.15))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "'FlowMatchHeunDiscreteScheduler', but this network knows only"),
        ({"shift_terminal": 0.02}, "shift_terminal = 0.02, but this network does not have that"),
        ({"stochastic_sampling": True}, "stochastic_sampling = True"),
        ({"invert_sigmas": True}, "invert_sigmas = True"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"time_shift_type": "linear"}, "time_shift_type = 'linear'"),
        ({"num_train_timesteps": 100}, "num_train_timesteps = 100"),
        ({"max_image_seq_len": 256}, "max_image_seq_len = 256, but it must be another number"),
        ({"max_shift": "much"}, "max_shift = 'much'"),
        ({"shift": 0}, "shift = 0"),
        ({"use_dynamic_shifting": 1}, "use_dynamic_shifting = 1"),
    ],
)
def test_another_flow_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        read(flux, tmp_path, DYNAMIC | changes)
    assert words in str(error.value)
