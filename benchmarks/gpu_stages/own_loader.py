"""open_clip's own way to its batches: JPEG files, decoded, augmented and tokenized by the workers of a DataLoader.

As `open_clip_train.data.get_csv_dataset`, whose module needs packages that machines may lack (webdataset, braceexpand).
Only what the workers need is imported here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Csv(Dataset):
    """Line by line what `open_clip_train.data.CsvDataset` does; one row for each caption."""

    def __init__(self, images: list[str], captions: list[str], transforms: Any, tokenizer: Any) -> None:
        self.images, self.captions, self.transforms, self.tokenize = images, captions, transforms, tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.transforms(Image.open(str(self.images[idx])))
        texts = self.tokenize([str(self.captions[idx])])[0]
        return images, texts


class _Drawn:
    """Rows in random order, as many as `steps` batches take, in as many epochs as that needs."""

    def __init__(self, rows: int, wanted: int) -> None:
        self.rows, self.wanted = rows, wanted

    def __len__(self) -> int:
        return self.wanted

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(0)
        left = self.wanted
        while left > 0:
            yield from torch.randperm(self.rows, generator=generator)[:left].tolist()
            left -= self.rows


def write(folder: Path, pairs: Any) -> tuple[list[str], list[str]]:
    """Write images of pairs as JPEG files of their size; (file, caption) of every row."""
    from flowsim.clip.data.pixels import WORKERS, in_threads

    folder.mkdir(parents=True, exist_ok=True)
    files = [str(folder / f"{i:06d}.jpg") for i in range(len(pairs))]
    in_threads(lambda i: pairs.image(i).save(files[i], quality=88), len(files), WORKERS)
    rows = [(file, caption) for file, captions in zip(files, pairs.captions, strict=True) for caption in captions]
    return [file for file, _ in rows], [caption for _, caption in rows]


def batches(rows: tuple[Sequence[str], Sequence[str]], model: Any, batch: int, steps: int, workers: int) -> DataLoader:
    """Batches (images, tokens) as open_clip's trainer gets them; a batch that is half a minute late is an error."""
    crops = {"scale": (0.9, 1.0)}  # open_clip's default, and ours
    transform = image_transform_v2(
        PreprocessCfg(size=model.image_size, mean=model.mean, std=model.std), is_train=True, aug_cfg=crops
    )
    images, captions = list(rows[0]), list(rows[1])
    return DataLoader(
        Csv(images, captions, transform, model.tokenize),
        batch_size=batch,
        sampler=_Drawn(len(images), batch * steps),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        timeout=30,
        # Workers by `fork`, PyTorch's default here, may hang next to the threads of JAX.
        multiprocessing_context="forkserver",
    )
