"""Pictures to look at during a run: what the policy thought and drew for a fixed list of prompts.

Each saved step is three files in `samples/` of the run folder: `000120.png`, a grid with captions for the eye;
`000120.npz`, the images exactly as drawn; `000120.json`, prompts, thinking and verdicts.
"""

import dataclasses
import io
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from unigrpo_jax import foreign_files
from unigrpo_jax.training.storage import Place, write_atomically

ENLARGE_TO, SHRINK_TO = 96, 256  # a drawn side lies between these, in pixels
CELL_WIDTH, MARGIN, FRAME = 168, 10, 3
FONT_SIZE, LINE_HEIGHT, PROMPT_LINES, VERDICT_LINES = 12, 16, 4, 3
GREEN, RED, GREY, INK = (26, 138, 72), (200, 48, 48), (190, 190, 190), (32, 32, 32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One finished episode, as a person looks at it.

    Attributes:
      prompt: what was asked.
      thinking: the text that the policy wrote before it drew.
      image: uint8 [H, W, 3].
      verdict: what the judge says in words, such as "2 of 3 objects".
      correct: whether the image is right; None where that is not known.
    """

    prompt: str
    thinking: str
    image: np.ndarray
    verdict: str
    correct: bool | None

    def __post_init__(self):
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[-1] != 3:
            raise ValueError(f"a sample's image is uint8 [H, W, 3], not {self.image.dtype} {list(self.image.shape)}")


def save_samples(folder: Place, step: int, samples: Sequence[Sample]) -> epath.Path:
    """Writes the three files of `step` under `folder/samples` and returns the path of the grid.

    The text comes last, so that a step that `saved_steps` lists is whole.
    """
    if not samples:
        raise ValueError(f"no samples to save at step {step}")
    sizes = sorted({sample.image.shape for sample in samples})
    if len(sizes) > 1:
        raise ValueError(f"samples of one step share one size, not {sizes}")
    grid_path, images_path, texts_path = _paths(folder, step)
    write_atomically(grid_path, _png(draw_grid(samples)))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.stack([sample.image for sample in samples]))
    write_atomically(images_path, buffer.getvalue())
    texts = [
        {
            "prompt": sample.prompt,
            "thinking": sample.thinking,
            "verdict": sample.verdict,
            "correct": None if sample.correct is None else bool(sample.correct),
        }
        for sample in samples
    ]
    write_atomically(texts_path, json.dumps(texts, indent=1).encode())
    return grid_path


def load_samples(folder: Place, step: int) -> list[Sample]:
    """The samples that `save_samples` wrote, images bit for bit; ValueError where the files hold anything else."""
    _, images_path, texts_path = _paths(folder, step)
    images = foreign_files.read_arrays(images_path).get("images")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.size == 0:
        raise ValueError(f"{images_path} does not hold images, uint8 [N, H, W, 3]")
    texts = foreign_files.read_json(texts_path, foreign_files.TABLES)
    if not isinstance(texts, list) or len(texts) != len(images) or not all(map(_is_text, texts)):
        raise ValueError(f"{texts_path} does not hold the texts of {len(images)} images")
    return [Sample(image=image, **text) for image, text in zip(images, texts, strict=True)]


def _is_text(value: Any) -> bool:
    """Whether a value is what `save_samples` writes for one sample."""
    names = ("prompt", "thinking", "verdict")
    if not isinstance(value, dict) or value.keys() != {*names, "correct"}:
        return False
    return all(isinstance(value[name], str) for name in names) and isinstance(value["correct"], bool | None)


def saved_steps(folder: Place) -> list[int]:
    """The steps with whole samples under `folder/samples`, in increasing order; [] where there are none."""
    texts = (epath.Path(folder) / "samples").glob("*.json")
    ours = lambda path: re.fullmatch("[0-9]{6}|[1-9][0-9]{6,8}", path.stem) and path.with_suffix(".npz").exists()
    return sorted(int(path.stem) for path in texts if ours(path))


def draw_grid(samples: Sequence[Sample]) -> Image.Image:
    """All images in a near-square grid, each with its prompt and verdict; a green frame is right, a red one wrong."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [readable_size(sample.image) for sample in samples]
    width = max(CELL_WIDTH, pictures[0].width + 2 * FRAME)
    prompts = [wrap(sample.prompt, font, width, PROMPT_LINES) for sample in samples]
    verdicts = [wrap(_marked(sample), font, width, VERDICT_LINES) for sample in samples]
    caption_lines = [len(prompt) + len(verdict) for prompt, verdict in zip(prompts, verdicts, strict=True)]
    columns = min(len(samples), max(1, round(math.sqrt(len(samples) * 1.5))))
    rows = math.ceil(len(samples) / columns)
    row_captions = [max(caption_lines[row * columns : (row + 1) * columns]) for row in range(rows)]
    row_heights = [pictures[0].height + 2 * FRAME + 4 + LINE_HEIGHT * lines + MARGIN for lines in row_captions]

    grid = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, sum(row_heights) + MARGIN), "white")
    pen = ImageDraw.Draw(grid)
    for index, (sample, picture) in enumerate(zip(samples, pictures, strict=True)):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (width + MARGIN), MARGIN + sum(row_heights[:row])
        colour = {True: GREEN, False: RED, None: GREY}[sample.correct]
        frame = (left, top, left + picture.width + 2 * FRAME - 1, top + picture.height + 2 * FRAME - 1)
        pen.rectangle(frame, outline=colour, width=1 if sample.correct is None else FRAME)
        grid.paste(picture, (left + FRAME, top + FRAME))
        verdict_ink = INK if sample.correct is None else colour
        lines = [(line, INK) for line in prompts[index]] + [(line, verdict_ink) for line in verdicts[index]]
        for line_number, (line, ink) in enumerate(lines):
            pen.text((left, frame[3] + 4 + LINE_HEIGHT * line_number), line, fill=ink, font=font)
    return grid


def readable_size(image: np.ndarray) -> Image.Image:
    """The image with its pixels kept as squares if it is tiny, shrunk if it is large."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest < ENLARGE_TO:
        factor = math.ceil(ENLARGE_TO / longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if longest > SHRINK_TO:
        picture.thumbnail((SHRINK_TO, SHRINK_TO), Image.Resampling.LANCZOS)
    return picture


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels, words broken only where one alone is too wide; "..." where lines are left out.

    Every kind of white space and every control character becomes a space.
    """
    printable = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[:400])
    lines, line = [], ""
    for word in printable.split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            fits = max(1, sum(font.getlength(word[: n + 1]) <= width for n in range(len(word))))
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    if line:
        lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last + "..."]
    return lines


def _marked(sample: Sample) -> str:
    """The verdict with its outcome in words too, for eyes that do not tell red from green."""
    return {True: "right: ", False: "wrong: ", None: ""}[sample.correct] + sample.verdict


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _paths(folder: Place, step: int) -> list[epath.Path]:
    return [epath.Path(folder) / "samples" / f"{step:06d}.{kind}" for kind in ("png", "npz", "json")]
