"""How a first frame is shown to HunyuanVideo's transformer: as channels beside the noisy ones."""

import jax.numpy as jnp


def beside_first(x_BNC, first_BMC):
    """Noisy tokens and the picture's, [B, N, 2 C]: the first frame's beside the first frame, zeros beside all others."""
    zeros = ((0, 0), (0, x_BNC.shape[1] - first_BMC.shape[1]), (0, 0))
    return jnp.concatenate([x_BNC, jnp.pad(first_BMC.astype(x_BNC.dtype), zeros)], axis=-1)
