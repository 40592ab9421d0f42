"""SparseViT: a pruned ViT as a module, drop-in for the dense one it came from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import native, portable, reference
from ..circuit.circuit import Circuit
from ..errors import InputError
from ..evaluation.ablation import Ablation, fingerprint
from ..model.edgewise import check_fits
from ..model.vit import ViT
from ..ops.backend import choose
from ..ops.run_program import run_program
from .compile import back, front, logits_plan
from .execute import run_plan, take
from .lower import Program, lower
from .plan import Plan, Range
from .sparse_files import load_sparse, save_sparse
from .to_dense import to_dense
from .translate import head_norm

OFFERED = ("reference", "torch", "cpu")


def sparsify(model: ViT, circuit: Circuit, *, ablation: Ablation, backend: str = "auto",
             inference_only: bool = False) -> SparseViT:
    """Compile ``circuit`` of ``model`` into a smaller model that computes the same as ``edgewise_forward``.

    ``ablation`` must be the same for every image (zero, mean): a counterfactual one is refused. ``backend`` is
    ``"reference"``, ``"torch"``, ``"cpu"`` or ``"auto"``; ``inference_only`` drops the unpacked parameters of the cpu
    backend. A circuit for a model of another shape is refused; for other weights it only warns, because fine-tuning
    changes them.
    """
    if not isinstance(model, ViT):
        raise InputError("only a vitsparse ViT can be compiled", where="model", expected="ViT", found=type(model).__name__,
                         remedy="convert it first: vs.from_timm(model) or vs.from_torchvision(model)")
    check_fits(model, circuit.graph)
    if ablation.corrupt is not None:
        raise InputError("a counterfactual ablation cannot be compiled: its values depend on the image", where="ablation",
                         expected="zero or mean", found=ablation.kind,
                         remedy="Ablation.mean(model, batches) is the default for pruning")
    if model.num_classes == 0:
        raise InputError("a model without classifier has no logits to keep", where="model.num_classes", expected=">= 1",
                         found=0, remedy="model.reset_classifier(n), then train it")
    values = ablation.stacked(circuit.graph)
    expected = (model.config.num_tokens, model.config.embed_dim)
    if tuple(values.shape[1:]) != expected:
        raise InputError("the ablation is for a model of another shape", where="ablation", expected=f"[T, D] = {expected}",
                         found=tuple(values.shape[1:]))
    _warn_of_other_weights(model, circuit, ablation)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    plan = front(model.config, circuit, values, state)
    sliced = {key: _slice(state[key], slices) for key, slices in plan.parameters.items()}
    sparse = SparseViT(plan, sliced, circuit, backend=backend).train(model.training)
    sparse.to(next(model.parameters()).device)
    return sparse.drop_parameters() if inference_only else sparse


def _warn_of_other_weights(model: ViT, circuit: Circuit, ablation: Ablation) -> None:
    if ablation.fingerprint != fingerprint(model):
        warnings.warn("the ablation was measured on other weights than the model's; its values are used as they are",
                      stacklevel=3)
    named = (circuit.ablation or {}).get("sha256")
    if named is not None and named != ablation.sha256:
        warnings.warn("the circuit was found under another ablation than the one given", stacklevel=3)


def _slice(tensor: Tensor, slices: tuple[tuple[Range, ...], ...]) -> Tensor:
    for dim, ranges in enumerate(slices):
        tensor = take(tensor, dim, ranges)
    return tensor.clone()


class SparseViT(nn.Module):
    """What is left of a ViT, and the plan to run it.

    Parameters are the ViT's own under timm's keys, sliced to live heads and hidden units; what the circuit made constant
    are frozen buffers under ``constants``. In training, under ``torch.compile`` and in ``torch.export`` the plan runs on
    standard torch ops, whatever the backend; dropout and stochastic depth are not applied. Otherwise ``backend`` decides;
    the cpu backend packs the parameters once and again whenever one changes. ``plan`` prints as a program.
    """

    num_prefix_tokens = 1

    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor], circuit: Circuit, *, backend: str = "auto"):
        super().__init__()
        self.config, self.circuit, self.backend = plan.config, circuit, backend
        self.embed_dim = self.num_features = plan.config.embed_dim
        self.depth, self.num_heads = plan.config.depth, plan.config.num_heads
        self.blocks = nn.ModuleList(nn.Module() for _ in range(self.depth))
        for key, value in parameters.items():
            _attach(self, key, nn.Parameter(value))
        self.constants = nn.Module()
        self._front = plan
        for name, value in plan.constants.items():
            self.constants.register_buffer(_buffer_name(name), value)
        self.register_load_state_dict_post_hook(lambda module, _: module._derive())
        self._derive()
        choose(backend, "cpu", OFFERED)

    def _derive(self) -> None:
        """Make the plans that run from the front plan and the constants as they are now."""
        stored = {name: getattr(self.constants, _buffer_name(name)) for name in self._front.constants}
        plan = Plan(self.config, self._front.steps, stored, self._front.output, self._front.parameters, self._front.passes)
        self._front = plan
        self.plan = logits_plan(plan, dict(self.named_parameters()))
        self._features_plan: Plan | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop everything packed or chosen for the tensors as they were."""
        self._watched = [tensor for tensor in (*self.parameters(), *self.buffers()) if not tensor.is_inference()]
        self._programs: dict[str, tuple[tuple[int, ...], Program]] = {}
        self._chosen: str | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> SparseViT:
        super()._apply(fn, recurse)
        self._derive()
        return self
    def _backend(self) -> str:
        """The backend for the tensors as they are; raises when one asked for by name cannot run them."""
        if self._chosen is None:
            self._chosen = choose(self.backend, self._like.device.type, self._offered())
        return self._chosen

    def _offered(self) -> tuple[str, ...]:
        native_dtype = self._like.dtype == torch.float32
        if self.backend == "cpu" and not native_dtype:
            raise InputError("the cpu backend computes in float32", where="backend", expected="float32 parameters",
                             found=self._like.dtype, remedy="use backend='torch', or .float()")
        return OFFERED if native_dtype else ("reference", "torch")

    @property
    def _like(self) -> Tensor:
        """Any tensor of the model: they share dtype and device."""
        return self.head.weight if "weight" in self.head._parameters else next(self.buffers())

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def global_pool(self) -> str:
        return self.config.global_pool

    @property
    def features_plan(self) -> Plan:
        """The plan of :meth:`forward_features`: all tokens, up to the head; compiled on first use."""
        if self._features_plan is None:
            self._features_plan = back(self._front)
        return self._features_plan

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to logits [B, num_classes]."""
        return self._run("logits", images)[:, 0]

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to LayerNorm(r_logits) [B, T, D] (r_logits itself for ``"avg"``, as in the dense model)."""
        tokens = self._run("features", images)
        return tokens if self.global_pool == "avg" else self._affine(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, T, D] of :meth:`forward_features` to logits [B, num_classes], or to what the classifier reads [B, D]."""
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

    def _run(self, which: str, images: Tensor) -> Tensor:
        expected = (self.config.in_chans, self.config.img_size, self.config.img_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise InputError("the images do not fit the model", where="images", expected=f"[B, {', '.join(map(str, expected))}]",
                             found=list(images.shape))
        traced = self.training or torch.compiler.is_compiling()
        backend = self._backend()
        if backend != "cpu" or traced:
            return self._run_torch(which, images, reference if backend == "reference" else portable)
        tensors = (images, *self.parameters()) if torch.is_grad_enabled() and self._plan_named(which).steps else ()
        if any(tensor.requires_grad for tensor in tensors):
            return _NativeForward.apply(self, which, *tensors)
        return self._run_native(which, images)

    def _plan_named(self, which: str) -> Plan:
        return self.plan if which == "logits" else self.features_plan

    def _run_torch(self, which: str, images: Tensor, ops: ModuleType) -> Tensor:
        plan = self._plan_named(which)
        return run_plan(plan, images, dict(self.named_parameters()), plan.constants, ops)

    def _run_native(self, which: str, images: Tensor) -> Tensor:
        program = self._program(which)
        return run_program(images.contiguous(), program.code, program.blob)

    def _program(self, which: str) -> Program:
        """The packed program, packed anew when a parameter's version has changed."""
        versions = tuple([tensor._version for tensor in self._watched])
        held = self._programs.get(which)
        if held is None or held[0] != versions:
            plan = self._plan_named(which)
            program = lower(plan, dict(self.named_parameters()), plan.constants, native.core().pack_linear)
            self._programs[which] = held = (versions, program)
        return held[1]

    def drop_parameters(self) -> SparseViT:
        """Keep only the packed program of the cpu backend: no training, no saving, half the memory."""
        if self._backend() != "cpu":
            raise InputError("only the cpu backend packs its parameters", where="inference_only", expected="backend 'cpu'",
                             found=self._backend())
        self.eval()._program("logits")
        for module in self.modules():
            module._parameters.clear()
        self._watched, self._packed_only = [], True
        self._programs = {"logits": ((), self._programs["logits"][1])}
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
        return to_dense(self._front, self.circuit, dict(self.named_parameters()))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` (plan and backend), ``model.safetensors`` and ``circuit.json``, each atomically."""
        save_sparse(self, self._front, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, backend: str | None = None) -> SparseViT:
        """Read what :meth:`save_pretrained` wrote; ``backend`` replaces the saved choice."""
        plan, parameters, circuit, saved = load_sparse(folder)
        return cls(plan, parameters, circuit, backend=backend or saved).eval()

    def extra_repr(self) -> str:
        return f"{self.plan!r}, backend={self.backend!r}"


class _NativeForward(torch.autograd.Function):
    """Native forward; the backward runs the plan again on differentiable torch ops."""

    @staticmethod
    def forward(ctx: Any, module: SparseViT, which: str, images: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module, ctx.which = module, which
        ctx.save_for_backward(images, *parameters)
        return module._run_native(which, images)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            images = images.detach().requires_grad_(wanted[0])
            out = ctx.module._run_torch(ctx.which, images, portable)
            inputs = [tensor for tensor, yes in zip((images, *parameters), wanted, strict=True) if yes]
            found = iter(torch.autograd.grad(out, inputs, grad, allow_unused=True))
        return None, None, *(next(found) if yes else None for yes in wanted)


def _attach(root: nn.Module, key: str, parameter: nn.Parameter) -> None:
    """Register ``parameter`` under a dotted key, making plain containers on the way; the classifier is a real Linear."""
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
