"""`fs.check`: find the kind of a part and run its checks."""

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flowsim.base import notice
from flowsim.base.checks import shown
from flowsim.base.registry import registered_as
from flowsim.conformance import (
    geometry_flow,
    kernel,
    loss,
    observable,
    pairing,
    parametrization,
    recipe,
    row_loss,
    rule,
    swap,
    temperature,
)
from flowsim.conformance.every import checks_of
from flowsim.conformance.explain import explained
from flowsim.conformance.report import Conformance, Finding
from flowsim.conformance.suite import Check, Suite, Unmet
from flowsim.errors import FlowsimError
from flowsim.model.flow import GradientFlow
from flowsim.model.schedules import Schedule
from flowsim.observables.observable import Observable

#: One suite for each kind of part.
SUITES: tuple[Suite, ...] = tuple(
    module.SUITE
    for module in (
        temperature,
        parametrization,
        loss,
        row_loss,
        geometry_flow,
        kernel,
        pairing,
        swap,
        rule,
        recipe,
        observable,
    )
)


def check(part: Any) -> Conformance:
    """Check that a part that you wrote does everything that flowsim expects of a part of its kind.

    The checks call the part and compare gradients with automatic differentiation, derivatives with finite differences,
    compiled with uncompiled values, and single with double precision. Mistakes and exceptions of the part are reported
    as findings. Checks that depend on a failed one are skipped.

    Args:
        part: A temperature policy, parametrization, loss, geometry, kernel, pairing, swap, rule or recipe; or its
            class, which is built with its defaults; or an observable: `fs.observables.Observable` or a function of
            image and text rows (n, d).

    Returns:
        The findings, one sentence each, shown as a table; `ok` is True if all checks passed.

    Raises:
        FlowsimError: If `part` is not a part, or is a class with fields that have no defaults.

    Examples:
        >>> import flowsim as fs
        >>> fs.check(fs.InfoNCE).ok
        True
        >>> found = fs.check(fs.temperature.Learnable(init=0.1))
        >>> [finding.name for finding in found.failed]
        []
    """
    suite = _suite_of(part)
    name = part.__name__ if isinstance(part, type) else type(part).__name__
    with _settings(), notice.compiling():
        if isinstance(part, type):
            part, unbuilt = _built(part)
            if unbuilt is not None:
                return Conformance(name, suite.kind, (unbuilt,), tuple(c.name for c in checks_of(suite)))
        elif suite.base is Observable:
            part = part if isinstance(part, Observable) else observable.from_function(part)
            name = part.name
            if part.of != "rows":
                raise FlowsimError(f"The observable {name!r} is not a function of rows. Record it in a run.")
        return _run(name, suite, part)


def _suite_of(part: Any) -> Suite:
    """The suite for the kind of a part; `FlowsimError` if there is none."""
    cls = part if isinstance(part, type) else type(part)
    for suite in SUITES:
        if issubclass(cls, suite.base) and not (isinstance(part, type) and suite.base is Observable):
            if isinstance(part, type) and part.__name__.startswith("Abstract"):
                raise FlowsimError(f"`{part.__name__}` is a base class, not a part. Check a class derived from it.")
            return suite
    if cls in (GradientFlow, Schedule):
        raise FlowsimError(f"A {cls.__name__} is made of parts. Check them one by one, e.g. fs.check(flow.loss).")
    if callable(part) and not isinstance(part, type):
        if (known := registered_as(part)) is not None:
            raise FlowsimError(
                f"`{getattr(part, '__name__', type(part).__name__)}` is registered as {known}, which fs.check does not "
                "check. Give a part of the simulator, or a function of image and text rows."
            )
        return observable.SUITE
    bases = ", ".join(suite.base.__name__ for suite in SUITES if suite.base is not Observable)
    raise FlowsimError(
        f"{shown(part)} is not a part. Give an object or a class derived from one of {bases}, or a function of image "
        "and text rows."
    )


def _built(cls: type) -> tuple[Any, Finding | None]:
    """An object of a class with its defaults, or the finding that it cannot be built."""
    fields = [f for f in dataclasses.fields(cls) if f.init]
    nothing = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is nothing and f.default_factory is nothing]
    if needed and not inspect.isabstract(cls):
        listed = " and ".join(f"`{name}`" for name in needed)
        given = ", ".join(f"{name}=..." for name in needed)
        raise FlowsimError(f"`{cls.__name__}` needs {listed}. Check an object of it: {cls.__name__}({given}).")
    try:
        return cls(), None
    except Exception as error:
        missing = " Define what is missing." * isinstance(error, TypeError)
        text = f"`{cls.__name__}()` raised {type(error).__name__}: {' '.join(str(error).split())}"
        return None, Finding("builds", False, f"{text}{'' if text.endswith('.') else '.'}{missing}")


def _run(name: str, suite: Suite, part: Any) -> Conformance:
    """All checks, except for those that depend on a failed one."""
    findings: list[Finding] = []
    left_out: list[str] = []
    for item in checks_of(suite):
        not_passed = {finding.name for finding in findings if not finding.passed} | set(left_out)
        if not_passed & set(item.after):
            left_out.append(item.name)
        elif (finding := _finding(item, part)) is not None:
            findings.append(finding)
    return Conformance(name, suite.kind, tuple(findings), tuple(left_out))


def _finding(item: Check, part: Any) -> Finding | None:
    try:
        sentence = item.look(part)
    except Unmet as unmet:
        return Finding(item.name, False, str(unmet))
    except Exception as error:  # the part may raise anything
        return Finding(item.name, False, explained(error, getattr(part, "function", None)))
    return None if sentence is None else Finding(item.name, True, sentence)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Double precision and JAX's default promotion, whatever the session uses, and no warnings."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
