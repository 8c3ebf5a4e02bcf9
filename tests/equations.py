"""What a program consists of, before any compiler sees it."""

import jax


def equations(function, *args) -> list:
    """All equations of a function's jaxpr, those of inner programs (scans, jits, kernels) included."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            found.append(equation)
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr)  # a new function, so that no earlier trace is found
    return found
