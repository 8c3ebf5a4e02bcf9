"""Between a clip with its sound and LTX-2's latents: an autoencoder for each, and the vocoder, which makes sound of spectra.

The sound that is encoded has the rate of the spectrograms (16 kHz), the sound that is made that of the vocoder (24 kHz).
None is trained here; where the clip alone is drawn, its autoencoder stands alone.  Parameters are those of all that are
there, called by their folders: `vae.NAME`, `audio_vae.NAME`, `vocoder.NAME`.
"""

import dataclasses

import jax

from unigrpo_jax.models.autoencoders.log_mel import LogMel
from unigrpo_jax.models.autoencoders.ltx_video import LTXVideoAutoencoder
from unigrpo_jax.models.autoencoders.mel_audio import EVERY, MelAutoencoder
from unigrpo_jax.models.autoencoders.vocoder import Vocoder
from unigrpo_jax.models.building.flat import of_stack
from unigrpo_jax.models.loaded import SoundForm

VIDEO, AUDIO, VOCODER = "vae", "audio_vae", "vocoder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LTX2Media:
    """The three networks.

    Attributes:
      video: of clips.
      audio: of log-mel spectrograms; None where no sound is drawn.
      vocoder: from those to sound; None likewise.
    """

    video: LTXVideoAutoencoder
    audio: MelAutoencoder | None = None
    vocoder: Vocoder | None = None

    @property
    def networks(self) -> dict[str, LTXVideoAutoencoder | MelAutoencoder | Vocoder]:
        """By folder."""
        parts = {VIDEO: self.video, AUDIO: self.audio, VOCODER: self.vocoder}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def downsample(self) -> int:
        """Pixels along the side of a clip's latent."""
        return self.video.downsample

    @property
    def channels(self) -> int:
        """Of a clip's latent."""
        return self.video.channels

    @property
    def rate(self) -> int:
        """Samples per second of the sound that is made; 0 where there is none."""
        return 0 if self.vocoder is None else self.vocoder.rate

    def sound_form(self, latents: int) -> SoundForm:
        """What a sound must be to become so many latents: as long as these, each of `EVERY` frames of a spectrogram."""
        return SoundForm(samples=latents * EVERY * self.audio.hop, channels=self.audio.sides, rate=self.audio.rate)

    def encode(self, params, media, keys_B: jax.Array | None = None):
        """Latents of both, {"video": clips in [-1, 1], "audio": sound of a `sound_form`}; samples where there are keys.

        Of the spectrogram the frames count that so many latents become again, 4 L - 3: the first latent is one frame.  Or
        latents of clips alone; of pictures [B, height, width, 3] the mean, as the released pipeline takes a first frame.
        """
        if not isinstance(media, dict):
            return self.video.encode(of_stack(params, VIDEO), media, keys_B if media.ndim == 5 else None)
        sound, audio = media["audio"], self.audio
        kept = audio.frames(sound.shape[1] // (EVERY * audio.hop))
        mel = LogMel(rate=audio.rate, hop=audio.hop, bins=audio.bins)(sound)[:, :kept]
        others = None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1)
        return {"video": self.video.encode(of_stack(params, VIDEO), media["video"], keys_B),
                "audio": audio.encode(of_stack(params, AUDIO), mel, others)}  # fmt: skip

    def decode(self, params, latent):
        """{"video": clips [B, F, height, width, 3], not clipped, "audio": sound [B, samples, sides]}, of both latents.

        Clips alone, of the video's latent, where there is no sound.
        """
        if self.audio is None:
            return self.video.decode(of_stack(params, VIDEO), latent)
        mel = self.audio.decode(of_stack(params, AUDIO), latent["audio"])
        return {"video": self.video.decode(of_stack(params, VIDEO), latent["video"]),
                "audio": self.vocoder.waveform(of_stack(params, VOCODER), mel)}  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter and its shape."""
        return {f"{part}.{name}": shape for part, network in self.networks.items()
                for name, shape in network.shapes().items()}  # fmt: skip
