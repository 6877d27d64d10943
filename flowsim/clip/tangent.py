"""Tangent kernels of a model's towers: how a step of the weights moves the outputs together.

With J_i = ∂x_i/∂θ for unit rows x_i, gradient descent moves row i by −Σ_j J_i D J_jᵀ ∂L/∂x_j, where D is the
preconditioner of the optimizer (1 for SGD). The sample kernel k_ij replaces J_i D J_jᵀ by k_ij Π_i Π_j, with the
tangent projections Π:

    k_ij = tr(J_i D J_jᵀ) / tr(Π_i Π_j),   tr(Π_i Π_j) = d − 2 + ⟨x_i, x_j⟩²

Traces are estimated with random orthonormal directions v: tr A = d·E vᵀAv. With all d directions they are exact.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from flowsim.clip.batches import crop
from flowsim.clip.models import Model
from flowsim.clip.towers import Encoder, vmappable
from flowsim.torch.device import onto_device

#: Bytes of the gradients that are held at once on a CPU; on a GPU an eighth of its free memory, if that is more.
_ROOM = 1 << 29
#: Rows whose gradients one call computes where rows of a batch depend on each other.
_TOGETHER = 8

Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Traces:
    """What one tower gave in each of q directions, divided by tr(Π_i Π_j)/d.

    - `own`, `shared` (q,): of the kernel own·I + shared·11ᵀ with the same mean diagonal and mean.
    - `matrix` (m, m): mean of vᵀJ_i D J_jᵀv; None if it was not wanted.
    """

    own: np.ndarray
    shared: np.ndarray
    matrix: np.ndarray | None


class Tower:
    """A tower as a function of its weights, at fixed inputs.

    The model is evaluated as in training, but without dropout: batch normalisation uses the statistics of the given
    rows, whose outputs then depend on each other.

    Args:
        model: The model.
        modality: "image" or "text".
        inputs: Pixels (m, 3, s, s) uint8 or features (m, d) of a locked tower; or token ids (m, context).
        device: Device of the model.
        normalize: Whether outputs are scaled to unit length.
        preconditioner: D by name of the parameter in `model.module`; None for 1.
    """

    def __init__(
        self,
        model: Model,
        modality: str,
        inputs: torch.Tensor,
        device: Any,
        normalize: bool = True,
        preconditioner: Weights | None = None,
    ) -> None:
        self.encoder, self.is_image, self.normalize = Encoder(model.module, normalize), modality == "image", normalize
        placed = onto_device(inputs, device)
        self.inputs = crop(placed, None, model.mean, model.std) if self.is_image else placed
        parameters: Weights = dict(self.encoder.named_parameters())
        self._tables: dict[str, torch.Tensor] = {}
        self.coupled, used = self._probe(parameters)
        self.weights = {name: parameters[name].detach() for name in used}
        self.preconditioner = None
        if preconditioner is not None:
            self.preconditioner = {name: preconditioner[name.removeprefix("clip.")].detach() for name in used}

    @property
    def frozen(self) -> bool:
        """Whether no weight is trained."""
        return not self.weights

    def outputs(self, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
        """Rows (m, d)."""
        given = (inputs, None) if self.is_image else (None, inputs)
        return torch.func.functional_call(self.encoder, weights, given)[0]

    def _probe(self, parameters: Weights) -> tuple[bool, list[str]]:
        """Whether rows depend on each other, and the names of the trained weights that the outputs depend on."""
        coupled = False

        def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal coupled
            coupled |= module.training

        norms = [m for m in self.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        with self._as_in_training(), contextlib.ExitStack() as hooks, torch.enable_grad():
            for module in norms:
                hooks.enter_context(_hook(module, note))
            trained = {name: p for name, p in parameters.items() if p.requires_grad}
            found = self.outputs({}, self.inputs)
            if not found.requires_grad:
                return coupled, []
            grads = torch.autograd.grad(found.sum(), list(trained.values()), allow_unused=True)
        return coupled, [name for name, grad in zip(trained, grads, strict=True) if grad is not None]

    @contextlib.contextmanager
    def _as_in_training(self) -> Iterator[None]:
        """Batch normalisation by the batch, whose running statistics stay as they are, and no dropout."""
        modes = {module: module.training for module in self.encoder.modules()}
        trains, tracked = self.encoder.clip.training, list[torch.nn.modules.batchnorm._BatchNorm]()
        for module, mode in modes.items():
            module.training = isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and trains and mode
            if module.training and module.track_running_stats:
                tracked.append(module)  # pyright: ignore[reportArgumentType]
                tracked[-1].track_running_stats = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for module in tracked:
                module.track_running_stats = True

    @contextlib.contextmanager
    def _compact(self) -> Iterator[tuple[Weights, Weights | None]]:
        """Weights and preconditioner with only the rows of embeddings that occur in the inputs.

        Gradients of other rows of a table of words are 0; they would be most of all gradients.
        """
        weights, scales = dict(self.weights), None if self.preconditioner is None else dict(self.preconditioner)
        with contextlib.ExitStack() as hooks:
            for name, module in self.encoder.named_modules():
                key = f"{name}.weight"
                plain = isinstance(module, torch.nn.Embedding) and module.padding_idx is None
                if not plain or key not in weights or self.is_image:
                    continue
                rows = torch.unique(self.inputs)
                if rows.numel() == 0 or int(rows.max()) >= len(weights[key]) or not self._reads(module):
                    continue
                place = torch.zeros(len(weights[key]), dtype=torch.long, device=rows.device)
                place[rows] = torch.arange(len(rows), device=rows.device)
                weights[key] = weights[key][rows]
                if scales is not None:
                    scales[key] = scales[key][rows]
                hooks.enter_context(_hook(module, lambda _, inputs, place=place: (place[inputs[0]],)))
            yield weights, scales

    def _reads(self, module: torch.nn.Module) -> bool:
        """Whether a module gets exactly the inputs of the tower."""
        seen: list[torch.Tensor] = []
        with _hook(module, lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
            self.outputs({}, self.inputs[:2])
        return len(seen) == 1 and torch.equal(seen[0], self.inputs[:2])

    def velocity(self, forces: torch.Tensor) -> torch.Tensor:
        """Σ_j J_i D J_jᵀ F_j, the exact velocity of the rows (m, d) under forces (m, d) on them."""
        with self._as_in_training(), vmappable():
            found: Any = torch.func.vjp(lambda weights: self.outputs(weights, self.inputs), self.weights)
            (moved,) = found[1](forces)
            if self.preconditioner is not None:
                moved = {name: grad * self.preconditioner[name] for name, grad in moved.items()}
            tangent = torch.func.jvp(lambda weights: self.outputs(weights, self.inputs), (self.weights,), (moved,))
        return tangent[1]

    # --- kernels ---------------------------------------------------------------------------------------

    def rows(self) -> torch.Tensor:
        """Outputs (m, d)."""
        with self._as_in_training(), torch.no_grad():
            return self.outputs(self.weights, self.inputs)

    def traces(self, directions: torch.Tensor, norms: np.ndarray) -> Traces:
        """The whole sample kernel (m, m) from gradients of every row in every direction.

        Args:
            directions: Orthonormal directions (q, d).
            norms: tr(Π_i Π_j)/d, (m, m).
        """
        grams = []
        with self._as_in_training(), self._compact() as (weights, scales):
            for v in directions:
                gram = torch.zeros(len(self.inputs), len(self.inputs), dtype=torch.float64)
                for names in self._groups(weights):
                    rows = self._gradients(weights, names, v)
                    if scales is not None:
                        rows *= torch.cat([scales[name].flatten() for name in names]).sqrt()
                    gram += (rows @ rows.T).cpu().double()
                grams.append(gram.numpy() / norms)
        found = np.array(grams)
        count = found.shape[-1]
        diagonal = np.trace(found, axis1=1, axis2=2) / count
        shared = (found.sum((1, 2)) / count - diagonal) / (count - 1)
        return Traces(diagonal - shared, shared, found.mean(0))

    def two_numbers(self, directions: torch.Tensor, norms: np.ndarray, rows: np.ndarray) -> Traces:
        """Own and shared rates from gradients of the mean and of a few rows.

        Args:
            directions: Orthonormal directions (q, d).
            norms: tr(Π_i Π_j)/d, (m, m).
            rows: Rows of each direction, (q, r).
        """
        weights = {name: w.clone().requires_grad_(True) for name, w in self.weights.items()}
        count = len(self.inputs)
        own, shared = [], []
        with self._as_in_training():
            found = self.outputs(weights, self.inputs)
            for v, chosen in zip(directions, rows, strict=True):
                along = found @ v
                mean = self._squared(along.mean(), weights) / float(norms.mean())
                single = [self._squared(along[i], weights) / float(norms[i, i]) for i in chosen]
                shared.append((count * mean - np.mean(single)) / (count - 1))
                own.append(np.mean(single) - shared[-1])
        return Traces(np.array(own), np.array(shared), None)

    def _squared(self, value: torch.Tensor, weights: Weights) -> float:
        """|D^½ ∂value/∂θ|²."""
        grads = torch.autograd.grad(value, list(weights.values()), retain_graph=True)
        total = 0.0
        for name, grad in zip(weights, grads, strict=True):
            scale = 1.0 if self.preconditioner is None else self.preconditioner[name]
            total += float((scale * grad.double().square()).sum())
        return total

    def _groups(self, weights: Weights) -> Iterator[list[str]]:
        """Names of weights whose gradients of all rows fit into the room for them."""
        room, device = _ROOM, self.inputs.device
        if device.type == "cuda":
            room = max(room, torch.cuda.mem_get_info(device)[0] // 8)
        group, size = [], 0
        for name, weight in weights.items():
            need = weight.numel() * weight.element_size() * len(self.inputs)
            if group and size + need > room:
                yield group
                group, size = [], 0
            group.append(name)
            size += need
        if group:
            yield group

    def _gradients(self, weights: Weights, names: Sequence[str], v: torch.Tensor) -> torch.Tensor:
        """∂⟨v, x_i⟩/∂θ of the named weights, (m, number of weights)."""
        if self.coupled:
            return self._coupled_gradients(weights, names, v)
        rest = {name: w for name, w in weights.items() if name not in names}

        def along(chosen: Weights, inputs: torch.Tensor) -> torch.Tensor:
            return self.outputs({**rest, **chosen}, inputs[None])[0] @ v

        with vmappable():
            each = torch.vmap(torch.func.grad(along), in_dims=(None, 0))
            grads = each({name: weights[name] for name in names}, self.inputs)
        return torch.cat([grads[name].flatten(1) for name in names], 1)

    def _coupled_gradients(self, weights: Weights, names: Sequence[str], v: torch.Tensor) -> torch.Tensor:
        chosen = {name: weights[name].clone().requires_grad_(True) for name in names}
        along = self.outputs({**weights, **chosen}, self.inputs) @ v
        each = torch.eye(len(along), dtype=along.dtype, device=along.device)
        parts = []
        for part in each.split(_TOGETHER):
            grads = torch.autograd.grad(along, list(chosen.values()), part, retain_graph=True, is_grads_batched=True)
            parts.append(torch.cat([grad.flatten(1) for grad in grads], 1))
        return torch.cat(parts)


@contextlib.contextmanager
def _hook(module: torch.nn.Module, before: Any) -> Iterator[None]:
    """Call `before(module, inputs)` before the module."""
    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
