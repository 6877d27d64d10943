"""The result of `fs.check`: one sentence for each check."""

import html
from dataclasses import dataclass

from flowsim.base.html import table


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: Name of the check.
        passed: Whether the part does what is expected.
        sentence: What was found; for a failed check also what was expected.
    """

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, repr=False)
class Conformance:
    """Whether a part does what flowsim expects of its kind, from `fs.check`.

    Attributes:
        part: The part's name.
        kind: The kind of part, e.g. "loss".
        findings: One for each check that was run.
        left_out: Names of the checks that were skipped because they depend on a failed one.
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
        return f"Skipped, because they depend on a failed check: {', '.join(self.left_out)}." if self.left_out else ""

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
