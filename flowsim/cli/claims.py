"""`flowsim claims`: the paper's statements with measured numbers and verdicts."""

import dataclasses

from flowsim.cli.options import Flag, Names
from flowsim.cli.output import print_json, progress
from flowsim.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Claims:
    """Measure the paper's claims, all or those named, and print statements, numbers and verdicts.

    The exit code is 0 if every verdict is as expected, else 1.
    """

    names: Names = ()
    """Claims to check, e.g. lemma-3.1; default all."""
    json: Flag = False
    """Print only JSON on stdout: a list of {id, statement, source, assumptions, numbers, expected, verdict}."""
    quick: Flag = False
    """Smaller samples at the same tolerances."""

    def run(self) -> int:
        """Measure and print; 0 if every verdict is as expected."""
        from flowsim import claims

        known = claims.names()
        for name in self.names:
            if name not in known:
                raise unknown_name("claim", name, known)
        chosen = list(self.names) or list(known)
        with progress("Claims") as shown:
            verdicts = claims.run_all(self.quick, shown, only=chosen, processes=True)
        if self.json:
            print_json([v.to_dict() for v in verdicts])
        else:
            print(claims.Table(verdicts))
        return 0 if all(v.as_expected for v in verdicts) else 1
