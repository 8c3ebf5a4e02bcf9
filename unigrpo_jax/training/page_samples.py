"""Samples on a page: each image or clip with its verdict and its thinking, the same prompt of several steps together."""

import base64
import collections
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from unigrpo_jax.clip_files import KINDS
from unigrpo_jax.foreign_text import for_html as _text
from unigrpo_jax.training.samples import Clip, Moment, Sample, load_samples, saved_steps

PICTURE_SIDE, STRIP_SIDE = 320, 960  # larger images, and strips of frames, are shrunk to this for the page
TINY_SIDE = 128  # smaller ones are shown with square pixels

Pairs = Mapping[tuple[str, int], Mapping[int, Sample]]


def first_and_last(run_dir: epath.Path) -> tuple[list[int], Pairs]:
    """The first and the last saved step, and {(prompt, n): {step: sample}}; n counts samples of the same prompt from 1.

    Both are empty where no samples are saved.
    """
    steps = saved_steps(run_dir)
    ends = sorted({steps[0], steps[-1]}) if steps else []
    pairs = collections.defaultdict(dict)
    for step in ends:
        seen = collections.Counter()
        for sample in load_samples(run_dir, step):
            seen[sample.asked] += 1
            pairs[sample.asked, seen[sample.asked]][step] = sample
    return ends, pairs


def are_strips(pairs: Pairs) -> bool:
    """Whether an episode has several rounds, or given pictures, and so needs a row of its own."""
    return any(len(s.rounds) > 1 or s.given for by_step in pairs.values() for s in by_step.values())


def hold_clips(pairs: Pairs) -> bool:
    """Whether what was drawn are clips, so that the page needs the style `page_shell.CLIPS`."""
    return any(moment.clip for by_step in pairs.values() for sample in by_step.values() for moment in sample.rounds)


def right(ends: Sequence[int], pairs: Pairs) -> str:
    """How many are right at each step, such as "step 0: 3 of 12 right"; "" where that is not known."""
    return "; ".join(
        f"step {step}: {sum(s.correct is True for s in known)} of {len(known)} right"
        for step in ends
        if (known := [by[step] for by in pairs.values() if step in by and by[step].correct is not None])
    )


def halves(ends: Sequence[int], by_step: Mapping[int, Sample]) -> str:
    """The samples of a prompt side by side, one for each step."""
    figures = "".join(_figure(step, by_step.get(step)) for step in ends)
    return f'<div class="halves n{len(ends)}">{figures}</div>'


def strips(ends: Sequence[int], by_step: Mapping[int, Sample]) -> str:
    """The samples of a prompt below each other, one for each step."""
    return "".join(_strip(step, by_step.get(step)) for step in ends)


def _figure(step: int, sample: Sample | None) -> str:
    if sample is None:
        return f"<figure><p class=step>step {step}</p><p class=note>not sampled</p></figure>"
    return f"<figure><p class=step>step {step}</p>{_drawn(sample, f'drawn at step {step}')}</figure>"


def _strip(step: int, sample: Sample | None) -> str:
    """An episode in a row: what was given, what was said, what was drawn, round by round."""
    if sample is None:
        return f"<p class=step>step {step}</p><p class=note>not sampled</p>"
    figures = []
    for turn, moment in enumerate(sample.rounds, 1):
        for image in moment.given:
            picture = _img(image, "", f"picture given in round {turn}")
            figures.append(f"<figure><p class=said>given</p>{picture}</figure>")
        said = _text(moment.prompt) if moment.prompt else "<i>looks at it again</i>"
        drawn = _drawn(moment, f"drawn at step {step}, round {turn}")
        figures.append(f"<figure><p class=said dir=auto>{said}</p>{drawn}</figure>")
    return f"<p class=step>step {step}</p><div class=strip>{''.join(figures)}</div>"


def _drawn(moment: Moment, when: str) -> str:
    """What was drawn in a round with its verdict and its thinking, where there was one."""
    state, mark = {True: ("right", "✓ "), False: ("wrong", "✗ "), None: ("", "")}[moment.correct]
    thinking = f"<p class=thinking dir=auto>{_text(moment.thinking)}</p>" if moment.thinking.strip() else ""
    shown = _img(moment.image, state, f"image {when}") if moment.clip is None else _clip(moment.clip, state, f"clip {when}")
    return (
        f'{shown}<figcaption><p class="verdict {state}" dir=auto>{mark}{_text(moment.verdict)}</p>'
        f"{thinking}</figcaption>"
    )


def _img(image: np.ndarray, state: str, alt: str, most: int = PICTURE_SIDE) -> str:
    """An image, uint8 [H, W, 3], inline, at most so many pixels on a side."""
    picture = Image.fromarray(image)
    if max(picture.size) > most:
        picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    tiny = " tiny" if max(picture.size) <= TINY_SIDE else ""
    return f'<img class="{state}{tiny}" alt="{alt}" src="data:image/png;base64,{data}">'


def _clip(clip: Clip, state: str, alt: str) -> str:
    """A clip that plays, inline, and on paper its strip; one with sound waits until somebody plays it, beside its strip."""
    about = f"{alt}, {clip.frames} frames at {clip.fps:g} per second"
    source = lambda kind, data: f'src="data:{kind};base64,{base64.b64encode(data).decode()}"'
    kind, shown = f'class="{state}{" tiny" if clip.tiny else ""} plays"', source(KINDS[clip.kind], clip.data)
    at_once = "autoplay loop muted" if clip.sound is None else "preload=auto"
    if clip.kind == "mp4":
        plays = f'<video {kind} aria-label="{about}" {at_once} playsinline controls {shown}></video>'
    else:
        plays = f'<img {kind} alt="{about}" {shown}>'
    if clip.sound is None:
        return f"{plays}{_img(clip.strip, f'{state} on-paper', f'frames of the {about}', STRIP_SIDE)}"
    if clip.wav is not None:
        wav = source("audio/wav", clip.wav)
        plays += f'<audio class=plays aria-label="sound of the {alt}" preload=auto controls {wav}></audio>'
    strip = _img(clip.strip, f"{state} heard", f"frames of the {about}, and its sound", STRIP_SIDE)
    return f"<div class=listen>{plays}{strip}<p class=note>{clip.sound.caption}</p></div>"
