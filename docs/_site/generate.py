"""Tables that are made from the code and from the committed measurement, never by hand.

    python docs/_site/generate.py            # writes the generated parts of README.md and of pages
    python docs/_site/generate.py --check    # says whether they are current

The measurement itself: flowsim claims --json > docs/claims.json
"""

import html
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "docs" / "claims.json"
PHOTOS = ROOT / "experiments" / "reference" / "heads_flickr8k.nc"
KERNELS = ROOT / "experiments" / "reference" / "kernel_flickr8k.nc"
RUNS = ROOT / "experiments" / "reference" / "clip_laptop.nc"
_LIMITS = (("_at_most", "≤"), ("_at_least", "≥"))

#: Claims of the README: what is said, and the numbers that say it ({name:format} of the measurement). What is
#: rounding on one machine is given by the limit it was tested against, {name_at_most:tolerance}.
SHORT: dict[str, tuple[str, str]] = {
    "figure-2": (
        "Figure 2 of the paper, at every digitised point",
        "gap off by at most {largest_gap_distance:.1g}; peak at t = {peak_time:.2f}, matched at {matching_time:.2f}",
    ),
    "enlarge-then-close": (
        "random pairs on cones: one peak of the height, before the pairs match",
        "height over start ≤ {largest_height_at_matching_over_start:.2f} when they match",
    ),
    "lemma-3.1": (
        "Lemma 3.1: β = β₀ √(γ₀/γ) exp((γ² − γ₀²)/4) on parallel cones",
        "deviation ≤ {largest_deviation_at_most:tolerance}",
    ),
    "conserved-exp": (
        "generalised: ln γ − γ²/2 + (2/r) ln β is conserved at any rate r",
        "residual ≤ {largest_residual_at_most:tolerance}",
    ),
    "exponent-in-time": (
        "the gap closes like (ln t)^(−2s²/r) for β = exp(ν/s)",
        "limits off by {largest_relative_error:.1g}",
    ),
    "identity-law": (
        "with β = ν or softplus it closes like exp(−(ln t)²/(rα²))",
        "limits off by ≤ {largest_relative_error_at_most:tolerance}",
    ),
    "theorem-3.2": (
        "Theorem 3.2 with the constants of its proof: matched pairs close no faster",
        "γ over bound ≥ 1 in {runs:.0f} runs",
    ),
    "theorem-3.2-as-printed": ("Theorem 3.2 as printed", "γ over bound down to {smallest_ratio_to_bound:.2f}"),
    "theorem-3.3-height": (
        "random pairs: the cone height opens at first",
        "in {smallest_fraction_opening:.0%} of draws",
    ),
    "theorem-3.3-gap": (
        "random pairs: the gap itself opens at first, in every draw",
        "only {smallest_fraction_opening:.0%} in one setting",
    ),
    "theorem-3.3-deduction": (
        "dΔ/dt < 2 dγ/dt at the start: its proof bounds the larger one",
        "in {smallest_fraction_below:.0%} of draws",
    ),
    "theorem-3.3-bound": (
        "the finite-n bound of Theorem 3.3 is respected where it is positive; at β₀ = 14.3 it is negative",
        "speed over bound ≥ {smallest_gap_speed_over_positive_bound:.1f}; bound ≤ {largest_practical_bound:.0f}",
    ),
    "lemma-3.1-on-figure-2": ("Lemma 3.1 along Figure 2", "its quantity goes {first:.2f}, {smallest:.2f}, {last:.2f}"),
    "rings-conserve": (
        "instead βΔⁿ is conserved along Figure 2",
        "error ≤ {largest_relative_error_at_most:tolerance}",
    ),
    "fixed-temperature": (
        "frozen pairs at fixed temperature: the gap is exponential in time",
        "rate off by ≤ {largest_relative_error_at_most:tolerance}",
    ),
    "noise-law": (
        "label noise p: β·m = ln[(1 − p)(n − 1)/p] in the end",
        "error ≤ {largest_relative_error_at_most:tolerance}",
    ),
    "adam-enlarges": (
        "mismatched cones open their gap under Adam too",
        "peak over start ≥ {smallest_peak_over_start_adam:.2f}",
    ),
    "adam-stabilises": (
        "Adam leaves half of the gap, as SGD does",
        "{smallest_gap_left_adam:.2f} left; SGD {smallest_gap_left_sgd:.2f}",
    ),
    "paper-order": (
        "the order of the methods correlates with the paper's",
        "ρ = {rank_correlation:.2f}, {interval_low:.2f} to {interval_high:.2f} over other methods",
    ),
    "paper-order-table-2": ("the methods of Table 2 end in the paper's order", "ρ = {rank_correlation:.2f}"),
    "repairing-opens-gap": (
        "re-pairing texts in every step opens a gap that right pairs close",
        "gap grows by {smallest_growth_with:.2f} or more",
    ),
    "repairing-opens-any-gap": ("re-pairing opens any gap", "change of the gap down to {smallest_growth:+.2f}"),
    "contrastive-gap": (
        "two encoders with the same inputs keep a gap at β = 100",
        "gap ≥ {smallest_gap_at_beta_100:.2f}",
    ),
    "siglip-margins": (
        "sigmoid loss: four of the five published margins at locked bias",
        "off by {largest_deviation_of_first_four:.3f} at most",
    ),
    "subspace-angle": (
        "modalities in hyperplanes at angle φ end at that angle",
        "off by up to {largest_error_in_degrees:.0f}°",
    ),
    "real-colder-keeps-gap": (
        "heads on real pairs: a lower fixed temperature keeps a larger gap",
        "{gap_tau_0.01:.2f} at τ = 0.01, {gap_tau_0.1:.2f} at 0.1",
    ),
    "real-smaller-gap-retrieves": (
        "heads on real pairs: methods with a smaller gap retrieve better",
        "ρ = {rank_correlation:.2f}, {interval_low:.2f} to {interval_high:.2f}",
    ),
    "real-swap-retrieves": (
        "heads on real pairs: a smaller gap improves R@1 at the same temperature, too",
        "change {gain_tau_0.02:+.3f} at τ = 0.02, {gain_tau_0.1:+.3f} at 0.1",
    ),
}
#: Causes of the differences between ways to train the same heads: cause, claim, and the numbers that show it.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        "finite steps: full-batch SGD against the flow",
        "heads-sgd-is-the-flow",
        "order {order_gap:.2f} in the gap, {order_held_out_gap:.2f} in the held-out gap, {order_temperature:.2f} in "
        "the temperature; extrapolated to lr = 0, off by {largest_error_extrapolated:.0e}",
    ),
    (
        "fewer negatives: batches of 32 of 128, lr → 0, equal time",
        "heads-minibatch-unbiased",
        "temperature off by {temperature_off_the_flow:.0%}, loss {loss_over_the_flows:.1f} times that of the flow; "
        "with batches of 64 {temperature_off_the_flow_batch_64:.0%} and {loss_over_the_flows_batch_64:.1f} times",
    ),
    (
        "... mean gradient of a batch, as a share of that of all pairs",
        "heads-minibatch-share",
        "{share_at_the_start:.2f} at the start, {share_in_between:.2f} at t = 2; late "
        "{late_share_over_that_of_negatives:.2f} times (b − 1)/(n − 1) = {share_of_negatives:.2f}",
    ),
    (
        "the order of the batches",
        "heads-minibatch-spread",
        "spread proportional to lr to the power {mean_power:.1f}; at lr = 0.0025 it is "
        "{spread_at_lr_0__0025_gap:.4f} in the gap",
    ),
    (
        "Adam's rescaling: full-batch Adam with small steps against its limit",
        "heads-adam-limit",
        "gaps off by {largest_error_of_gaps_at_lr_2e-4:.0e}, temperature by "
        "{largest_error_of_temperature_at_lr_2e-4:.0e}, while the gap changes by {smallest_change_of_gap:.2f}",
    ),
    (
        "... its limit against the gradient flow, training loss 0.5",
        "heads-adam-gap",
        "gap {gap_at_loss_0__5_adam_limit:.2f} instead of {gap_at_loss_0__5_flow:.2f}",
    ),
    (
        "... largest change of ν per unit of Σ lr",
        "heads-adam-temperature",
        "{largest_step_over_lr_adam:.2f} under Adam, {largest_speed_flow:.1f} along the flow",
    ),
    (
        "Adam in minibatches, training loss 0.5",
        "heads-adam-gap",
        "gap {gap_of_adam_batch_over_that_of_adam:.2f} times that of full-batch Adam",
    ),
    (
        "weight decay 0.1, training loss 0.5",
        "heads-adam-gap",
        "gap {gap_of_adamw_over_that_of_adam_batch:.4f} times that without decay",
    ),
)
#: Ways to train the same heads, and the names of their numbers.
WAYS = {
    "flow": "gradient flow",
    "sgd": "SGD, all pairs, lr = 0.02",
    "sgd_batch": "SGD, batches of 32, lr = 0.02",
    "adam_limit": "limit of Adam (`fs.AdamLimit`)",
    "adam": "Adam, all pairs",
    "adam_batch": "Adam, batches of 32",
    "adamw_batch": "AdamW, batches of 32, decay 0.1",
}
#: An error whose limit is at most `_TOLERANCE` is rounding; so is what is below `_TINY`.
_TOLERANCE, _TINY = 1e-6, 1e-8


class _Number(float):
    """A number that also formats as a tolerance: 1e-8 for 1e-08."""

    def __format__(self, spec: str) -> str:
        return re.sub(r"e([+-])0+", r"e\1", f"{float(self):.4g}") if spec == "tolerance" else super().__format__(spec)


def measured() -> list[dict[str, Any]]:
    """The committed verdicts, in the order of the registry."""
    return json.loads(CLAIMS.read_text(encoding="utf-8"))


def claims_table() -> str:
    """All claims, for the site."""
    verdicts = measured()
    fail = sum(v["verdict"] == "fails" for v in verdicts)
    lines = [
        f"{len(verdicts)} claims: {len(verdicts) - fail} hold, {fail} fail; "
        f"{sum(v['verdict'] == v['expected'] for v in verdicts)} of the verdicts are the expected ones.",
        "",
        '<div class="wide"><table><thead><tr><th>claim</th><th>statement, source, numbers</th><th>verdict</th></tr>'
        "</thead><tbody>",
    ]
    for v in verdicts:
        text = _code
        lines.append(
            f'<tr id="{v["id"]}"><td><code>{v["id"]}</code></td><td>{text(v["statement"])}<br>'
            f"<small>{text(v['source'])}. Assumptions: {text(v['assumptions'])}</small><br>"
            f'<span class="numbers">{text(_numbers(v["numbers"]))}</span></td>'
            f'<td><span class="{v["verdict"]}">{v["verdict"]}</span>'
            f"{'' if v['verdict'] == v['expected'] else '<br>(not expected)'}</td></tr>"
        )
    # Without an empty line within, Markdown leaves HTML alone.
    return "\n".join([*lines, "</tbody></table></div>"])


def _code(text: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def _numbers(numbers: dict[str, Any]) -> str:
    limits = {
        name.removesuffix(suffix): (sign, value)
        for suffix, sign in _LIMITS
        for name, value in numbers.items()
        if name.endswith(suffix)
    }
    shown = {k: v for k, v in numbers.items() if not k.endswith(("_at_most", "_at_least"))}
    order = [*limits, *(k for k in shown if k not in limits)]
    return ", ".join(f"{name} {_measured(shown[name], limits.get(name))}" for name in order)


def _measured(value: float | None, limit: tuple[str, float] | None) -> str:
    """A number and its limit; what is rounding is given by the limit alone."""
    bound = "" if limit is None else f" ({limit[0]} {_Number(limit[1]):tolerance})"
    if value is None:
        return "–" + bound
    if limit is not None and 0 < abs(limit[1]) <= _TOLERANCE and abs(value) <= abs(limit[1]):
        return f"{limit[0]} {_Number(limit[1]):tolerance}"
    return (f"< {_Number(_TINY):tolerance}" if 0 < abs(value) < _TINY else f"{_Number(value):tolerance}") + bound


def claims_in_short() -> str:
    """The claims of the README."""
    verdicts = {v["id"]: v for v in measured()}
    lines = ["| statement | measured | verdict |", "|---|---|---|"]
    lines += [_short(verdicts[name], statement, template) for name, (statement, template) in SHORT.items()]
    fail = sum(v["verdict"] == "fails" for v in verdicts.values())
    total = len(verdicts)
    lines += [
        "",
        f"{total} claims are measured: {total - fail} hold and {fail} fail, each as expected. The documentation lists",
        "all of them with their sources, numbers and limits; so does `flowsim claims`.",
    ]
    return "\n".join(lines)


def causes_table() -> str:
    """What makes ways to train the same heads differ, one cause at a time."""
    verdicts = {v["id"]: v for v in measured()}
    lines = ["| cause | measured | claim |", "|---|---|---|"]
    for cause, name, template in CAUSES:
        # Formats have no dots in names.
        numbers = {key.replace(".", "__"): number for key, number in verdicts[name]["numbers"].items()}
        lines.append(f"| {cause} | {template.format(**numbers)} | `{name}` |")
    return "\n".join(lines)


def ways_table() -> str:
    """The same heads at the same training loss, by the way that they were trained."""
    numbers = next(v["numbers"] for v in measured() if v["id"] == "heads-adam-gap")
    levels = ("0.5", "0.1")
    names = {"gap": ".3f", "held_out_gap": ".3f", "temperature": ".4f", "time": ".2f"}
    titles = ("gap", "held-out gap", "τ", "Σ lr")
    lines = [
        "| way | " + " | ".join(f"{title} at loss {level}" for level in levels for title in titles) + " |",
        "|---|" + "---|" * (len(levels) * len(titles)),
    ]
    for way, title in WAYS.items():
        cells = [
            f"{numbers[f'{name}_at_loss_{level}_{way}']:{form}}" for level in levels for name, form in names.items()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def public_names() -> str:
    """Every name of the top level with the first sentence of its docstring."""
    import flowsim as fs

    lines = ["| name | what it is |", "|---|---|"]
    for name in sorted(fs.__all__, key=str.lower):
        thing = getattr(fs, name)
        if inspect.ismodule(thing):
            continue
        lines.append(f"| [`fs.{name}`][{thing.__module__}.{name}] | {_first_sentence(thing)} |")
    return "\n".join(lines)


def modules() -> str:
    """The modules that have a page."""
    import importlib

    lines = ["| page | module | what is in it |", "|---|---|---|"]
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            if name.startswith(("flowsim.clip", "flowsim.torch")):
                continue  # which need an extra; their pages list their modules
            what = _first_sentence(importlib.import_module(name))
            lines.append(f"| [{page.stem}]({page.name}) | `{name}` | {what} |")
    return "\n".join(lines)


def observables() -> str:
    """Every metric with its formula."""
    from flowsim import observables as obs

    lines = ["| metric | formula, range |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(item.description)} |" for name, item in obs.REGISTRY.items() if item.of == "rows"]
    return "\n".join(lines)


def checks() -> str:
    """The checks of `fs.diagnose`."""
    from flowsim.doctor.finding import REGISTRY

    lines = []
    for one in REGISTRY.values():
        title = one.title if one.fault else f"{one.title} (a remark, no fault)"
        lines += [
            f"- **`{one.name}`**: {_cell(title)}.",
            f"  *Why:* {_cell(one.reason)}",
            f"  *Try:* {_cell(one.cure)}",
        ]
    return "\n".join(lines)


def file_formats() -> str:
    """Seconds and memory of embeddings in each format."""
    found = json.loads((ROOT / "benchmarks" / "results" / "embedding_files.json").read_text(encoding="utf-8"))
    lines = ["| format | rows | MiB of the file | seconds | MiB at the peak |", "|---|---|---|---|---|"]
    for name, one in found["formats"].items():
        lines.append(f"| {name} | {one['rows']:,} | {one['size']:.0f} | {one['seconds']:.2g} | {one['peak']:.0f} |")
    large = found["large"]
    lines += [
        "",
        f"`flowsim measure image.npy text.npy` on two files of {large['rows']:,} rows in float16 takes "
        f"{large['seconds']:.0f} s and {large['peak'] / 1024:.1f} GiB, the start of Python included.",
    ]
    return "\n".join(lines)


def doctor_table() -> str:
    """What the doctor found in runs with planted faults, and in healthy ones."""
    found = json.loads((ROOT / "benchmarks" / "results" / "doctor.json").read_text(encoding="utf-8"))
    seeds = found["seeds"]
    lines = [f"Seeds {seeds[0]} to {seeds[-1]}:", "", "| planted | found | other faults found |", "|---|---|---|"]
    for name, count in found["faults"].items():
        others = ", ".join(f"`{other}` ({number})" for other, number in count["others"].items()) or "none"
        remark = " (a remark)" if count.get("remark") else ""
        lines.append(f"| `{name}`{remark} | {count['found']} of {count['runs']} | {others} |")
    for preset, count in found["healthy"].items():
        lines.append(f"| nothing: {preset} | | in {count['alarms']} of {count['runs']} |")
    return "\n".join(lines)


def _first_sentence(thing: Any) -> str:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    return _cell(re.split(r"(?<=[a-z)`\]])\. |:$", first)[0].rstrip(".:") + ".")


def _cell(text: str) -> str:
    """Markdown for a table; what stands between backticks keeps its underscores."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if k % 2 else part.replace("_", "\\_") for k, part in enumerate(parts))


def clip_tables() -> str:
    """The tables of the recorded study of CLIP, as `flowsim clip study --tables` prints them."""
    import flowsim as fs

    return fs.clip.Tables.of(fs.load_results(RUNS)).markdown()


def kernels(part: str) -> Callable[[], str]:
    """A table of the study of kernels: "flows", "forecasts" or "step"."""

    def made() -> str:
        from flowsim.comparison.kernel_table import kernel_tables
        from flowsim.records.netcdf import read_netcdf

        return kernel_tables(read_netcdf(KERNELS))[part]

    return made


def photos(make: Callable[[Any], str]) -> Callable[[], str]:
    """A part made from the tables of the recorded study of heads on photographs."""

    def made() -> str:
        from flowsim.clip.tables import Tables
        from flowsim.records.netcdf import read_netcdf

        return make(Tables.of_numbers(read_netcdf(PHOTOS)))

    return made


def photos_methods(tables: Any) -> str:
    """All methods with their final gap, the paper's, temperature and retrieval."""
    printed = {method: row["modality_gap"] for (_, method), row in tables.paper.items()}
    lines = ["| method | gap | paper | τ | image to text R@1, % | text to image R@1, % |", "|---|---|---|---|---|---|"]
    for k, method in enumerate(tables.methods):
        gap, tau, forth, back = (
            tables.values[name][k] for name in ("gap", "temperature", "text_retrieval", "image_retrieval")
        )
        cells = [f"{gap.mean():.3f} ± {gap.std(ddof=1):.3f}", f"{printed[method]:.3f}", f"{tau.mean():.4f}"]
        cells += [f"{x.mean():.1f} ± {x.std(ddof=1):.1f}" for x in (forth, back)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def photos_findings(tables: Any) -> str:
    """What the study says about the paper's statements."""
    from flowsim.clip.findings import findings

    lines = ["| statement | these runs | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(one)} |" for one in findings(tables))])


def gpu(name: str) -> Callable[[], str]:
    """A table of benchmarks/gpu_results.py, made from the records of a GPU."""

    def make() -> str:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        try:
            import gpu_results
        finally:
            sys.path.pop(0)
        return getattr(gpu_results, name)()

    return make


#: Methods on real pairs, by the suffix of their numbers in the claim `real-smaller-gap-retrieves`.
_METHODS = (
    "Baseline", "FLT 1e-2", "FLT 4e-2", "FLT 1e-1", "TS S3", "SLRT 0.1", "TR softplus", "HS 1e-2",
)  # fmt: skip
#: Claims on real pairs: what is said, and the numbers that say it, as in `SHORT`.
REAL: dict[str, tuple[str, str]] = {
    "real-colder-keeps-gap": (
        "a lower fixed temperature keeps a larger gap",
        "{gap_tau_0.01:.2f}, {gap_tau_0.02:.2f}, {gap_tau_0.04:.2f}, {gap_tau_0.07:.2f}, {gap_tau_0.1:.2f} at τ = "
        "0.01, 0.02, 0.04, 0.07, 0.1",
    ),
    "real-schedule-lowers-gap": (
        "a rising temperature (TS S3) ends at a smaller gap than the Baseline",
        "{smallest_gap_over_baseline:.2f} to {largest_gap_over_baseline:.2f} of it",
    ),
    "real-slow-rate-lowers-gap": (
        "so does a slower learning rate of the temperature (SLRT 0.1)",
        "{smallest_gap_over_baseline:.2f} to {largest_gap_over_baseline:.2f} of it",
    ),
    "real-softplus-lowers-gap": (
        "so does the parametrization softplus",
        "{smallest_gap_over_baseline:.2f} to {largest_gap_over_baseline:.2f} of it",
    ),
    "real-swap-lowers-gap": (
        "so do hard swaps (HS 1e-2)",
        "{smallest_gap_over_baseline:.2f} to {largest_gap_over_baseline:.2f} of it",
    ),
    "real-smaller-gap-retrieves": (
        "methods with a smaller gap retrieve better, at different temperatures",
        "ρ = {rank_correlation:.2f}, {interval_low:.2f} to {interval_high:.2f}",
    ),
    "real-swap-retrieves": (
        "a smaller gap improves R@1 at the same temperature, too",
        "change of R@1 with a swap: {gain_tau_0.02:+.3f} at τ = 0.02, {gain_tau_0.1:+.3f} at τ = 0.1; the gap goes "
        "from {gap_tau_0.02:.2f} to {gap_tau_0.02_swap:.2f}, and from {gap_tau_0.1:.3f} to {gap_tau_0.1_swap:.3f}",
    ),
    "real-zero-shot-with-retrieval": (
        "zero-shot accuracy rises with retrieval from τ = 0.01 to 0.1",
        "{zero_shot_tau_0.01:.1%} to {zero_shot_tau_0.1:.1%}; R@1 {recall_tau_0.01:.1%} to {recall_tau_0.1:.1%}",
    ),
    "real-mispaired-opens-gap": (
        "mispaired captions open the gap at a fixed τ = 0.1",
        "{gap_mispaired_0:.3f}, {gap_mispaired_0.1:.3f}, {gap_mispaired_0.25:.3f}, {gap_mispaired_0.5:.3f} for 0, 10, "
        "25, 50 %",
    ),
    "real-mispaired-opens-gap-learned": (
        "they do so under the learned temperature of the Baseline, too",
        "{gap_mispaired_0:.3f}, {gap_mispaired_0.1:.3f}, {gap_mispaired_0.25:.3f}, {gap_mispaired_0.5:.3f}; τ from "
        "{temperature_mispaired_0:.4f} to {temperature_mispaired_0.5:.4f}",
    ),
}


def real_pairs() -> str:
    """What the claims measure on real pairs: the statements, and a row for each method."""
    verdicts = {v["id"]: v for v in measured()}
    lines = ["| statement | measured | verdict |", "|---|---|---|"]
    lines += [_short(verdicts[name], statement, template) for name, (statement, template) in REAL.items()]
    numbers = verdicts["real-smaller-gap-retrieves"]["numbers"]
    lines += [
        "",
        "Means over three seeds at the end; R@1 is the mean of both directions, where any caption counts:",
        "",
        "| method | gap | τ | R@1 | zero-shot |",
        "|---|---|---|---|---|",
    ]
    for method in _METHODS:
        suffix = method.lower().replace(" ", "_")
        columns = ("gap", "temperature", "recall", "zero_shot")
        gap, tau, recall, accuracy = (numbers[f"{column}_{suffix}"] for column in columns)
        lines.append(f"| {method} | {gap:.3f} | {tau:.3f} | {recall:.1%} | {accuracy:.1%} |")
    return "\n".join(lines)


def _short(verdict: dict[str, Any], statement: str, template: str) -> str:
    """A row for a claim: what is said, the numbers that say it, the verdict."""
    numbers = {key: _Number(number) for key, number in verdict["numbers"].items() if number is not None}
    said = re.sub(r"\{([^:}]+):([^}]+)\}", lambda field: format(numbers[field[1]], field[2]), template)
    return f"| {statement} | {said} | {verdict['verdict']} |"


#: What pages of the site hold as `<!-- generated: NAME -->`.
TABLES = {
    "generated: claims": claims_table,
    "generated: names": public_names,
    "generated: modules": modules,
    "generated: observables": observables,
}
#: What is written into files between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
PARTS = {
    "claims": ("README.md", claims_in_short),
    "real pairs": ("docs/real-pairs.md", real_pairs),
    "three ways causes": ("docs/three-ways.md", causes_table),
    "three ways": ("docs/three-ways.md", ways_table),
    "clip tables": ("docs/clip.md", clip_tables),
    **{f"kernels {part}": ("docs/real-kernels.md", kernels(part)) for part in ("flows", "forecasts", "step")},
    "doctor checks": ("docs/how-to/doctor.md", checks),
    "doctor": ("docs/how-to/doctor.md", doctor_table),
    "file formats": ("docs/performance.md", file_formats),
    "photos findings": ("docs/real-pairs.md", photos(photos_findings)),
    "photos methods": ("docs/real-pairs.md", photos(photos_methods)),
    "photos order": ("docs/real-pairs.md", photos(lambda tables: tables.other_order())),
    "gpu bridge": ("docs/clip.md", gpu("bridge_table")),
    "gpu photos": ("docs/clip.md", gpu("photos_table")),
    "gpu photos statements": ("docs/clip.md", gpu("photos_statements_table")),
    "gpu statements": ("docs/clip.md", gpu("statements_table")),
    "gpu heads": ("docs/clip.md", gpu("heads_table")),
    "gpu ensembles": ("docs/performance.md", gpu("simulator_table")),
    "gpu fields": ("docs/performance.md", gpu("field_table")),
    "gpu solves": ("docs/performance.md", gpu("solve_table")),
}


def updated(name: str) -> tuple[Path, str, str]:
    """The file of a part, its text, and the text that it should have."""
    path, make = ROOT / PARTS[name][0], PARTS[name][1]
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{path.name} lacks the markers of {name!r}.")
    return path, text, f"{head}{begin}\n{make()}\n\n{end}{rest.partition(end)[2]}"


def main() -> int:
    """Write the parts, or with `--check` only say which are out of date."""
    stale = 0
    for name in PARTS:
        path, text, wanted = updated(name)
        if text != wanted:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {name} {'is out of date' if '--check' in sys.argv else 'written'}")
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
