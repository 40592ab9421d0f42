"""The no-op in every backend. A new op's tests follow this file: value, gradient, registration, tracing, GPU code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu_code import kernels_of_library, triton_cubin
from vitsparse.backends import native, triton
from vitsparse.errors import InputError
from vitsparse.ops.noop import noop

ON_CPU = ("reference", "torch", "cpu")
needs_cpu_ops = pytest.mark.skipif(not native.available("cpu"), reason="; ".join(native.why_not("cpu")))


@needs_cpu_ops
@pytest.mark.parametrize("backend", ON_CPU)
@given(shape=st.lists(st.integers(0, 5), max_size=4), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_copies_any_shape(backend, shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    result = noop(x, backend)
    assert torch.equal(result, x)
    assert result.dtype == dtype
    assert x.numel() == 0 or result.data_ptr() != x.data_ptr()


@needs_cpu_ops
@pytest.mark.parametrize("backend", ON_CPU)
def test_the_copy_of_a_view_is_contiguous(backend):
    x = torch.randn(6, 8)[::2, 1:].T
    result = noop(x, backend)
    assert torch.equal(result, x)
    assert result.is_contiguous()


@needs_cpu_ops
def test_many_elements_are_split_over_threads():
    x = torch.randn(300_001)
    assert torch.equal(noop(x, "cpu"), x)


@needs_cpu_ops
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that:UserWarning")  # opcheck reads it itself
def test_registration_passes_opcheck():
    for x in (torch.randn(3, 4), torch.randn(3, 4, requires_grad=True), torch.randn(4, 3).T):
        torch.library.opcheck(torch.ops.vitsparse.noop.default, (x,))


@needs_cpu_ops
@pytest.mark.parametrize("backend", ON_CPU)
def test_gradient(backend):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: noop(x, backend), (x,))


@needs_cpu_ops
def test_compiles_into_one_graph():
    x = torch.randn(3, 4)
    compiled = torch.compile(lambda x: noop(x * 2, "cpu") + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), x * 2 + 1)


@needs_cpu_ops
def test_exports():
    class Module(torch.nn.Module):
        def forward(self, x):
            return noop(x, "cpu") + 1

    x = torch.randn(3, 4)
    exported = torch.export.export(Module(), (x,))
    assert any(node.target is torch.ops.vitsparse.noop.default for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), x + 1)


@needs_cpu_ops
def test_an_unsupported_dtype_is_refused_by_name():
    with pytest.raises(RuntimeError, match="float32 or float64"):
        noop(torch.zeros(3, dtype=torch.int64), "cpu")


def test_a_backend_asked_for_by_name_never_falls_back():
    with pytest.raises(InputError, match=r"cuda.*\n.*\n.*it runs on cuda tensors and these are on cpu"):
        noop(torch.zeros(3), "cuda")
    with pytest.raises(InputError, match="did you mean 'triton'"):
        noop(torch.zeros(3), "tritan")


@pytest.mark.skipif("triton is not installed" in triton.why_not(), reason="triton is not installed")
class TestTriton:
    def test_in_its_interpreter(self):
        """A process of its own: Triton reads TRITON_INTERPRET when it is first imported."""
        program = """if True:
            import torch
            from vitsparse.ops.noop import noop
            for shape in ((), (0,), (1,), (5, 7), (1024,), (3, 1025)):
                for dtype in (torch.float32, torch.float16):
                    x = torch.randn(shape, dtype=dtype)
                    assert torch.equal(noop(x, "triton"), x), (shape, dtype)
            x = torch.randn(3, dtype=torch.float64, requires_grad=True)
            assert torch.autograd.gradcheck(lambda x: noop(x, "triton"), (x,))
            print("passed")
        """
        result = subprocess.run([sys.executable, "-c", program], env={"TRITON_INTERPRET": "1", "PATH": ""},
                                capture_output=True, text=True, timeout=120)
        assert result.stdout == "passed\n", result.stderr

    @pytest.mark.parametrize("capability", [86, 90])
    def test_compiles_ahead_of_time(self, capability):
        from vitsparse._triton.noop import noop_kernel

        signature = {"in_ptr": "*fp32", "out_ptr": "*fp32", "count": "i32"}
        cubin = triton_cubin(noop_kernel, signature, {"BLOCK": 1024}, capability)
        assert cubin[:4] == b"\x7fELF"


def test_cuda_machine_code():
    """Every instance is there as machine code; what holds for all kernels is in tests/cuda/test_static.py."""
    instances = {(kernel.name, kernel.arch) for kernel in kernels_of_library("cuda") if kernel.op == "noop"}
    assert instances == {(f"noop_kernel<{dtype}>", arch) for dtype in ("half", "float", "double")
                         for arch in ("75", "86", "90")}


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5, 7), (1 << 20,), (3, 1025)])
def test_on_a_gpu(backend, dtype, shape):
    x = torch.randn(shape, dtype=dtype, device="cuda")
    torch.empty_like(x).fill_(float("nan"))  # so that memory the kernel fails to write shows
    assert torch.equal(noop(x, backend), x)
