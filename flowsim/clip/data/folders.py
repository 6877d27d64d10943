"""The reader of folders and tar shards: images with tables of captions, WebDatasets, and folders of classes."""

from pathlib import Path

from flowsim.clip.data.classes import class_names, numbered
from flowsim.clip.data.files import Found, could_be_files, images_of, list_files
from flowsim.clip.data.join import joined, opener
from flowsim.clip.data.pairs import Pairs, Skips
from flowsim.clip.data.sources import PathLike, register
from flowsim.clip.data.splits import check_split, split_and_class, split_sizes
from flowsim.clip.data.tables import Names, beside, splits_in
from flowsim.clip.data.webdataset import with_siblings
from flowsim.errors import FlowsimError


def _is_folder(source: str) -> bool:
    return not source.lower().endswith(".json") and could_be_files(source)


def labelled(source: str, split: str) -> Pairs:
    """Images with classes of one split; see `load_labelled`."""
    skips = Skips()
    files, home = list_files(source, skips)
    found, assigned = _placed(with_siblings(files, skips), home)
    skips.counts.pop("caption without image", None)  # captions are not needed here
    if (table := beside(home, "splits")) is not None:  # takes precedence over names of folders
        assigned = splits_in(table, Names(one.key for one in found))
    sizes = split_sizes(found, assigned)
    if not sizes:
        raise FlowsimError(
            f"The labelled images of {source!r} have no splits. Put them into folders train and test, or add "
            "splits.tsv with the columns filename and split."
        )
    if split == "test" and not sizes["test"] and sizes["val"]:
        split = "val"
    check_split(source, split, assigned, sizes)
    kept = []
    for one in found:
        if one.key not in assigned:
            skips.add("image without split", one.key)
        elif assigned[one.key] == split and one.label is None:
            skips.add("image without class", one.key)
        elif assigned[one.key] == split:
            kept.append(one)
    if not kept:
        raise FlowsimError(
            f"No image of {source!r}, split {split!r}, has a class. Put the images of a class into a folder of its "
            "name, or use a WebDataset with .cls members, or shapes."
        )
    labels, classes = numbered(kept, [one.label for one in found if one.key in assigned], skips)
    return Pairs.of(
        [one.key for one in kept],
        [()] * len(kept),
        opener([one.image for one in kept]),
        source=source,
        split=split,
        labels=labels,
        classes=class_names(home / "classnames.txt", classes),
        skips=skips,
    )


def _placed(siblings: list[Found], home: Path) -> tuple[list[Found], dict[str, str]]:
    """Images with the class of their folder unless they have another, and the split of each key by folder."""
    found, assigned = [], {}
    for one in siblings:
        part, folder = split_and_class(one, home)
        found.append(one._replace(label=one.label or folder))
        if part is not None:
            assigned[one.key] = part
    return found, assigned


@register("folder", _is_folder, describes="a folder, a .tar or a pattern of shards", labelled=labelled)
def read(source: str, split: str | None, *, captions: PathLike | None = None, splits: PathLike | None = None) -> Pairs:
    """Images with captions from tables or from files of the same stem."""
    skips = Skips()
    files, home = list_files(source, skips)
    table = beside(home, "captions") if captions is None else Path(captions)
    found = with_siblings(files, skips) if table is None else images_of(files)
    return joined(source, split, found, table, beside(home, "splits") if splits is None else Path(splits), skips)
