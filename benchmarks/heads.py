"""Speed of heads on frozen features: pairs per second of `fs.heads` against the same loop in PyTorch.

    python benchmarks/heads.py [FEATURES] [--steps 150] [--rounds 3]

Both train one hidden layer of 512 to 128 dimensions with AdamW on batches of 512 from the same weights and data, in
turns in one run; the PyTorch loop is plain eager code with fused AdamW and notes loss and gap, as `fs.heads` does. It
needs the extra `clip`. FEATURES is a file of `fs.data.load`; random features of 6,000 pairs (1,280 and 256 columns)
without it. OMP_NUM_THREADS sets the threads of PyTorch.
"""

import argparse
import resource
import time

import numpy as np
import torch

import flowsim as fs
from flowsim.heads.learner import Learner, flow_of
from flowsim.heads.pools import Pools


def random_features() -> fs.data.Features:
    """Features of 6,000 + 200 pairs with some shared directions."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((6200, 32))
    image = shared @ rng.standard_normal((32, 1280)) + 2
    text = shared[:, None] @ rng.standard_normal((32, 256)) + rng.standard_normal((6200, 5, 256))
    split = np.where(np.arange(6200) < 6000, "train", "test")
    return fs.data.from_arrays(image.astype(np.float16), text.astype(np.float16), split=split)


class Peer:
    """The same training in PyTorch."""

    def __init__(self, pools: Pools, settings: fs.heads.Training) -> None:
        hidden, batch = settings.hidden, settings.batch_size
        assert hidden is not None
        sizes = pools.training.image_dim, pools.training.text_dim
        self.towers = [
            torch.nn.Sequential(
                torch.nn.Linear(size, hidden, bias=False), torch.nn.GELU(),
                torch.nn.Linear(hidden, settings.dim, bias=False),
            )
            for size in sizes
        ]  # fmt: skip
        self.raw = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        weights = [parameter for tower in self.towers for parameter in tower.parameters()]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": [self.raw], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self.image = torch.from_numpy(pools.training.image_rows())
        text = [pools.training.text_rows(caption=c) for c in range(pools.training.captions)]
        self.text = torch.from_numpy(np.stack(text, 1))
        self.order, self.labels = fs.data.Order(pools.training.pairs, batch, 0), torch.arange(batch)
        self.counts = np.full(pools.training.pairs, pools.training.captions)

    def advance(self, begin: int, end: int) -> None:
        """Take the steps."""
        noted = []
        cross = torch.nn.functional.cross_entropy
        for k in range(begin, end):
            pairs = self.order.indices(k)
            texts = torch.from_numpy(self.order.captions(k, self.counts[pairs]))
            index = torch.from_numpy(pairs)
            x = torch.nn.functional.normalize(self.towers[0](self.image[index]), dim=1)
            y = torch.nn.functional.normalize(self.towers[1](self.text[index, texts]), dim=1)
            logits = self.raw.exp() * x @ y.T
            loss = (cross(logits, self.labels) + cross(logits.T, self.labels)) / 2
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            noted.append(torch.stack([loss.detach(), torch.linalg.vector_norm((x - y).detach().mean(0))]))
        torch.stack(noted).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="?")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    data = random_features() if given.features is None else given.features
    settings = fs.heads.Training(data=data, steps=given.steps * given.rounds + 64)
    pools = Pools.of(settings)
    plan = settings.plan(pools.training.pairs)
    ours = Learner(settings, [flow_of(settings, fs.schedules.get("Baseline"))], [0], pools.training, plan)
    theirs = Peer(pools, settings)
    ours.advance(0, 64)  # compiles
    theirs.advance(0, 10)
    speeds: dict[str, list[float]] = {"flowsim": [], "torch": []}
    for round_ in range(given.rounds):
        first = 64 + round_ * given.steps
        begin = time.perf_counter()
        for k in range(first, first + given.steps, ours.block):
            ours.advance(k, min(k + ours.block, first + given.steps))
        between = time.perf_counter()
        theirs.advance(first, first + given.steps)
        end = time.perf_counter()
        for name, seconds in (("flowsim", between - begin), ("torch", end - between)):
            speeds[name].append(given.steps * settings.batch_size / seconds)
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    for name, values in speeds.items():
        print(f"{name:8} {medians[name]:10,.0f} pairs/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    print(f"ratio {medians['flowsim'] / medians['torch']:.2f} (torch with {torch.get_num_threads()} threads)")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB, both together")


if __name__ == "__main__":
    main()
