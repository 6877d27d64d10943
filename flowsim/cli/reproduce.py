"""`flowsim reproduce`: the paper's figures and the table of claims."""

import dataclasses
from pathlib import Path
from typing import Annotated

from flowsim.cli.files import check_writable_folder
from flowsim.cli.options import Flag, Names, hint, text
from flowsim.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Compute and draw the paper's figures and the table of claims: all of them, or those named.

    A line is printed for each figure as it is finished. Finished computations are kept in records, which the same
    command reuses. The exit code is 0 if every claim has its expected verdict, else 1.
    """

    names: Names = ()
    """Experiments to run, e.g. fig2; default all."""
    quick: Flag = False
    """Smaller sizes at the same tolerances."""
    force: Flag = False
    """Recompute even if there is a record."""
    out: Annotated[str | None, text("--out", "DIR"), hint("(default: figures/full, with --quick figures/quick)")] = None
    """Folder for figures and records."""

    def run(self) -> int:
        """Reproduce; 0 if every claim has its expected verdict."""
        if self.out is not None:
            check_writable_folder(Path(self.out))
        from flowsim import reproduce

        known = reproduce.experiment_names()
        for name in self.names:
            if name not in known:
                raise unknown_name("experiment", name, known)
        done = reproduce.run(list(self.names) or None, quick=self.quick, force=self.force, out=self.out)
        return 0 if done.ok else 1
