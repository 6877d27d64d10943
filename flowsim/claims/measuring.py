"""Measure claims: one, several, or all, in threads or processes."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flowsim.base import processes as _processes
from flowsim.base.checks import check
from flowsim.claims.base import Claim, System, Table, Verdict
from flowsim.claims.registry import REGISTRY, theme
from flowsim.errors import unknown_name
from flowsim.progress import Progress, silent


def names() -> list[str]:
    """The ids of all claims, in the order of the table."""
    return list(REGISTRY)


def get(name: str) -> Claim:
    """The claim of an id.

    Args:
        name: The id, e.g. "lemma-3.1".

    Returns:
        The claim.

    Raises:
        FlowsimError: If there is none; the message has the nearest ids.

    Examples:
        >>> import flowsim as fs
        >>> fs.claims.get("theorem-3.2-as-printed").expected
        'fails'
    """
    if name not in REGISTRY:
        raise unknown_name("claim", name, REGISTRY)
    return REGISTRY[name]


def run(name: str, quick: bool = False, system: System | None = None) -> Verdict:
    """Measure one claim.

    Args:
        name: Its id.
        quick: Fewer seeds and shorter horizons; the limits stay.
        system: What is measured; default: flowsim itself.

    Returns:
        The verdict with the measured numbers.

    Raises:
        FlowsimError: For an unknown id, and for measurements that cannot be judged.

    Examples:
        >>> import flowsim as fs
        >>> verdict = fs.claims.run("figure-2", quick=True)
        >>> verdict.verdict, verdict.as_expected
        ('holds', True)
    """
    return get(name).run(quick, system)


def run_all(
    quick: bool = False,
    progress: Progress = silent,
    system: System | None = None,
    only: Sequence[str] | None = None,
    processes: bool = False,
) -> list[Verdict]:
    """Measure every claim, or some of them.

    Args:
        quick: Fewer seeds and shorter horizons; the limits stay.
        progress: Called as `progress(id, done, total)` after each claim.
        system: What is measured; default: flowsim itself. Needs threads.
        only: Ids of the claims to measure.
        processes: Whether to use processes, which is faster, instead of threads. Claims that you registered run in
            this process, after the others.

    Returns:
        The verdicts, in the order of the table.

    Raises:
        FlowsimError: For an unknown id.
    """
    check(
        not isinstance(only, str),
        f"Argument `only` must be a list of ids, but is {only!r}. Use e.g. [{only!r}].",
    )
    chosen = {get(name).id for name in (names() if only is None else only)}
    themes: dict[str, list[str]] = defaultdict(list)
    for name in (name for name in REGISTRY if name in chosen):
        themes[theme(REGISTRY[name])].append(name)
    verdicts: dict[str, Verdict] = {}
    lock, done = threading.Lock(), 0

    def count(text: str, _: int, total: int | None, /, **numbers: float) -> None:
        nonlocal done
        with lock:
            done += 1
            progress(text, done, len(chosen))

    if processes and system is None:
        # Processes import claims by their ids, which only flowsim's own have everywhere.
        calls = [(_measure, (quick, ids)) for ids in themes.values() if all(map(REGISTRY.is_ours, ids))]
        for _, found in _processes.run(calls, lambda index: count, quick):
            verdicts |= found
        themes = {key: ids for key, ids in themes.items() if not verdicts.keys() >= set(ids)}
    # Two threads: while one traces a program, the other runs one.
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(_measure, count, quick, ids, system) for ids in themes.values()]:
            verdicts |= job.result()
    return [verdicts[name] for name in REGISTRY if name in chosen]


def _measure(progress: Progress, quick: bool, ids: Sequence[str], system: System | None = None) -> dict[str, Verdict]:
    """Claims of one theme, one after the other."""
    found = {}
    for name in ids:
        found[name] = run(name, quick, system)
        progress(name, 0, None)
    return found


def table(
    quick: bool = False,
    progress: Progress = silent,
    system: System | None = None,
    only: Sequence[str] | None = None,
) -> Table:
    """Measure claims, and show them as a table in the terminal or a notebook.

    Args:
        quick: As in `run_all`.
        progress: As in `run_all`.
        system: As in `run_all`.
        only: As in `run_all`.

    Returns:
        The table; it iterates over its verdicts.

    Raises:
        FlowsimError: For an unknown id.
    """
    return Table(run_all(quick, progress, system, only))
