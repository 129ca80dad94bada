"""torch.func, as its tutorial on tangent kernels does it: python ntk_torch.py NETWORK N OUTPUTS.

Jacobians by vmap over jacrev, contracted leaf by leaf.
"""

import sys

import ntk_program
import numpy as np
import torch
from torch.func import functional_call, jacrev, vmap


class MLP(torch.nn.Module):
    """The network `mlp` of ntk_networks.py; its matrices lie the other way round."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in ((784, 512), (512, 512), (512, 10))
        )

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


def main():
    num_samples, outputs, folder = int(sys.argv[2]), sys.argv[3], sys.argv[4]
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder).items()}
    x = arrays.pop("x")
    params = {}
    for layer in range(3):
        params[f"layers.{layer}.weight"] = arrays[f"w{layer}"].T.contiguous()
        params[f"layers.{layer}.bias"] = arrays[f"b{layer}"]
    network = MLP()

    def of_one(params, sample):
        out = functional_call(network, params, (sample[None],))[0]
        return out[:1] if outputs == "scalar" else out

    contraction = "naf,maf->nm" if outputs != "full" else "naf,mbf->nmab"

    def kernel_of(params, x):
        jacobians = vmap(jacrev(of_one), (None, 0))(params, x).values()
        flat = [jacobian.flatten(2) for jacobian in jacobians]
        kernel = sum(torch.einsum(contraction, part, part) for part in flat)
        return kernel if outputs == "full" else kernel / flat[0].shape[1]

    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    assert len(x) == num_samples
    ntk_program.serve(versions, kernel_of, params, x)


if __name__ == "__main__":
    main()
