"""`flowsim doctor`: what is wrong with a run, a checkpoint or embeddings."""

import dataclasses
import re
from typing import Annotated

from tyro import conf

from flowsim.cli.clip_options import clamp_of
from flowsim.cli.files import as_options, columns_in, saved_runs
from flowsim.cli.options import File, Flag, RunName, hint, names_in, number, text, whole
from flowsim.cli.output import print_json, progress
from flowsim.errors import FlowsimError

#: Arguments of `fs.diagnose` in its sentences -> options.
_OPTIONS = {f"`{name}`": f"--{name}" for name in ("batch", "pool", "optimizer", "embeddings", "columns")} | {
    "`learned=False`": "--fixed", "`clamp`": "--clamp MIN MAX",
}  # fmt: skip
_OPTION = re.compile("|".join(map(re.escape, _OPTIONS)))


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Look for the known faults of contrastive training in a log, a record, a checkpoint or embeddings.

    Every check gives a verdict with its numbers; for a fault the reason from theory, and what to try.
    """

    file: File = ()
    """Log (of open_clip, W&B, Hugging Face, Lightning, CSV), record (.nc), checkpoint or embeddings."""
    run_name: RunName = None
    """Which run of a file with several, e.g. "Baseline, seed 0"."""
    embeddings: Annotated[str | None, text("--embeddings", "FILE"), hint()] = None
    """Embeddings of training pairs at the end of the run, for logs, which have none."""
    temperature: Annotated[float | None, number("--temperature", "0.07"), hint()] = None
    """Softmax temperature of the embeddings."""
    batch: Annotated[int | None, whole("--batch", "256"), hint()] = None
    """Pairs in one loss, where it is not recorded."""
    pool: Annotated[int | None, whole("--pool", "1000"), hint()] = None
    """Held-out pairs among which recall was measured, where it is not recorded."""
    optimizer: Annotated[str | None, text("--optimizer", "NAME"), hint()] = None
    """Optimizer, where it is not recorded, e.g. adamw."""
    fixed: Flag = False
    """The temperature was fixed or scheduled on purpose."""
    clamp: Annotated[tuple[float, ...] | None, conf.arg(metavar="MIN MAX", help_behavior_hint="(default: 0.01 1)")] = (
        None
    )
    """Bounds of the temperature, where they are not recorded."""
    columns: Annotated[str | None, text("--columns", "SERIES=COLUMN,..."), hint()] = None
    """Columns of a log, e.g. step=iter,temperature=tau."""
    only: Annotated[str | None, text("--only", "NAME,..."), hint("(default: all)")] = None
    """Checks to make, e.g. temperature-at-clamp."""
    all: Flag = False
    """Also what the checks need that cannot tell."""
    json: Flag = False
    """JSON on stdout."""

    def run(self) -> int:
        """Diagnose and print."""
        if len(self.file) != 1:
            raise FlowsimError(
                f"Command `doctor` takes one FILE, but got {len(self.file)}. Use e.g. flowsim doctor out.log."
            )
        from flowsim.doctor import diagnose

        source = self.file[0]
        if self.run_name is not None:
            source = next(iter(saved_runs(self.file, self.run_name, columns_in(self.columns)).values()))
        with progress("Looking"), as_options():
            found = diagnose(
                source,
                embeddings=self.embeddings,
                temperature=self.temperature,
                batch=self.batch,
                pool=self.pool,
                optimizer=self.optimizer,
                learned=False if self.fixed else None,
                clamp=None if self.clamp is None else clamp_of(self.clamp),
                columns=columns_in(self.columns),
                only=names_in(self.only),
            )
        if self.json:
            print_json(found.to_dict())
            return 0
        print(_OPTION.sub(lambda name: _OPTIONS[name[0]], found.text(missing=self.all)))
        if not self.all and any(one.verdict == "cannot tell" for one in found.findings.values()):
            print("Option --all shows what these need.")
        return 0
