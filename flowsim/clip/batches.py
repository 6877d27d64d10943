"""Batches of a split in a fixed random order: the batch of step k depends only on (seed, k).

So a resumed run sees the same batches as an uninterrupted one. With several processes each takes its share of the same
batch.
"""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from flowsim.clip.data import Pairs, Resize
from flowsim.clip.settings import Training
from flowsim.data.order import Order, draw_captions
from flowsim.torch.device import onto_device

#: Largest size of decoded pixels kept in memory, in bytes, unless `preload` is set.
_FITS = 4 * 2**30
#: Largest size of decoded pixels kept for the next run, in bytes.
_REUSED = 2**29


@dataclasses.dataclass
class Batches:
    """Training batches: `batch(k)` is (pixels uint8 (n, 3, s, s), token ids (n, context)) of micro-batch k.

    `tokens` (number of captions, context); the captions of pair i are rows `first[i]` .. `first[i + 1] - 1`.
    `stored` and `tokens` may be on a GPU, see `onto`; batches are then made there. What is not there is read by a
    thread while the batch before is used.
    """

    pairs: Pairs
    tokens: torch.Tensor
    first: np.ndarray
    size: int
    settings: Training
    rank: int = 0
    processes: int = 1
    stored: torch.Tensor | None = None
    resize: Resize = Resize()

    def __post_init__(self) -> None:
        self._ahead: tuple[int, Any] | None = None
        self._device = torch.device("cpu")
        self._reader = ThreadPoolExecutor(1)

    def place(self, device: torch.device, room: float) -> None:
        """Make batches for a GPU; tokens and stored pixels move there if each takes less than `room` bytes."""
        self._device = device
        if self.tokens.nbytes < room:
            self.tokens = self.tokens.to(device)
        if self.stored is not None and self.stored.nbytes < room:
            self.stored = self.stored.to(device)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in one epoch; an incomplete last batch is left out."""
        return self.order.per_epoch

    @functools.cached_property
    def order(self) -> Order:
        """The random order of the pairs."""
        return Order(len(self.pairs), self.settings.batch_size, self.settings.seed)

    def indices(self, k: int) -> np.ndarray:
        """Pairs of the whole micro-batch k, (batch_size,)."""
        return self.order.indices(k)

    def batch(self, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(pixels, tokens, boxes) of this process's share of micro-batch k; boxes (n, 4) for `crop`."""
        chosen = self.indices(k)
        random = self.order.generator(k)
        counts = self.first[chosen + 1] - self.first[chosen]
        caption = np.zeros(len(chosen), int)
        if self.settings.captions == "all":
            caption = draw_captions(random, counts)
        boxes = None
        if self.settings.augment == "random-resized-crop":
            boxes = torch.from_numpy(_boxes(random, len(chosen), self.settings.crop_scale))
        share = len(chosen) // self.processes
        mine = slice(self.rank * share, (self.rank + 1) * share)
        tokens = _rows(self.tokens, self.first[chosen[mine]] + caption[mine])
        return self._pixels(k, mine), tokens, None if boxes is None else boxes[mine]

    def _pixels(self, k: int, mine: slice) -> torch.Tensor:
        on_cpu = self._device.type == "cpu"
        if self.stored is not None and (on_cpu or self.stored.device.type != "cpu"):
            return _rows(self.stored, self.indices(k)[mine])
        if self._ahead is not None and self._ahead[0] == k:
            pixels = self._ahead[1].result()
        else:
            pixels = self._read(self.indices(k)[mine])
        # The next batch is decoded, or copied together, while this one is used.
        self._ahead = (k + 1, self._reader.submit(self._read, self.indices(k + 1)[mine]))
        return pixels

    def _read(self, chosen: np.ndarray) -> torch.Tensor:
        if self.stored is not None:
            pixels = _rows(self.stored, chosen)
        else:
            pixels = channels_first(self.pairs.pixels(self.size, chosen, resize=self.resize))
        if self._device.type != "cuda":
            return pixels
        with torch.cuda.device(self._device):  # in this thread too, pinned memory belongs to this device
            return pixels.pin_memory()


def onto(batches: Batches, device: torch.device) -> None:
    """Make batches for a GPU: tokens and stored pixels move there if they take less than a quarter of its memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        batches.place(device, free / 4)


def _rows(held: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    """Rows of a tensor, on its device."""
    return held.index_select(0, onto_device(torch.from_numpy(np.ascontiguousarray(chosen)), held.device))


def prepare(
    pairs: Pairs,
    tokenize: Any,
    size: int,
    settings: Training,
    rank: int = 0,
    processes: int = 1,
    resize: Resize = Resize(),
    rows: torch.Tensor | None = None,
) -> Batches:
    """Batches of `pairs` at `size` pixels. Broken images are left out; pixels are kept in memory if they fit.

    `rows` (n, d): features of a locked image tower, which batches have in place of pixels.
    """
    keep = settings.preload if settings.preload is not None else len(pairs) * 3 * size * size <= _FITS
    pairs, tokens, stored = _LATEST.read(pairs, tokenize, size, resize, keep if rows is None else None)
    stored = stored if rows is None else rows
    first = np.concatenate([[0], np.cumsum([len(captions) for captions in pairs.captions])])
    return Batches(pairs, tokens, first, size, settings, rank, processes, stored, resize)


class _Latest:
    """Tokens and pixels of the pairs of the latest run: many short runs in one process reuse them."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._value: tuple[Pairs, torch.Tensor, torch.Tensor | None] | None = None

    def read(
        self, pairs: Pairs, tokenize: Any, size: int, resize: Resize, keep: bool | None
    ) -> tuple[Pairs, torch.Tensor, torch.Tensor | None]:
        """(pairs without broken images, tokens, pixels if they are kept in memory); None reads no image."""
        key = (pairs, tokenize, size, resize, keep)  # pairs are equal only to themselves
        if self._value is not None and self._key == key:
            return self._value
        self._key, self._value = (), None
        stored = None
        if keep:
            pairs, pixels = pairs.decoded(size, resize=resize)
            stored = channels_first(pixels)
        elif keep is not None:
            pairs = pairs.checked()
        value = pairs, tokenize([caption for captions in pairs.captions for caption in captions]), stored
        if stored is None or stored.nbytes <= _REUSED:
            self._key, self._value = key, value
        return value


_LATEST = _Latest()


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """(n, s, s, 3) uint8 as a tensor (n, 3, s, s)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def crop(pixels: torch.Tensor, boxes: torch.Tensor | None, mean: Any, std: Any) -> torch.Tensor:
    """Normalised float images (n, 3, s, s) of uint8 pixels, each cut to its box and scaled back to s pixels.

    Features of a locked image tower, which are no integers, are left as they are.
    `boxes` (n, 4): centre x, centre y, half width, half height in [−1, 1] coordinates; None leaves images whole.
    """
    if pixels.is_floating_point():
        return pixels
    images = pixels.float() / 255
    if boxes is not None:
        boxes = onto_device(boxes, images.device).to(images.dtype)
        n, channels, size, _ = images.shape
        matrix = images.new_zeros(n, 2, 3)
        matrix[:, 0, 0], matrix[:, 1, 1] = boxes[:, 2], boxes[:, 3]
        matrix[:, :, 2] = boxes[:, :2]
        grid = torch.nn.functional.affine_grid(matrix, [n, channels, size, size], align_corners=False)
        images = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return (images - _channels(tuple(mean), images.device)) / _channels(tuple(std), images.device)


@functools.lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """One value for each channel, (1, 3, 1, 1); kept, because a copy to a GPU waits for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _boxes(random: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """Random crops as torchvision's RandomResizedCrop draws them: area in [scale, 1], ratio in [3/4, 4/3]."""
    area = random.uniform(scale, 1.0, n)
    ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), n))
    # A box that does not fit is cut down, where torchvision draws again.
    half = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], 1), 1.0)
    centre = random.uniform(-1, 1, (n, 2)) * (1 - half)
    return np.concatenate([centre, half], 1).astype(np.float32)
