"""`flowsim clip`: the commands of the bridge to CLIP, by name."""

import dataclasses

from flowsim.cli.clip_early import Early
from flowsim.cli.clip_features import Features
from flowsim.cli.clip_kernel import Kernel
from flowsim.cli.clip_kernel_study import KernelStudy
from flowsim.cli.clip_measure import Measure
from flowsim.cli.clip_study import Study
from flowsim.cli.clip_train import Train
from flowsim.cli.parsing import Command
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Clip:
    """The same schedules on real CLIP (extra clip): train, features, measure, study, early, kernel, kernel-study."""

    def run(self) -> int:
        """Raise `FlowsimError`, because a command is missing."""
        raise FlowsimError(
            "Give a command after clip: train, features, measure, study, early, kernel or kernel-study. "
            "See flowsim clip --help."
        )


CLIP_COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "features": Features,
    "measure": Measure,
    "study": Study,
    "early": Early,
    "kernel": Kernel,
    "kernel-study": KernelStudy,
}
