"""The doctor: verdicts about a run, embeddings or a checkpoint, with numbers, reasons and what to try.

    fs.diagnose("out.log"), fs.diagnose(record), fs.diagnose("embeddings.npz"), fs.diagnose("checkpoint.pt")

- `case`: what is known of a run, in one form; `finding`: findings, and the registry of checks
- `temperature`, `training`, `embeddings`: the checks
- `diagnose`: the public function
"""

# The checks register when they are imported, in the order of a diagnosis.
from flowsim.doctor import training as training  # isort: skip
from flowsim.doctor import temperature as temperature  # isort: skip
from flowsim.doctor import embeddings as embeddings  # isort: skip
from flowsim.doctor.case import Case, Track
from flowsim.doctor.diagnose import diagnose
from flowsim.doctor.diagnosis import Diagnosis
from flowsim.doctor.finding import CannotTell, Check, Finding, Sign, names, register

__all__ = ["CannotTell", "Case", "Check", "Diagnosis", "Finding", "Sign", "Track", "diagnose", "names", "register"]
