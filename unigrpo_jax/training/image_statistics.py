"""Numbers per image or clip that show a policy's collapse: to flat, single-coloured or motionless pictures, to a grid, or to
one drawing for each prompt.

They take B images, uint8 or float in [0, 1], shape [B, H, W, 3], or B clips, and know nothing of prompts or rewards.
"""

from collections.abc import Mapping

import numpy as np

from unigrpo_jax.clip_files import spread

LUMINANCE = np.array([0.299, 0.587, 0.114])  # Rec. 601 weights of red, green and blue
BINS = 8  # per colour channel
LOOKED_AT = 8  # frames of a clip whose edges and colours are measured


def statistics(media: Mapping[str, np.ndarray], token: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """Columns [B] of what was drawn, as `RewardBatch.media` has it.

    `image/edge_density`, `image/colour_entropy` and, where a latent token is larger than a pixel, `image/grid_energy`: of a
    clip the means over at most LOOKED_AT frames, the first, the last and some between; and of clips
    `video/frame_difference`.

    Args:
      media: what was drawn.
      token: pixels (height, width) that a latent token stands for.
    """
    measures = {"image/edge_density": edge_density, "image/colour_entropy": colour_entropy}
    if max(token) > 1:
        measures["image/grid_energy"] = lambda images: grid_energy(images, token)
    if "video" not in media:
        return {name: measure(media["image"]) for name, measure in measures.items()}
    rows = []
    for frames in media["video"]:  # one by one: all of them as floats would be many gibibytes
        some = frames[spread(len(frames), LOOKED_AT)]
        rows.append([*(measure(some).mean() for measure in measures.values()), frame_difference(frames)])
    names = (*measures, "video/frame_difference")
    return dict(zip(names, np.array(rows).reshape(-1, len(names)).T, strict=True))


def diversity(media: Mapping[str, np.ndarray], group_B: np.ndarray) -> np.ndarray:
    """How far a drawing lies from the others of its prompt, float64 [B]; NaN where there is none.

        sqrt( mean over the other drawings y of mean_{numbers} (x - y)^2 ),    levels in [0, 1]

    0 where all of a prompt's drawings are one; sound has no part in it.

    Args:
      media: what was drawn, as `RewardBatch.media` has it, images or clips.
      group_B: int, number of each drawing's prompt.
    """
    drawn, group_B = media["video" if "video" in media else "image"], np.asarray(group_B)
    out = np.full(len(drawn), np.nan)
    for number in np.unique(group_B):
        (rows,) = np.nonzero(group_B == number)
        if len(rows) > 1:
            x = drawn[rows].reshape(len(rows), -1).astype(np.float64) / 255
            squared = np.stack([((x - own) ** 2).mean(axis=1) for own in x])
            out[rows] = np.sqrt(squared.sum(axis=1) / (len(rows) - 1))
    return out


def frame_difference(frames_FHWC: np.ndarray) -> float:
    """How much changes from a frame to the next, of a clip in uint8 [F, H, W, 3].

        mean_{f,i,j,c} |x[f+1, i, j, c] - x[f, i, j, c]| / 255

    0 for a clip in which nothing moves, and for a single frame; 1 where black and white frames take turns.
    """
    pairs = zip(frames_FHWC, frames_FHWC[1:], strict=False)
    return float(np.mean([np.abs(np.subtract(b, a, dtype=np.int16)).mean() for a, b in pairs] or [0.0])) / 255


def edge_density(images_BHWC) -> np.ndarray:
    """Mean magnitude of the finite differences of the luminance Y in [0, 1], float64 [B].

        1/2 * ( mean_{i,j} |Y[i, j+1] - Y[i, j]|  +  mean_{i,j} |Y[i+1, j] - Y[i, j]| )

    0 for an image of one colour, 1 for a chessboard of black and white pixels.
    """
    images = _unit_range(images_BHWC)
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"edge_density needs images of at least 2 x 2 pixels, not {list(images.shape[1:3])}")
    luminance_BHW = images @ LUMINANCE
    horizontal, vertical = (np.abs(np.diff(luminance_BHW, axis=axis)).mean(axis=(1, 2)) for axis in (2, 1))
    return (horizontal + vertical) / 2


def colour_entropy(images_BHWC) -> np.ndarray:
    """Entropy in nats of the histogram over 8 x 8 x 8 RGB bins, float64 [B].

        - sum_k p_k log p_k,  p_k = share of the image's pixels in bin k = (floor(8 r), floor(8 g), floor(8 b))

    0 for an image within one bin; at most log(min(512, H * W)).
    """
    bins = np.minimum((_unit_range(images_BHWC) * BINS).astype(np.int64), BINS - 1)  # the value 1 joins the last bin
    index_BN = (bins @ np.array([BINS**2, BINS, 1])).reshape(len(bins), -1)
    entropies = []
    for index_N in index_BN:
        counts = np.bincount(index_N, minlength=BINS**3)
        shares = counts[counts > 0] / index_N.size
        entropies.append(max(0.0, -np.sum(shares * np.log(shares))))
    return np.asarray(entropies, np.float64)


def grid_energy(images_BHWC, token: tuple[int, int]) -> np.ndarray:
    """Energy of what the background repeats from latent token to latent token, float64 [B].

        mean_{i,j,c} (m[i, j, c] - mean_{i,j} m[i, j, c])^2,    m[i, j, c] = median over tokens of the pixel i, j of each

    0 where all tokens of a background look like one colour.  A faint pattern of the network's latent patches, the same in
    each, shows here by its variance, whatever objects are drawn upon it as long as they cover less than half of the image.

    Args:
      images_BHWC: the images.
      token: pixels (height, width) of a token; they divide the image's.
    """
    images, (height, width) = np.asarray(images_BHWC), token
    if images.ndim != 4 or images.shape[1] % height or images.shape[2] % width:
        raise ValueError(f"tokens of {height} x {width} pixels do not divide images of shape {list(images.shape)}")
    batch, rows, columns = len(images), images.shape[1] // height, images.shape[2] // width
    tokens = images.reshape(batch, rows, height, columns, width, -1).swapaxes(2, 3).reshape(batch, rows * columns, -1)
    middle = rows * columns // 2
    median = [np.partition(each, middle, axis=0)[middle] for each in tokens]  # in their own dtype, one by one: fast
    pattern = _unit_range(np.array(median, images.dtype).reshape(batch, height, width, images.shape[3]))
    return ((pattern - pattern.mean(axis=(1, 2), keepdims=True)) ** 2).mean(axis=(1, 2, 3))


def _unit_range(images_BHWC) -> np.ndarray:
    """The images as float64 in [0, 1]."""
    images = np.asarray(images_BHWC)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape [B, H, W, 3], not {list(images.shape)}")
    if images.dtype == np.uint8:
        return images / 255.0
    images = images.astype(np.float64)
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError("float images must lie in [0, 1]; clip them first, or pass uint8")
    return images
