"""How tests compile: compiling is most of their time, and quick code is right for tiny arrays.  Imports no JAX.

All kernels of a program are compiled together: split into several modules, the same kernel may get other code, and its
results other last bits, beside other kernels.
"""

import importlib.metadata

OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11):  # later compilers do not know the option
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
