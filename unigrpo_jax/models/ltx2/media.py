"""Between a clip with its sound and LTX-2's latents: an autoencoder for each, and the vocoder, which makes sound of spectra.

None is trained here; where the clip alone is drawn, its autoencoder stands alone.  Parameters are those of all that are
there, called by their folders: `vae.NAME`, `audio_vae.NAME`, `vocoder.NAME`.
"""

import dataclasses

from unigrpo_jax.models.autoencoders.ltx_video import LTXVideoAutoencoder
from unigrpo_jax.models.autoencoders.mel_audio import MelAutoencoder
from unigrpo_jax.models.autoencoders.vocoder import Vocoder
from unigrpo_jax.models.building.flat import of_stack

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
        """Samples per second of the sound; 0 where there is none."""
        return 0 if self.vocoder is None else self.vocoder.rate

    def encode(self, params, clip_BTHWC, keys_B=None):
        """Latents of clips without sound; samples of the posterior where there are keys.

        Of pictures [B, height, width, 3] always its mean, as the released pipeline takes a first frame.
        """
        return self.video.encode(of_stack(params, VIDEO), clip_BTHWC, keys_B if clip_BTHWC.ndim == 5 else None)

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
