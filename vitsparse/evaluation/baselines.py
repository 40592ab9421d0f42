"""The strongest ways to run a dense model on this machine: what a sparse one has to beat.

Those of a GPU (:data:`CUDA_BASELINES`) are recorded as CUDA graphs: replayed, none of them waits for its launches.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from .gpu import captured
from .runtimes import import_onnxruntime, import_openvino, require

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
    """``model`` under OpenVINO in float32, with static shapes, the latency hint and torch's number of threads.

    Left alone, OpenVINO computes in bfloat16 where the processor can, which is another model, and on threads that
    torch's settings do not bind. Raises :class:`InputError` where the package ``openvino`` is missing, and for images
    that are not on the CPU.
    """
    require("openvino", "baseline openvino")
    _check_cpu("OpenVINO", images)
    ov = import_openvino()
    with warnings.catch_warnings():  # its tracer warns of every shape that a model checks
        warnings.simplefilter("ignore")
        converted = ov.convert_model(model, example_input=images, input=list(images.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
             "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return functools.partial(ov.compile_model(converted, "CPU", hints), images.numpy())


def onnxruntime(model: nn.Module, images: Tensor) -> Runner:
    """``model`` under ONNX Runtime in float32, with static shapes, all of its rewrites and torch's number of threads.

    Its threads spin while a call lasts and stop with it, so that they do not slow down whatever runs next. Raises
    :class:`InputError` where ``onnx``, ``onnxscript`` or ``onnxruntime`` is missing, and for images that are not on the
    CPU.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "baseline onnxruntime")
    _check_cpu("ONNX Runtime", images)
    ort, file = import_onnxruntime(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), dynamo=True, verbose=False).save(file)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return functools.partial(session.run, None, {session.get_inputs()[0].name: images.numpy()})


def captured_eager(model: nn.Module, images: Tensor) -> Runner:
    """``model`` as it is, as a CUDA graph."""
    return captured(model, images)


def captured_compiled(model: nn.Module, images: Tensor, mode: str = "default") -> Runner:
    """``model`` under torch.compile for exactly this batch, as a CUDA graph; ``mode`` is one of torch.compile's.

    Raises :class:`InputError` where torch cannot compile it as one graph.
    """
    # Many models share one forward here; past torch's limit it would run them eagerly and not say so.
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        try:
            return captured(torch.compile(model, dynamic=False, fullgraph=True, mode=mode), images)
        except RuntimeError as error:
            raise InputError("torch.compile does not work here", where=f"baseline compile, mode {mode}",
                             found=(str(error).strip() or type(error).__name__).splitlines()[0]) from error


def tensorrt(model: nn.Module, images: Tensor) -> Runner:
    """``model`` under TensorRT in its own dtype, by way of the package ``torch_tensorrt``, as a CUDA graph.

    Raises :class:`InputError` where the package is missing.
    """
    require("torch_tensorrt", "baseline tensorrt", "install the release of torch-tensorrt for this torch")
    import torch_tensorrt

    program = torch.export.export(model, (images,))
    engine = torch_tensorrt.dynamo.compile(program, inputs=[images], use_explicit_typing=True, min_block_size=1)
    return captured(engine, images)


def _check_cpu(runtime: str, images: Tensor) -> None:
    if images.device.type != "cpu":
        raise InputError(f"{runtime} is a baseline of CPUs", where="images", expected="cpu", found=images.device.type)


BASELINES = {"eager": eager, "compile": compiled, "openvino": openvino, "onnxruntime": onnxruntime}
CUDA_BASELINES = {"eager": captured_eager, "compile": captured_compiled,
                  "autotune": functools.partial(captured_compiled, mode="max-autotune-no-cudagraphs"),
                  "tensorrt": tensorrt}
