"""Which column of a log holds which series, by its name.

A name is split into words at capitals and signs: "train/contrastiveLoss" is contrastive loss of the part train. Parts
are train, or those of held-out pairs (val, eval, test, ...).
"""

import re
from collections.abc import Iterator

from flowsim.observables.table import RECALLS, names

_PARTS: dict[str, str] = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "eval", "evaluation", "test", "dev"), "held out"
)
#: Synonyms, the preferred ones first.
_STEPS = (
    "trainer_global_step", "global_step", "step", "iteration", "iter", "it", "n_iter", "iterations", "steps",
    "num_steps", "_step",
)  # fmt: skip
#: The contrastive part of a loss comes before a total, which may have others, e.g. of captions. Each may also end in
#: "_step" or "_epoch", as Lightning writes them.
_LOSSES = (
    "contrastive_loss", "clip_loss", "infonce_loss", "info_nce_loss", "nce_loss", "itc_loss", "loss_itc", "loss",
    "total_loss",
)  # fmt: skip
_HELD_OUT_LOSSES = (*_LOSSES, "clip_val_loss", "val_loss")
_RATES = ("lr", "learning_rate", "lr_0", "lr_group0")
_RATE_OF_OPTIMIZER = re.compile(r"lr_(adamw?|sgd|lion|lamb|lars|adafactor|rmsprop|nadam)(_pg1)?")
#: Beginnings and ends of names of temperatures; their order is that of preference.
_TEMPERATURES = {
    "raw_temperature": ("raw_temperature", "log_inverse_temperature", "log_logit_scale", "raw_logit_scale",
                        "logit_scale_raw", "nu"),
    "inverse_temperature": ("inverse_temperature", "inv_temperature", "logit_scale_exp", "exp_logit_scale",
                            "inverse_temp"),
    "log_temperature": ("log_temperature", "log_tau", "log_temp"),
    "temperature": ("temperature", "tau", "temp", "softmax_temperature", "clip_temperature", "temperature_tau"),
    "logit_scale": ("logit_scale", "logitscale", "scale"),
}  # fmt: skip
_NOT_OF_SOFTMAX = frozenset(["gpu", "cpu", "system", "loss", "grad", "amp", "loss_scale", "sampling"])
_OBSERVABLES = {
    "gap": "modality_gap", "centroid_gap": "modality_gap", "centroid_distance": "modality_gap",
    "rmg": "relative_modality_gap", "pair_cosine": "mean_pair_cosine", "positive_cosine": "mean_pair_cosine",
}  # fmt: skip
_WAYS = {
    "image_to_text": "image_to_text", "i2t": "image_to_text", "img2txt": "image_to_text", "img_to_txt": "image_to_text",
    "text_retrieval": "image_to_text", "text_to_image": "text_to_image", "t2i": "text_to_image",
    "txt2img": "text_to_image", "txt_to_img": "text_to_image", "image_retrieval": "text_to_image",
}  # fmt: skip
#: Recall of both directions: its k, or none for the mean over several k.
_EITHER_WAY = re.compile(r"(?:mean_)?(?:recall_?@?(?:at)?_?(\d+)|r@(\d+))|mean_recall|recall_mean")
_KS = ("1", "5", "10")
_RECALL = re.compile(rf"({'|'.join(_WAYS)})_(?:r|recall|at|top|acc)?_?@?_?(\d+)")
_RECALL_FIRST = re.compile(rf"(?:r|recall|top|acc)_?@?_?(\d+)_({'|'.join(_WAYS)})")

#: Series that columns can be named as -> what they are called in a record.
SERIES = {
    "step": "step", "epoch": "epoch", "loss": "train_loss", "train_loss": "train_loss", "val_loss": "loss",
    "learning_rate": "learning_rate", "temperature": "temperature", "inverse_temperature": "inverse_temperature",
    "raw_temperature": "raw_temperature", "log_temperature": "log_temperature", "logit_scale": "logit_scale",
    "gap": "modality_gap",
} | {
    prefix + name: prefix + name for prefix in ("", "seen_")
    for name in (*names(), *(f"recall_at_{k}" for k in _KS), "mean_recall")
}  # fmt: skip
#: Series that are fractions, or percent in some logs.
FRACTIONS = (*RECALLS, *(f"recall_at_{k}" for k in _KS), "mean_recall")


def words(name: str) -> tuple[str | None, str]:
    """Part and plain name of a column: "train/contrastiveLoss" -> ("train", "contrastive_loss")."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name)
    private = name.startswith("_")
    found = [word for word in re.split(r"[^a-z0-9@]+", apart.lower()) if word]
    part = None
    for place in (0, -1):
        if len(found) > 1 and found[place] in _PARTS:
            part = _PARTS[found.pop(place)]
            break
    return part, "_" * private + "_".join(found)


def candidates(name: str) -> Iterator[tuple[str, int]]:
    """Series that a column may hold, each with a rank, where the lowest of all columns is preferred.

    Series are those of a record, and "logit_scale" for what may be ν or β.
    """
    part, plain = words(name)
    held_out = part == "held out"
    loss, when = plain, 0
    for place, end in enumerate(("_step", "_epoch"), 1):
        if plain.endswith(end) and plain != end:
            loss, when = plain.removesuffix(end), place
    if plain in _STEPS and not held_out:
        yield "step", _STEPS.index(plain)
    elif plain in ("epoch", "trainer_epoch"):
        yield "epoch", 0 if not held_out else 1
    elif loss in _HELD_OUT_LOSSES and held_out:
        yield "loss", 3 * _HELD_OUT_LOSSES.index(loss) + when
    elif plain == "clip_val_loss":
        yield "loss", 3 * len(_HELD_OUT_LOSSES)
    elif loss in _LOSSES:
        # A bare "loss" is that of batches where "train_loss" is also there, as in logs of Hugging Face's Trainer.
        yield "train_loss", 6 * _LOSSES.index(loss) + 2 * when + (part is not None)
    elif plain in _RATES and not held_out:
        yield "learning_rate", _RATES.index(plain)
    elif _RATE_OF_OPTIMIZER.fullmatch(plain) and not held_out:
        yield "learning_rate", len(_RATES) + plain.endswith("_pg1")
    elif (kind := temperature_kind(plain)) is not None and (plain != "scale" or part == "train"):  # or the scale of AMP
        yield kind, list(_TEMPERATURES).index(kind) * 10 + 2 * held_out + (part is None)
    elif (observable := _observable(name, plain, held_out)) is not None:
        yield ("seen_" if part == "train" else "") + observable, 0 if part is None else 1


def temperature_kind(plain: str) -> str | None:
    """The kind of temperature that a plain name says: "temperature", "logit_scale" and the like, or None."""
    parts = plain.split("_")
    if _NOT_OF_SOFTMAX & set(parts):
        return None
    for kind, synonyms in _TEMPERATURES.items():
        if plain in synonyms:
            return kind
    for kind in ("raw_temperature", "inverse_temperature", "log_temperature", "temperature", "logit_scale"):
        long = [word for word in _TEMPERATURES[kind] if len(word) > 6]
        if any(plain.endswith(f"_{word}") for word in long):
            return kind
    return None


def _observable(name: str, plain: str, held_out: bool) -> str | None:
    """The observable of a plain name, also after a path such as "monitor/"."""
    for text in (plain, words(re.split(r"[/.]", name)[-1])[1]):
        found = _RECALL.fullmatch(text)
        way, k = (found[1], found[2]) if found else ("", "")
        if not found and (found := _RECALL_FIRST.fullmatch(text)):
            way, k = found[2], found[1]
        if way and f"{_WAYS[way]}_at_{k}" in RECALLS:
            return f"{_WAYS[way]}_at_{k}"
        short = re.fullmatch(r"r_?(\d+)", text) if held_out else None
        if short and short[1] in _KS:
            return f"recall_at_{short[1]}"
        if (found := _EITHER_WAY.fullmatch(text)) and (k := found[1] or found[2]) in (None, *_KS):
            return "mean_recall" if k is None else f"recall_at_{k}"
        if text in _OBSERVABLES or text in names():
            return _OBSERVABLES.get(text, text)
    return None
