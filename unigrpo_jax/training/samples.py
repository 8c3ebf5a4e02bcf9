"""Pictures and clips to look at during a run: what the policy thought and drew for a fixed list of prompts.

Each saved step is three files in `samples/` of the run folder: `000120.png`, a grid with captions for the eye;
`000120.npz`, the images exactly as drawn; `000120.json`, prompts, thinking and verdicts.  Episodes of several rounds are
strips in the grid, one row each: what is said, what is thought, the image, and so on.  The npz holds the last images as
`images`, [N, H, W, 3], those of round r before it as `images_r`, and the n-th picture given in round r of sample i as
`given_i_r_n`, [H, W, 3], i from 0, r and n from 1; a sample's `earlier` in the JSON lists the rounds before the last.

Of clips there is a file for each sample, too, `000120-1.mp4` and so on (`.webp` where PyAV is not installed); the grid shows
strips of their frames, which the npz holds as `strips`, and the JSON says of each how many frames it has, and how many
per second.  Those of round r before the last are `000120-1-round1.mp4` and `strips_r`.  The sound of a clip is in its MP4,
or beside its WebP in `000120-1.wav`; below the frames of its strip it is drawn (`heard`), and the JSON says when it begins.
"""

import dataclasses
import io
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from unigrpo_jax import clip_files, foreign_files, sound_files
from unigrpo_jax.training import heard
from unigrpo_jax.training.storage import Place, literal, write_atomically

ENLARGE_TO, SHRINK_TO = 96, 256  # a drawn side lies between these, in pixels
STRIP_FRAMES, GAP = 5, 4  # frames of a clip's strip, and pixels between two
MOST_BYTES = 64 * foreign_files.MIB  # of a clip's file
CELL_WIDTH, MARGIN, FRAME = 168, 10, 3
FONT_SIZE, LINE_HEIGHT, PROMPT_LINES, THINKING_LINES, VERDICT_LINES = 12, 16, 4, 5, 3
GREEN, RED, GREY, INK, THOUGHT = (26, 138, 72), (200, 48, 48), (190, 190, 190), (32, 32, 32), (70, 90, 150)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A clip as it is saved and shown.

    Attributes:
      kind: of its file, one of `clip_files.KINDS`.
      data: the file.
      strip: uint8 [H, W, 3], its first frame, its last and some between, side by side; below them its sound.
      frames: how many it has.
      fps: frames per second.
      tiny: whether it was enlarged, and so has pixels as squares.
      sound: what is known of its sound; None where it has none.
      wav: the file of its sound; None where that is in `data`, or there is none.
    """

    kind: str
    data: bytes
    strip: np.ndarray
    frames: int
    fps: float
    tiny: bool
    sound: heard.Heard | None = None
    wav: bytes | None = None

    @classmethod
    def of(cls, frames_FHWC: np.ndarray, fps: float, sound: clip_files.Sound | None = None) -> "Clip":
        """The clip of frames uint8 [F, H, W, 3], and its sound, whose numbers that are not finite are silent.

        A tiny one is enlarged, since yuv420p would blur its colours; the file of a sound has a rate that players know.
        """
        times, kind = max(1, math.ceil(ENLARGE_TO / max(frames_FHWC.shape[1:3]))), clip_files.best_kind()
        sound = None if sound is None else (sound_files.audible(sound[0]), int(sound[1]))
        inside = sound if kind == "mp4" else None
        data = clip_files.encode(frames_FHWC.repeat(times, axis=1).repeat(times, axis=2), fps, kind, inside)
        some = [np.asarray(readable_size(frame)) for frame in frames_FHWC[clip_files.spread(len(frames_FHWC), STRIP_FRAMES)]]
        gap = np.full((some[0].shape[0], GAP, 3), 255, np.uint8)
        strip = np.concatenate([part for frame in some for part in (gap, frame)][1:], axis=1)
        found = {"kind": kind, "data": data, "frames": len(frames_FHWC), "fps": fps, "tiny": times > 1}
        if sound is None:
            return cls(**found, strip=strip)
        drawn = heard.picture(*sound, strip.shape[1])
        between = np.full((GAP, *strip.shape[1:]), 255, np.uint8)
        wav = None if inside else sound_files.encode(*clip_files.playable(sound))
        return cls(**found, strip=np.concatenate([strip, between, drawn]), sound=heard.Heard.of(*sound), wav=wav)

    @property
    def words(self) -> dict[str, Any]:
        """What is known of it beside the files and the strip, JSON values."""
        words = {"kind": self.kind, "frames": self.frames, "fps": self.fps, "tiny": self.tiny}
        return words if self.sound is None else words | {"sound": self.sound.words}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """One round of a finished episode, as a person looks at it.

    Attributes:
      prompt: what was said in it; empty where nothing was.
      thinking: the text that the policy wrote before it drew.
      image: uint8 [H, W, 3]; None where a clip was drawn.
      clip: None where an image was drawn.
      verdict: what the judge says in words, such as "2 of 3 objects".
      correct: whether what was drawn is right; None where that is not known.
      given: the pictures that it was given before the words, uint8 [H, W, 3] each, of any size.
    """

    prompt: str
    thinking: str
    image: np.ndarray | None = None
    clip: Clip | None = None
    verdict: str
    correct: bool | None
    given: tuple[np.ndarray, ...] = ()

    def __post_init__(self):
        if (self.image is None) == (self.clip is None):
            raise ValueError("a sample is an image or a clip")
        for image in (self.still, *self.given):
            if not _is_picture(image):
                raise ValueError(f"a sample's image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")

    @property
    def still(self) -> np.ndarray:
        """The image, or the clip's strip, uint8 [H, W, 3]."""
        return self.image if self.clip is None else self.clip.strip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample(Moment):
    """One finished episode, as a person looks at it: its last round, and those before.

    Attributes:
      earlier: the rounds before the last, in order.
    """

    earlier: tuple[Moment, ...] = ()

    @property
    def rounds(self) -> tuple[Moment, ...]:
        """All rounds, in order."""
        return (*self.earlier, self)

    @property
    def asked(self) -> str:
        """All that was said: the prompt of a single round; several are joined by arrows."""
        return " → ".join(m.prompt for m in self.rounds if m.prompt or len(self.rounds) == 1)


def save_samples(folder: Place, step: int, samples: Sequence[Sample]) -> epath.Path:
    """Writes the files of `step` under `folder/samples` and returns the path of the grid.

    The text comes last, so that a step that `saved_steps` lists is whole.
    """
    if not samples:
        raise ValueError(f"no samples to save at step {step}")
    if len({moment.clip is None for sample in samples for moment in sample.rounds}) > 1:
        raise ValueError("samples of one step are all images or all clips")
    sizes = sorted({moment.still.shape for sample in samples for moment in sample.rounds})
    if len(sizes) > 1:
        raise ValueError(f"samples of one step share one size, not {sizes}")
    counts = sorted({len(sample.rounds) for sample in samples})
    if len(counts) > 1:
        raise ValueError(f"samples of one step share one number of rounds, not {counts}")
    grid_path, images_path, texts_path = _paths(folder, step)
    write_atomically(grid_path, _png(draw_grid(samples)))
    kind = "images" if samples[0].clip is None else "strips"
    arrays = {kind: np.stack([sample.still for sample in samples])}
    for turn in range(1, counts[0]):
        arrays[f"{kind}_{turn}"] = np.stack([sample.earlier[turn - 1].still for sample in samples])
    for row, sample in enumerate(samples):
        for turn, moment in enumerate(sample.rounds, 1):
            arrays |= {f"given_{row}_{turn}_{n}": image for n, image in enumerate(moment.given, 1)}
            if moment.clip is None:
                continue
            write_atomically(_clip_path(folder, step, row, turn, counts[0], moment.clip.kind), moment.clip.data)
            if moment.clip.wav is not None:
                write_atomically(_clip_path(folder, step, row, turn, counts[0], "wav"), moment.clip.wav)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(images_path, buffer.getvalue())
    texts = [_words(s) | ({"earlier": [_words(m) for m in s.earlier]} if s.earlier else {}) for s in samples]
    write_atomically(texts_path, json.dumps(texts, indent=1).encode())
    return grid_path


def _words(moment: Moment) -> dict[str, Any]:
    """A round's JSON values."""
    return {
        "prompt": moment.prompt,
        "thinking": moment.thinking,
        "verdict": moment.verdict,
        "correct": None if moment.correct is None else bool(moment.correct),
    } | ({} if moment.clip is None else {"clip": moment.clip.words})


def load_samples(folder: Place, step: int) -> list[Sample]:
    """The samples that `save_samples` wrote, images bit for bit; ValueError where the files hold anything else."""
    _, images_path, texts_path = _paths(folder, step)
    arrays = foreign_files.read_arrays(images_path)
    kind = "strips" if "strips" in arrays else "images"
    images = arrays.get(kind)
    if images is None or images.ndim != 4 or images.size == 0 or not _is_picture(images[0]):
        raise ValueError(f"{images_path} does not hold images, uint8 [N, H, W, 3]")
    texts = foreign_files.read_json(texts_path, foreign_files.TABLES)
    if not isinstance(texts, list) or len(texts) != len(images) or not all(map(_is_text, texts)):
        raise ValueError(f"{texts_path} does not hold the texts of {len(images)} images")
    earlier = len(texts[0].get("earlier", ()))
    every = [arrays.get(f"{kind}_{turn}") for turn in range(1, earlier + 1)] + [images]
    if any(len(t.get("earlier", ())) != earlier for t in texts) or any(
        x is None or x.shape != images.shape or x.dtype != np.uint8 for x in every
    ):
        raise ValueError(f"{texts_path} and {images_path} do not hold the same rounds of {len(images)} episodes")
    given = lambda row, turn: _given(arrays, f"given_{row}_{turn}_", images_path)

    def drawn(said: dict[str, Any], still: np.ndarray, row: int, turn: int) -> dict[str, Any]:
        if ("clip" in said) != (kind == "strips"):
            raise ValueError(f"{texts_path} and {images_path} do not hold the same clips")
        if kind == "images":
            return {"image": still}
        path = lambda kind: _clip_path(folder, step, row, turn, len(every), kind)
        words, sound = said["clip"], said["clip"].get("sound")
        own = {"sound": None if sound is None else heard.Heard.from_words(sound), "data": _file(path(words["kind"]))}
        own["wav"] = None if sound is None or words["kind"] == "mp4" else _file(path("wav"))
        return {"clip": Clip(**words | own, strip=still)}

    samples = []
    for row, text in enumerate(texts):
        said = [*text.pop("earlier", ()), text]
        *before, last = (
            m | drawn(m, x[row], row, turn) | {"given": given(row, turn)}
            for turn, (m, x) in enumerate(zip(said, every, strict=True), 1)
        )
        samples.append(Sample(**last, earlier=tuple(Moment(**m) for m in before)))
    return samples


def _file(path: epath.Path) -> bytes:
    try:
        return foreign_files.read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def _given(arrays: Mapping[str, np.ndarray], stem: str, path: epath.Path) -> tuple[np.ndarray, ...]:
    """The pictures of names that begin with `stem`, in order; ValueError where one of them is no picture."""
    names = itertools.takewhile(arrays.__contains__, (f"{stem}{n}" for n in itertools.count(1)))
    given = tuple(arrays[name] for name in names)
    if not all(map(_is_picture, given)):
        raise ValueError(f"{path} does not hold pictures, uint8 [H, W, 3], as those that were given")
    return given


def _is_picture(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size > 0


def _is_text(value: Any) -> bool:
    """Whether a value is what `save_samples` writes for one sample."""
    if not isinstance(value, dict) or not isinstance(earlier := value.get("earlier", []), list):
        return False
    return all(map(_is_words, [{name: x for name, x in value.items() if name != "earlier"}, *earlier]))


def _is_words(value: Any) -> bool:
    """Whether a value is what `_words` gives."""
    names = ("prompt", "thinking", "verdict")
    if not isinstance(value, dict) or value.keys() - {"clip"} != {*names, "correct"}:
        return False
    if "clip" in value and not _are_words_of_clip(value["clip"]):
        return False
    return all(isinstance(value[name], str) for name in names) and isinstance(value["correct"], bool | None)


def _are_words_of_clip(value: Any) -> bool:
    """Whether a value is what `Clip.words` gives."""
    if not isinstance(value, dict) or value.keys() - {"sound"} != {"kind", "frames", "fps", "tiny"}:
        return False
    if "sound" in value and not heard.are_words(value["sound"]):
        return False
    frames, fps = value["frames"], value["fps"]
    if type(frames) is not int or type(fps) not in (int, float) or not (0 < frames < 10**6 and 0 < fps < 10**6):
        return False
    return isinstance(value["tiny"], bool) and value["kind"] in tuple(clip_files.KINDS)


def saved_steps(folder: Place) -> list[int]:
    """The steps with whole samples under `folder/samples`, in increasing order; [] where there are none."""
    texts = (literal(folder) / "samples").glob("*.json")
    ours = lambda path: re.fullmatch("[0-9]{6}|[1-9][0-9]{6,8}", path.stem) and path.with_suffix(".npz").exists()
    return sorted(int(path.stem) for path in texts if ours(path))


@dataclasses.dataclass(frozen=True, eq=False)
class _Cell:
    """A framed picture, with lines of text above and below it, each in its ink."""

    picture: Image.Image
    above: list[tuple[str, Any]]
    below: list[tuple[str, Any]]
    colour: tuple[int, int, int] = GREY
    frame: int = 1


def draw_grid(samples: Sequence[Sample]) -> Image.Image:
    """All images in a near-square grid, each with its prompt and verdict; a green frame is right, a red one wrong.

    Where there are several rounds, or given pictures, each episode is a row: the words of a round stand above its image.
    """
    font = ImageFont.load_default(FONT_SIZE)
    moments = [moment for sample in samples for moment in sample.rounds]
    strips = len(moments) > len(samples) or any(moment.given for moment in moments)
    shown = [picture for moment in moments for picture in (_drawn(moment), *map(readable_size, moment.given))]
    width = max(CELL_WIDTH, *(picture.width + 2 * FRAME for picture in shown))
    if strips:
        return _draw([[cell for m in sample.rounds for cell in _cells(m, font, width, True)] for sample in samples], width)
    cells = [cell for sample in samples for cell in _cells(sample, font, width, False)]
    shape = width / (moments[0].still.shape[0] + 5 * LINE_HEIGHT) if moments[0].clip else 1  # a cell of clips is wide
    columns = min(len(samples), max(1, round(math.sqrt(len(samples) * 1.5 / shape))))
    return _draw([cells[start : start + columns] for start in range(0, len(cells), columns)], width)


def _cells(moment: Moment, font, width: int, strip: bool) -> list[_Cell]:
    """The given pictures of a round, and its image."""
    colour = {True: GREEN, False: RED, None: GREY}[moment.correct]
    words = [(line, INK) for line in wrap(moment.prompt, font, width, PROMPT_LINES)]
    ink = INK if moment.correct is None else colour
    verdict = [(line, ink) for line in wrap(_marked(moment), font, width, VERDICT_LINES)]
    thought = [(line, THOUGHT) for line in wrap(moment.thinking, font, width, THINKING_LINES)]
    above, below = (words + thought, verdict) if strip else ([], words + verdict)
    given = [_Cell(readable_size(image), [("given", INK)], []) for image in moment.given]
    return [*given, _Cell(_drawn(moment), above, below, colour, 1 if moment.correct is None else FRAME)]


def _drawn(moment: Moment) -> Image.Image:
    """The image in a readable size, or the clip's strip, which is."""
    return readable_size(moment.image) if moment.clip is None else Image.fromarray(moment.clip.strip)


def _draw(rows: Sequence[Sequence[_Cell]], width: int) -> Image.Image:
    """Rows of cells of one width."""
    font = ImageFont.load_default(FONT_SIZE)
    tops = [max(len(cell.above) for cell in row) * LINE_HEIGHT for row in rows]
    bottoms = [max(cell.picture.height + LINE_HEIGHT * len(cell.below) for cell in row) for row in rows]
    heights = [top + 2 * FRAME + 4 + bottom + MARGIN for top, bottom in zip(tops, bottoms, strict=True)]
    columns = max(map(len, rows))
    grid = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    pen = ImageDraw.Draw(grid)
    for index, row in enumerate(rows):
        for column, cell in enumerate(row):
            left, top = MARGIN + column * (width + MARGIN), MARGIN + sum(heights[:index]) + tops[index]
            frame = (left, top, left + cell.picture.width + 2 * FRAME - 1, top + cell.picture.height + 2 * FRAME - 1)
            pen.rectangle(frame, outline=cell.colour, width=cell.frame)
            grid.paste(cell.picture, (left + FRAME, top + FRAME))
            lines = [(top - LINE_HEIGHT * (len(cell.above) - n) - 2, *line) for n, line in enumerate(cell.above)]
            lines += [(frame[3] + 4 + LINE_HEIGHT * n, *line) for n, line in enumerate(cell.below)]
            for y, line, ink in lines:
                pen.text((left, y), line, fill=ink, font=font)
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


def _marked(sample: Moment) -> str:
    """The verdict with its outcome in words too, for eyes that do not tell red from green."""
    outcome = {True: "right", False: "wrong", None: ""}[sample.correct]
    return ": ".join(dict.fromkeys(filter(None, (outcome, sample.verdict))))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _clip_path(folder: Place, step: int, row: int, turn: int, rounds: int, kind: str) -> epath.Path:
    """The file of sample `row`, from 0, in its round `turn` of `rounds`, from 1."""
    earlier = f"-round{turn}" if turn < rounds else ""
    return epath.Path(folder) / "samples" / f"{step:06d}-{row + 1}{earlier}.{kind}"


def _paths(folder: Place, step: int) -> list[epath.Path]:
    return [epath.Path(folder) / "samples" / f"{step:06d}.{kind}" for kind in ("png", "npz", "json")]
