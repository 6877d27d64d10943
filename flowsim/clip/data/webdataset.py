"""WebDataset: files that share a stem belong together, as `a.jpg`, `a.txt` and `a.cls`."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from flowsim.clip.data.files import File, Found, distinct_names, is_image
from flowsim.clip.data.pairs import Skips
from flowsim.errors import FlowsimError


def with_siblings(files: Sequence[File], skips: Skips) -> list[Found]:
    """Images with the captions and class of the files with the same stem."""
    groups: dict[tuple[str, str], dict[str, File]] = defaultdict(dict)
    for file in files:
        stem, _, ending = file.name.rpartition(".")
        kind = "image" if is_image(file.name) else ending.lower()
        if kind == "image" and kind in groups[file.shard, stem]:
            skips.add("second image of a name", file.name)
            continue
        groups[file.shard, stem][kind] = file
    chosen, texts = [], []
    for (_, stem), parts in groups.items():
        captions = _captions(parts)
        if "image" in parts:
            chosen.append(parts)
            texts.append(captions)
        elif captions:
            skips.add("caption without image", stem)
    keys = distinct_names([parts["image"] for parts in chosen])
    return [
        Found(key, parts["image"].data, captions, _label(parts))
        for key, parts, captions in zip(keys, chosen, texts, strict=True)
    ]


def _label(parts: Mapping[str, File]) -> str | None:
    """The class in `stem.cls`."""
    return parts["cls"].data.read().decode("utf-8", "replace").strip() or None if "cls" in parts else None


def _captions(parts: Mapping[str, File]) -> tuple[str, ...]:
    """The captions in `stem.txt`, one per line, or in `stem.json`."""
    for ending in ("txt", "json"):
        if ending not in parts:
            continue
        file = parts[ending]
        where = f"{file.name!r} of {file.shard + '.tar' if file.shard else file.data.path!r}"
        try:
            text = file.data.read().decode("utf-8-sig")
            content = text.splitlines() if ending == "txt" else json.loads(text)
        except UnicodeDecodeError as error:
            raise FlowsimError(f"{where} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise FlowsimError(f"{where} is not JSON ({error}). Repair it.") from None
        if isinstance(content, dict):
            content = content.get("captions", content.get("caption"))
        lines = [content] if isinstance(content, str) else content if isinstance(content, list) else []
        captions = tuple(line.strip() for line in lines if isinstance(line, str) and line.strip())
        if captions:
            return captions
    return ()
