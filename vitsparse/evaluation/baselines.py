"""The strongest ways to run a dense model on this machine: what a sparse one has to beat."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from .runtimes import import_openvino

Runner = Callable[[], object]


def eager(model: nn.Module, images: Tensor) -> Runner:
    """``model`` as it is."""
    return functools.partial(model, images)


def compiled(model: nn.Module, images: Tensor) -> Runner:
    """``model`` under torch.compile for exactly this batch, compiled before it returns.

    Raises :class:`InputError` where torch cannot compile, without a C++ compiler for one.
    """
    run = functools.partial(torch.compile(model, dynamic=False), images)
    try:
        run()
    except RuntimeError as error:
        raise InputError("torch.compile does not work here", where="baseline compile",
                         found=str(error).strip().splitlines()[0]) from error
    return run


def openvino(model: nn.Module, images: Tensor) -> Runner:
    """``model`` under OpenVINO in float32, with static shapes and the latency hint; images on the CPU.

    Left alone, OpenVINO computes in bfloat16 where the processor can, which is another model. Raises
    :class:`InputError` where the package ``openvino`` is missing.
    """
    ov = import_openvino("baseline openvino")
    if images.device.type != "cpu":
        raise InputError("OpenVINO is the baseline of CPUs", where="baseline openvino", found=images.device.type)
    with warnings.catch_warnings():  # its tracer warns of every shape that a model checks
        warnings.simplefilter("ignore")
        converted = ov.convert_model(model, example_input=images, input=list(images.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return functools.partial(ov.compile_model(converted, "CPU", hints), images.numpy())


BASELINES = {"eager": eager, "compile": compiled, "openvino": openvino}
