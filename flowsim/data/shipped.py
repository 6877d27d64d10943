"""Features that come with flowsim."""

import dataclasses
from pathlib import Path

from flowsim.data.features import Features
from flowsim.data.numpy_files import read
from flowsim.data.sources import load, register

_EMOJI = Path(__file__).with_name("emoji.npz")


@register("emoji", lambda source: source == "emoji")
def read_emoji(source: str) -> Features:
    """The features of `emoji`."""
    return dataclasses.replace(read(str(_EMOJI)), source=source)


def emoji() -> Features:
    """Features of 1,655 emoji, for trying heads in seconds; also `load("emoji")`.

    Images (128 columns) are features of an ImageNet model, EfficientNet-Lite0, of the pictures of noto-emoji. Texts
    (128 columns, two for each emoji) are mean token embeddings of wordllama of the short name and of the keywords in
    Unicode's CLDR. Both were reduced by projections that keep the mean of the training pairs, which makes the gap of
    heads at the start. Classes are Unicode's 98 subgroups of emoji, such as "animal mammal"; two emoji have none.

    The splits are "train" (1,332), "val" (152) and "test" (171), with all variants of one emoji in the same one.
    Sources, licences and what the reduction costs are told in `flowsim/data/emoji.md`; `experiments/_emoji.py` made the
    file.

    Returns:
        The features, not scaled.

    Examples:
        >>> import flowsim as fs
        >>> features = fs.data.emoji()
        >>> features.splits
        {'train': 1332, 'val': 152, 'test': 171}
        >>> int(features.labels[100]), features.names[100], features.classes[features.labels[100]]
        (39, np.str_('hot pepper'), 'food vegetable')
    """
    return load("emoji")
