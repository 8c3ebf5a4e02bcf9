"""GenEval (arXiv 2310.11513): the folder of images that its own evaluator reads, and the results that it writes.

Its metadata is JSON lines of "tag" (one of six), "include" and perhaps "exclude" (objects that must and must not be seen)
and "prompt".  Images lie in

    00000/metadata.jsonl          line 0 of the metadata
    00000/samples/0000.png ...    its images
    00000/grid.png                all of them beside each other, if wanted

and the results are JSON lines, one per image, with "tag", "prompt", "correct", "metadata" and more.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from unigrpo_jax.config import require
from unigrpo_jax.worlds.prompt import Prompt

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def is_check(record: Mapping[str, Any]) -> bool:
    """Whether a line has the keys of GenEval's metadata."""
    return isinstance(record.get("tag"), str) and isinstance(record.get("include"), list)


def metadata_line(prompt: Prompt) -> str:
    """The line of GenEval's metadata that a prompt was read from."""
    return json.dumps({k: v for k, v in prompt.metadata.items() if k != "category"} | {"prompt": prompt.text})


def write_prompt(folder: pathlib.Path, number: int, prompt: Prompt, images: np.ndarray, grid: bool = False) -> None:
    """Writes one prompt's folder.

    Args:
      folder: the folder of all prompts.
      number: the prompt's line in the metadata, from 0 on.
      prompt: the prompt.
      images: uint8 [n, H, W, 3].
      grid: also write grid.png.
    """
    own = folder / f"{number:05d}"
    (own / "samples").mkdir(parents=True, exist_ok=True)
    (own / "metadata.jsonl").write_text(metadata_line(prompt), encoding="utf-8")
    for i, image in enumerate(images):
        Image.fromarray(image).save(own / "samples" / f"{i:04d}.png")
    if grid:
        Image.fromarray(np.concatenate(list(images), axis=1)).save(own / "grid.png")


def result(record: Any) -> Mapping[str, Any]:
    """A line of GenEval's results, checked; ConfigError where it is none."""
    good = isinstance(record, dict) and isinstance(record.get("tag"), str) and isinstance(record.get("correct"), bool)
    require(good and isinstance(record.get("metadata"), str),
            'expected an object with "tag" and "metadata" (texts) and "correct" (true or false); give the file that '
            "GenEval's evaluate_images.py wrote.")  # fmt: skip
    return record


def summary(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of GenEval's results, as its own summary has them.

    Args:
      results: at least one, one per image.

    Returns:
      {"geneval": {"overall": mean of the tags' scores, tag: share of correct images, ...}, "images": number, "prompts":
      number, "correct_images": share, "correct_prompts": share of prompts with a correct image}.
    """
    by_tag: dict[str, list[bool]] = {}
    by_prompt: dict[str, bool] = {}
    for found in results:
        by_tag.setdefault(found["tag"], []).append(found["correct"])
        by_prompt[found["metadata"]] = by_prompt.get(found["metadata"], False) or found["correct"]
    order = sorted(by_tag, key=lambda tag: (TAGS.index(tag) if tag in TAGS else len(TAGS), tag))
    scores = {tag: float(np.mean(by_tag[tag])) for tag in order}
    images = [correct for tag in order for correct in by_tag[tag]]
    return {
        "geneval": {"overall": float(np.mean(list(scores.values())))} | scores,
        "images": len(images),
        "prompts": len(by_prompt),
        "correct_images": float(np.mean(images)),
        "correct_prompts": float(np.mean(list(by_prompt.values()))),
    }
