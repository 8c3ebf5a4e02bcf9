"""The sound of an example as a model takes it: at its rate, with its channels, as long as the clip.

A rate is changed without a word, and a mono sound is heard on both sides, since both lose nothing that a model of that rate
could hear; of stereo a mono model hears the mean.  Another length is refused: then picture and sound would not be of one
time, and somebody must say which part belongs together.
"""

import pathlib

import numpy as np

from unigrpo_jax.config import RolloutConfig, require
from unigrpo_jax.models.loaded import SoundForm
from unigrpo_jax.sound_files import resampled
from unigrpo_jax.worlds.examples import Clip


def check_heard(there: bool, path: pathlib.Path) -> None:
    """ConfigError where the clip of an example has no sound."""
    require(there, f'its clip {path.name} has no sound, and a clip is learned with it; write the path of a WAV file under '
            '"audio", give an MP4 that has sound, or learn the clips alone with --model.no-sound.')  # fmt: skip


def fitted_sound(clip: Clip, form: SoundForm, rollout: RolloutConfig) -> np.ndarray:
    """The sound of a clip in a form, float32 [form.samples, form.channels].

    It may be shorter or longer than the clip in the run by one frame, and is then filled up with silence, or cut.
    ConfigError where it cannot be read, there is none, or it is of another length.
    """
    sound = clip.sound
    check_heard(sound is not None, clip.path)
    samples, rate = sound
    frames, fps = rollout.frames, rollout.frames_per_second
    lasts, wanted = len(samples) / rate, frames / fps
    if abs(lasts - wanted) > 1 / fps:
        own = clip.fps
        as_long = abs(lasts - frames / own) <= 1 / own
        fix = (f"they are as long at the {own:g} of its file, so use --rollout.frames-per-second {own:g}" if as_long else
               f"cut the sound or fill it up with silence (ffmpeg -i IN -af apad -t {wanted:.3f} OUT.wav), and name "
               'OUT.wav under "audio"')  # fmt: skip
        require(False, f"its sound lasts {lasts:.3f} s, but its {frames} frames, {fps:g} per second "
                f"(rollout.frames_per_second), last {wanted:.3f} s; {fix}.")  # fmt: skip
    samples = resampled(samples, rate, form.rate)
    if samples.shape[1] != form.channels:
        samples = samples.repeat(2, axis=1) if form.channels == 2 else samples.mean(axis=1, keepdims=True)
    return np.pad(samples[: form.samples], ((0, max(0, form.samples - len(samples))), (0, 0)))
