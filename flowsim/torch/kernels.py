"""The kernel numbers of a batch in training: how a step of the weights for one row moves the others."""

from collections.abc import Iterable

import torch

from flowsim.base.checks import check


def kernel_numbers(
    image: torch.Tensor, text: torch.Tensor, parameters: Iterable[torch.Tensor], directions: int = 1, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Two rates of the kernel of each modality, from features that still have their graph.

    A step of gradient descent on the weights moves unit row i by Σ_j K_ij f_j, where f_j is the force on row j. On
    average over directions K_ij = own·δ_ij + shared, the kernel `fs.kernels.Shared(own, shared)` of the simulator, and
    the same two numbers as those of `fs.clip.kernel`: `shared` is the mean of K off the diagonal, `own` the mean of its
    diagonal minus `shared`. They are relative to the learning rate, without the scaling of Adam.

    For a direction v, ‖∇ Σ_i x_i·v‖² = n(own + n·shared), and ‖∇ Σ_i ε_i x_i·v‖² with as many ε_i = 1 as −1 has the
    mean n·own. So each direction takes two backward passes of each tower.

    Args:
        image: Image features (n, d), n ≥ 2, d ≥ 3, before the backward pass.
        text: Text features (n, d).
        parameters: The parameters of the model; those that do not require a gradient do not count.
        directions: Number of random directions, over which is averaged.
        seed: Seed of the directions; the global random state is left as it is.

    Returns:
        `image_own`, `image_shared`, `text_own` and `text_shared`, without a gradient; 0 for a frozen tower.

    Raises:
        FlowsimError: If the features do not have their graph.
    """
    moved = [p for p in parameters if p.requires_grad]
    check(
        not moved or image.requires_grad or text.requires_grad,
        "The features have no graph, which kernels need. Measure before loss.backward(), and do not detach them.",
    )
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, rows in (("image", image), ("text", text)):
        count, dim = len(rows) - len(rows) % 2, rows.shape[1]
        with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
            unit = torch.nn.functional.normalize(rows[:count].float(), dim=1)
            sums = []
            for _ in range(directions):
                along = unit @ torch.nn.functional.normalize(torch.randn(dim, generator=random), dim=0).to(unit.device)
                signs = (torch.randperm(count, generator=random) % 2 * 2 - 1).to(unit)
                sums.append((_square(along.sum(), moved), _square((signs * along).sum(), moved)))
        total, differences = torch.stack([torch.stack(pair) for pair in sums]).double().mean(0) / count
        found |= _rates(name, unit.detach().double(), total, differences)
    return found


def _square(value: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    """The squared length of a gradient."""
    if not value.requires_grad:
        return torch.zeros((), device=value.device)
    slopes = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    squares = [slope.float().square().sum() for slope in slopes if slope is not None]
    return torch.stack(squares).sum() if squares else torch.zeros((), device=value.device)


def _rates(name: str, unit: torch.Tensor, total: torch.Tensor, differences: torch.Tensor) -> dict[str, torch.Tensor]:
    """Own and shared, for rows that move within their sphere only: K_ij is divided by tr(Π_i Π_j)/d."""
    count, dim = unit.shape
    squares = (unit @ unit.T) ** 2
    other = (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))
    off = (total - differences) / count
    shared = off / ((dim - 2 + other) / dim)
    return {f"{name}_own": (differences + off) / ((dim - 1) / dim) - shared, f"{name}_shared": shared}
