"""What the stages `trial`, `study` and `heads` share: models, settings, and stacks of runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from flowsim.clip import models
from flowsim.clip.batches import Batches, onto, prepare
from flowsim.clip.data import Pairs
from flowsim.clip.plan import Plan
from flowsim.clip.pools import load_pools
from flowsim.clip.session import Session
from flowsim.clip.settings import Training
from flowsim.clip.stack import Stack
from flowsim.model.schedules import Schedule

HERE = Path(__file__).parent


def settings_of(data: str, tiny: bool, patch: int = 16, lr: float = 1.5e-3) -> Training:
    """Settings of the study: a ViT on photos of 96 pixels, a batch of 256, AdamW, bf16."""
    if tiny:
        return Training(
            model="flowsim-vit-32", data=data or "shapes:count=600,size=32", image_size=32, steps=12, batch_size=16,
            limit=256, pairs=32, snapshot_pairs=8, evaluations=3, observables="gap", warmup=0.1,
        )  # fmt: skip
    return Training(
        model=str(HERE / f"vit-96-p{patch}.json"), data=data or "shapes:count=8000,size=96", image_size=96,
        steps=3000, batch_size=256, lr=lr, beta2=0.98, weight_decay=0.2, warmup=0.1, precision="bf16", pairs=1000,
        snapshot_pairs=64, evaluations=14, checkpoint_seconds=1e9,
    )  # fmt: skip


class Runs:
    """Stacks of runs from the same pairs, which are decoded once."""

    def __init__(self, settings: Training) -> None:
        self.settings = settings
        self.session = Session.begin(settings.precision, not torch.cuda.is_available())
        self.pairs: Pairs = load_pools(settings)[0]
        self._batches: dict[int, Batches] = {}

    def stack(self, schedules: Sequence[Schedule], seeds: Sequence[int], **changes: object) -> Stack:
        """A stack before its first step."""
        settings = self.settings.replace(**changes)
        built = [models.build(settings.model, None, settings.image_size, seed) for seed in seeds]
        size = built[0].image_size
        if size not in self._batches:
            self._batches[size] = prepare(self.pairs, built[0].tokenize, size, settings, resize=built[0].resize)
            onto(self._batches[size], self.session.device)
        own = [dataclasses.replace(self._batches[size], settings=settings.replace(seed=seed)) for seed in seeds]
        plan = Plan.of(settings, len(self._batches[size].pairs))
        return Stack(settings, schedules, seeds, self.session, built, own, plan)
