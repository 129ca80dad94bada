"""Curvature of two networks by PyHessian, curvlinops and hessian-eigenthings, on request.

    python curvature_torch.py FOLDER

reads mlp.npz and cnn.npz (weights, inputs, labels, a direction) from FOLDER. For each line on stdin
it prints one line of JSON with the seconds taken and what was found. "matvec CASE PEER REPEATS"
multiplies the Hessian with the direction; "trace CASE PEER PROBES", "top CASE PEER NUM STEPS" and
"density CASE PEER STEPS" are what they say. Every peer is called as its documentation does.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import curvlinops
import hessian_eigenthings
import numpy as np
import pyhessian
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from pyhessian.utils import hessian_vector_product


def old_eig(matrix, eigenvectors):
    """PyHessian asks for a function that PyTorch has dropped: eigenvalues (n, 2) and vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


torch.eig = old_eig


def network(case, arrays):
    """Return the module with the weights of the arrays."""
    nn = torch.nn
    if case == "mlp":
        module = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                               nn.Linear(512, 10))  # fmt: skip
    else:
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(1568, 10),
        )  # fmt: skip
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.from_numpy(arrays[f"p{index}"]))
    return module


class Case:
    """One network, its data and its peers, each made when it is first asked for."""

    def __init__(self, name, folder):
        arrays = np.load(folder / f"{name}.npz")
        self.module, self.loss = network(name, arrays), torch.nn.CrossEntropyLoss()
        self.data = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])
        count = len(list(self.module.parameters()))
        self.direction = [torch.from_numpy(arrays[f"v{index}"]) for index in range(count)]
        self.flat = torch.cat([part.reshape(-1) for part in self.direction])
        self.made = {}

    def peer(self, name):
        if name not in self.made:
            params = list(self.module.parameters())
            self.made[name] = {
                "pyhessian": lambda: pyhessian.hessian(
                    self.module, self.loss, data=self.data, cuda=False
                ),
                "curvlinops": lambda: curvlinops.HessianLinearOperator(
                    self.module, self.loss, params, [self.data], check_deterministic=False
                ),
                "eigenthings": lambda: hessian_eigenthings.HessianOperator(
                    self.module, [self.data], hessian_eigenthings.supervised_loss(self.loss)
                ),
            }[name]()
        return self.made[name]


def matvec(case, name, repeats):
    peer = case.peer(name)
    if name == "pyhessian":
        one = lambda: hessian_vector_product(peer.gradsH, peer.params, case.direction)
    elif name == "curvlinops":
        one = lambda: peer @ case.flat
    else:
        one = lambda: peer.matvec(case.flat)
    one()
    begin = time.perf_counter()
    for _ in range(int(repeats)):
        found = one()
    seconds = (time.perf_counter() - begin) / int(repeats)
    if name == "pyhessian":
        found = torch.cat([part.reshape(-1) for part in found])
    return {"seconds": seconds, "found": [float(found.norm()), float(found @ case.flat)]}


def trace(case, name, probes):
    peer, probes = case.peer(name), int(probes)
    begin = time.perf_counter()
    if name == "pyhessian":
        found = float(np.mean(peer.trace(maxIter=probes, tol=0)))
    elif name == "curvlinops":
        found = float(np.mean([float(curvlinops.hutchinson_trace(peer, 1))
                               for _ in range(probes)]))  # fmt: skip
    else:
        found = hessian_eigenthings.hutchinson(peer, num_samples=probes).estimate
    return {"seconds": time.perf_counter() - begin, "found": found}


def top(case, name, num, steps):
    peer = case.peer(name)
    begin = time.perf_counter()
    found = hessian_eigenthings.lanczos(
        peer, k=int(num), max_iter=int(steps), tol=0.0, which="LA", reorthogonalize=True, seed=0
    )
    return {
        "seconds": time.perf_counter() - begin,
        "found": found.eigenvalues.tolist(),
        "residuals": found.residuals.tolist(),
        "iterations": int(found.iterations),
    }


def density(case, name, steps):
    peer = case.peer(name)
    begin = time.perf_counter()
    if name == "pyhessian":
        nodes, weights = peer.density(iter=int(steps), n_v=1)
        nodes, weights = np.array(nodes[0]), np.array(weights[0])
    else:
        values, vectors = fast_lanczos(peer, int(steps))
        nodes, weights = values.numpy(), vectors[0].numpy() ** 2
    return {"seconds": time.perf_counter() - begin, "found": [float(weights @ nodes**2),
                                                              float(nodes.max())]}  # fmt: skip


def main():
    folder = Path(sys.argv[1])
    versions = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "curvlinops": importlib.metadata.version("curvlinops-for-pytorch"),
        "hessian-eigenthings": importlib.metadata.version("hessian-eigenthings"),
    }
    print(json.dumps(versions), flush=True)
    cases = {}
    for line in sys.stdin:
        what, name, *rest = line.split()
        case = cases.setdefault(name, None) or Case(name, folder)
        cases[name] = case
        sys.stdout, out = sys.stderr, sys.stdout  # some of them print
        answer = {"matvec": matvec, "trace": trace, "top": top, "density": density}[what](
            case, *rest
        )
        sys.stdout = out
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
