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
from flowsim._arrays import check
from flowsim._files import write_atomically
from flowsim.clip import data as data_
from flowsim.clip import models
from flowsim.clip.batches import channels_first, crop
from flowsim.clip.data import Pairs
from flowsim.errors import FlowsimError
from flowsim.losses import InfoNCE
from flowsim.pairing import Targets

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


def sample(pairs: Pairs, count: int, tokenize: Any, size: int) -> Sample:
    """The first `count` pairs with their first captions; broken images are left out."""
    chosen, pixels = pairs.select(slice(count)).decoded(size)
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

    - `report`: all observables over one-to-one pairs; `five`: retrieval with all captions, None if there is one
    - `margins` (n,): cosine of each pair minus that of its nearest non-pair, in either direction
    - `image`, `text`: the unit rows (n, d)
    - `zero_shot`, `linear_probe`: accuracies on labelled images, None without any
    - `protocol`: model, weights, data, number of pairs, captions, prompts
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
        return {
            "protocol": self.protocol,
            "observables": dict(self.report.values),
            "reasons": self.report.reasons,
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
        facts = [f"  {name:<18} {value}" for name, value in self.protocol.items()]
        more = [f"  contrastive loss   {self.loss:.5g} (chance {np.log(len(self.image)):.3f})"]
        numbers = " .. ".join(f"{q:.3f}" for q in np.quantile(self.margins, _QUANTILES))
        more.append(f"  margins            {numbers} (5, 25, 50, 75, 95 %)")
        if self.five is not None:
            recalls = ", ".join(f"{k} {v:.3f}" for k, v in _recalls(self.five).items())
            more.append(f"  all captions       {recalls}")
        for name in ("zero_shot", "linear_probe"):
            if (value := getattr(self, name)) is not None:
                more.append(f"  {name:<18} {value:.3f}")
        return "\n".join(["Measurement", *facts, *more, repr(self.report)])


_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
    """Embed the first `pairs` pairs of a split with a model and measure everything.

    `temperature` is τ of the softmax (default: that of the weights). `labelled` is a source of images with
    classes (`data.load`): its train split fits the linear probe, its test split judges probe and zero-shot with
    the prompt `template`. Raises `FlowsimError` for bad input, naming the file.
    """
    built = models.build(model, pretrained, image_size, seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    built.module.to(where)
    chosen = data_.load(data, split, limit=pairs, verify=True)
    check(len(chosen) >= 2, f"{data!r} has {len(chosen)} pair(s) to measure. Give at least 2.")
    image, text = embed(built, sample(chosen, pairs, built.tokenize, built.image_size), where)
    beta = float(built.module.logit_scale.detach().exp()) if temperature is None else 1.0 / temperature
    five, captions = None, min(len(c) for c in chosen.captions)
    if captions > 1:
        every = embed_texts(built, built.tokenize([c for cs in chosen.captions for c in cs[:captions]]), where)
        five = observables.report(image, every, captions_per_image=captions)
    margins = np.asarray(observables.pair_margins(image, text))
    zero_shot = linear_probe = None
    if labelled is not None:
        zero_shot, linear_probe = classify(built, labelled, template, where)
    protocol = {
        "model": built.name, "weights": "random" if pretrained is None else Path(pretrained).name,
        "data": chosen.source, "split": split, "pairs": len(image), "captions": captions,
        "image_size": built.image_size, "temperature": 1.0 / beta,
        "labelled": None if labelled is None else labelled, "template": template if labelled else None,
    }  # fmt: skip
    return Measurement(
        observables.report(image, text, temperature=1.0 / beta), five, contrastive_loss(image, text, beta), margins,
        image, text, zero_shot, linear_probe, protocol,
    )  # fmt: skip


def classify(
    built: models.Model, source: str, template: str = "a photo of a {}", device: Any = "cpu"
) -> tuple[float, float]:
    """(zero-shot accuracy, linear-probe accuracy) on the test split of a labelled source; its train split fits."""
    fit, judge = data_.load(source, "train"), data_.load(source, "test")
    for pairs in (fit, judge):
        if pairs.labels is None:
            raise FlowsimError(f"{source!r} has no class labels. Give shapes, or a WebDataset with .cls members.")
    if "{}" not in template:
        raise FlowsimError(f"The prompt {template!r} has no place for the class. Write e.g. 'a photo of a {{}}'.")
    size = built.image_size
    rows = [embed_images(built, channels_first(pairs.pixels(size)), device) for pairs in (fit, judge)]
    classes = embed_texts(built, built.tokenize([template.format(c) for c in judge.classes]), device)
    assert fit.labels is not None and judge.labels is not None
    zero_shot = float(np.mean(np.argmax(rows[1] @ classes.T, axis=1) == judge.labels))
    return zero_shot, _linear_probe(rows[0], fit.labels, rows[1], judge.labels)


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
