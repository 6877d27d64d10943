"""`flowsim heads`: the commands that train heads on frozen features, by name."""

import dataclasses

from flowsim.cli.heads_study import HeadsStudy
from flowsim.cli.heads_train import HeadsTrain
from flowsim.cli.parsing import Command
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Heads:
    """The paper's methods on real pairs: heads on frozen features, train and study. See flowsim heads --help."""

    def run(self) -> int:
        """Raise `FlowsimError`, because a command is missing."""
        raise FlowsimError("Give a command after heads: train or study. See flowsim heads --help.")


HEADS_COMMANDS: dict[str, type[Command]] = {"train": HeadsTrain, "study": HeadsStudy}
