"""The reader of COCO captions: one JSON file that lists images and captions, and a folder with the images."""

import glob
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowsim.clip.data.files import Bytes, Found
from flowsim.clip.data.join import joined
from flowsim.clip.data.pairs import Pairs, Skips
from flowsim.clip.data.sources import PathLike, register
from flowsim.clip.data.tables import beside, read_text
from flowsim.errors import FlowsimError


def _is_coco(source: str) -> bool:
    return source.lower().endswith(".json")


@register("coco", _is_coco, describes="a COCO .json")
def read(source: str, split: str | None, *, splits: PathLike | None = None, images: PathLike | None = None) -> Pairs:
    """The images that the file lists and that exist, with their captions."""
    skips, path = Skips(), Path(source)
    found = _found(path, images, skips)
    table = beside(path.parent, "splits") if splits is None else Path(splits)
    return joined(source, split, found, None, table, skips)


def _found(path: Path, images: PathLike | None, skips: Skips) -> list[Found]:
    names, written = _content(path)
    folder = _folder(path, images, list(names.values())[:20])
    captions: dict[str, list[str]] = defaultdict(list)  # by file name, which several images of the file may share
    for image, caption in written:
        if image not in names:
            skips.add("caption without image", f"image_id {image}")
        elif not caption:
            skips.add("empty caption", names[image])
        else:
            captions[names[image]].append(caption)
    found = []
    for name in dict.fromkeys(names.values()):
        where = os.path.join(folder, name)
        if os.path.isfile(where):
            found.append(Found(name, Bytes(where), tuple(captions[name])))
        else:
            skips.add("image that does not exist", name)
    return found


def _content(path: Path) -> tuple[dict[Any, str], list[tuple[Any, str]]]:
    """File name by image id, and (image id, caption) of every caption."""
    try:
        content = json.loads(read_text(path))
        names = {one["id"]: str(one["file_name"]) for one in content["images"]}
        return names, [(one["image_id"], str(one["caption"]).strip()) for one in content["annotations"]]
    except json.JSONDecodeError as error:
        raise FlowsimError(f"{str(path)!r} is not JSON ({error}). Download it again.") from None
    except (KeyError, TypeError) as error:
        raise FlowsimError(
            f"{str(path)!r} is not a file of COCO captions (missing: {error}). It needs images with id and file_name, "
            "and annotations with image_id and caption."
        ) from None


def _folder(path: Path, images: PathLike | None, names: Sequence[str]) -> str:
    """The folder of the images: the given one, or one next to the file or its folder that holds any of them."""
    parents = [str(path.absolute().parent), str(path.absolute().parent.parent)]
    near = [p for parent in parents for p in (parent, *sorted(glob.glob(os.path.join(glob.escape(parent), "*", ""))))]
    for folder in near if images is None else [os.fspath(images)]:
        if any(os.path.isfile(os.path.join(folder, name)) for name in names):
            return folder
    if images is not None:
        raise FlowsimError(
            f"The folder {str(images)!r} holds no image listed in {str(path)!r}. Give another as `images`."
        )
    raise FlowsimError(f"No image listed in {str(path)!r} was found near it. Give their folder as `images`.")
