"""Our kernels: python ntk_ours.py NETWORK N OUTPUTS."""

import sys

import jax
import ntk_networks
import ntk_program
import numpy as np

from dynamics.measure import kernels


def main():
    name, num_samples, outputs = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    params, x = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float32), ntk_networks.drawn(name, num_samples)
    )
    apply_fn, word = ntk_networks.of_case(name, outputs)
    kernel = jax.jit(lambda params, x: kernels.empirical_ntk(apply_fn, params, x, outputs=word))
    done = lambda params, x: jax.block_until_ready(kernel(params, x))
    ntk_program.serve({"jax": jax.__version__}, done, *jax.device_put((params, x)))


if __name__ == "__main__":
    main()
