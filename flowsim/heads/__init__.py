"""Heads on frozen features: the paper's methods on real pairs, in seconds on a laptop.

    import flowsim as fs
    record = fs.heads.train(fs.heads.Training(data="emoji"), "TS S3", "run.nc")

The heads are the encoders of the simulator, so the trained model is the simulated one.

- `settings`: the settings of a training; `training`: the public function; `learner`: compiled steps of one or many runs
- `embedding`: rows of any pairs under the weights of a start
- `pools`: the pairs of a run; `record`: its record and checkpoint; `studies`: methods and seeds
"""

from flowsim.heads.embedding import embed
from flowsim.heads.settings import Training
from flowsim.heads.studies import study
from flowsim.heads.training import train

__all__ = ["Training", "embed", "study", "train"]
