"""Measured kernels of a model: two rates and a matrix for each tower, and how well they describe a step."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowsim.base.checks import check, check_number
from flowsim.base.files import write_atomically
from flowsim.clip import data as data_
from flowsim.clip import models
from flowsim.clip.embed import Sample, sample
from flowsim.clip.memory import enough_memory
from flowsim.clip.models import Model
from flowsim.clip.settings import Training
from flowsim.clip.tangent import Tower, Traces, Weights
from flowsim.model.kernels import Dense, Shared

#: The name of ν among parameters.
NU = "raw temperature"
#: Rows of each direction whose gradients give the diagonal, where no matrix is measured.
_ROWS = 8


@dataclasses.dataclass(frozen=True)
class TowerKernel:
    """The kernel of one tower on m pairs; rates are relative to the learning rate of the weights.

    Attributes:
        own: Rate of differences between rows: mean diagonal of the sample kernel minus `shared`.
        own_error: Standard error of `own` over the random directions; 0 if all were used.
        shared: Rate that all rows have in common: mean of the entries off the diagonal. It can be negative.
        shared_error: Standard error of `shared`.
        pairs: m.
        matrix: The sample kernel (m, m), positive semidefinite; None if only the two rates were measured.
    """

    own: float
    own_error: float
    shared: float
    shared_error: float
    pairs: int
    matrix: np.ndarray | None

    @property
    def common(self) -> float:
        """own + m·shared, the rate of the mean of the m rows."""
        return self.own + self.pairs * self.shared

    @property
    def spectrum(self) -> np.ndarray | None:
        """Eigenvalues of the matrix, the largest first, (m,)."""
        return None if self.matrix is None else np.linalg.eigvalsh(self.matrix)[::-1]

    def dense(self) -> Dense:
        """The matrix as a kernel of the simulator; raises `FlowsimError` if there is none."""
        check(self.matrix is not None, "No matrix was measured. Measure again with matrix=True.")
        return Dense(self.matrix)

    def two_rates(self) -> Shared:
        """own·I + shared·11ᵀ as a kernel of the simulator; raises `FlowsimError` for negative rates."""
        return Shared(self.own, self.shared)

    def to_dict(self) -> dict[str, Any]:
        """Rates, and the spectrum, as plain data."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "matrix"}
        spectrum = self.spectrum
        return found | {"common": self.common, "spectrum": None if spectrum is None else spectrum.tolist()}


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of both towers of a model on the same m pairs; made by `kernel`.

    Attributes:
        image: Kernel of the image tower.
        text: Kernel of the text tower.
        image_rows: Unit rows of the images, (m, d).
        text_rows: Unit rows of the texts, (m, d).
        directions: q, the number of random directions.
        gap_rate: d gap/dt of the m pairs as one batch, if the gradient of their loss moves the weights.
        kernel_gap_rate: The same by the sample kernels; NaN without matrices.
        velocity_error: Distance of the velocities of all rows by the kernels from the true ones, relative to these;
            NaN without matrices.
        protocol: Model, weights, data, and temperature of the loss.
    """

    image: TowerKernel
    text: TowerKernel
    image_rows: np.ndarray
    text_rows: np.ndarray
    directions: int
    gap_rate: float
    kernel_gap_rate: float
    velocity_error: float
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """All numbers by name, e.g. "image_own"."""
        found: dict[str, float] = {}
        for name, tower in (("image", self.image), ("text", self.text)):
            for key in ("own", "own_error", "shared", "shared_error"):
                found[f"{name}_{key}"] = getattr(tower, key)
        return found | {key: getattr(self, key) for key in ("gap_rate", "kernel_gap_rate", "velocity_error")}

    def to_dict(self) -> dict[str, Any]:
        """Protocol and numbers as plain data, for JSON; a number that was not measured is None."""
        rates = {key: getattr(self, key) for key in ("gap_rate", "kernel_gap_rate", "velocity_error")}
        return {
            "protocol": {**self.protocol, "pairs": self.image.pairs, "directions": self.directions},
            "image": self.image.to_dict(),
            "text": self.text.to_dict(),
            **{key: None if np.isnan(value) else value for key, value in rates.items()},
        }

    def save(self, path: str) -> Path:
        """Write rows, matrices and numbers to a file.

        `fs.observables.load_embeddings` reads its rows; `image_kernel` and `text_kernel` are the matrices.

        Args:
            path: Name of an .npz file.

        Returns:
            The path of the file.

        Raises:
            FlowsimError: If the name does not end in .npz, or the file cannot be written.
        """
        check(str(path).endswith(".npz"), f"Kernels are saved as .npz, but got {str(path)!r}. Use e.g. kernel.npz.")
        held = {"image": self.image_rows, "text": self.text_rows, "numbers": json.dumps(self.to_dict())}
        for name, tower in (("image_kernel", self.image), ("text_kernel", self.text)):
            if tower.matrix is not None:
                held[name] = tower.matrix

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **held)  # pyright: ignore[reportArgumentType]

        return write_atomically(path, write)

    def __repr__(self) -> str:
        lines = [f"Kernels of {self.image.pairs} pairs, {self.directions} directions"]
        lines += [f"  {name:<24} {value}" for name, value in self.protocol.items()]
        for name, tower in (("image", self.image), ("text", self.text)):
            rates = f"own {tower.own:.4g} ± {tower.own_error:.2g}, shared {tower.shared:.4g} ± {tower.shared_error:.2g}"
            lines.append(f"  {name:<24} {rates}")
            if tower.own > 0:
                lines.append(f"  {'':<24} the mean moves {tower.common / tower.own:.3g} times faster than differences")
            if (spectrum := tower.spectrum) is not None and spectrum.sum() > 0:
                share = spectrum[0] / spectrum.sum()
                lines.append(f"  {'':<24} largest eigenvalue {spectrum[0]:.4g}, {share:.0%} of the trace")
        lines.append(
            f"  {'rate of the gap':<24} {self.gap_rate:.4g} (by the sample kernels {self.kernel_gap_rate:.4g})"
        )
        lines.append(f"  {'error of velocities':<24} {self.velocity_error:.3g}")
        return "\n".join(lines)


def kernel(
    model: str,
    data: str,
    pretrained: str | None = None,
    *,
    split: str | None = "train",
    pairs: int = 64,
    directions: int = 8,
    matrix: bool = True,
    image_size: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Kernels:
    """Measure the tangent kernels of both towers of a model: K = J Jᵀ of the gradient flow of its weights.

    `fs.Sphere(image_kernel=found.image.dense(), text_kernel=found.text.dense())` is the flow of rows under them.

    Args:
        model: An open_clip name, or the path of a model configuration in open_clip's JSON.
        data: Source of the pairs, see `data.load`.
        pretrained: A tag of open_clip, or a file of weights; None for random weights.
        split: Split of the source; None for all images.
        pairs: m, at least 2; from a larger split they are drawn at random, always the same ones. First captions.
        directions: q, the number of random directions, at least 1. The standard errors fall like 1/√q; with q = d the
            traces are exact.
        matrix: Measure the sample kernels (m, m), from gradients of every row. False measures two rates only, from
            gradients of the mean and of a few rows, which takes less memory for large models.
        image_size: Pixels per side; None takes those of the model.
        temperature: τ of the loss whose step the kernels are compared with; None takes that of the weights.
        seed: Seed of the directions, and of the weights of an untrained model.
        device: Device of PyTorch; None takes a GPU if there is one.

    Returns:
        The kernels.

    Raises:
        FlowsimError: For bad input, or if the memory of the GPU is full.
    """
    check(pairs >= 2, f"Argument `pairs` must be at least 2, but is {pairs}. Use e.g. 64.")
    check(directions >= 1, f"Argument `directions` must be at least 1, but is {directions}. Use e.g. 8.")
    if temperature is not None:
        check_number("temperature", temperature, positive=True, cure="Use e.g. 0.07.")
    built = models.build(model, pretrained, image_size, seed)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    drawn = sample(data_.load(data, split, limit=pairs), pairs, built.tokenize, built.image_size, built.resize)
    check(len(drawn) >= 2, f"{data!r} has {len(drawn)} pair(s) to measure. Give at least 2.")
    beta = float(built.module.logit_scale.detach().exp()) if temperature is None else 1.0 / temperature
    protocol = {
        "model": built.name, "weights": "random" if pretrained is None else Path(pretrained).name,
        "data": drawn.pairs.source, "split": split, "temperature": 1.0 / beta,
    }  # fmt: skip
    with enough_memory('Use fewer `pairs`, `matrix=False`, or `device="cpu"`.'):
        built.module.to(where)
        return measure_kernels(built, drawn, where, beta, directions, seed, matrix=matrix, protocol=protocol)


def measure_kernels(
    model: Model,
    pairs: Sample,
    device: Any,
    inverse_temperature: float,
    directions: int,
    seed: int,
    *,
    matrix: bool = True,
    normalize: bool = True,
    preconditioner: Weights | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Kernels:
    """Kernels of a model on pairs; see `kernel`. `preconditioner`: D by name of the parameter."""
    random = np.random.default_rng((seed, 5))
    towers = [
        Tower(model, modality, inputs, device, normalize, preconditioner)
        for modality, inputs in (("image", pairs.pixels), ("text", pairs.tokens))
    ]
    outputs = [tower.rows().float() for tower in towers]
    forces = _forces(outputs[0], outputs[1], inverse_temperature)
    kernels, velocities, expected = [], [], []
    for tower, rows, force in zip(towers, outputs, forces, strict=True):
        found = _tower(tower, rows, directions, random, matrix)
        kernels.append(found)
        velocities.append(np.zeros(rows.shape) if tower.frozen else tower.velocity(force).cpu().double().numpy())
        expected.append(_by_kernel(found.matrix, rows, force, normalize))
    unit = [_unit(rows.cpu().double().numpy()) for rows in outputs]
    lengths = [torch.linalg.vector_norm(rows, dim=1, keepdim=True).cpu().double().numpy() for rows in outputs]
    error, size = (
        sum(float(np.sum(part**2)) for part in parts)
        for parts in ([a - b for a, b in zip(velocities, expected, strict=True)], velocities)
    )
    true, modelled = (
        [_tangent(x, v / s) for x, v, s in zip(unit, moved, lengths, strict=True)] for moved in (velocities, expected)
    )
    return Kernels(
        kernels[0], kernels[1], unit[0], unit[1], min(directions, unit[0].shape[1]),
        _gap_rate(unit, true), _gap_rate(unit, modelled), float(np.sqrt(error / max(size, 1e-300))),
        dict(protocol or {}),
    )  # fmt: skip


def preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor | None], at: tuple[int, ...] = ()
) -> Weights | None:
    """D by name of the parameter, by which the optimizer multiplies gradients: 1/(√v̂ + ε) of AdamW, None for 1.

    Args:
        optimizer: The optimizer.
        parameters: Parameters by name; those without a state are left out.
        at: Position of a run in a stack of parameters.
    """
    found: Weights = {}
    names = {id(parameter): name for name, parameter in parameters.items() if parameter is not None}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state and id(parameter) in names:
                square = state["exp_avg_sq"][at] / (1 - group["betas"][1] ** float(state["step"]))
                found[names[id(parameter)]] = 1 / (square.sqrt() + group["eps"])
    return found or None


def recorded_kernels(
    model: Model, pairs: Sample, device: Any, settings: Training, beta: float, scales: Weights | None
) -> dict[str, Any]:
    """What the record of a run holds of its kernels at one step; `scales`: D by name, that of ν as `NU`."""
    found = measure_kernels(
        model, pairs, device, beta, settings.kernel_directions, settings.seed, normalize=settings.normalize,
        preconditioner=scales,
    )  # fmt: skip
    scale = 1.0 if scales is None or NU not in scales else float(scales[NU])
    return {
        "image": found.image_rows.astype(np.float32),
        "text": found.text_rows.astype(np.float32),
        "image_matrix": np.asarray(found.image.matrix, np.float32),
        "text_matrix": np.asarray(found.text.matrix, np.float32),
        "temperature_scale": np.float64(scale),
        **{name: np.float64(value) for name, value in found.numbers().items()},
    }


def _tower(tower: Tower, rows: torch.Tensor, directions: int, random: np.random.Generator, matrix: bool) -> TowerKernel:
    count, dim = rows.shape
    if tower.frozen:
        return TowerKernel(0.0, 0.0, 0.0, 0.0, count, np.zeros((count, count)) if matrix else None)
    used = min(directions, dim)
    basis = np.linalg.qr(random.standard_normal((dim, used)))[0].T
    along = torch.as_tensor(np.ascontiguousarray(basis), dtype=rows.dtype, device=rows.device)
    known = rows.cpu().double().numpy()
    # tr(Π_i Π_j)/d; 1 for outputs that are not scaled to unit length.
    norms = (dim - 2 + (known @ known.T) ** 2) / dim if tower.normalize else np.ones((count, count))
    if matrix:
        found = tower.traces(along, norms)
    else:
        chosen = np.stack([random.permutation(count)[: min(_ROWS, count)] for _ in range(used)])
        found = tower.two_numbers(along, norms, chosen)
    errors = [_standard_error(values, dim) for values in (found.own, found.shared)]
    own, shared = float(found.own.mean()), float(found.shared.mean())
    return TowerKernel(own, errors[0], shared, errors[1], count, _semidefinite(found))


def _standard_error(values: np.ndarray, dim: int) -> float:
    """Standard error of the mean over q of d orthonormal directions; NaN for one direction."""
    count = len(values)
    if count == 1:
        return 0.0 if dim == 1 else float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(count) * np.sqrt(max(0.0, 1 - count / dim)))


def _semidefinite(found: Traces) -> np.ndarray | None:
    """The matrix without what rounding and the division by norms leave of negative eigenvalues."""
    if found.matrix is None:
        return None
    values, vectors = np.linalg.eigh((found.matrix + found.matrix.T) / 2)
    made = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return (made + made.T) / 2


def _forces(image: torch.Tensor, text: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """−∂L/∂rows of the contrastive loss of all pairs, (m, d) each."""
    held = [rows.detach().clone().requires_grad_(True) for rows in (image, text)]
    logits, target = beta * held[0] @ held[1].T, torch.arange(len(image), device=image.device)
    entropy = torch.nn.functional.cross_entropy
    loss = (entropy(logits, target) + entropy(logits.T, target)) / 2
    first, second = torch.autograd.grad(loss, held)
    return -first, -second


def _by_kernel(matrix: np.ndarray | None, rows: torch.Tensor, force: torch.Tensor, normalize: bool) -> np.ndarray:
    """Π K Π F (m, d); NaN without a matrix."""
    known, pushed = rows.cpu().double().numpy(), force.cpu().double().numpy()
    if matrix is None:
        return np.full(known.shape, np.nan)
    if not normalize:
        return matrix @ pushed
    return _tangent(known, matrix @ _tangent(known, pushed))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _tangent(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return vectors - rows * np.sum(rows * vectors, axis=1, keepdims=True)


def _gap_rate(rows: list[np.ndarray], velocities: list[np.ndarray]) -> float:
    """Derivative of |mean of images − mean of texts|."""
    apart = rows[0].mean(0) - rows[1].mean(0)
    moved = velocities[0].mean(0) - velocities[1].mean(0)
    return float(apart @ moved / max(np.linalg.norm(apart), 1e-300))
