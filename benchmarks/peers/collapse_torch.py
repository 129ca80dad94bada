"""Neural collapse in PyTorch the way published code does it, on request.

    python collapse_torch.py FOLDER

reads features, labels, kernel and bias (.npy) from FOLDER; for each line on stdin, the name of an
approach, it computes NC1 to NC4 and prints one line of JSON with the values and the seconds.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch


def by_class(features, labels, kernel, bias):
    """Loop over classes: select its samples, centre them, add up their covariance."""
    num_classes, dim = kernel.shape[1], features.shape[1]
    means, within = [], torch.zeros(dim, dim)
    for c in range(num_classes):
        selected = features[labels == c]
        mean = selected.mean(dim=0)
        deviation = selected - mean
        within += deviation.T @ deviation
        means.append(mean)
    return finish(torch.stack(means), within / len(features), features, kernel, bias)


def by_batch_and_class(features, labels, kernel, bias, batch_size=128):
    """Loop over batches and in each over classes, outer products summed sample by sample.

    This is how the notebook that came with Papyan, Han, Donoho 2020 goes about it, and what many
    repositories took over.
    """
    num_classes, dim = kernel.shape[1], features.shape[1]
    sums, counts = torch.zeros(num_classes, dim), torch.zeros(num_classes)
    within = torch.zeros(dim, dim)
    batches = list(zip(features.split(batch_size), labels.split(batch_size), strict=True))
    for batch, of_batch in batches:
        for c in range(num_classes):
            rows = (of_batch == c).nonzero(as_tuple=True)[0]
            if len(rows):
                sums[c] += batch[rows].sum(dim=0)
                counts[c] += len(rows)
    means = sums / counts[:, None]
    for batch, of_batch in batches:
        for c in range(num_classes):
            rows = (of_batch == c).nonzero(as_tuple=True)[0]
            if len(rows):
                deviation = batch[rows] - means[c]
                within += torch.matmul(deviation.unsqueeze(2), deviation.unsqueeze(1)).sum(dim=0)
    return finish(means, within / len(features), features, kernel, bias)


def finish(means, within, features, kernel, bias):
    """Return NC1 to NC4 from means (C, D) and the covariance within classes (D, D)."""
    num_classes = len(means)
    centred = (means - means.mean(dim=0)).T  # (D, C)
    between = centred @ centred.T / num_classes
    inverse = torch.linalg.pinv(between, rtol=1e-4, hermitian=True)
    target = (torch.eye(num_classes) - 1 / num_classes) / (num_classes - 1) ** 0.5
    distance = lambda matrix: torch.linalg.norm(matrix / torch.linalg.norm(matrix) - target)
    nearest = torch.cdist(features, means).argmin(dim=1)
    chosen = (features @ kernel + bias).argmax(dim=1)
    return (
        torch.trace(within @ inverse) / num_classes,
        distance(centred.T @ centred),
        distance(kernel.T @ centred),
        (nearest != chosen).float().mean(),
    )


def main() -> None:
    names = ("features", "labels", "kernel", "bias")
    arrays = [torch.from_numpy(np.load(Path(sys.argv[1]) / f"{name}.npy")) for name in names]
    approaches = {"by_class": by_class, "by_batch_and_class": by_batch_and_class}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        with torch.no_grad():
            found = [float(part) for part in approaches[line.strip()](*arrays)]
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "values": found}), flush=True)


if __name__ == "__main__":
    main()
