"""Which attention the devices of a mesh run, and how.

The SPMD partitioner cannot look into a kernel, so on a mesh it runs inside `jax.shard_map`: each device attends for its
episodes and its heads, which need no other device.  Where `sequence` cuts tokens it attends for its queries, upon the keys
and values of all, which it gathers; their gradients are summed and scattered likewise.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from unigrpo_jax.config import ModelConfig, require
from unigrpo_jax.models.building import attention
from unigrpo_jax.parallel.mesh import BATCH, SEQUENCE, TENSOR, batch_size

GPU = ("gpu", "cuda")  # both are said of NVIDIA's, and the first of AMD's, too


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """An attention kernel on a mesh, with the signature of `attention.xla`.

    A short block takes `attention.xla`, and so does a batch that does not divide (one system prompt, a few prompts before
    they are repeated): both are small, and left to the compiler.  Tokens that `sequence` cuts are those of a context and of
    queries that see all of it, as in `attention.of_all`, and a multiple of its devices.

    Attributes:
      kernel: the attention of one device.
      mesh: the devices.
    """

    kernel: Callable[..., jax.Array]
    mesh: Mesh

    def __call__(self, q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible: attention.Visibility):
        """Attention [B, L, H, K]: episodes along `data` and `fsdp`, queries along `sequence`, heads along `tensor`."""
        given, cut = (q_BLHK, k_BJLK, v_BJLK, context_k_BJSK, context_v_BJSK, visible), self.mesh.shape[SEQUENCE] > 1
        short = q_BLHK.shape[1] < attention.KERNEL_FROM and not cut
        if short or q_BLHK.shape[0] % batch_size(self.mesh):
            return attention.xla(*given)
        along = SEQUENCE if cut else None
        heads, rows = PartitionSpec(BATCH, along, TENSOR, None), PartitionSpec(BATCH)
        block, context = PartitionSpec(BATCH, TENSOR, None, None), PartitionSpec(BATCH, TENSOR, along, None)
        # check_vma: kernels do not say over which axes their results vary.
        run = jax.shard_map(
            self._gathering if cut else self.kernel,
            mesh=self.mesh,
            in_specs=(heads, block, block, context, context, rows),
            out_specs=heads,
            check_vma=False,
        )
        return run(*given)

    def _gathering(self, q, k, v, context_k, context_v, visible: attention.Visibility):
        """The kernel on a device's queries, upon the context of all."""
        whole = lambda x: jax.lax.all_gather(x, SEQUENCE, axis=2, tiled=True)
        return self.kernel(q, k, v, whole(context_k), whole(context_v), visible)


def attend(config: ModelConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """The attention of a network on a mesh; ConfigError where its devices cannot run the one that is asked for."""
    name = choose(config, mesh.devices.flat[0])
    if name == "xla" and mesh.shape[SEQUENCE] == 1:  # the compiler cuts it by itself
        return attention.xla
    return OnMesh({"splash": attention.splash, "cudnn": attention.cudnn, "xla": attention.xla}[name], mesh)


def choose(config: ModelConfig, device) -> str:
    """The name of the implementation for a device: the one that is asked for, or the best that it has.

    cuDNN's attention takes 16-bit numbers and NVIDIA GPUs of compute capability 8.0 (Ampere) or later.

    Raises:
      ConfigError: the device or the compute dtype cannot do what is asked for.
    """
    asked, gpu = config.attention, device.platform in GPU and _capability(device) >= 8
    if asked == "auto":
        return "splash" if device.platform == "tpu" else "cudnn" if gpu and config.dtype == "bfloat16" else "xla"
    require(
        asked != "splash" or device.platform == "tpu",
        f"model.attention = 'splash' is a kernel for TPUs, but the devices are {device.platform}; use auto or xla.",
    )
    require(
        asked != "cudnn" or gpu,
        "model.attention = 'cudnn' is a kernel for NVIDIA GPUs of compute capability 8.0 or later, but the devices are "
        f"{device.platform} ({device.device_kind}); use auto or xla.",
    )
    require(
        asked != "cudnn" or config.dtype == "bfloat16",
        f"model.attention = 'cudnn' computes in 16 bits, but model.dtype = {config.dtype!r}; use model.dtype = 'bfloat16', "
        "or xla.",
    )
    return asked


def _capability(device) -> float:
    """An NVIDIA GPU's compute capability; 0 for anything else."""
    said = str(getattr(device, "compute_capability", ""))
    return float(said) if said.replace(".", "", 1).isdigit() else 0.0
