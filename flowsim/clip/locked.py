"""Locked-image tuning (Zhai et al. 2022): the image tower is frozen, and its features are computed once.

Batches and evaluations have these features in place of pixels. `LockedImage` passes them on, so everything that calls
a model works as without it.
"""

import dataclasses
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowsim.base.checks import check
from flowsim.clip import models
from flowsim.clip.data import Pairs
from flowsim.clip.embed import decoded_blocks, encode_images
from flowsim.clip.session import Session
from flowsim.clip.stored import differences, read_about
from flowsim.data import load
from flowsim.errors import FlowsimError
from flowsim.progress import Progress

#: The step of the progress while features are computed.
FEATURES = "features of images"
#: Images decoded and embedded at once, by each process.
_BLOCK = 256
#: Sets of features kept for the next run: those of its training pairs and of its held-out pairs.
_KEPT = 2

#: Pairs without broken images, and the features of their images (n, d) in float32.
Rows = tuple[Pairs, torch.Tensor]


class LockedImage(torch.nn.Module):
    """A model whose image tower is frozen: without gradients, and always in evaluation mode.

    - `clip`: the model of open_clip.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        clip.visual.requires_grad_(False)
        self.train(clip.training)

    @property
    def logit_scale(self) -> torch.nn.Parameter:
        """The scale of the logits."""
        return self.clip.logit_scale

    def train(self, mode: bool = True) -> "LockedImage":
        """Put the text tower into training mode; the image tower stays in evaluation mode."""
        super().train(mode)
        self.clip.visual.eval()
        return self

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Features (n, d) of images (n, 3, s, s); stored features (n, d) are passed on."""
        if images.ndim == 2:
            return torch.nn.functional.normalize(images, dim=-1) if normalize else images
        with torch.no_grad():
            return self.clip.encode_image(images, normalize=normalize)

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Features (n, d) of token ids (n, context)."""
        return self.clip.encode_text(text, normalize=normalize)


def locked(model: models.Model) -> models.Model:
    """The model with its image tower frozen."""
    return dataclasses.replace(model, module=LockedImage(model.module))


def locked_rows(source: bool | str, model: models.Model, session: Session, pairs: Pairs, progress: Progress) -> Rows:
    """Features of the images of pairs, from a file or computed with the model; the next run in the process reuses them.

    Args:
        source: The file of features; True computes them, by all processes together.
        model: The model; its image tower is moved to the device of the session if features are computed.
        session: Processes and device.
        pairs: The pairs; broken images are left out.
        progress: Called by the main process.

    Raises:
        FlowsimError: If the file lacks images, or is of another model.
    """
    tower = model.digest("image")
    key: tuple[Any, ...] = (pairs, tower, model.image_size, model.resize)  # pairs are equal only to themselves
    if isinstance(source, str):
        key = (*key, os.path.abspath(source), _changed(source))
    if key not in _LATEST:
        if isinstance(source, str):
            found = _read(source, model, tower, pairs)
        else:
            found = _computed(model, session, pairs, progress)
        _LATEST[key] = found
        while len(_LATEST) > _KEPT:
            _LATEST.popitem(last=False)
    _LATEST.move_to_end(key)
    return _LATEST[key]


_LATEST: OrderedDict[tuple[Any, ...], Rows] = OrderedDict()


def _changed(source: str) -> tuple[int, ...]:
    """Times of changes of a file, or of the files of a folder; empty if there is none."""
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


def _computed(model: models.Model, session: Session, pairs: Pairs, progress: Progress) -> Rows:
    """Features by the model. Each process embeds its share of a block, and gets those of the others."""
    model.module.to(session.device)
    width = _BLOCK * session.processes
    blocks = [np.arange(first, min(first + width, len(pairs))) for first in range(0, len(pairs), width)]
    shares = []
    for block in blocks:
        share = -(-len(block) // session.processes)
        mine = session.rank * share + np.arange(share)
        shares.append(block[np.minimum(mine, len(block) - 1)])  # all have equally many; what is too much is cut below
    rows, good, done, begin = [], [], 0, time.perf_counter()
    for block, (pixels, decoded) in zip(blocks, decoded_blocks(pairs, shares, model), strict=True):
        own = torch.from_numpy(encode_images(model, pixels, session.device)).to(session.device)
        fine = torch.from_numpy(decoded).to(session.device)
        rows.append(_gathered(session, own)[: len(block)])
        good.append(_gathered(session, fine)[: len(block)])
        done += len(block)
        if session.is_main:
            progress(FEATURES, done, len(pairs), images_per_second=done / max(time.perf_counter() - begin, 1e-9))
    kept = torch.cat(good)
    if kept.all():
        return pairs, torch.cat(rows)
    return pairs.without(~kept.numpy()), torch.cat(rows)[kept]


def _gathered(session: Session, own: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes one after the other, on the CPU."""
    gathered: Any = session.accelerator.gather(own)
    return gathered.cpu()


def _read(source: str, model: models.Model, tower: str, pairs: Pairs) -> Rows:
    """Features from a file or folder that `fs.clip.features` has written, found by the names of the images."""
    stored, about = load(source, verify=False), read_about(Path(source))
    if "weights" in about:
        known = {**about, "weights": about["weights"]["image"]}
        wanted = {"model": model.name, "image_size": model.image_size, "weights": tower}
        differing = differences(known, wanted)
        check(
            not differing,
            f"{source!r} holds features that differ from this run in {differing}. Compute them with its model, weights "
            "and `image_size`, or use locked_image=True.",
        )
    check(
        stored.image_dim == model.embed_dim,
        f"Features of images in {source!r} have {stored.image_dim} numbers, but embeddings of {model.name!r} have "
        f"{model.embed_dim}. Compute them with this model, or use locked_image=True.",
    )
    if stored.names is None:
        raise FlowsimError(
            f"{source!r} has no names of images. Use `fs.clip.features`, which writes them, or locked_image=True."
        )
    place = {name: k for k, name in enumerate(stored.names.tolist())}
    broken = set(about.get("broken", ()))
    left_out = np.array([key in broken and key not in place for key in pairs.keys])
    missing = [key for key, out in zip(pairs.keys, left_out, strict=True) if key not in place and not out]
    if missing:
        raise FlowsimError(
            f"{source!r} has no features of {len(missing):,} of the {len(pairs):,} images of {pairs.source!r} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). Compute them for all splits of this "
            "source, or use locked_image=True."
        )
    kept = pairs.without(left_out) if left_out.any() else pairs
    rows = stored.image_rows([place[key] for key in kept.keys], np.float32)
    return kept, torch.from_numpy(rows)
