"""What a run trains on and is evaluated on: batches, held-out pairs and training pairs, and models to go with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowsim.base.checks import check
from flowsim.clip.batches import Batches, onto, prepare
from flowsim.clip.data import Pairs
from flowsim.clip.embed import Sample, first_captions, sample
from flowsim.clip.locked import Rows, locked, locked_rows
from flowsim.clip.models import Model
from flowsim.clip.session import Session
from flowsim.clip.settings import Training
from flowsim.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run, or of the runs of a stack.

    - `models`: the given models; their image towers are frozen if the settings lock them.
    - `batches`: training batches. `seen`, `held_out`: training pairs and held-out pairs of evaluations.
    """

    models: list[Model]
    batches: Batches
    seen: Sample
    held_out: Sample


def read_inputs(
    settings: Training, session: Session, models: Sequence[Model], pools: tuple[Pairs, Pairs], progress: Progress
) -> Inputs:
    """Read, or embed with a locked image tower, the images of training pairs and held-out pairs.

    Raises `FlowsimError` if the image towers of several models are locked and differ.
    """
    (pool, held_out_pool), model = pools, models[0]
    size, tokenize, resize = model.image_size, model.tokenize, model.resize
    if not settings.locked_image:
        batches = prepare(pool, tokenize, size, settings, session.rank, session.processes, resize)
        onto(batches, session.device)
        seen = sample(batches.pairs, settings.pairs, tokenize, size, resize)
        return Inputs(list(models), batches, seen, sample(held_out_pool, settings.pairs, tokenize, size, resize))
    towers = {one.digest("image") for one in models} if len(models) > 1 else ()
    check(
        len(towers) < 2,
        "Stacked runs of several seeds share the features of one locked image tower, but without `pretrained` each "
        "seed has another. Give `pretrained`, or use `stack=1`.",
    )
    (pairs, rows), held_out = (
        locked_rows(settings.locked_image, model, session, one, progress) for one in (pool, held_out_pool)
    )
    batches = prepare(pairs, tokenize, size, settings, session.rank, session.processes, resize, rows)
    onto(batches, session.device)
    seen = _sample((pairs, rows), settings.pairs, model)
    return Inputs([locked(one) for one in models], batches, seen, _sample(held_out, settings.pairs, model))


def _sample(found: Rows, count: int, model: Model) -> Sample:
    """The first `count` pairs, with features in place of pixels."""
    pairs, rows = found[0].select(slice(count)), found[1][:count]
    return Sample(pairs, rows, first_captions(pairs, model.tokenize))
