"""neural-tangents: python ntk_neural_tangents.py NETWORK N OUTPUTS IMPLEMENTATION."""

import sys
import types

import jax
import ntk_networks
import ntk_program
import numpy as np


def main():
    # Its corner for TensorFlow, which nothing here needs.
    sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
    import neural_tangents as nt

    name, num_samples, outputs = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    params, x = ntk_networks.drawn(name, num_samples)
    params, x = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float32), (params, x))
    apply_fn, word = ntk_networks.of_case(name, outputs)
    ntk = nt.empirical_ntk_fn(
        apply_fn,
        trace_axes=(-1,) if word == "mean" else (),
        vmap_axes=0,
        implementation=int(sys.argv[4]),
    )
    kernel = jax.jit(lambda params, x: ntk(x, None, params))
    done = lambda params, x: jax.block_until_ready(kernel(params, x))
    versions = {"neural_tangents": nt.__version__, "jax": jax.__version__}
    ntk_program.serve(versions, done, *jax.device_put((params, x)))


if __name__ == "__main__":
    main()
