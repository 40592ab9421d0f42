"""From a dense model, a circuit and an ablation to a SparseViT."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.operator import OPERATOR
from ..errors import InputError
from ..evaluation.ablation import Ablation, fingerprint
from ..model.edgewise import check_fits
from ..model.operatorwise import check_zero
from ..model.vit import ViT
from .compile import front
from .execute import take
from .operators import cut_head
from .sparse_vit import SparseViT
from .steady import calibration_images, unsteady_readers
from .steps import Range


def sparsify(model: ViT, circuit: Circuit, *, ablation: Ablation, backend: str = "auto", inference_only: bool = False,
             calibration: Tensor | None = None) -> SparseViT:
    """Compile ``circuit`` of ``model`` into a smaller model that computes the same as ``edgewise_forward``.

    ``ablation`` must be the same for every image (zero, mean): a counterfactual one is refused, and so is any but zero
    for a circuit of operators. ``backend`` is ``"reference"``, ``"torch"``, ``"cpu"`` or ``"auto"``;
    ``inference_only`` drops the unpacked parameters of the cpu backend. ``calibration`` are a few images [B, C, S, S]
    that show how large sums get (:mod:`.steady`); noise, if there are none. A circuit for a model of another shape is
    refused; for other weights it only warns, because fine-tuning changes them.
    """
    _check_arguments(model, circuit, ablation)
    values = ablation.stacked(circuit.graph)
    expected = (model.config.num_tokens, model.config.embed_dim)
    if tuple(values.shape[1:]) != expected:
        raise InputError("the ablation is for a model of another shape", where="ablation",
                         expected=f"[T, D] = {expected}", found=tuple(values.shape[1:]))
    _warn_of_other_weights(model, circuit, ablation)
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode could never be trained
        state = {key: value.detach() for key, value in model.state_dict().items()}
        unsteady = frozenset()
        if circuit.graph.granularity == OPERATOR:
            state = cut_head(model.config, circuit, state)
        else:
            unsteady = unsteady_readers(model, circuit, values, calibration_images(model, calibration))
        plan = front(model.config, circuit, values, state, unsteady)
        sliced = {key: _slice(state[key], slices) for key, slices in plan.parameters.items()}
        sparse = SparseViT(plan, sliced, circuit, backend=backend).train(model.training and not inference_only)
    return sparse.drop_parameters() if inference_only else sparse


def _check_arguments(model: ViT, circuit: Circuit, ablation: Ablation) -> None:
    for name, value, kind in (("model", model, ViT), ("circuit", circuit, Circuit), ("ablation", ablation, Ablation)):
        if not isinstance(value, kind):
            remedy = "convert it first: vs.from_timm(model) or vs.from_torchvision(model)" if name == "model" else ""
            raise InputError("only a vitsparse ViT can be compiled, with its circuit and ablation", where=name,
                             expected=kind.__name__, found=type(value).__name__, remedy=remedy)
    check_fits(model, circuit.graph)
    if circuit.graph.granularity == OPERATOR:
        check_zero(ablation)
    if ablation.corrupt is not None:
        raise InputError("a counterfactual ablation cannot be compiled: its values depend on the image",
                         where="ablation", expected="zero or mean", found=ablation.kind,
                         remedy="Ablation.mean(model, batches) is the default for pruning")
    if model.num_classes == 0:
        raise InputError("a model without classifier has no logits to keep", where="model.num_classes", expected=">= 1",
                         found=0, remedy="model.reset_classifier(n), then train it")


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
