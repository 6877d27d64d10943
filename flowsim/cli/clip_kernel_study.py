"""`flowsim clip kernel-study`: what measured kernels explain of training, over towers, batches and optimizers."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import bridge
from flowsim.cli.clip_progress import bars
from flowsim.cli.files import check_writable_folder
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import progress as shown
from flowsim.cli.output import say


@dataclasses.dataclass(frozen=True)
class KernelStudy:
    """Train small models with their kernels measured on the way, and compare each run with the flow of its kernels.

    Example: flowsim clip kernel-study --data PHOTOS --seeds 3 --jobs 2. The same command resumes where it was stopped;
    with --tables it only reads finished records.
    """

    data: Annotated[str, text("--data", "SOURCE"), hint("(default: shapes)")] = "shapes"
    """Source of the pairs; see flowsim clip train --help."""
    cells: Annotated[str, text("--cells", "NAME,..."), hint("(default: all nine)")] = "all"
    """Tower (vit, rn), batch (full, minibatch) and optimizer (sgd, slow-sgd, adamw), e.g. "vit full sgd"."""
    methods: Annotated[str | None, text("--methods", "NAME,..."), hint("(default: five)")] = None
    """Methods of the paper; default: Baseline, FLT 4e-2, TS S3, SLRT 0.1, HS 1e-2."""
    seeds: Annotated[int, whole("--seeds", "3")] = 3
    """Number of seeds, from 0."""
    steps: Annotated[int | None, whole("--steps", "300"), hint()] = None
    """Steps of each run; default: 300 (900 of slow-sgd)."""
    out: Annotated[str, text("--out", "DIR"), hint("(default: kernel-runs)")] = "kernel-runs"
    """Folder of the records, of numbers.nc, tables.md and kernels.png."""
    jobs: Annotated[int, whole("--jobs", "2")] = 1
    """Runs at the same time."""
    tables: Flag = False
    """Do not train; only compare the finished records in --out."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""

    def run(self) -> int:
        """Train what is missing, compare, write and print the tables."""
        check_writable_folder(Path(self.out))
        study = bridge("kernel_studies")
        if self.tables:
            records = study.finished_kernels(self.out)
        else:
            names = study.CELLS if self.cells == "all" else [name.strip() for name in self.cells.split(",")]
            methods = study.METHODS if self.methods is None else self.methods
            count = len(names) * len(bridge("studies").methods(methods)) * self.seeds
            with bars(runs=count) as progress:
                records = study.kernel_study(
                    self.data, self.out, names, methods, self.seeds, jobs=self.jobs, cpu=self.cpu, steps=self.steps,
                    progress=progress,
                )  # fmt: skip
        from flowsim.base.files import write_text
        from flowsim.comparison.kernel_figure import kernel_figure
        from flowsim.comparison.kernel_table import kernel_numbers, kernel_tables
        from flowsim.plot import paper_style, save
        from flowsim.records.netcdf import write_netcdf

        folder = Path(self.out)
        with shown("Comparison") as progress:
            numbers = kernel_numbers(records, jobs=self.jobs, progress=progress)
        tables = "\n\n".join(f"# {name.capitalize()}\n\n{made}" for name, made in kernel_tables(numbers).items()) + "\n"
        saved = [write_netcdf(numbers, folder / "numbers.nc"), write_text(folder / "tables.md", tables)]
        with paper_style():
            saved.append(save(kernel_figure(numbers), folder / "kernels.png"))
        print(tables)
        sys.stdout.flush()
        say(f"Saved {', '.join(str(path) for path in saved)}.")
        return 0
