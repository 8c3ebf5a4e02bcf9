"""What times say of LTX-2's tokens: shifts, scales and gates ("adaLN-single", arXiv 2310.00426, one map for all blocks).

    embedding = W2 SiLU(W1 sinusoid(t)),    said = W SiLU(embedding)

and every block adds its own table to what is said.  Times are 1000 times those of a flow, as the sinusoid takes them.

Where video and sound attend to each other the states are modulated, too, and public programs differ in whose time says how:

    reading             scale and shift of a modality       gate of what a modality takes
    "own"               its own time, token by token        its own time
    "other"             the other modality's                the other modality's
    "gate_of_other"     its own time, token by token        the other modality's

"own" is what diffusers' network does where nobody says otherwise, "other" what its pipelines and those of LTX-2.3 ask of it,
"gate_of_other" Lightricks' own code since May 2026.  Where all tokens of both modalities have one time, all agree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from unigrpo_jax.models.building.computing import PLAIN, Computing
from unigrpo_jax.models.building.flat import Params, Shapes, linear, linear_shapes, sinusoid
from unigrpo_jax.models.building.second_time import NAME

SINUSOID = 256
CrossTimes = Literal["own", "other", "gate_of_other"]
OTHER = {"video": "audio", "audio": "video"}
PREFIX = {"video": "", "audio": "audio_"}  # of a modality's own names in the file
OWN, PROMPT = "time_embed", "prompt_adaln"  # behind the prefix
CROSS = {"video": "av_cross_attn_video_scale_shift", "audio": "av_cross_attn_audio_scale_shift"}
GATE = {"video": "av_cross_attn_video_a2v_gate", "audio": "av_cross_attn_audio_v2a_gate"}


@dataclasses.dataclass(frozen=True)
class Said:
    """What times say of one modality; T is 1, or as many as it has tokens.

    Attributes:
      own: [B, T, 6 D], of self attention and MLP: shift, scale, gate of each; [B, T, 9 D] with those of text attention.
      end: [B, T, D], the embedding, which the output is modulated by.
      text: [B, 1, 2 D], shift and scale of its text; None where texts are not modulated.
      cross: [B, T, 4 D], scale and shift where video takes from sound, then where sound takes from video.
      gate: [B, T, D], of what it takes from the other modality.
    """

    own: Any
    end: Any
    text: Any
    cross: Any
    gate: Any


def said_of(
    params: Params,
    modality: str,
    times: Mapping[str, jax.Array],
    sigmas: Mapping[str, jax.Array],
    reading: CrossTimes,
    gate_factor: float,
    dtype,
    way: Computing,
    gaps: Mapping[str, jax.Array] | None = None,
) -> Said:
    """What the blocks and the output of one modality are told.

    Args:
      params: the parameters.
      modality: "video" or "audio".
      times: for each modality that is there, [B, T] of its tokens.
      sigmas: for each that is there, [B, 1] of its sample as a whole; read by text modulation, and where the reading asks
        for the other modality's.
      reading: of who says what where modalities meet.
      gate_factor: of the time that gates are told.
      dtype: of computing.
      way: of computing.
      gaps: as `times`, of those minus where velocities are to arrive (`building.second_time`), which a modality's own time
        is told beside; None leaves them out.
    """
    prefix, tell = PREFIX[modality], lambda name, time: told(params, name, time, dtype, way)
    own, end = told(params, f"{prefix}{OWN}", times[modality], dtype, way, None if gaps is None else gaps[modality])
    text = cross = gate = None
    if f"{prefix}{PROMPT}.linear.weight" in params:
        text, _ = tell(f"{prefix}{PROMPT}", sigmas[modality])
    if OTHER[modality] in times:
        scale_time, gate_time = cross_times(modality, times, sigmas, reading)
        cross, _ = tell(CROSS[modality], scale_time)
        gate, _ = tell(GATE[modality], gate_time * jnp.float32(gate_factor))
    return Said(own, end, text, cross, gate)


def cross_times(modality: str, times: Mapping[str, jax.Array], sigmas: Mapping[str, jax.Array], reading: CrossTimes):
    """Times that say scale and shift, and the gate, of a modality where it meets the other; [B, T] each."""
    own, other = times[modality], sigmas[OTHER[modality]]
    match reading:
        case "own":
            return own, own
        case "other":
            return other, other
        case "gate_of_other":
            return own, other
    raise ValueError(f"No reading of times is called {reading!r}. There are: {', '.join(get_args(CrossTimes))}.")


def told(params: Params, name: str, time_BT, dtype, way: Computing = PLAIN, gap_BT=None):
    """What a time says [B, T, parts of D], and its embedding [B, T, D]; both are held, what is said before it is cut.

    The embedding of a gap is added to that of the time, where there is one.
    """
    # What one time says of all tokens has none of its own, along which a mesh could cut it.
    held = lambda x: way.held(x) if x.shape[1] > 1 else way.held(x[:, 0])[:, None]

    def embedded(place: str, time_BT):
        wave = held(sinusoid(time_BT.reshape(-1), SINUSOID).reshape(*time_BT.shape, SINUSOID).astype(dtype))
        inner = held(jax.nn.silu(linear(params, f"{place}.linear_1", wave)))
        return held(linear(params, f"{place}.linear_2", inner))

    embedding = embedded(f"{name}.emb.timestep_embedder", time_BT)
    if gap_BT is not None:
        embedding = embedding + embedded(f"{name}.emb.{NAME}", gap_BT)
    return held(linear(params, f"{name}.linear", jax.nn.silu(embedding))), embedding


def told_shapes(name: str, width: int, parts: int, second_time: bool = False) -> Shapes:
    """Of `told`."""
    for embedder in ("timestep_embedder", NAME) if second_time else ("timestep_embedder",):
        yield from linear_shapes(f"{name}.emb.{embedder}.linear_1", SINUSOID, width)
        yield from linear_shapes(f"{name}.emb.{embedder}.linear_2", width, width)
    yield from linear_shapes(f"{name}.linear", width, parts * width)


def parts(table_KD, said_BT) -> list[jax.Array]:
    """K times [B, T, D]: rows of a block's table, each with its part of what times say."""
    rows, width = table_KD.shape
    cut = said_BT.reshape(*said_BT.shape[:2], rows, width) + table_KD.astype(said_BT.dtype)[None, None]
    return [cut[:, :, row] for row in range(rows)]
