"""Numbers of about 200 runs over all parts, to show that refactoring changes none of them.

    python benchmarks/same_numbers.py record before.json     # at the old revision; resumes where it was stopped
    python benchmarks/same_numbers.py record after.json      # at the new one, same machine, same versions
    python benchmarks/same_numbers.py compare before.json after.json

For each run the status, the steps and every number of every series are stored, in hexadecimal, so `compare` is bitwise.
Only public names are used, so that the same script works for both revisions.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import flowsim as fs

#: Old name -> current name, for files of older revisions; `compare` reads both.
RENAMED: dict[str, str] = {
    "series raw": "series raw_temperature", "snapshot raw": "snapshot raw_temperature", "raw": "raw_temperature",
    # On parallel cones only; the old name is now that of the rows.
    "series margin": "series direction_margin", "margin": "direction_margin",
}  # fmt: skip
#: Runs that differ on purpose, and why.
EXPLAINED: dict[str, str] = {
    "geometry Sphere rate, learnable, Adam": "the rule sees the gradient itself, not times a rate and over it",
}


def digits(value: Any) -> Any:
    """Numbers as hexadecimal text, arrays as lists of it, everything else as it is."""
    if isinstance(value, dict):
        return {str(k): digits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [digits(v) for v in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value.hex()
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return [float(x).hex() for x in array.ravel()]
    return array.ravel().tolist()


def of_result(result: fs.Result) -> dict[str, Any]:
    kept = {k: v for k, v in result.stats.items() if "seconds" not in k}
    status = result.status
    return {
        "time": result.time,
        "status": status.code.name,
        "stopped_at": status.stopped_at,
        "method": status.method,
        "stats": kept,
        **{f"series {k}": v for k, v in result.series.items()},
        **{f"snapshot {k}": v[-1] for k, v in result.snapshots.items()},
    }


def of_sweep(runs: Any) -> dict[str, Any]:
    data = runs.dataset
    return {str(name): data[name].to_numpy() for name in data}


def descend(flow: Any, start: Any, **options: Any) -> fs.Result:
    if hasattr(fs, "descend"):
        return fs.descend(flow, start, **options)
    return fs.simulate(flow, start, **options)


def flows() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """name -> (flow, start, options of `simulate`)."""
    t, flow = fs.temperature, fs.GradientFlow
    cones, uniform = fs.initial.cones(pairs=6, dim=5), fs.initial.uniform(pairs=6, dim=5)
    latents = fs.initial.latents(pairs=8, factors=4, dim=5)
    to = {"t1": 1e4}
    found: dict[str, tuple[Any, Any, dict[str, Any]]] = {}
    for name in fs.schedules.names():
        found[f"preset {name}"] = (flow.from_preset(name), fs.initial.rings(), {"t1": 1e5})
    policies = {
        "clamp": t.Learnable(0.07, clamp=(0.05, 0.2)), "clamp low": t.Learnable(0.05, clamp=(0.05, 0.2)),
        "identity": t.Learnable(0.5, parametrization=t.Identity()), "frozen": t.Learnable(lr_ratio=0.0),
        "softplus": t.Learnable(parametrization=t.Softplus(), lr_ratio=2.0), "cosine": t.Cosine(0.02, 0.2, cycles=2),
        "linear": t.Linear(0.3, 0.05), "fixed": t.Fixed(0.2),
    }  # fmt: skip
    for name, policy in policies.items():
        for label, geometry, start in (
            ("sphere", fs.Sphere(), uniform),
            ("parallel", fs.Parallel(), cones),
            ("reduced", fs.Reduced(), cones),
        ):
            found[f"policy {name}, {label}"] = (flow(geometry, policy), start, to)
    losses = {
        "DirectedInfoNCE": fs.DirectedInfoNCE("text_to_image"), "Sigmoid": fs.Sigmoid(),
        "Sigmoid relative": fs.Sigmoid(bias=0.0, relative_bias=True), "Sigmoid locked": fs.Sigmoid(bias_rate=None),
        "NTXent": fs.NTXent(), "Regularised": fs.Regularised(0.5, 0.5),
    }  # fmt: skip
    for name, loss in losses.items():
        found[f"loss {name}, sphere"] = (flow(loss=loss), uniform, to)
        if name not in ("NTXent", "Regularised"):
            found[f"loss {name}, parallel"] = (flow(fs.Parallel(), loss=loss), cones, to)
    pairings = {
        "LabelNoise": fs.LabelNoise(0.1), "FrozenMispairing": fs.FrozenMispairing(0.5),
        "FreshRepairing": fs.FreshRepairing(0.5), "FreshRepairing redrawn": fs.FreshRepairing(0.5, redraw=5.0),
        "Clusters": fs.Clusters(2),
    }  # fmt: skip
    for name, pairing in pairings.items():
        end = {"t1": 20.0} if "redrawn" in name else to
        found[f"pairing {name}, sphere"] = (flow(schedule=t.Fixed(0.2), pairing=pairing), uniform, {**end, "seed": 3})
        found[f"pairing {name}, parallel"] = (flow(fs.Parallel(), pairing=pairing), cones, {**end, "seed": 3})
    swaps = {
        "hard": fs.HardSwap(0.1, masks=4), "rows": fs.HardSwap(0.1, by="row", masks=4),
        "soft": fs.SoftSwap(0.1, masks=4), "updated": fs.SoftSwap(0.1, reading="updated", masks=4),
        "redrawn": fs.HardSwap(0.1, masks=4, redraw=5.0),
    }  # fmt: skip
    for name, swap in swaps.items():
        end = {"t1": 20.0} if name == "redrawn" else {"t1": 1e3}
        found[f"swap {name}, sphere"] = (flow(schedule=fs.Schedule(swap=swap)), uniform, {**end, "seed": 5})
    geometries = {
        "Sphere rate": (fs.Sphere(embedding_rate=3.0), uniform), "Unnormalized": (fs.Unnormalized(), uniform),
        "Subspaces": (fs.Subspaces(45.0), uniform), "LinearEncoders": (fs.LinearEncoders(), latents),
        "MLPEncoders": (fs.MLPEncoders(), fs.initial.latents(pairs=8, factors=4, dim=5, hidden=6)),
        "Reduced similarity": (fs.Reduced(), fs.initial.from_similarity(np.eye(4) * 0.9 + 0.1, gamma=0.3)),
    }  # fmt: skip
    for name, (geometry, start) in geometries.items():
        found[f"geometry {name}"] = (flow(geometry, t.Fixed(0.2)), start, {"t1": 1e3, "throw": False})
        found[f"geometry {name}, learnable"] = (flow(geometry), start, {"t1": 1e2, "throw": False})
    found["geometry Sphere rate, learnable, Adam"] = (
        flow(fs.Sphere(embedding_rate=3.0), t.Learnable(lr_ratio=0.5), rule=fs.AdamLimit(1e-2)), uniform, {"t1": 10.0},
    )  # fmt: skip
    found["rule AdamLimit, parallel, sigmoid"] = (
        flow(fs.Parallel(), loss=fs.Sigmoid(), rule=fs.AdamLimit(1e-2)), cones, {"t1": 2.0, "throw": False},
    )  # fmt: skip
    for method in ("explicit", "implicit", "krylov", "stabilised"):
        found[f"method {method}"] = (flow(schedule=t.Fixed(0.3)), uniform, {"t1": 1e3, "method": method})
    found["stiff, learned by heart"] = (flow(schedule=t.Fixed(0.5)), fs.initial.uniform(pairs=40, dim=5), {"t1": 1e6})
    found["snapshots"] = (flow(), uniform, {"ts": [0.0, 1.0, 5.0, 20.0], "snapshots": [5.0]})
    found["float32"] = (flow(), uniform, {"t1": 1e3, "precision": "float32"})
    found["tiled"] = (flow(), fs.initial.uniform(pairs=256, dim=6), {"t1": 5.0})
    noisy = flow(schedule=t.Fixed(0.1), pairing=fs.LabelNoise(0.1))
    found["tiled, noise"] = (noisy, fs.initial.uniform(pairs=256, dim=6), {"t1": 5.0})
    found["saddle"] = (flow(schedule=t.Fixed(1.0)), fs.initial.orthonormal(pairs=4), {"t1": 1e8, "throw": False})
    found["gamma one"] = (
        flow(fs.Reduced(), t.Fixed(2.0)), fs.initial.rings(pairs=5, height=0.9), {"t1": 1e3, "throw": False},
    )  # fmt: skip
    return found


def discrete() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    flow, t = fs.GradientFlow, fs.temperature
    uniform, cones = fs.initial.uniform(pairs=6, dim=5), fs.initial.cones(pairs=6, dim=5)
    found: dict[str, tuple[Any, Any, dict[str, Any]]] = {}
    for optimizer in ("sgd", "momentum", "adam", "adamw"):
        found[f"descend {optimizer}"] = (flow(), uniform, {"optimizer": optimizer, "lr": 1e-2, "steps": 300})
        found[f"descend {optimizer}, parallel"] = (
            flow(fs.Parallel(), t.Linear(0.05, 0.3)), cones, {"optimizer": optimizer, "lr": 1e-3, "steps": 300},
        )  # fmt: skip
    variants = {
        "hard swap": flow(schedule=fs.Schedule(swap=fs.HardSwap(0.3))),
        "soft swap": flow(schedule=fs.Schedule(swap=fs.SoftSwap(0.3))),
        "fresh": flow(pairing=fs.FreshRepairing(0.5)), "sigmoid": flow(loss=fs.Sigmoid(bias_rate=2.0)),
        "ratios": flow(fs.Sphere(embedding_rate=2.0), t.Learnable(lr_ratio=0.3, clamp=(0.05, 0.075))),
        "identity": flow(schedule=t.Learnable(0.5, parametrization=t.Identity())),
    }  # fmt: skip
    for name, one in variants.items():
        found[f"descend {name}"] = (one, uniform, {"optimizer": "adam", "lr": 1e-2, "steps": 200, "seed": 2})
    return found


def sweeps() -> dict[str, Any]:
    flow, t = fs.GradientFlow, fs.temperature
    cones = fs.initial.cones(pairs=6, dim=5)
    inits = {"schedule.temperature.init": [0.05, 0.1, 0.4], "seed": range(3)}
    return {
        "sweep seeds": lambda: fs.sweep(flow(), cones, inits, t1=1e4),
        "sweep loose": lambda: fs.sweep(flow(fs.Parallel()), cones, inits, t1=1e3, rtol=1e-6),
        "sweep structures": lambda: fs.sweep(
            flow(),
            cones,
            {"schedule": ["Baseline", t.Fixed(0.3)], "pairing": [fs.Matched(), fs.LabelNoise(0.1)]},
            t1=1e3,
        ),
        "sweep zip": lambda: fs.sweep(
            flow(schedule=t.Fixed(0.3)),
            cones,
            {"schedule.temperature.tau": [0.1, 0.5], "start.height": [0.1, 0.6]},
            t1=1e6,
            mode="zip",
        ),
        "sweep mispaired": lambda: fs.sweep(
            flow(pairing=fs.FrozenMispairing(0.5)),
            fs.initial.uniform(pairs=6, dim=4),
            {"seed": range(4)},
            t1=1e4,
        ),
    }


def others() -> dict[str, Any]:
    """name -> a call that returns plain numbers."""
    found: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 40, 6))
    many = rng.standard_normal((2, 2100, 8))
    for name in fs.observables.names():
        found[f"observable {name}"] = lambda n=name: dict(
            fs.observables.report(image, text, temperature=0.1, only=[n]).values
        )
    found["report, blocks"] = lambda: dict(fs.observables.report(*many, temperature=0.1).values)
    start = fs.initial.cones(pairs=8, dim=6, height=0.3)
    for name, policy in (("learnable", fs.temperature.Learnable()), ("fixed", fs.temperature.Fixed(0.2))):
        simplex = fs.initial.simplex(pairs=6, gamma=0.3)
        found[f"predict {name}"] = lambda p=policy, s=simplex: of_result(
            fs.theory.predict(fs.GradientFlow(fs.Reduced(), p), s, t1=1e6)
        )
    gaps = np.linspace(0.01, 0.9, 9)
    found["theory"] = lambda: {
        "lemma": fs.theory.lemma_3_1(gaps, 0.95, 10.0),
        "force": fs.theory.gap_force(10 * gaps, 1.0, 8),
        "bound": list(fs.theory.theorem_3_3_bound(1000, 8, 14.0, 0.3)),
        "exponent": fs.theory.closing_exponent(2.0),
        "bessel": fs.theory.bessel_ratio(3, 100 * gaps),
        "critical": fs.theory.critical_temperature(gaps / 2, 8),
    }

    def compared(result: fs.Result) -> Any:
        return {name: item.to_dict() for name, item in fs.compare(result).items.items()}

    def continued() -> Any:
        flow = fs.GradientFlow.from_preset("Baseline")
        first = fs.simulate(flow, start, t1=1e3)
        return {**of_result(fs.simulate(flow, first, t1=1e6)), "at": first.at(7.7).image}

    def descent_continued() -> Any:
        flow = fs.GradientFlow.from_preset("TS S3")
        first = descend(flow, start, optimizer="adam", lr=1e-2, steps=50, horizon=100)
        return of_result(descend(flow, first, optimizer="adam", lr=1e-2, steps=50))

    found["continued"], found["descent continued"] = continued, descent_continued
    found["compare a flow"] = lambda: compared(fs.simulate(fs.GradientFlow(), start, t1=1e4))
    found["compare noise"] = lambda: compared(
        fs.simulate(fs.GradientFlow(pairing=fs.LabelNoise(0.1)), fs.initial.uniform(pairs=16, dim=8), t1=1e3)
    )
    found["compare a descent"] = lambda: compared(
        descend(fs.GradientFlow(), fs.initial.uniform(pairs=16, dim=8), optimizer="adam", lr=1e-2, steps=400)
    )
    record = Path(__file__).parents[1] / "experiments/reference/clip_early.nc"
    for name, run in list(fs.load_results(record).items())[:2]:
        found[f"compare training {name}"] = lambda r=run: compared(r)
    for claim in (
        "loss-gradient",
        "field-is-gradient",
        "theorem-3.3-height",
        "theorem-3.3-gap",
        "theorem-3.3-bound",
        "figure-2",
        "lemma-3.1-on-figure-2",
        "rings-conserve",
        "rings-exponent",
        "lemma-3.1",
        "conserved-exp",
        "theorem-3.2",
        "theorem-3.2-as-printed",
        "enlarge-then-close",
        "force-sign",
    ):
        found[f"claim {claim}"] = lambda c=claim: {
            k: v for k, v in dataclasses.asdict(fs.claims.run(c, quick=True)).items() if k in ("numbers", "verdict")
        }
    return found


def cases() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (flow, start, options) in flows().items():
        found[name] = lambda f=flow, s=start, o=options: of_result(fs.simulate(f, s, **{"throw": False, **o}))
    for name, (flow, start, options) in discrete().items():
        found[name] = lambda f=flow, s=start, o=options: of_result(descend(f, s, throw=False, **o))
    for name, call in sweeps().items():
        found[name] = lambda c=call: of_sweep(c())
    return found | others()


def record(path: str, only: str | None) -> None:
    found = json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).is_file() else {}
    for name, call in cases().items():
        if name in found or (only is not None and only not in name):
            continue
        begin = time.perf_counter()
        try:
            found[name] = digits(call())
        except fs.FlowsimError as error:
            found[name] = {"error": str(error)}
        Path(path).write_text(json.dumps(found, indent=0), encoding="utf-8")
        with contextlib.suppress(BrokenPipeError):
            print(f"{name:<48} {time.perf_counter() - begin:6.1f} s", flush=True)
    print(f"{len(found)} runs")


def renamed(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both runs under current names, without series whose names had another meaning in the older revision."""
    moved = {key: RENAMED[key] for key in old if RENAMED.get(key) in new and RENAMED[key] not in old}
    return {moved.get(key, key): value for key, value in old.items()}, {k: v for k, v in new.items() if k not in moved}


def compare(before: str, after: str) -> int:
    old, new = (json.loads(Path(path).read_text(encoding="utf-8")) for path in (before, after))
    different = 0
    for name in sorted(old.keys() & new.keys()):
        first, now = renamed(old[name], new[name])
        unlike = sorted(k for k in first.keys() | now.keys() if first.get(k, 0) != now.get(k, 0))
        if unlike:
            different += name not in EXPLAINED
            print(f"{name}: {', '.join(unlike)} {EXPLAINED.get(name, 'DIFFERENT')}")
    for name in sorted(old.keys() ^ new.keys()):
        print(f"{name}: only {'before' if name in old else 'after'}")
    print(f"{len(old.keys() & new.keys())} runs compared, {different} different without an explanation")
    return int(different > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--only", default=None, help="runs whose name holds this text")
    args = parser.parse_args()
    if args.what == "record":
        record(args.files[0], args.only)
        return 0
    return compare(*args.files)


if __name__ == "__main__":
    sys.exit(main())
