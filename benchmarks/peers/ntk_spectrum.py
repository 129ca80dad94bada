"""The largest eigenpairs of our kernel on many samples, no kernel formed: python ntk_spectrum.py N.

The inputs are the handwritten digits of scikit-learn, blended in pairs up to N of them.
"""

import json
import sys
import time

import jax
import ntk_program
import numpy as np
from sklearn import datasets

from dynamics.measure import kernels

NUM, ITERATIONS = 5, 30


def digits(num_samples):
    """Return (N, 64): each digit, then random blends of two."""
    rng = np.random.default_rng(0)
    images = datasets.load_digits().data.astype(np.float32) / 16
    first, second = rng.integers(len(images), size=(2, num_samples))
    share = rng.uniform(size=(num_samples, 1)).astype(np.float32)
    return share * images[first] + (1 - share) * images[second]


def network(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


def main():
    x = jax.numpy.asarray(digits(int(sys.argv[1])))
    keys = jax.random.split(jax.random.key(1), 3)
    params = [
        (jax.random.normal(key, (a, b)) * (2 / a) ** 0.5, jax.numpy.zeros(b))
        for key, a, b in zip(keys, (64, 256, 256), (256, 256, 10), strict=True)
    ]
    program = jax.jit(
        lambda params, x: kernels.top_ntk_eigenpairs(
            network, params, x, key=jax.random.key(2), num=NUM, num_iterations=ITERATIONS,
            outputs="full",
        )
    )  # fmt: skip
    begin = time.perf_counter()
    found = jax.block_until_ready(program(params, x))
    answer = {
        "samples": len(x),
        "outputs": 10,
        "kernel_bytes": 4 * (10 * len(x)) ** 2,
        "values": found.values.tolist(),
        "residuals": found.residuals.tolist(),
        "iterations": ITERATIONS,
        "seconds": time.perf_counter() - begin,
        "peak_bytes": ntk_program.peak_bytes(),
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
