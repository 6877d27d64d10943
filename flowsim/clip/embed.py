"""Embeddings of a model on pairs: first caption of each image, whole images without augmentation, unit rows."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import torch

from flowsim.clip import models
from flowsim.clip.batches import channels_first, crop
from flowsim.clip.data import WORKERS, Pairs, Resize
from flowsim.clip.memory import Blocks
from flowsim.torch.device import onto_device

Encode: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

#: Images or texts embedded at once; fewer where a GPU's memory is too small.
_BLOCKS = Blocks(256)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Pairs to be embedded: pixels (n, 3, s, s) uint8, tokens (n, context); `pairs` without broken images.

    Where the image tower is locked, `pixels` are its features (n, d).
    """

    pairs: Pairs
    pixels: torch.Tensor
    tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "Sample":
        """The first `count` pairs."""
        return Sample(self.pairs.select(slice(count)), self.pixels[:count], self.tokens[:count])


def sample(pairs: Pairs, count: int, tokenize: Any, size: int, resize: Resize = Resize()) -> Sample:
    """The first `count` pairs with their first captions; broken images are left out."""
    chosen, pixels = pairs.select(slice(count)).decoded(size, resize=resize)
    return Sample(chosen, channels_first(pixels), first_captions(chosen, tokenize))


def first_captions(pairs: Pairs, tokenize: Any) -> torch.Tensor:
    """Token ids (n, context) of the first caption of each pair."""
    return tokenize([captions[0] for captions in pairs.captions])


def embed(model: models.Model, pairs: Sample, device: Any, autocast: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (image, text), float64 (n, d). The model is put into evaluation mode and back."""
    return embed_images(model, pairs.pixels, device, autocast), embed_texts(model, pairs.tokens, device, autocast)


def embed_images(model: models.Model, pixels: torch.Tensor, device: Any, autocast: Any = None) -> np.ndarray:
    """Unit rows, float64 (n, d), of uint8 pixels (n, 3, s, s)."""
    return _unit(_in_parts(model, pixels, device, autocast, _image_encoder(model), True))


def embed_texts(model: models.Model, tokens: torch.Tensor, device: Any, autocast: Any = None) -> np.ndarray:
    """Unit rows, float64 (n, d), of token ids (n, context)."""
    return _unit(_in_parts(model, tokens, device, autocast, _text_encoder(model), True))


def encode_images(model: models.Model, pixels: torch.Tensor, device: Any, blocks: Blocks | None = None) -> np.ndarray:
    """What the image tower gives, not normalised, float32 (n, d), of uint8 pixels (n, 3, s, s)."""
    return _in_parts(model, pixels, device, None, _image_encoder(model), False, blocks)


def encode_texts(model: models.Model, tokens: torch.Tensor, device: Any, blocks: Blocks | None = None) -> np.ndarray:
    """What the text tower gives, not normalised, float32 (n, d), of token ids (n, context)."""
    return _in_parts(model, tokens, device, None, _text_encoder(model), False, blocks)


def decoded_blocks(
    pairs: Pairs, indices: Sequence[np.ndarray], model: models.Model, workers: int = WORKERS
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Pixels (n, 3, s, s) of blocks of pairs, and which of their images could be decoded, (n,).

    A thread decodes the next block while this one is used.
    """

    def read(block: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        pixels, good = pairs.select(block).attempted(model.image_size, workers, model.resize)
        return channels_first(pixels), good

    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, block) for block in indices[:1]]
        for following in [*indices[1:], None]:
            now = ahead.pop().result() if ahead else None
            if following is not None:
                ahead.append(reader.submit(read, following))
            if now is not None:
                yield now


def _image_encoder(model: models.Model) -> Encode:
    return lambda x: model.module.encode_image(crop(x, None, model.mean, model.std), normalize=False)


def _text_encoder(model: models.Model) -> Encode:
    return lambda x: model.module.encode_text(x, normalize=False)


@torch.no_grad()
def _in_parts(
    model: models.Model,
    inputs: torch.Tensor,
    device: Any,
    autocast: Any,
    encode: Encode,
    unit: bool,
    blocks: Blocks | None = None,
) -> np.ndarray:
    """Rows (n, d) in float32, block by block; the model is put into evaluation mode and back."""

    def embedded(part: torch.Tensor) -> torch.Tensor:
        with autocast() if autocast is not None else contextlib.nullcontext():
            found = encode(onto_device(part, device)).float()
        return torch.nn.functional.normalize(found, dim=1) if unit else found

    was_training = model.module.training
    model.module.eval()
    try:
        return (_BLOCKS if blocks is None else blocks).map(embedded, inputs).cpu().numpy()
    finally:
        model.module.train(was_training)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length in double precision."""
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
