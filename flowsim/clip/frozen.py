"""Write the features that a model gives to images and all their captions: for heads, and for locked-image tuning.

Images are decoded, embedded and written in blocks, so that neither images nor features must fit into memory, and a
killed call goes on where it stopped.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from flowsim import provenance
from flowsim.base.checks import check
from flowsim.clip import data as data_
from flowsim.clip import models
from flowsim.clip.data import WORKERS, Pairs
from flowsim.clip.embed import decoded_blocks, encode_images, encode_texts
from flowsim.clip.labelled import Labelled
from flowsim.clip.memory import Blocks, enough_memory
from flowsim.clip.session import alone, limited_threads
from flowsim.clip.stored import FILES, Unfinished, differences, publish, read_about
from flowsim.data import Features, load
from flowsim.errors import FlowsimError
from flowsim.progress import Progress, silent

#: Seconds between two notes of how far the work is, from which a killed call goes on.
_SAVED = 10.0


def features(
    model: str,
    data: str,
    out: str | os.PathLike[str],
    pretrained: str | None = None,
    *,
    split: str | None = None,
    captions: int | None = None,
    labelled: str | None = None,
    template: str = "a photo of a {}",
    image_size: int | None = None,
    batch_size: int = 256,
    normalize: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Features:
    """Write the features of images and all their captions by a model, in half precision.

    Rows are what `encode_image` and `encode_text` of open_clip give, in evaluation mode and of whole images. Broken
    images are left out, counted and named. The same call goes on where a killed one stopped, and returns the features
    if they are finished.

    Args:
        model: An open_clip name, or the path of a model configuration in open_clip's JSON.
        data: Source of the pairs, see `data.load`.
        out: A folder of .npy files, which can be mapped into memory; or one file .npz or .safetensors. It also says
            where the features come from, in `features.json` in the folder or `NAME.npz.json` next to the file.
        pretrained: A tag of open_clip, or a file of weights; None for random weights.
        split: Split of the source; None takes all splits, with their names.
        captions: Number of captions of each image, the first ones; None for all.
        labelled: Source of images with classes, see `data.load_labelled`: images of the pairs that have a class there
            get it, and the text features of all classes are written.
        template: Prompt for a class, in which {} stands for its name.
        image_size: Pixels per side; None takes those of the model.
        batch_size: Images decoded and embedded at once.
        normalize: Write rows of unit length.
        seed: Seed of random weights.
        threads: CPU threads, also for decoding; None leaves the choice to PyTorch.
        device: Device of PyTorch; None takes a GPU if there is one.
        force: Replace features of another model or source.
        progress: Called as `progress("features", done, images, images_per_second=...)`.

    Returns:
        The features, mapped from the folder.

    Raises:
        FlowsimError: For bad input; if `out` holds other features; if a file cannot be written; and for features that
            half precision cannot hold.
    """
    path = Path(out)
    check(
        path.suffix in (*FILES, "") or path.is_dir(),
        f"Features are a folder, .npz or .safetensors, but got {path.name!r}. Use e.g. features.npz.",
    )
    for name, value in (("batch_size", batch_size), ("captions", captions), ("threads", threads)):
        check(value is None or value >= 1, f"Argument `{name}` must be at least 1, but is {value}. Use e.g. 1.")
    work = path.with_name(f"{path.name}.unfinished")
    with (
        alone(path.with_name(f"{path.name}.lock")),
        limited_threads(threads),
        enough_memory("Use a smaller `batch_size`; the same call goes on."),
    ):
        pairs = data_.load_all(data) if split is None else data_.load(data, split)
        classes = None if labelled is None else _classes(labelled, template, pairs)
        built = models.build(model, pretrained, image_size, seed)
        most = max(len(texts) for texts in pairs.captions)
        about = {
            "model": built.name,
            "pretrained": "random" if pretrained is None else Path(pretrained).name,
            "image_size": built.image_size,
            "source": _name(data),
            "source_digest": pairs.digest(),
            "split": split,
            "captions": min(most, captions or most),
            "normalize": normalize,
            "labelled": None if labelled is None else _name(labelled),
            "template": None if labelled is None else template,
            "weights": {tower: built.digest(tower) for tower in ("image", "text")},
        }
        if not force and path.exists():
            differing = differences(read_about(path), about)
            check(
                not differing,
                f"{str(path)!r} holds features that differ in {differing}. Choose another `out`, or replace them with "
                "`force=True`.",
            )
            return load(path, verify=False)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        writer = _Writer(built, pairs, where, batch_size, normalize, threads or WORKERS, progress)
        rows, dim = len(pairs), built.embed_dim
        folder = Unfinished(work, about, (rows, dim), (rows, about["captions"], dim), force)
        writer.fill(folder)
        kept = pairs if folder.good.all() else pairs.without(~np.array(folder.good))
        more = _columns(kept, about["captions"])
        if classes is not None:
            of_image, names = classes
            more["labels"] = np.array([of_image.get(key, -1) for key in kept.keys])
            more["classes"] = np.array(names)
            more["class_text"] = writer.texts([template.replace("{}", name) for name in names])
        folder.finish({**about, **_report(kept, pairs.keys)}, more)
        publish(work, path)
    return load(path, verify=False)


class _Writer:
    """Embeds pairs with a model, block by block, into an unfinished folder."""

    def __init__(
        self,
        model: models.Model,
        pairs: Pairs,
        device: torch.device,
        batch_size: int,
        normalize: bool,
        workers: int,
        progress: Progress,
    ) -> None:
        self.model, self.pairs, self.device, self.normalize = model, pairs, device, normalize
        self.batch_size, self.workers, self.progress = batch_size, workers, progress
        self._blocks = Blocks(batch_size)
        model.module.to(device)

    def fill(self, folder: Unfinished) -> None:
        """Write the rows that are missing."""
        first, total = folder.done, len(self.pairs)
        begin = saved = time.perf_counter()
        blocks = [np.arange(k, min(k + self.batch_size, total)) for k in range(first, total, self.batch_size)]
        try:
            for block, (pixels, good) in zip(
                blocks, decoded_blocks(self.pairs, blocks, self.model, self.workers), strict=True
            ):
                folder.good[block] = good
                if good.any():
                    self._write(folder, block[good], pixels[torch.from_numpy(good)])
                folder.done = int(block[-1]) + 1
                now = time.perf_counter()
                if now - saved > _SAVED:
                    folder.save()
                    saved = now
                self.progress(
                    "features", folder.done, total, images_per_second=(folder.done - first) / max(now - begin, 1e-9)
                )
        finally:
            folder.save()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Rows of texts in half precision, (n, q)."""
        rows = [
            encode_texts(self.model, self.model.tokenize(texts[k : k + self.batch_size]), self.device, self._blocks)
            for k in range(0, len(texts), self.batch_size)
        ]
        return self._half(np.concatenate(rows))

    def _write(self, folder: Unfinished, rows: np.ndarray, pixels: torch.Tensor) -> None:
        """Write one block of images that were decoded, and their captions."""
        folder.image[rows] = self._half(encode_images(self.model, pixels, self.device, self._blocks))
        captions = [self.pairs.captions[k][: folder.text.shape[1]] for k in rows]
        found, first = self.texts([text for several in captions for text in several]), 0
        for row, several in zip(rows, captions, strict=True):
            folder.text[row, : len(several)] = found[first : first + len(several)]
            first += len(several)

    def _half(self, rows: np.ndarray) -> np.ndarray:
        """Rows in half precision, of unit length if wanted."""
        if self.normalize:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        check(
            np.isfinite(half).all(),
            f"Features of {self.model.name!r} are not finite, or larger than half precision can hold. "
            "Use `normalize=True`, or other weights.",
        )
        return half


def _name(source: str) -> str:
    """A source without its folder, which differs between machines."""
    return source if data_.is_generated(source) else Path(source).name


def _columns(pairs: Pairs, captions: int) -> dict[str, np.ndarray]:
    """What is known of each image besides its rows."""
    found = {
        "names": np.array(pairs.keys),
        "counts": np.array([min(len(texts), captions) for texts in pairs.captions]),
    }
    if pairs.splits is not None:
        found["split"] = np.array(pairs.splits)
    return found


def _classes(source: str, template: str, pairs: Pairs) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class of each image that has one, by name, and the names of all classes."""
    labelled = Labelled.of(source, template)
    found: dict[str, int] = {}
    parts = [part for part in (labelled.fit, labelled.judge) if part is not None]
    with contextlib.suppress(FlowsimError):  # there need not be such a split
        parts.append(data_.load_labelled(source, "val"))
    for part in parts:
        assert part.labels is not None
        found |= dict(zip(part.keys, part.labels.tolist(), strict=True))
    known = sum(key in found for key in pairs.keys)
    check(
        known > 0,
        f"None of the images of {pairs.source!r} has a class in {source!r}, e.g. {pairs.keys[0]!r}. Give a source with "
        "the same file names, or leave `labelled` out.",
    )
    return found, labelled.judge.classes


def _report(pairs: Pairs, all_keys: Sequence[str]) -> dict[str, Any]:
    """What the features hold, what was left out, and the versions that made them."""
    kept = set(pairs.keys)
    return {
        "images": len(pairs),
        "skipped": pairs.left_out(),
        "broken": [key for key in all_keys if key not in kept],
        "versions": {
            "flowsim": provenance.versions()["flowsim"],
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        },
    }
