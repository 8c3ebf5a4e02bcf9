"""Where tokens of video and sound lie: both in seconds, on one clock, and those of video in rows and columns of pixels.

A latent covers an interval of its axis, and its place is the middle.  The first latent of a time axis covers one frame
where each later one covers as many as the autoencoder merges, so that all others are moved back:

    frames of a video's latent k         [max(m k + c - m, 0), m (k + 1) + c - m) / frames per second,    m = 8, c = 1
    frames of a spectrum's latent l      [max(m l + c - m, 0), m (l + 1) + c - m) hop / rate,             m = 4, c = 1
    row y of a video's latents           [m y, m (y + 1)),                                                m = 32

All arithmetic is float32, in the order of the public programs (`rotary` says why).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
    """Units, and the lengths of the axes.

    Attributes:
      scales: frames, rows and columns of pixels of a video's latent.
      causal: frames of the first latent of a time axis, c.
      seconds: length of the axis of time, for video among itself.
      rows: length of the axis of rows, in pixels.
      columns: of that of columns.
      sound_scale: frames of a spectrum for each latent of sound.
      sound_hop: samples of a waveform for each frame of a spectrum.
      sound_rate: samples in a second.
      sound_seconds: length of the axis of time, for sound among itself.
    """

    scales: tuple[int, int, int] = (8, 32, 32)
    causal: int = 1
    seconds: int = 20
    rows: int = 2048
    columns: int = 2048
    sound_scale: int = 4
    sound_hop: int = 160
    sound_rate: int = 16000
    sound_seconds: int = 20

    def video(self, grid: tuple[int, int, int], fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Intervals [latents, 2] along time (seconds), rows and columns (pixels)."""
        frames, *sides = (_edges(count, scale) for count, scale in zip(grid, self.scales, strict=True))
        return self._moved_back(frames, self.scales[0]) / np.float32(fps), *sides

    def sound(self, count: int) -> np.ndarray:
        """Intervals [latents, 2] in seconds."""
        frames = self._moved_back(_edges(count, self.sound_scale), self.sound_scale)
        return frames * np.float32(self.sound_hop) / np.float32(self.sound_rate)

    def sounds(self, seconds: float) -> int:
        """Latents of a sound that is as long as a clip of so many seconds; at least one."""
        return max(1, round(seconds * (self.sound_rate / self.sound_hop / self.sound_scale)))  # at halves the order counts

    def video_places(self, grid: tuple[int, int, int], fps: float) -> list[np.ndarray]:
        """For each axis, places of latents as parts of its length, for video among itself."""
        lengths = (self.seconds, self.rows, self.columns)
        return [_middle(edges) / np.float32(length) for edges, length in zip(self.video(grid, fps), lengths, strict=True)]

    def sound_places(self, count: int) -> list[np.ndarray]:
        """The same of sound among itself."""
        return [_middle(self.sound(count)) / np.float32(self.sound_seconds)]

    def shared_places(self, grid: tuple[int, int, int], fps: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in time where video and sound meet, of a video's latent frames and of a sound's latents."""
        length = np.float32(max(self.seconds, self.sound_seconds))
        return _middle(self.video(grid, fps)[0]) / length, _middle(self.sound(count)) / length

    def _moved_back(self, edges, scale: int):
        return np.maximum(edges + np.float32(self.causal) - np.float32(scale), np.float32(0))


def _edges(count: int, scale: int) -> np.ndarray:
    """Begin and end of so many latents, float32 [count, 2]."""
    start = np.arange(count, dtype=np.float32)
    return np.stack([start, start + np.float32(1)], axis=-1) * np.float32(scale)


def _middle(edges) -> np.ndarray:
    return (edges[:, 0] + edges[:, 1]) / np.float32(2)
