"""`flowsim sweep`: one flow for many values and seeds."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli.files import check_writable_file, check_writable_folder
from flowsim.cli.flows import T1, FlowOptions
from flowsim.cli.options import Flag, choice, hint, names_in, text
from flowsim.cli.output import print_json, progress, say_saved
from flowsim.cli.values import parse_over
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.integrate.sweep import SweepResult
    from flowsim.model.flow import GradientFlow


@dataclasses.dataclass(frozen=True)
class Sweep(FlowOptions):
    """Integrate a flow for every combination of values and seeds, batched; print how the runs ended.

    Example: flowsim sweep --start cones --over schedule.temperature.init=geom:0.01:1:20 --over seed=0:8 --out runs.nc
    """

    over: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, text("--over", "PATH=V1,V2,...")], ...]],
        conf.arg(help_behavior_hint="(repeatable)"),
    ] = ()
    """Values of a path of the flow, of the start (start.height), or of seed: a list, 0:8, lin:0:1:5, geom:0.01:1:20."""
    mode: Annotated[str, choice("--mode", ("product", "zip"))] = "product"
    """product: every combination of the values; zip: element by element."""
    to: Annotated[str | None, text("--to", "RUNS.zarr"), hint()] = None
    """Folder to which finished runs are saved; the same command resumes where it was stopped."""
    observables: Annotated[str | None, text("--observables", "NAME,..."), hint("(default: gap, loss, ...)")] = None
    """Observables to record, e.g. modality_gap,uniformity."""
    executor: Annotated[str | None, text("--executor", "WHERE"), hint("(default: threads)")] = None
    """Address of a dask scheduler (tcp://host:8786), or processes:N."""
    out: Annotated[str | None, text("--out", "RUNS.nc"), hint()] = None
    """Save all runs as netCDF; `fs.load_sweep` reads it."""
    json: Flag = False
    """Statuses and final observables as JSON on stdout."""

    def run(self) -> int:
        """Sweep, save, print."""
        if self.out is not None:
            check_writable_file(Path(self.out), ".nc")
        if self.to is not None:
            check_writable_folder(Path(self.to).parent, "--to")
        from flowsim.integrate.options import DEFAULT_OBSERVABLES
        from flowsim.integrate.sweep import sweep

        flow, start = self.flow_and_start()
        over = self._values(flow, start)
        with progress("Sweep") as shown:
            runs = sweep(
                flow,
                start,  # pyright: ignore[reportArgumentType]
                over,
                t1=T1 if self.t1 is None else self.t1,
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                to=self.to,
                seed=self.seed,
                rtol=self.rtol,
                method=self.method,  # pyright: ignore[reportArgumentType]
                observables=names_in(self.observables) or DEFAULT_OBSERVABLES,
                executor=self.executor,
                progress=shown,
            )
        if self.out is not None:
            runs.save(self.out)
        if self.json:
            print_json(_summary(runs))
        else:
            print(runs)
        say_saved(self.out)
        return 0

    def _values(self, flow: "GradientFlow", start: Any) -> dict[str, list[Any]]:
        """Path -> its values, of every `--over`."""
        if not self.over:
            raise FlowsimError("Nothing to sweep. Add e.g. --over seed=0:8.")
        over: dict[str, list[Any]] = {}
        for item in self.over:
            path, values = parse_over(flow, start, item)
            if path in over:
                raise FlowsimError(f"Option `--over` names {path!r} twice. Give all its values at once.")
            over[path] = values
        if self.mode == "zip" and len({len(values) for values in over.values()}) > 1:
            counts = ", ".join(f"{path} {len(values)}" for path, values in over.items())
            raise FlowsimError(
                f"With --mode zip all values need the same length, but there are: {counts}. Give the same number of "
                "each, or use --mode product for every combination."
            )
        return over


def _summary(runs: "SweepResult") -> dict[str, Any]:
    """Statuses and the observables at the last time, one entry per run along the swept dimensions."""
    last = runs.dataset.isel(time=-1)
    return {
        "dims": {str(name): size for name, size in last.sizes.items()},
        "over": {str(name): values.to_numpy() for name, values in last.coords.items() if name != "time"},
        "counts": runs.counts,
        "time": last["time"].item(),
        "observables": {str(name): values.to_numpy() for name, values in last.data_vars.items()},
        "seconds": runs.dataset.attrs["seconds"],
        "config": json.loads(runs.dataset.attrs["config"]),
        "versions": json.loads(runs.dataset.attrs["versions"]),
    }
