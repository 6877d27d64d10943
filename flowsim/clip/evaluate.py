"""What a model makes of pairs: embeddings, and every observable of `flowsim.observables` on them.

The metrics are the simulator's own functions; here features only become arrays. Protocol: first caption of each
image, whole images without augmentation, unit rows; N and the pool are in the record.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from flowsim import observables
from flowsim.base.arrays import check, check_number
from flowsim.base.files import write_atomically
from flowsim.clip import data as data_
from flowsim.clip import models
from flowsim.clip.batches import channels_first, crop
from flowsim.clip.data import Pairs, Resize
from flowsim.errors import FlowsimError
from flowsim.model.losses import InfoNCE
from flowsim.model.pairing import Targets

#: Images embedded at once.
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Sample:
    """Pairs ready to be embedded: pixels (n, 3, s, s) uint8, tokens (n, context); `pairs` without broken images."""

    pairs: Pairs
    pixels: torch.Tensor
    tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def sample(pairs: Pairs, count: int, tokenize: Any, size: int, resize: Resize = Resize()) -> Sample:
    """The first `count` pairs with their first captions; broken images are left out."""
    chosen, pixels = pairs.select(slice(count)).decoded(size, resize=resize)
    return Sample(chosen, channels_first(pixels), tokenize([captions[0] for captions in chosen.captions]))


@torch.no_grad()
def embed(model: models.Model, pairs: Sample, device: Any, autocast: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (image, text), float64 (n, d). The model is put into evaluation mode and back."""
    return embed_images(model, pairs.pixels, device, autocast), embed_texts(model, pairs.tokens, device, autocast)


@torch.no_grad()
def embed_images(model: models.Model, pixels: torch.Tensor, device: Any, autocast: Any = None) -> np.ndarray:
    """Unit rows (n, d) of uint8 pixels (n, 3, s, s)."""
    return _in_parts(
        model, pixels, device, autocast, lambda x: model.module.encode_image(crop(x, None, model.mean, model.std))
    )


@torch.no_grad()
def embed_texts(model: models.Model, tokens: torch.Tensor, device: Any, autocast: Any = None) -> np.ndarray:
    """Unit rows (n, d) of token ids (n, context)."""
    return _in_parts(model, tokens, device, autocast, model.module.encode_text)


def _in_parts(model: models.Model, inputs: torch.Tensor, device: Any, autocast: Any, encode: Any) -> np.ndarray:
    was_training = model.module.training
    model.module.eval()
    parts = []
    for part in inputs.split(_BATCH):
        with autocast() if autocast is not None else torch.autocast("cpu", enabled=False):
            rows = encode(part.to(device))
        parts.append(torch.nn.functional.normalize(rows.float(), dim=1).cpu().numpy())
    model.module.train(was_training)
    rows = np.concatenate(parts).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def observe(image: np.ndarray, text: np.ndarray, inverse_temperature: float, which: str = "all") -> dict[str, float]:
    """Observables by name of unit rows (n, d), and `loss`, the contrastive loss of all n pairs at β.

    `which` is "all" or "gap" (only what costs no factorisation and little compiling).
    """
    loss = {"loss": contrastive_loss(image, text, inverse_temperature)}
    if which == "gap":
        return {"modality_gap": float(observables.modality_gap(image, text)), **loss}
    report = observables.report(image, text, temperature=1.0 / inverse_temperature)
    return {**report.values, **loss}


def contrastive_loss(image: np.ndarray, text: np.ndarray, inverse_temperature: float) -> float:
    """InfoNCE of all pairs at β, in double precision; its chance level is ln n."""
    with jax.enable_x64(True):
        return float(InfoNCE().value(jax.numpy.asarray(inverse_temperature * (image @ text.T)), Targets(None, None)))


# --- a whole evaluation ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Everything about one model on one set of pairs: see `measure`.

    - `report`: all observables over one-to-one pairs
    - `five`: retrieval with all captions, over the images with at least two; None where there are not two such images
    - `margins` (n,): cosine of each pair minus that of its nearest non-pair, in either direction
    - `image`, `text`: the unit rows (n, d)
    - `zero_shot`, `linear_probe`: accuracies on labelled images, None without any
    - `protocol`: model, weights, data, number of pairs, captions, prompts, and what was skipped, with names
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
        """Plain numbers."""
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
        """Write unit rows and numbers to an .npz file, which `flowsim measure` reads too."""
        check(path.endswith(".npz"), f"Embeddings are saved as .npz, but got {path!r}. Use e.g. rows.npz.")

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, image=self.image, text=self.text, numbers=json.dumps(self.to_dict()))

        return write_atomically(path, write)

    def __repr__(self) -> str:
        facts = [f"  {name:<18} {_plain(value)}" for name, value in self.protocol.items()]
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
    """A fact of the protocol in one line; what was skipped as "broken image: 2 (a.jpg, b.jpg)"."""
    if not isinstance(value, dict):
        return str(value)
    parts = [f"{reason}: {skip['count']:,} ({', '.join(skip['names'])})" for reason, skip in value.items()]
    return "; ".join(parts) or "nothing"


def skips(pairs: Pairs) -> dict[str, dict[str, Any]]:
    """Reason -> how many images were left out, and the first few of their names."""
    return {
        reason: {"count": count, "names": list(pairs.examples.get(reason, ()))}
        for reason, count in pairs.skipped.items()
    }


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
    """Embed `pairs` pairs of a split with a model and measure everything.

    Of a larger split `pairs` are drawn at random, always the same ones. `temperature` is τ of the softmax (default:
    that of the weights). `labelled` is a source of images with classes (`data.load_labelled`): its train split fits
    the linear probe, its test split judges probe and zero-shot with the prompt `template`, in which {} is the class.
    Broken images are left out; `protocol` counts and names them. `seed` draws the weights of an untrained model.
    Raises `FlowsimError` for bad input, naming the file.
    """
    if temperature is not None:
        check_number("temperature", temperature, positive=True, cure="Use e.g. 0.01.")
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
    # The metric takes the same number of captions of each image: images with only one have no part in it.
    several = np.flatnonzero([len(c) > 1 for c in chosen.captions])
    five, captions = None, min((len(chosen.captions[i]) for i in several), default=1)
    if len(several) > 1:
        every = embed_texts(built, built.tokenize([c for i in several for c in chosen.captions[i][:captions]]), where)
        five = observables.report(image[several], every, captions_per_image=captions)
    margins = np.asarray(observables.pair_margins(image, text))
    found = None if classes is None else classify(built, classes, where)
    protocol = {
        "model": built.name, "weights": "random" if pretrained is None else Path(pretrained).name,
        "data": chosen.source, "split": split, "pairs": len(image), "skipped": skips(chosen), "captions": captions,
        "all_captions_pool": len(several) if five is not None else 0, "image_size": built.image_size,
        "temperature": 1.0 / beta, "labelled": labelled, "template": template if labelled else None,
    }  # fmt: skip
    if found is not None:
        protocol |= {"labelled_images": found.images, "labelled_skipped": found.skipped, "classes": found.classes}
    return Measurement(
        observables.report(image, text, temperature=1.0 / beta), five, contrastive_loss(image, text, beta), margins,
        image, text, None if found is None else found.zero_shot, None if found is None else found.linear_probe,
        protocol,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images with classes: those that fit the linear probe (None without a train split), and those that judge."""

    fit: Pairs | None
    judge: Pairs
    template: str

    @classmethod
    def of(cls, source: str, template: str = "a photo of a {}") -> "Labelled":
        """The splits train and test of a source; reads no image. Raises `FlowsimError` if it has no classes."""
        check("{}" in template, f"The prompt {template!r} has no place for the class. Write e.g. 'a photo of a {{}}'.")
        judge = data_.load_labelled(source, "test")
        check(len(judge.classes) > 1, f"{source!r} has one class only. Give images of at least two.")
        try:
            fit = data_.load_labelled(source, "train")
        except FlowsimError:  # the source is sound, as it has the other split: zero-shot needs no more
            fit = None
        return cls(fit, judge, template)

    def digest(self) -> str:
        """Digits that tell these images from others; see `Pairs.digest`."""
        return "-".join(pairs.digest() for pairs in (self.fit, self.judge) if pairs is not None)


@dataclasses.dataclass(frozen=True)
class Classified:
    """Accuracies on labelled images (`linear_probe` None without a train split), and on how many of which classes."""

    zero_shot: float
    linear_probe: float | None
    images: int
    classes: int
    skipped: dict[str, dict[str, Any]]


def classify(built: models.Model, labelled: Labelled, device: Any = "cpu") -> Classified:
    """Zero-shot and linear-probe accuracy on the images that judge; broken images are left out and counted."""

    def rows(pairs: Pairs) -> tuple[Pairs, np.ndarray]:
        pairs, pixels = pairs.decoded(built.image_size, resize=built.resize)
        return pairs, embed_images(built, channels_first(pixels), device)

    judge, images = rows(labelled.judge)
    assert judge.labels is not None
    prompts = [labelled.template.replace("{}", name) for name in judge.classes]
    guess = np.argmax(images @ embed_texts(built, built.tokenize(prompts), device).T, axis=1)
    probe = None
    skipped = skips(judge)
    if labelled.fit is not None:
        fit, fitting = rows(labelled.fit)
        assert fit.labels is not None
        probe = _linear_probe(fitting, fit.labels, images, judge.labels)
        skipped |= {f"{reason} (train)": skip for reason, skip in skips(fit).items()}
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
