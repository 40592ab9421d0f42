"""SparseViT: a pruned ViT as a module, drop-in for the dense one it came from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..backends import portable, reference
from ..circuit.circuit import Circuit
from ..errors import InputError
from ..model.config import ViTConfig
from ..model.registry import LOADERS
from ..model.vit import ViT
from ..ops.backend import choose
from ..ops.checks import offered
from .capture import Captured
from .compiled import Compiled, Packed, refuse
from .execute import run_plan
from .plan import Plan
from .runners import WAYS_OF, check_images, run_kernels
from .sparse_files import load_sparse, save_sparse
from .to_dense import to_dense
from .translate import head_norm

KERNELS = ("cpu", *WAYS_OF)
"""Backends with kernels of their own."""


class SparseViT(nn.Module):
    """What is left of a ViT, and the plan to run it.

    Parameters are the ViT's own under timm's keys, sliced to live heads and hidden units; what the circuit made
    constant are frozen buffers under ``constants``. In training, under ``torch.compile`` and in ``torch.export`` the
    plan runs on standard torch ops, whatever the backend; dropout and stochastic depth are not applied. Otherwise
    ``backend`` decides; the cpu backend packs the parameters once and again whenever one changes (after a write through
    ``.data``, which torch does not count, call ``eval()``). ``plan`` prints as a program.
    """

    num_prefix_tokens = 1

    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor], circuit: Circuit, *, backend: str = "auto"):
        super().__init__()
        self.config, self.circuit, self.backend = plan.config, circuit, backend
        self.embed_dim = self.num_features = plan.config.embed_dim
        self.depth, self.num_heads = plan.config.depth, plan.config.num_heads
        self._image_shape = (plan.config.in_chans, plan.config.img_size, plan.config.img_size)
        self.blocks = nn.ModuleList(nn.Module() for _ in range(self.depth))
        for key, value in parameters.items():
            _attach(self, key, nn.Parameter(value))
        self.constants = nn.Module()
        self._front = plan
        for name, value in plan.constants.items():
            self.constants.register_buffer(_buffer_name(name), value.to(self.head.weight.device))
        self.register_load_state_dict_post_hook(_derive_again)
        self._derive()
        self._choose()

    def __setattr__(self, name: str, value: Any) -> None:
        """A part may be replaced by one with parameters of the same names and shapes: the plan counts on these."""
        before = self.__dict__.get("_modules", {}).get(name)
        super().__setattr__(name, value)
        if before is None or "_compiled" not in self.__dict__:
            return
        expected, found = ({key: tuple(tensor.shape) for key, tensor in part.named_parameters()}
                           if part is not None else {}
                           for part in (before, self._modules[name]))
        if found != expected:
            super().__setattr__(name, before)
            raise InputError("the plan of a sparse model fixes the shapes of its parts", where=name, expected=expected,
                             found=found, remedy="change the dense model (reset_classifier, say) and sparsify it with "
                                                 "the same circuit")
        if isinstance(self._compiled, Compiled):
            self._compiled.stale = True

    def _derive(self) -> None:
        """Compile again for the constants and parameters as they are now."""
        stored = {name: getattr(self.constants, _buffer_name(name)) for name in self._front.constants}
        self._front = replace(self._front, constants=stored)
        with torch.inference_mode(False), torch.no_grad():
            self._compiled: Compiled | Packed = Compiled(self, self._front)
        self._chosen: tuple[str, str] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> SparseViT:
        if isinstance(self._compiled, Packed):
            moved = fn(torch.empty(0))
            return self if (moved.dtype, moved.device.type) == (torch.float32, "cpu") else refuse("to()")
        with torch.inference_mode(False):
            super()._apply(fn, recurse)
        self._derive()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy has tensors of its own and must not run on what was compiled for the original's."""
        return {**self.__dict__, "_compiled": self._compiled if isinstance(self._compiled, Packed) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._compiled is None:
            self._derive()

    def train(self, mode: bool = True) -> SparseViT:
        """Switch to training or evaluation; what was packed before is not believed afterwards."""
        if isinstance(self._compiled, Packed):
            return refuse("train()") if mode else self
        self._compiled.stale = True
        return super().train(mode)

    def _choose(self) -> str:
        """The backend for the tensors as they are; raises when one asked for by name cannot run them."""
        chosen = self._chosen  # another thread may forget it meanwhile
        if chosen is None or chosen[0] != self.backend:
            like = self._like()
            single = like.dtype == torch.float32
            if self.backend == "cpu" and not single:
                raise InputError("the cpu backend computes in float32", where="backend", expected="float32 parameters",
                                 found=like.dtype, remedy="use backend='torch', or .float()")
            chosen = self._chosen = self.backend, choose(self.backend, like.device.type, offered("model", [like]))
        return chosen[1]

    def _like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        return next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0))

    @property
    def chosen_backend(self) -> str:
        """The backend that runs the tensors as they are: what ``"auto"`` stands for."""
        return self._choose()

    @property
    def plan(self) -> Plan:
        """The plan for logits; printed, it is a program. On a GPU, the one without joined MLPs."""
        return self._compiled.plan("logits", "gpu" if self._choose() in WAYS_OF else "cpu")

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def global_pool(self) -> str:
        return self.config.global_pool

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to logits [B, num_classes]."""
        if not self.plan.steps and torch.is_grad_enabled() and isinstance(self._compiled, Compiled):
            return self.forward_head(self.forward_features(images))  # stored logits have no gradient, the head has one
        return self._run("logits", images)[:, 0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to LayerNorm(r_logits) [B, T, D] (to r_logits for ``"avg"``, as in the dense model)."""
        tokens = self._run("features", images)
        return tokens if self.global_pool == "avg" else self._affine(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, T, D] of :meth:`forward_features` to logits [B, num_classes] or the classifier's input [B, D]."""
        if isinstance(self._compiled, Packed):
            refuse("forward_head")
        if self.global_pool == "token":
            x = x[:, 0]
        else:
            x = self._affine(F.layer_norm(x[:, 1:].mean(dim=1), (self.embed_dim,), eps=self.config.norm_eps))
        return x if pre_logits else self.head(x)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> None:
        """Always raises: with cut edges there is no single residual stream to show."""
        raise InputError("a sparse model has no residual stream to return", where="forward_intermediates",
                         expected="a dense ViT", found="SparseViT", remedy="use sparse.to_dense(), or the dense model")

    def _affine(self, x: Tensor) -> Tensor:
        norm = getattr(self, head_norm(self.config))
        return x * norm.weight + norm.bias

    def _check(self, images: Tensor) -> None:
        if images.shape[1:] != self._image_shape:
            raise InputError("the images do not fit the model", where="images", found=list(images.shape),
                             expected=f"[B, {', '.join(map(str, self._image_shape))}]")

    def _run(self, which: str, images: Tensor) -> Tensor:
        self._check(images)
        if self.training or torch.compiler.is_compiling():
            return self._run_torch(which, images, self._live_parameters("tracing"))
        if self._compiled.changed():
            self._derive()
        if self._choose() not in KERNELS:
            return self._run_torch(which, images, self._compiled.parameters)
        check_images(images, self._like(), self._choose())
        if self._compiled.wants_gradient(images) and self._compiled.plan(which).steps:
            return _NativeForward.apply(self, which, images, *self._compiled.parameters.values())
        return run_kernels(self._compiled, which, images, self._choose())

    def _live_parameters(self, what: str) -> dict[str, Tensor]:
        """The parameters as they are now; raises when they were dropped."""
        return refuse(what) if isinstance(self._compiled, Packed) else dict(self.named_parameters())

    def _run_torch(self, which: str, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        plan, ops = self._compiled.plan(which), reference if self.backend == "reference" else portable
        return run_plan(plan, images, parameters, plan.constants, ops)

    def capture(self, images: Tensor, how: str = "auto") -> Captured:
        """This model as CUDA graphs, beginning with one for ``images`` [B, C, S, S] on a GPU; call it like the model.

        ``how``: one of :meth:`ways`, or ``"auto"``, which records each and keeps the fastest on these images.
        Raises :class:`InputError` for a model in training, images that are not on a GPU, and where recording fails.
        """
        if self.training:
            raise InputError("a graph replays inference only", where="capture", expected="a model in eval()",
                             found="train()", remedy="model.eval().capture(images)")
        if images.device.type != "cuda":
            raise InputError("graphs are recorded on GPUs", where="capture: images", expected="a tensor on cuda",
                             found=images.device, remedy="move model and images: .to('cuda')")
        return Captured(self, images, how)

    def ways(self, images: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """The ways to run this model on images like these (:data:`.runners.WAYS`): functions from images to logits."""
        backend = self._choose()
        if backend not in WAYS_OF:
            return {"steps": self}
        return {how: partial(self._logits_by, backend, how) for how in WAYS_OF[backend]}

    def _logits_by(self, backend: str, how: str, images: Tensor) -> Tensor:
        return run_kernels(self.compiled(images), "logits", images, backend, how)[:, 0]

    def compiled(self, images: Tensor) -> Compiled | Packed:
        """What runs on ``images``, up to date; another object after each change of a parameter."""
        self._check(images)
        if self._compiled.changed():
            self._derive()
        return self._compiled

    def drop_parameters(self) -> SparseViT:
        """Keep only the packed program of the cpu backend: no training, no saving, half the memory."""
        if self._choose() != "cpu":
            raise InputError("only the cpu backend packs its parameters", where="inference_only",
                             expected="backend 'cpu'", found=self._choose())
        self.eval()
        self._compiled = Packed(self._compiled)
        self._front = self._compiled.plan("logits")
        for module in self.modules():
            module._parameters.clear()
            module._buffers.clear()
        return self

    def get_classifier(self) -> nn.Module:
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone."""
        return {"pos_embed", "cls_token"}

    def to_dense(self) -> ViT:
        """A plain ViT of the original shape that computes the same, dead heads and hidden units as zeros.

        Raises :class:`InputError` when edges between live nodes are cut (and says how many), or when what was folded
        differs from token to token, which no bias of a plain ViT can hold.
        """
        return to_dense(self._front, self.circuit, self._live_parameters("to_dense"))

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` (plan and backend), ``model.safetensors`` and ``circuit.json``, each atomically.

        ``dtype`` rounds the numbers in the file (float16 halves it) and raises :class:`InputError` for any beyond it.
        """
        save_sparse(folder, self._front, self._live_parameters("save_pretrained"), self.circuit, self.backend, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, backend: str | None = None, device: torch.device | str = "cpu",
                        dtype: torch.dtype | None = None, **overrides: Any) -> SparseViT:
        """Read what :meth:`save_pretrained` wrote, to ``device``; ``backend`` replaces the saved choice.

        The tensors get ``dtype`` (torch's default where None), as in the dense model. ``overrides`` are fields of
        :class:`ViTConfig`; a plan holds for one, so any other value raises :class:`InputError`.
        """
        with torch.inference_mode(False):  # tensors made in inference mode could never be trained
            plan, parameters, circuit, saved = load_sparse(folder, dtype or torch.get_default_dtype())
            _check_same(plan.config, overrides, folder)
            parameters = {name: value.to(device) for name, value in parameters.items()}
            return cls(plan, parameters, circuit, backend=backend or saved).eval()

    def __repr__(self) -> str:
        """One line: the modules below only hold parameters, and the plan says what runs."""
        chosen = f" ({self._chosen[1]})" if self.backend == "auto" and self._chosen else ""
        return f"SparseViT({self.plan!r}, {self.circuit!r}, backend={self.backend!r}{chosen})"


def _check_same(config: ViTConfig, overrides: Mapping[str, Any], folder: str | Path) -> None:
    """Refuse ``overrides`` that ask for another model than the saved one of ``config``."""
    if ViTConfig.from_dict({**config.to_dict(), **overrides}, where=folder) != config:
        raise InputError("a saved sparse model cannot be changed on loading", where=folder, expected=dict(overrides),
                         found={name: getattr(config, name) for name in overrides},
                         remedy="load it as it is; or change the dense model (reset_classifier, say) and sparsify it "
                                "with the same circuit")


def _derive_again(module: SparseViT, _: Any) -> None:
    """After loading a state: the constants that were derived from others follow it."""
    if isinstance(module._compiled, Packed):
        refuse("load_state_dict")
    module._derive()


class _NativeForward(torch.autograd.Function):
    """Native forward; the backward runs the plan again on differentiable torch ops."""

    @staticmethod
    def forward(ctx: Any, module: SparseViT, which: str, images: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module, ctx.which = module, which
        ctx.save_for_backward(images, *parameters)
        return run_kernels(module._compiled, which, images, module._choose())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        ctx.module._compiled.stale = True  # an optimiser's step may follow, and not all of them are counted by torch
        with torch.enable_grad():
            images = images.detach().requires_grad_(wanted[0])
            named = dict(zip(ctx.module._compiled.parameters, parameters, strict=True))
            out = ctx.module._run_torch(ctx.which, images, named)
            inputs = [tensor for tensor, yes in zip((images, *parameters), wanted, strict=True) if yes]
            found = iter(torch.autograd.grad(out, inputs, grad, allow_unused=True))
        return None, None, *(next(found) if yes else None for yes in wanted)


def _attach(root: nn.Module, key: str, parameter: nn.Parameter) -> None:
    """Register ``parameter`` under a dotted key, making containers on the way; the classifier can be called."""
    *path, name = key.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, _Head() if key.startswith("head.") else nn.Module())
        root = root._modules[part]
    root.register_parameter(name, parameter)


class _Head(nn.Module):
    """The classifier: callable like the dense model's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _buffer_name(name: str) -> str:
    return name.replace(".", "_")


LOADERS["sparse_vit"] = SparseViT.from_pretrained
