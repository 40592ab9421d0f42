"""Muon for many small matrices: those of one shape are updated together."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of the quintic iteration, steepest at zero (Jordan et al. 2024)"""
STEPS = 5
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is made orthogonal (Jordan et al. 2024) and scaled to the size of AdamW's (Liu et
    al. 2025, arXiv:2502.16982). ``params`` are matrices.

    The update is that of ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, and so is the state. That one walks the
    matrices one by one, 27 operations each, which for the 48 of twelve blocks is twice what a GPU is asked to launch
    for forward and backward; here it is as many for all matrices of a shape. ``lr`` may be a tensor on their device:
    then nothing waits for the host, and a step can be recorded as a CUDA graph.
    """

    def __init__(self, params, lr: float | Tensor, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.dtype, matrix.device].append(matrix)
            for matrices in alike.values():
                self._step(matrices, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, matrices: list[Tensor], lr: float | Tensor, weight_decay: float, momentum: float) -> None:
        gradients = [matrix.grad for matrix in matrices]
        buffers = [self._buffer(matrix) for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = orthogonal(torch.stack(torch._foreach_lerp(gradients, buffers, momentum)))
        size = 0.2 * math.sqrt(max(matrices[0].shape))
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, (updates.to(matrices[0].dtype) * (-lr * size)).unbind())

    def _buffer(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, A, B]: bfloat16, each about U V^T of its U S V^T, with singular values from 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x.mT if x.shape[1] > x.shape[2] else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)  # no singular value above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
