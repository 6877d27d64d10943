"""`flowsim clip early`: the first steps from many initialisations."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import SeveralOptions, bridge
from flowsim.cli.clip_progress import bars
from flowsim.cli.files import check_writable_folder
from flowsim.cli.options import whole
from flowsim.cli.output import say


@dataclasses.dataclass(frozen=True)
class Early(SeveralOptions):
    """The change of the gap over the first steps, from many initialisations (the paper's Figure 4b)."""

    count: Annotated[int, whole("--count", "100")] = 100
    """Initialisations."""

    def run(self) -> int:
        """Train what is missing, then print how many gaps were enlarged."""
        check_writable_folder(Path(self.out))
        settings = self.training()
        steps = self.steps or 10
        with bars(runs=self.count) as progress:
            records = bridge("studies").early_changes(
                settings, self.out, self.count, steps, jobs=self.jobs, cpu=self.cpu, progress=progress
            )
        print(f"Change of the gap over the first steps, {len(records)} initialisations")
        for name, changes in bridge("studies").changes(records).items():
            good = [c for c in changes if math.isfinite(c)]
            if not good:
                print(f"  {name:<22} not finite in any")
                continue
            lost = f" ({len(changes) - len(good)} not finite)" if len(good) < len(changes) else ""
            print(
                f"  {name:<22} enlarged in {sum(c > 0 for c in good)}, mean {sum(good) / len(good):+.4f}, "
                f"from {min(good):+.4f} to {max(good):+.4f}{lost}"
            )
        say(f"Saved {Path(self.out) / 'early.nc'}.")
        return 0
