"""Linear layers whose float32 products on a CPU are oneDNN's instead of those of torch's BLAS.

torch gives float32 products on x86 to MKL, which on an AMD EPYC reaches 91 GFLOP/s a core at VAR's shapes where oneDNN
reaches 105 (2,720 rows, widths 384 and 1,536); a training step of d = 4 and 6 with four images took 6 and 3 % less.
bf16 products are oneDNN's anyway, and products of weight gradients are as fast either way.
Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Multiply-adds below which both are alike.
MINIMUM = 2**27


def has_onednn() -> bool:
    """Whether this build of torch offers the product; it is the one that ``torch.compile`` emits."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


HAS_ONEDNN = has_onednn()


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x weight^T + bias by oneDNN, (N, O)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return out


class OneDNNLinear(torch.autograd.Function):
    """``F.linear`` of contiguous rows, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return product(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_NO = grad_NO.contiguous()
        return (
            product(grad_NO, weight_OI.t(), None) if for_x else None,
            grad_NO.t() @ x_NI if for_weight else None,
            grad_NO.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``F.linear``: (..., I) -> (..., O), by the faster of two libraries."""
    if (
        HAS_ONEDNN
        and x.dtype == weight_OI.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * len(weight_OI) >= MINIMUM
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which chooses for itself
    ):
        rows_NI = x.reshape(-1, x.shape[-1]).contiguous()
        out: Tensor = OneDNNLinear.apply(rows_NI, weight_OI, bias_O)
        return out.view(*x.shape[:-1], len(weight_OI))
    return F.linear(x, weight_OI, bias_O)


def linear_gelu(x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """``gelu(linear(x))``, tanh-approximated. Without a gradient on a CPU in one pass, which spares 2 ns an element."""
    if (
        HAS_ONEDNN
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() * len(weight_OI) >= MINIMUM
        and not torch.compiler.is_compiling()
    ):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight_OI.dtype
        rows_NI, weight_OI, bias_O = (t.to(dtype) for t in (x.reshape(-1, x.shape[-1]), weight_OI, bias_O))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows_NI.contiguous(), weight_OI, bias_O, "gelu", [], "tanh")
        return out.view(*x.shape[:-1], len(weight_OI))
    return F.gelu(linear(x, weight_OI, bias_O), approximate="tanh")


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
