"""Zero-shot and linear-probe accuracy of a model on images with classes."""

import dataclasses
from typing import Any

import numpy as np
import torch

from flowsim.base.checks import check
from flowsim.clip import models
from flowsim.clip.batches import channels_first
from flowsim.clip.data import Pairs, load_labelled
from flowsim.clip.embed import embed_images, embed_texts
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with classes: `fit` for the linear probe (None without a train split), `judge` for the accuracies."""

    fit: Pairs | None
    judge: Pairs
    template: str

    @classmethod
    def of(cls, source: str, template: str = "a photo of a {}") -> "Labelled":
        """The splits train and test of a source; reads no image. Raises `FlowsimError` if it has no classes."""
        check(
            "{}" in template,
            f"Argument `template` has no place for the class, because {template!r} lacks {{}}. "
            "Use e.g. 'a photo of a {}'.",
        )
        judge = load_labelled(source, "test")
        check(len(judge.classes) > 1, f"{source!r} has only one class. Give images of at least two.")
        try:
            fit = load_labelled(source, "train")
        except FlowsimError:  # the source is valid, as it has the other split, which is enough for zero-shot
            fit = None
        return cls(fit, judge, template)

    def digest(self) -> str:
        """Digest of these images; see `Pairs.digest`."""
        return "-".join(pairs.digest() for pairs in (self.fit, self.judge) if pairs is not None)


@dataclasses.dataclass(frozen=True)
class Classified:
    """Accuracies on labelled images (`linear_probe` None without a train split), and numbers of images and classes."""

    zero_shot: float
    linear_probe: float | None
    images: int
    classes: int
    skipped: dict[str, dict[str, Any]]


def classify(built: models.Model, labelled: Labelled, device: Any = "cpu") -> Classified:
    """Zero-shot and linear-probe accuracy on `judge`; broken images are left out and counted."""

    def rows(pairs: Pairs) -> tuple[Pairs, np.ndarray]:
        pairs, pixels = pairs.decoded(built.image_size, resize=built.resize)
        return pairs, embed_images(built, channels_first(pixels), device)

    judge, images = rows(labelled.judge)
    assert judge.labels is not None
    prompts = [labelled.template.replace("{}", name) for name in judge.classes]
    guess = np.argmax(images @ embed_texts(built, built.tokenize(prompts), device).T, axis=1)
    probe = None
    skipped = judge.left_out()
    if labelled.fit is not None:
        fit, fitting = rows(labelled.fit)
        assert fit.labels is not None
        probe = _linear_probe(fitting, fit.labels, images, judge.labels)
        skipped |= {f"{reason} (train)": skip for reason, skip in fit.left_out().items()}
    return Classified(float(np.mean(guess == judge.labels)), probe, len(judge), len(judge.classes), skipped)


def _linear_probe(fit: np.ndarray, labels: np.ndarray, judge: np.ndarray, judge_labels: np.ndarray) -> float:
    """Held-out accuracy of multinomial logistic regression on standardised features, L2 penalty 1e-3."""
    centre, scale = fit.mean(0), fit.std(0) + 1e-8
    x = torch.from_numpy((fit - centre) / scale)
    y = torch.from_numpy(np.asarray(labels, np.int64))
    layer = torch.nn.Linear(x.shape[1], int(max(labels.max(), judge_labels.max())) + 1).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    solver = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), y) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        guess = layer(torch.from_numpy((judge - centre) / scale)).argmax(1).numpy()
    return float(np.mean(guess == judge_labels))
