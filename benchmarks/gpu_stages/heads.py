"""Stage `heads`: heads on frozen features, all 26 settings of the paper's tables with three seeds in two programs.

Each tower is one hidden layer of 512 (gelu) on features of length √p with their means kept; 128 dimensions, batches of
512, AdamW, cosine. Held-out retrieval counts a hit on any caption of a photo. `--data FILE.npz` holds
`image` (N, p), `text` (N, c, q) and `split` (N,); without it, features of random pairs are drawn.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX only draws swaps here

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Record, has_gpu

from flowsim.clip import studies
from flowsim.clip.batches import Batches
from flowsim.clip.models import Model
from flowsim.clip.plan import Plan
from flowsim.clip.session import Session
from flowsim.clip.settings import Training
from flowsim.clip.stack import Stack


class Heads(torch.nn.Module):
    """A head for each modality, with the methods of an open_clip model that are needed here."""

    def __init__(self, image: int, text: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.image, self.text = (
            torch.nn.Sequential(torch.nn.Linear(p, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, dim))
            for p in (image, text)
        )

    def encode_image(self, rows: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """(n, p) -> (n, d)"""
        return _unit(self.image(rows)) if normalize else self.image(rows)

    def encode_text(self, rows: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """(n, q) -> (n, d)"""
        return _unit(self.text(rows)) if normalize else self.text(rows)


@dataclasses.dataclass
class Features:
    """Features of pairs: `image` (N, p) and `text` (N, c, q), for training and held out."""

    image: torch.Tensor
    text: torch.Tensor
    held_out_image: torch.Tensor
    held_out_text: torch.Tensor

    @classmethod
    def load(cls, path: Path | None, tiny: bool, device: torch.device) -> "Features":
        """The features of a file, or random ones that share some directions."""
        if path is None:
            rng, n = np.random.default_rng(0), 400 if tiny else 7000
            shared = rng.standard_normal((n, 16))
            image = shared @ rng.standard_normal((16, 64)) + 2
            text = shared[:, None] @ rng.standard_normal((16, 32)) + 0.5 * rng.standard_normal((n, 5, 32)) - 2
            train = np.arange(n) < 0.8 * n
        else:
            with np.load(path, allow_pickle=False) as held:
                image, text, split = held["image"], held["text"], held["split"]
            train = split == "train"
            image, text = image[train | (split == "test")], text[train | (split == "test")]
            train = train[train | (split == "test")]

        def scaled(rows: np.ndarray) -> torch.Tensor:
            rows = rows.astype(np.float32)
            unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
            return torch.from_numpy(unit * np.sqrt(rows.shape[-1]).astype(np.float32)).to(device)

        return cls(scaled(image[train]), scaled(text[train]), scaled(image[~train]), scaled(text[~train]))


def stack_of(
    features: Features, settings: Training, methods: Sequence[str], seeds: Sequence[int], session: Session
) -> Stack:
    """All methods with all seeds."""
    pairs, captions, q = features.text.shape
    built, batches = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        module: Any = Heads(features.image.shape[1], q, 32 if pairs < 1000 else 512, 128)
        built.append(Model("heads", module, None, 0, 128, (), ()))
        batches.append(
            Batches(
                range(pairs), features.text.reshape(-1, q), np.arange(pairs + 1) * captions, 0,  # pyright: ignore
                settings.replace(seed=seed), stored=features.image,
            )
        )  # fmt: skip
    own = [studies.setup(name, settings) for name in methods]
    plan = Plan.of(own[0][0], pairs)
    return Stack(own[0][0], [s for _, s in own], seeds, session, built, batches, plan, lambda rows, boxes: rows)


def retrieval(image: np.ndarray, text: np.ndarray, captions: int) -> tuple[float, float]:
    """R@1 (image to text, text to image) of unit rows (n, d) and (n·c, d): a hit on any caption of the photo."""
    n, similarity = len(image), image @ text.T
    own = np.arange(n).repeat(captions)
    return float(np.mean(own[similarity.argmax(1)] == np.arange(n))), float(np.mean(similarity.argmax(0) == own))


def train(
    features: Features, settings: Training, methods: Sequence[str], seeds: Sequence[int], session: Session
) -> dict[str, Any]:
    """Train all runs; gap, temperature and retrieval of each, held out."""
    stack = stack_of(features, settings, methods, seeds, session)
    steps, captions = stack.plan.steps, features.held_out_text.shape[1]

    def gaps(image: np.ndarray, text: np.ndarray) -> np.ndarray:
        first = text[:, :, ::captions]
        return np.linalg.norm((image - first).mean(2), axis=-1)

    texts = features.held_out_text.reshape(-1, features.held_out_text.shape[-1])
    marks = sorted({0, *np.unique(np.geomspace(max(1, steps // 100), steps, 16).astype(int)).tolist()})
    seen, kept = {}, []
    seconds, begin = 0.0, time.perf_counter()
    image = text = np.empty(0)
    for k in range(steps + 1):
        if k in marks:
            image, text = stack.embed(features.held_out_image, texts)
            seen[k] = gaps(image, text)
            begin = time.perf_counter()
        if k < steps:
            kept.append(stack.take_step(k))
        if k + 1 in marks:
            if has_gpu():
                torch.cuda.synchronize()
            seconds += time.perf_counter() - begin
    noted = torch.stack(kept).cpu().double().numpy()
    found = {}
    for m, name in enumerate(methods):
        for s, seed in enumerate(seeds):
            beta, _ = stack.temperature(s, m, 1.0)
            forth, back = retrieval(image[s, m], text[s, m], captions)
            found[f"{name}, seed {seed}"] = {
                "gap": [float(seen[k][s, m]) for k in marks],
                "temperature": 1 / beta,
                "loss": float(noted[-20:, s, m, 0].mean()),
                "image_to_text_R@1": forth,
                "text_to_image_R@1": back,
            }
    images = steps * settings.batch_size * len(stack)
    return {"steps": marks, "training_seconds": seconds, "pairs_per_second": images / seconds, "runs": found}


def steps_that_fit(features: Features, settings: Training, methods: list[str], seconds: float, session: Session) -> int:
    """Steps of all methods with three seeds that fit into the time, at most those of the settings."""
    stack = stack_of(features, settings, methods, range(3), session)
    begin = 0.0
    for k in range(25):
        if k == 5:
            stack.take_step(k).sum().item()
            begin = time.perf_counter()
        stack.take_step(k)
    stack.take_step(25).sum().item()
    each = (time.perf_counter() - begin) / 21
    print(f"heads: {1000 * each:.1f} ms for a step", flush=True)
    return max(100, min(settings.steps or 0, int(seconds / each)))


def main() -> None:
    record = Record(__doc__, data="")
    given, tiny = record.options, record.tiny
    path = Path(given.data) if given.data and not tiny else None
    settings = Training(
        model="heads", steps=8 if tiny else 3000, batch_size=32 if tiny else 512, lr=3e-3, weight_decay=0.1, beta2=0.98,
        warmup=0.05, captions="all", augment="centre", clamp=(0.01, 1.0),
    )  # fmt: skip
    session = Session.begin("fp32", not has_gpu())
    features = Features.load(path, tiny, session.device)
    names = studies.methods("all")
    seeds = range(2 if tiny else 3)
    with_unit = [name for name in names if name != studies.WITHOUT_NORMALIZATION]
    if not tiny:
        # Programs of one run take about a fifth of the time; evaluations a tenth.
        settings = settings.replace(steps=steps_that_fit(features, settings, with_unit, 0.7 * record.left - 5, session))
    record.part("25 methods", lambda: train(features, settings, with_unit, seeds, session), 0 if tiny else 15)
    without = [studies.WITHOUT_NORMALIZATION]
    record.part("no normalization", lambda: train(features, settings, without, seeds, session), 0 if tiny else 8)
    record.finish()


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


if __name__ == "__main__":
    main()
