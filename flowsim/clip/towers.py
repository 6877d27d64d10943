"""Both towers of a model as one function of weights and inputs, in a form that `torch.vmap` is fast for."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Encoder(torch.nn.Module):
    """Both towers as one function of images and tokens, which `functional_call` needs."""

    def __init__(self, clip: torch.nn.Module, normalize: bool) -> None:
        super().__init__()
        self.clip, self.normalize = clip, normalize

    def forward(self, images: torch.Tensor | None, tokens: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Features (n, d) of images, of texts, or of both."""
        clip: Any = self.clip
        found = []
        if images is not None:
            found.append(clip.encode_image(images, normalize=self.normalize))
        if tokens is not None:
            found.append(clip.encode_text(tokens, normalize=self.normalize))
        return tuple(found)


@contextlib.contextmanager
def vmappable() -> Iterator[None]:
    """Linear maps and attention in a form that `torch.vmap` makes one operation of, without copies.

    Of its own forms PyTorch copies the weights of a linear map for every token; its kernels for attention have no rule
    for batches on CPUs and no gradient on GPUs; and its plain attention has no gradient for bf16.
    """
    functional: Any = torch.nn.functional
    before = functional.linear, functional.scaled_dot_product_attention
    fused = torch.backends.mha.get_fastpath_enabled()
    functional.linear, functional.scaled_dot_product_attention = _linear, _attention
    torch.backends.mha.set_fastpath_enabled(False)  # attention in evaluation mode, which has no derivatives
    try:
        yield
    finally:
        functional.linear, functional.scaled_dot_product_attention = before
        torch.backends.mha.set_fastpath_enabled(fused)


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` with all rows in one product."""
    found = rows.reshape(-1, rows.shape[-1]) @ weight.mT
    if bias is not None:
        found = found + bias.to(found.dtype)
    return found.view(*rows.shape[:-1], weight.shape[0])


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """`scaled_dot_product_attention` with a softmax in fp32."""
    if dropout_p or is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise RuntimeError("attention with dropout or a boolean mask")
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if attn_mask is not None:
        logits = logits + attn_mask
    return logits.float().softmax(-1).to(value.dtype) @ value
