"""Linear attention and the mesa-layer in PyTorch, some steps on request.

    python in_context_torch.py FOLDER

reads weights.npz and tokens.npy (STEPS, B, N + 1, D + 1), and mesa.npz, from FOLDER. For each line
on stdin it prints one line of JSON. "check LAYERS WAY" trains on the given tokens and tells the
losses; "train LAYERS WAY SEEDS STEPS" trains on fresh ones and tells the seconds; "mesa" runs
the recursion over tokens forwards and backwards and tells seconds, output and gradient. WAY is
tokens (what the layer does to every token), compiled (the same under torch.compile) or gram (the
stack on the Gram matrix of the context, as ours).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

BETAS, CLIP, RATE = (0.9, 0.98), 0.1, 3e-3


def predict_by_tokens(weights, tokens, layers):
    """Minus the label slot of the query after tied layers."""
    query, key, value, projection = weights
    for _ in range(layers):
        context = tokens[:, :-1]
        scores = (tokens @ query.T) @ (context @ key.T).transpose(1, 2)
        tokens = tokens + scores @ (context @ value.T) @ projection.T
    return -tokens[:, -1, -1]


def predict_by_gram(weights, tokens, layers):
    query, key, value, projection = weights
    context, last = tokens[:, :-1], tokens[:, -1]
    gram = context.transpose(1, 2) @ context
    written, looked_at = projection @ value, key.T @ query
    for layer in range(layers):
        matrix = torch.eye(len(query)) + written @ gram @ looked_at
        last = torch.einsum("bij,bj->bi", matrix, last)
        if layer + 1 < layers:
            gram = matrix @ gram @ matrix.transpose(1, 2)
    return -last[:, -1]


def fresh(batch, num_context, dim):
    x = torch.rand(batch, num_context + 1, dim) - 0.5
    w = torch.randn(batch, dim)
    y = torch.einsum("bnd,bd->bn", x, w)
    answers = y[:, -1].clone()
    y[:, -1] = 0
    return torch.cat([x, y[..., None]], dim=2), answers


class Trainer:
    """One network with its optimiser."""

    def __init__(self, start, layers, way):
        self.weights = [torch.tensor(array, requires_grad=True) for array in start]
        self.optimiser = torch.optim.Adam(self.weights, lr=RATE, betas=BETAS, eps=1e-9)
        function = predict_by_gram if way == "gram" else predict_by_tokens

        def loss(weights, tokens, answers):
            return 0.5 * ((function(weights, tokens, layers) - answers) ** 2).mean()

        self.loss = torch.compile(loss) if way == "compiled" else loss

    def step(self, tokens, answers):
        self.optimiser.zero_grad()
        loss = self.loss(self.weights, tokens, answers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimiser.step()
        return loss


def mesa(keys, values, queries, ridge):
    """Sherman and Morrison, token by token."""
    inverse = torch.eye(keys.shape[1]) / ridge
    weights = torch.zeros(values.shape[1], keys.shape[1])
    outputs = []
    for key, value, query in zip(keys, values, queries, strict=True):
        seen = inverse @ key
        gain = seen / (1 + key @ seen)
        weights = weights + torch.outer(value - weights @ key, gain)
        inverse = inverse - torch.outer(gain, seen)
        outputs.append(weights @ query)
    return torch.stack(outputs)


def main():
    folder = Path(sys.argv[1])
    start = list(np.load(folder / "weights.npz").values())
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    answers = torch.from_numpy(np.load(folder / "answers.npy"))
    arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "mesa.npz").items()}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    trainers = {}
    for line in sys.stdin:
        what, *words = line.split()
        if what == "mesa":
            inputs = [arrays[k].clone().requires_grad_() for k in ("keys", "values", "queries")]
            begin = time.perf_counter()
            output = mesa(*inputs, float(arrays["ridge"]))
            output.square().sum().backward()
            answer = {
                "seconds": time.perf_counter() - begin,
                "output": output[-1].tolist(),
                "gradient": inputs[0].grad[0].tolist(),
            }
        elif what == "check":
            trainer = Trainer(start, int(words[0]), words[1])
            pairs = zip(tokens, answers, strict=True)
            answer = {"losses": [trainer.step(*pair).item() for pair in pairs]}
        else:
            layers, way, seeds, steps = int(words[0]), words[1], int(words[2]), int(words[3])
            made = trainers.setdefault((layers, way), Trainer(start, layers, way))
            shape = tokens.shape[1], tokens.shape[2] - 1, tokens.shape[3] - 1
            for _ in range(20):
                made.step(*fresh(*shape))
            begin = time.perf_counter()
            for _ in range(seeds):
                for _ in range(steps):
                    made.step(*fresh(*shape))
            answer = {"seconds": time.perf_counter() - begin}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
