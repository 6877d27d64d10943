"""What `fs.check` returns: one sentence for each thing that was checked."""

import html
from dataclasses import dataclass

from flowsim.base.html import table


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was checked, in a word.
        passed: Whether the part does what is expected.
        sentence: The method, and what was expected and found.
    """

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, repr=False)
class Conformance:
    """Whether a part does what flowsim expects of its kind, from `fs.check`.

    Attributes:
        part: The part's name.
        kind: What kind of part it is, e.g. "loss".
        findings: One for each check that was done.
        left_out: Names of checks that need what failed, and were not done.
    """

    part: str
    kind: str
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that did not pass."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def _title(self) -> str:
        passed = len(self.findings) - len(self.failed)
        return f"{self.part} ({self.kind}): {passed} of {len(self.findings)} checks passed"

    @property
    def _note(self) -> str:
        return f"Not done, because they need what failed: {', '.join(self.left_out)}." if self.left_out else ""

    def _rows(self) -> list[tuple[str, str, str]]:
        return [("ok" if f.passed else "FAILED", f.name, f.sentence) for f in self.findings]

    def __repr__(self) -> str:
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = [f"{mark:<6}  {name:<{width}}  {sentence}" for mark, name, sentence in self._rows()]
        return "\n".join([self._title, *lines, *([self._note] if self._note else [])])

    def _repr_html_(self) -> str:
        failed = [index for index, finding in enumerate(self.findings) if not finding.passed]
        found = table(self._rows(), ("", "check", "finding"), self._title, marked=failed)
        return found + (f"<p>{html.escape(self._note)}</p>" if self._note else "")
