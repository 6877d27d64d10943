"""Measure a model: every observable, retrieval with all captions, margins, and accuracies on labelled images."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowsim import observables
from flowsim.base.arrays import on_cpu
from flowsim.base.checks import check, check_number
from flowsim.base.files import write_atomically
from flowsim.clip import data as data_
from flowsim.clip import models
from flowsim.clip.data import Pairs
from flowsim.clip.embed import embed, embed_texts, sample
from flowsim.clip.labelled import Labelled, classify
from flowsim.clip.memory import enough_memory
from flowsim.records.evaluation import contrastive_loss


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All measurements of one model on one set of pairs; made by `measure`.

    Attributes:
        report: All observables over one-to-one pairs.
        five: Retrieval with all captions, over images with at least two; None if there are fewer than two such images.
        loss: Contrastive loss of all n pairs; its chance level is ln n.
        margins: (n,) cosine of each pair minus that of its nearest non-pair, in either direction.
        image: Unit rows of the images, (n, d).
        text: Unit rows of the texts, (n, d).
        zero_shot: Zero-shot accuracy on labelled images; None without any.
        linear_probe: Accuracy of a linear probe; None without labelled images for its fit.
        protocol: Model, weights, data, number of pairs, captions, prompts, and skipped images with names.
    """

    report: observables.Report
    five: observables.Report | None
    loss: float
    margins: np.ndarray
    image: np.ndarray
    text: np.ndarray
    zero_shot: float | None
    linear_probe: float | None
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as a plain dictionary, for JSON."""
        quantiles = {f"{q:.0%}": float(np.quantile(self.margins, q)) for q in _QUANTILES}
        reasons = dict(self.report.reasons)
        if self.five is None:
            reasons["retrieval_all_captions"] = _ONE_CAPTION
        if self.zero_shot is not None and self.linear_probe is None:
            reasons["linear_probe"] = "the labelled images have no split train to fit it"
        return {
            "protocol": self.protocol,
            "observables": dict(self.report.values),
            "reasons": reasons,
            "loss": self.loss,
            "margin_quantiles": quantiles,
            "retrieval_all_captions": None if self.five is None else _recalls(self.five),
            "zero_shot": self.zero_shot,
            "linear_probe": self.linear_probe,
        }

    def save(self, path: str) -> Path:
        """Write unit rows and numbers to a file, which `fs.observables.load_embeddings` reads.

        Args:
            path: Name of an .npz file.

        Returns:
            The path of the file.

        Raises:
            FlowsimError: If the name does not end in .npz, or the file cannot be written.
        """
        check(path.endswith(".npz"), f"Embeddings are saved as .npz, but got {path!r}. Use e.g. rows.npz.")

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, image=self.image, text=self.text, numbers=json.dumps(self.to_dict()))

        return write_atomically(path, write)

    def __repr__(self) -> str:
        shown = {**self.protocol, "split": self.protocol["split"] or "none, all images"}
        facts = [f"  {name:<18} {_plain(value)}" for name, value in shown.items()]
        more = [f"  contrastive loss   {self.loss:.5g} (chance {np.log(len(self.image)):.3f})"]
        numbers = " .. ".join(f"{q:.3f}" for q in np.quantile(self.margins, _QUANTILES))
        more.append(f"  margins            {numbers} (5, 25, 50, 75, 95 %)")
        if self.five is not None:
            recalls = ", ".join(f"{k} {v:.3f}" for k, v in _recalls(self.five).items())
            more.append(f"  all captions       {recalls}")
        else:
            more.append(f"  all captions       none: {_ONE_CAPTION}")
        for name in ("zero_shot", "linear_probe"):
            if (value := getattr(self, name)) is not None:
                more.append(f"  {name:<18} {value:.3f}")
        return "\n".join(["Measurement", *facts, *more, repr(self.report)])


_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_ONE_CAPTION = "fewer than two images have more than one caption"


def _plain(value: Any) -> str:
    """A fact of the protocol in one line; skipped images as "broken image: 2 (a.jpg, b.jpg)"."""
    if not isinstance(value, dict):
        return str(value)
    parts = [f"{reason}: {skip['count']:,} ({', '.join(skip['names'])})" for reason, skip in value.items()]
    return "; ".join(parts) or "nothing"


def _recalls(report: observables.Report) -> dict[str, float]:
    return {name: value for name, value in report.values.items() if "_to_" in name}


def measure(
    model: str,
    data: str,
    pretrained: str | None = None,
    *,
    split: str | None = "test",
    pairs: int = 512,
    labelled: str | None = None,
    template: str = "a photo of a {}",
    image_size: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Measurement:
    """Embed pairs with a model and measure every observable, retrieval, margins and accuracies.

    Broken images are left out; `protocol` counts and names them.

    Args:
        model: An open_clip name, or the path of a model configuration in open_clip's JSON.
        data: Source of the pairs, see `data.load`.
        pretrained: A tag of open_clip, or a file of weights; None for random weights.
        split: Split of the source; None for all images.
        pairs: Number of pairs, at least 2. From a larger split they are drawn at random, always the same ones.
        labelled: Source of images with classes, see `data.load_labelled`. The linear probe is fitted on its split
            train; probe and zero-shot are evaluated on test.
        template: Prompt for a class, in which {} stands for its name.
        image_size: Pixels per side; None takes those of the model.
        temperature: τ of the softmax; None takes that of the weights.
        seed: Seed of the random weights of an untrained model.
        device: Device of PyTorch; None takes a GPU if there is one.

    Returns:
        The measurement.

    Raises:
        FlowsimError: For bad input.
    """
    if temperature is not None:
        check_number("temperature", temperature, positive=True, cure="Use e.g. 0.01.")
    with on_cpu(), enough_memory('Free memory there, or use `device="cpu"`.'):
        return _measured(
            model, data, pretrained, split, pairs, labelled, template, image_size, temperature, seed, device
        )


def _measured(
    model: str, data: str, pretrained: str | None, split: str | None, pairs: int, labelled: str | None, template: str,
    image_size: int | None, temperature: float | None, seed: int, device: str | None,
) -> Measurement:  # fmt: skip
    check(pairs >= 2, f"Argument `pairs` must be at least 2, but is {pairs}. Use e.g. 512.")
    classes = None if labelled is None else Labelled.of(labelled, template)
    built = models.build(model, pretrained, image_size, seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    built.module.to(where)
    drawn = sample(data_.load(data, split, limit=pairs), pairs, built.tokenize, built.image_size, built.resize)
    chosen = drawn.pairs
    check(len(chosen) >= 2, f"{data!r} has {len(chosen)} pair(s) to measure. Give at least 2.")
    image, text = embed(built, drawn, where)
    beta = float(built.module.logit_scale.detach().exp()) if temperature is None else 1.0 / temperature
    five, captions, pool = _all_captions(built, chosen, image, where)
    margins = np.asarray(observables.pair_margins(image, text))
    found = None if classes is None else classify(built, classes, where)
    protocol = {
        "model": built.name, "weights": "random" if pretrained is None else Path(pretrained).name,
        "data": chosen.source, "split": split or chosen.split, "pairs": len(image), "skipped": chosen.left_out(),
        "captions": captions, "all_captions_pool": pool, "image_size": built.image_size, "temperature": 1.0 / beta,
        "labelled": labelled, "template": template if labelled else None,
    }  # fmt: skip
    if found is not None:
        protocol |= {"labelled_images": found.images, "labelled_skipped": found.skipped, "classes": found.classes}
    return Measurement(
        observables.report(image, text, temperature=1.0 / beta),
        five,
        contrastive_loss(image, text, beta),
        margins,
        image,
        text,
        None if found is None else found.zero_shot,
        None if found is None else found.linear_probe,
        protocol,
    )


def _all_captions(
    built: models.Model, pairs: Pairs, image: np.ndarray, device: torch.device
) -> tuple[observables.Report | None, int, int]:
    """Retrieval with all captions, captions per image, and number of images; None with fewer than two such images."""
    # The metric needs the same number of captions for each image, so images with only one are left out.
    several = np.flatnonzero([len(c) > 1 for c in pairs.captions])
    captions = min((len(pairs.captions[i]) for i in several), default=1)
    if len(several) < 2:
        return None, captions, 0
    every = embed_texts(built, built.tokenize([c for i in several for c in pairs.captions[i][:captions]]), device)
    return observables.report(image[several], every, captions_per_image=captions), captions, len(several)
