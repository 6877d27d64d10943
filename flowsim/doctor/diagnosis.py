"""The result of a diagnosis: findings by name, as text, table or plain data."""

import dataclasses
from typing import Any

from flowsim.base.html import table
from flowsim.doctor.finding import Finding
from flowsim.errors import unknown_name


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """The result of `diagnose`; `diagnosis["temperature-at-clamp"]` is a finding.

    Attributes:
        name: What was diagnosed.
        findings: Name -> finding of every check, in the order of the report.
        read: How a log or checkpoint was read, in sentences.
    """

    name: str
    findings: dict[str, Finding]
    read: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Finding:
        """A finding by name; raises `FlowsimError` for an unknown one."""
        if name not in self.findings:
            raise unknown_name("check", name, self.findings)
        return self.findings[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.findings)

    @property
    def faults(self) -> list[str]:
        """Names of the faults that were found."""
        return [name for name, one in self.findings.items() if one.found and one.fault]

    @property
    def remarks(self) -> list[str]:
        """Names of what was found and is no fault."""
        return [name for name, one in self.findings.items() if one.found and not one.fault]

    @property
    def _title(self) -> str:
        unknown = sum(one.verdict == "cannot tell" for one in self.findings.values())
        count = f"{len(self.faults)} fault{'' if len(self.faults) == 1 else 's'} found"
        lacking = f", {unknown} of which cannot tell" if unknown else ""
        return f"{self.name}: {count}; {len(self.findings)} checks{lacking}"

    def __repr__(self) -> str:
        return self.text()

    def text(self, missing: bool = True) -> str:
        """The report as text.

        Args:
            missing: Whether to say what each of the checks needs that cannot tell; otherwise only their names are
                listed.

        Returns:
            Lines.
        """
        lines = [self._title, *(f"  {'' if k else 'Read: '}{one}" for k, one in enumerate(self.read))]
        for one in self.findings.values():
            if one.found:
                lines += [
                    f"  {'FAULT' if one.fault else 'remark'}  {one.name}: {one.title}", f"    {one.sentence}",
                    f"    Why: {one.reason}", f"    Try: {one.cure}",
                ]  # fmt: skip
        for verdict, head in (("not found", "Not found"), ("cannot tell", "Cannot tell")):
            some = [one for one in self.findings.values() if one.verdict == verdict]
            if some and verdict == "cannot tell" and not missing:
                lines.append(f"  {head}: {', '.join(one.name for one in some)}")
            elif some and verdict == "cannot tell":
                lines.append(f"  {head}")
                for sentence in dict.fromkeys(one.sentence for one in some):
                    lacking = ", ".join(one.name for one in some if one.sentence == sentence)
                    lines.append(f"    {lacking}: {sentence}")
            elif some:
                width = max(len(one.name) for one in some)
                lines += [f"  {head}", *(f"    {one.name:<{width}}  {one.sentence}" for one in some)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        order = sorted(self.findings.values(), key=lambda one: ("found", "not found", "cannot tell").index(one.verdict))
        rows = [(one.name, one.verdict, one.sentence, one.cure) for one in order]
        marked = [index for index, one in enumerate(order) if one.found and one.fault]
        title = " ".join([self._title + ".", *(f"{'' if k else 'Read: '}{one}" for k, one in enumerate(self.read))])
        return table(
            rows, ("check", "verdict", "in numbers", "try"), title if self.read else self._title, marked=marked
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        findings = [dataclasses.asdict(one) for one in self.findings.values()]
        return {
            "name": self.name, "read": list(self.read), "faults": self.faults, "remarks": self.remarks,
            "findings": findings,
        }  # fmt: skip
