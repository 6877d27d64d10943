"""open_clip models: by name, from a JSON configuration, with weights from a tag or a file.

Weights are read without unpickling code (`weights_only`, safetensors).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch

from flowsim.clip.data import Resize
from flowsim.errors import FlowsimError, unknown_name

#: Entries of a tag about images.
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
_CONFIGS = Path(__file__).parent / "configs"
open_clip.add_model_config(_CONFIGS)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with its tokenizer and image preprocessing.

    `tokenize(list of str)` -> (n, context) int64 token ids. Images become squares of `image_size` pixels by `resize`;
    pixels in [0, 1] are normalised with `mean`, `std`.
    """

    name: str
    module: Any
    tokenize: Any
    image_size: int
    embed_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = Resize()

    @property
    def open_clip(self) -> Any:
        """open_clip's module, also where the image tower is locked."""
        return getattr(self.module, "clip", self.module)

    def digest(self, tower: str) -> str:
        """16 hexadecimal digits of a hash of the weights of a tower, "image" or "text"."""
        state = self.open_clip.state_dict()
        names = [n for n in state if n.startswith("visual.") == (tower == "image") and "logit_" not in n]
        return _digest({name: state[name] for name in names})


def _digest(weights: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def build(name: str, pretrained: str | None = None, image_size: int | None = None, seed: int = 0) -> Model:
    """The open_clip model `name` (or JSON file), initialised with `seed`, on the CPU in fp32.

    `pretrained`: a file of weights, or one of open_clip's tags; a tag also sets the activation (QuickGELU), the
    normalisation and the resizing that its weights were trained with. Raises `FlowsimError` for an unknown model or tag
    (with near misses), for a damaged configuration, and for weights that cannot be read or belong to another model.
    """
    known = _known(name)
    tag = {} if pretrained is None else _tag(pretrained, known)
    torch.manual_seed(seed)
    size = image_size or tag.get("size")
    options: dict[str, Any] = {} if size is None else {"force_image_size": size}
    # open_clip's defaults remain for everything that the tag does not set.
    options["force_preprocess_cfg"] = {k: tag[k] for k in _PREPROCESS if k in tag}
    with _quiet():
        try:
            module: Any = open_clip.create_model(known, force_quick_gelu=bool(tag.get("quick_gelu")), **options)
            _try(module)
        except Exception as error:  # a wrong configuration fails in many ways
            raise FlowsimError(
                f"The model {name!r} cannot be built at {image_size or 'its own'} pixels: {_first_line(error)}. "
                "Check its configuration, and use an `image_size` that its patches divide."
            ) from None
        if pretrained is not None:
            load_weights(module, pretrained, known, tag)
        tokenize = _tokenizer(known)
    preprocess = open_clip.get_model_preprocess_cfg(module)
    resize = Resize(preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic"))
    size = module.visual.image_size
    size = size[0] if isinstance(size, (tuple, list)) else size
    dim = int(open_clip.get_model_config(known)["embed_dim"])  # pyright: ignore[reportOptionalSubscript]
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    return Model(known, module, tokenize, int(size), dim, mean, std, resize)


@functools.lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    """The tokenizer of a known model; the same object for every run, so that these can share tokens."""
    return open_clip.get_tokenizer(name)


@torch.no_grad()
def _try(module: Any) -> None:
    """Embed one blank image, so that an invalid configuration fails here and not in the first step."""
    size = module.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    module.eval().encode_image(torch.zeros(1, 3, height, width))
    module.train()


def _tag(source: str, name: str) -> dict[str, Any]:
    """open_clip's entry of a tag; empty for a file of weights. Raises `FlowsimError` if it is neither."""
    if Path(source).is_file():
        return {}
    if Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors") or "/" in source:
        raise FlowsimError(f"There is no file of weights {source!r}. Check the path, or give an open_clip tag.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source not in tags:
        if not tags:
            raise FlowsimError(f"The model {name!r} has no pretrained tags. Give a file of weights instead.")
        raise unknown_name(f"pretrained tag of {name}", source, tags)
    return dict(open_clip.get_pretrained_cfg(name, source))


def load_weights(module: Any, source: str, name: str, tag: dict[str, Any] | None = None) -> None:
    """Load weights from a file (.pt, .bin, .safetensors), or download those of an open_clip tag."""
    tag = _tag(source, name) if tag is None else tag
    path = source
    if tag:
        try:
            path = open_clip.download_pretrained(tag)
        except Exception as error:  # many kinds: network, hub, disk
            raise FlowsimError(
                f"The weights {source!r} of {name} cannot be downloaded ({_first_line(error)}). "
                "Check the connection, or give a local file."
            ) from None
    try:
        open_clip.load_checkpoint(module, path, weights_only=True)
    except Exception as error:  # a damaged or foreign file fails in many ways
        # Wrong shapes are detected by open_clip (an assertion) or by PyTorch.
        if isinstance(error, AssertionError) or "state_dict" in str(error):
            raise FlowsimError(
                f"The weights in {source!r} belong to another model than {name}: {_first_line(error, 1)}. "
                "Give the model that they were trained for."
            ) from None
        raise FlowsimError(
            f"The file {source!r} holds no weights that can be loaded safely ({_first_line(error)}). "
            "Save a state dict with torch.save or safetensors."
        ) from None


def _known(name: str) -> str:
    """open_clip's name of a model; a JSON file is registered first."""
    if not name.endswith(".json"):
        if name not in open_clip.list_models():
            raise unknown_name("model", name, open_clip.list_models())
        return name
    path = Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlowsimError(f"There is no model configuration {name!r}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise FlowsimError(f"The model configuration {name!r} is not readable JSON: {error}.") from None
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - (config.keys() if isinstance(config, dict) else set())
    if missing:
        raise FlowsimError(
            f"The model configuration {name!r} lacks {', '.join(sorted(missing))}. "
            "Use open_clip's format, e.g. that of its RN50.json."
        )
    if path.stem in open_clip.list_models() and open_clip.get_model_config(path.stem) != config:
        raise FlowsimError(f"{path.stem!r} is already the name of another model. Rename the file {name!r}.")
    open_clip.add_model_config(path)
    return path.stem


def _first_line(error: BaseException, skip: int = 0) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[min(skip, len(lines) - 1)][:160].rstrip(".:")


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress open_clip's log messages and deprecation warnings of other packages."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
