"""What a remote judge is shown: an image, some frames of a clip, or the whole clip, as parts of a chat message.

An image or a frame is an `image_url` with a PNG data URL, without loss.  A whole clip is a `video_url` with an MP4 data URL,
with its sound (AAC) where there is one, which vLLM and SGLang take and OpenAI's own API does not; which frames of it a judge
looks at, and whether it listens, is then the server's affair.
"""

import base64
import io
from typing import Any, NamedTuple

import numpy as np

from unigrpo_jax import clip_files
from unigrpo_jax.config import JudgeConfig
from unigrpo_jax.rewards.protocol import RewardBatch
from unigrpo_jax.sound_files import audible


class Shown(NamedTuple):
    """What stands in front of the question.

    Attributes:
      medium: "image" or "video".
      a_medium: the same with its article.
      parts: of the message.
      words: what is said of them; "" where nothing is.
    """

    medium: str
    a_medium: str
    parts: list[dict[str, Any]]
    words: str


def show(batch: RewardBatch, row: int, settings: JudgeConfig) -> Shown:
    """What was drawn in one episode, as the settings say."""
    if "video" not in batch.media:
        return Shown("image", "an image", [_picture(batch.images[row])], "")
    frames = batch.videos[row]
    if settings.clip == "video":
        sound = (audible(batch.audio[row]), batch.rate) if "audio" in batch.media else None
        url = _data_url("video/mp4", clip_files.encode(frames, batch.fps, "mp4", sound))
        return Shown("video", "a video", [{"type": "video_url", "video_url": {"url": url}}], "")
    some = clip_files.spread(len(frames), settings.frames)
    times = ", ".join(f"{second:.2f}" for second in some / batch.fps)
    words = f"The images are frames of one video, in order, at these seconds: {times}.\n"
    return Shown("video", "a video", [_picture(frame) for frame in frames[some]], words)


def _picture(image: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return {"type": "image_url", "image_url": {"url": _data_url("image/png", buffer.getvalue())}}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
