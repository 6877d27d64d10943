"""Everything that a GPU shall show, in one call that ends in time: bridge, study, simulator and heads.

    python benchmarks/gpu.py --out DIR [--seconds 540] [--tiny] [--stages machine parity ...]

Stages run one after the other, each in its own process with its own budget of time, ordered by value. A stage that
fails or runs over does not stop the next, and what a stage leaves unused goes to those after it. Each writes its record
to DIR whenever a part of it is finished (see `gpu_stages/record.py`), so the same call goes on where it was stopped.
`--tiny` runs every line at small size, on any machine; two idle cores take 100 s. The exit code is 1 if
any part is missing. `python benchmarks/gpu_pack.py` prepares what has to travel to a machine that lacks this project's
packages and data.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_stages.plan import STAGES

_HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--seconds", type=float, default=540.0, help="time for all stages")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal on any machine")
    parser.add_argument("--data", type=Path, help="folder with photos and features, see gpu_pack.py")
    parser.add_argument("--work", type=Path, help="folder for files that need not be kept; default: OUT/work")
    parser.add_argument("--study", default="", help='options of the stage study, e.g. "--patch 8 --lr 2e-3"')
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    options = parser.parse_args()
    if options.data is not None and not options.data.is_dir():
        parser.error(f"There is no folder {str(options.data)!r}. Give that of gpu_pack.py, or leave --data out.")
    options.study = options.study.split()
    options.out.mkdir(parents=True, exist_ok=True)
    begin, codes = time.monotonic(), {}
    for index, name in enumerate(options.stages):
        left = options.seconds - (time.monotonic() - begin)
        if _record(options.out, name).get("complete") and _record(options.out, name).get("tiny") == options.tiny:
            codes[name] = "complete before"
            continue
        # What earlier stages left unused goes to this one; what later ones need is kept for them.
        kept = sum(STAGES[later].least for later in options.stages[index + 1 :])
        grown = max(STAGES[name].seconds, left - kept) if STAGES[name].grows else STAGES[name].seconds
        seconds = 600.0 if options.tiny else min(grown, left)
        if seconds < STAGES[name].least:
            codes[name] = f"left out, {max(left, 0):.0f} s left"
            continue
        codes[name] = _run(name, seconds, options)
    print(f"\n{time.monotonic() - begin:.0f} s")
    for name in options.stages:
        print(f"{name:>10}: {codes[name]}; {_summary(_record(options.out, name))}")
    return 0 if all(_record(options.out, name).get("complete") for name in options.stages) else 1


def _run(name: str, seconds: float, options: argparse.Namespace) -> str:
    """Run a stage in its own process; returns how it ended."""
    print(f"\n=== {name}, {seconds:.0f} s ===", flush=True)
    work = options.work or options.out / "work"
    call = _call(name, seconds, options)
    if options.data and (wanted := STAGES[name].data) is not None:
        call += ["--data", str(options.data / wanted)]
    if STAGES[name].works:
        call += ["--work", str(work)]
    if name == "study":
        call += options.study
    path = os.pathsep.join([str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    store = {"JAX_COMPILATION_CACHE_DIR": str(work / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **store, "PYTHONPATH": path}
    begin = time.monotonic()
    # Each in a session of its own, so that its workers end with it.
    process = subprocess.Popen(call, env=environment, start_new_session=True)
    running, other = [process], STAGES[name].compiles
    if other is not None and other in options.stages and not _record(options.out, other).get("complete"):
        beside = [*_call(other, seconds, options), "--compile-only", "1"]
        running.append(subprocess.Popen(beside, env=environment, start_new_session=True))
    try:
        code = process.wait(timeout=seconds + 5)
        ended = "ok" if code == 0 else f"ended with code {code}"
    except subprocess.TimeoutExpired:
        ended = "ran over its time"
    finally:
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()
    return f"{ended} after {time.monotonic() - begin:.0f} s"


def _call(name: str, seconds: float, options: argparse.Namespace) -> list[str]:
    """The command of a stage, with the options that all have."""
    call = [sys.executable, str(_HERE / "gpu_stages" / f"{name}.py"), "--out", str(options.out)]
    return [*call, "--seconds", f"{seconds:.0f}", *(["--tiny"] if options.tiny else [])]


def _record(folder: Path, name: str) -> dict[str, Any]:
    """The record of a stage; empty if there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _summary(record: dict[str, Any]) -> str:
    parts = record.get("parts", {})
    bad = [
        f"{name} ({part.get('error') or part.get('left_out')})" for name, part in parts.items() if "result" not in part
    ]
    return f"{len(parts) - len(bad)} of {len(parts)} parts" + (f"; without: {'; '.join(bad)}" if bad else "")


if __name__ == "__main__":
    sys.exit(main())
