"""How many frames a painter draws: an image is one, and where a family draws no clips it is the only number."""


def check_image(frames: int) -> None:
    """ValueError where more than an image is asked of a painter that draws images."""
    if frames != 1:
        raise ValueError(f"this model draws images, not clips of {frames} frames; use 1.")
