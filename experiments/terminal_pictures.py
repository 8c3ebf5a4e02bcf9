"""Pictures in a terminal: inline where it can show them, else a small preview of half blocks, and nothing in a pipe.

    kitty    kitty's graphics protocol, a PNG in pieces of base64 (kitty, Ghostty)
    iterm    iTerm2's inline images, a whole PNG in base64 (iTerm2, WezTerm)
    blocks   one character for two pixels, the upper one its ink, the lower one its ground

Which one follows from the environment alone: nothing is asked of the terminal.  tmux and screen pass neither protocol on.
"""

import base64
import io
import math
import shutil
from collections.abc import Mapping
from typing import Literal, TextIO

Way = Literal["kitty", "iterm", "blocks"]
PIECE = 4096  # characters of base64 that one of kitty's commands may hold
PREVIEW = 48  # columns
LEVELS = (0, 95, 135, 175, 215, 255)  # of a channel in the cube of 6 x 6 x 6 colours


def way(stream: TextIO, environ: Mapping[str, str]) -> Way | None:
    """How `stream` shows a picture; None where it is no terminal, or one that shows letters only."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if not stream.isatty() or term in ("", "dumb"):
        return None
    multiplexed = "TMUX" in environ or term.startswith(("screen", "tmux"))
    if not multiplexed and ("KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty")):
        return "kitty"
    if not multiplexed and (program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2"):
        return "iterm"
    try:
        "▀".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return None
    return None if environ.get("NO_COLOR") else "blocks"


def show(image, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Writes a Pillow RGB image to the stream in its way, and a line's end; nothing where it has none."""
    how = way(stream, environ)
    if how is None:
        return
    if how == "blocks":
        columns = min(PREVIEW, shutil.get_terminal_size().columns)
        text = blocks(image, columns, environ.get("COLORTERM") in ("truecolor", "24bit"))
    else:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        text = (kitty if how == "kitty" else iterm)(buffer.getvalue())
    stream.write(text + "\n")
    stream.flush()


def kitty(png: bytes) -> str:
    """The commands that show a PNG: transmit and display, and give no answer, which would stand among what is typed."""
    data = base64.b64encode(png).decode()
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    head = lambda n: ("a=T,f=100,q=2," if n == 0 else "") + f"m={int(n + 1 < len(pieces))}"
    return "".join(f"\x1b_G{head(n)};{piece}\x1b\\" for n, piece in enumerate(pieces))


def iterm(png: bytes) -> str:
    """The command that shows a PNG."""
    return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{base64.b64encode(png).decode()}\x07"


def blocks(image, columns: int, true_colour: bool) -> str:
    """Lines of half blocks, at most `columns` wide and as many pixels high; true colours, or the nearest of 216."""
    from PIL import Image

    scale = min(1.0, columns / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    rows = math.ceil(height / 2)
    colour = (lambda p: "2;{};{};{}".format(*p)) if true_colour else _cube
    lines = []
    for row in range(rows):
        line = ""
        for column in range(width):
            upper = small.getpixel((column, 2 * row))
            lower = f";48;{colour(small.getpixel((column, 2 * row + 1)))}" if 2 * row + 1 < height else ""
            line += f"\x1b[38;{colour(upper)}{lower}m▀\x1b[0m"
        lines.append(line)
    return "\n".join(lines)


def _cube(pixel: tuple[int, int, int]) -> str:
    """The nearest colour of the cube, by channel."""
    red, green, blue = (min(range(6), key=lambda level: abs(LEVELS[level] - channel)) for channel in pixel)
    return f"5;{16 + 36 * red + 6 * green + blue}"
