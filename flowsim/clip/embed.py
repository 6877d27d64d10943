"""Embeddings of a model on pairs: first caption of each image, whole images without augmentation, unit rows."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch

from flowsim.clip import models
from flowsim.clip.batches import channels_first, crop
from flowsim.clip.data import Pairs, Resize
from flowsim.clip.memory import Blocks, onto_device

#: Images or texts embedded at once; fewer where a GPU's memory is too small.
_BLOCKS = Blocks(256)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Pairs to be embedded: pixels (n, 3, s, s) uint8, tokens (n, context); `pairs` without broken images."""

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
    def embedded(part: torch.Tensor) -> torch.Tensor:
        with autocast() if autocast is not None else contextlib.nullcontext():
            found = encode(onto_device(part, device))
        return torch.nn.functional.normalize(found.float(), dim=1)

    was_training = model.module.training
    model.module.eval()
    try:
        rows = _BLOCKS.map(embedded, inputs).cpu().numpy().astype(np.float64)
    finally:
        model.module.train(was_training)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
