"""Training on the table of addition modulo p in PyTorch, some steps on request.

    python grokking_torch.py FOLDER

reads pairs.npy, products.npy and the starting weights (NAME.npz of each model) from FOLDER; for
each line on stdin, "MODEL FORM WAY STEPS", it trains from the start and prints one line of JSON:
seconds of the steps after a warm-up, and the losses before each of the first steps. MODEL is mlp or
transformer; FORM is standard (tokens of both elements through all products) or factored (tables
over single elements, looked up); WAY is eager, fused (AdamW) or compiled (torch.compile, fused).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-3, (0.9, 0.98), 1.0
WARM_UP = 5


def mlp(weights, pairs, factored):
    """Embedding of both, one hidden ReLU layer, readout; no biases."""
    embedding, left, right = weights["embedding"], weights["left"], weights["right"]
    if factored:
        hidden = (embedding @ left)[pairs[:, 0]] + (embedding @ right)[pairs[:, 1]]
    else:
        tokens = embedding[pairs].reshape(len(pairs), -1)
        hidden = tokens @ torch.cat([left, right])
    return functional.relu(hidden) @ weights["readout"]


def transformer(weights, pairs, factored, heads=4):
    """One layer on "a b =", without layer norm; the last position is read."""
    embedding, positions = weights["embedding"], weights["positions"]
    width = embedding.shape[1]
    split = lambda h: h.reshape(*h.shape[:-1], heads, width // heads)
    if factored:
        places = (embedding[:-1] + positions[0], embedding[:-1] + positions[1])
        last = embedding[-1:] + positions[2]
        query = split(last @ weights["query"])[0]
        index = (pairs[:, 0], pairs[:, 1], pairs[:, 0] * 0)
        score = lambda h: torch.einsum("ghd,hd->gh", split(h @ weights["key"]), query)
        scores = [score(h)[i] for h, i in zip((*places, last), index, strict=True)]
        attention = torch.softmax(torch.stack(scores) / (width // heads) ** 0.5, dim=0)
        values = [split(h @ weights["value"])[i]
                  for h, i in zip((*places, last), index, strict=True)]  # fmt: skip
        mixed = sum(a[..., None] * v for a, v in zip(attention, values, strict=True))
        h = last + mixed.reshape(len(pairs), width) @ weights["mix"]
    else:
        equals = torch.full((len(pairs), 1), len(embedding) - 1)
        h = embedding[torch.cat([pairs, equals], dim=1)] + positions
        query, key, value = (
            split(h @ weights[name]).transpose(1, 2) for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(h.shape) @ weights["mix"]
    hidden = functional.relu(h @ weights["mlp_in"] + weights["mlp_in_bias"])
    h = h + hidden @ weights["mlp_out"] + weights["mlp_out_bias"]
    if not factored:
        h = h[:, -1]
    return h @ weights["read_out"] + weights["read_out_bias"]


MODELS = {"mlp": mlp, "transformer": transformer}


class Trainer:
    """A network and its optimiser, compiled or not, ready for more steps."""

    def __init__(self, folder, model, form, way):
        load = lambda name: torch.from_numpy(np.load(folder / f"{name}.npy"))
        pairs, products = load("pairs"), load("products")
        start = np.load(folder / f"{model}.npz")
        weights = {name: torch.from_numpy(start[name]).requires_grad_() for name in start.files}
        settings = {"lr": LEARNING_RATE, "betas": BETAS, "weight_decay": WEIGHT_DECAY}
        self.optimiser = torch.optim.AdamW(weights.values(), fused=way != "eager", **settings)

        def loss_of():
            logits = MODELS[model](weights, pairs, form == "factored")
            return functional.cross_entropy(logits, products)

        self.loss_of = torch.compile(loss_of) if way == "compiled" else loss_of
        self.losses = [self.update() for _ in range(WARM_UP)]

    def update(self):
        """Make one step; return the loss before it."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss_of()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def seconds_of(self, steps):
        """Return how long `steps` take."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.update()
        return time.perf_counter() - begin


def main() -> None:
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    trainers = {}
    for line in sys.stdin:
        *what, steps = line.split()
        name = " ".join(what)
        if name not in trainers:
            trainers[name] = Trainer(Path(sys.argv[1]), *what)
        seconds = trainers[name].seconds_of(int(steps))
        print(json.dumps({"seconds": seconds, "losses": trainers[name].losses}), flush=True)


if __name__ == "__main__":
    main()
