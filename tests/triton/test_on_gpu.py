"""What only a GPU shows: captured graphs, streams, and real measurements."""

from __future__ import annotations

import json

import pytest
import torch

from tests.triton import cases
from vitsparse.backends import triton

if "triton is not installed" in triton.why_not():
    pytest.skip("triton is not installed", allow_module_level=True)

from vitsparse._triton import tune

pytestmark = pytest.mark.gpu
CALLS = [cases.linear(2, 65, 256, 768), cases.sum_norm(2, 65, 256, 3), cases.attention(2, 65, 65, 4, 32, True),
         cases.qkv_attention(2, 65, 256, 4, 32, True), cases.mlp((2, 65), 256, 512, 256, 2),
         cases.apply_pattern(2, 65, 65, 4, 32)]


def first(results):
    return results[0] if isinstance(results, tuple) else results


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.op)
def test_replayed_from_a_graph(case):
    case = case.to("cuda").mapped(lambda x: x.half())
    case.launch()  # compiles and measures, which a capture must not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = first(case.launch())
    case.mapped(lambda x: x.mul_(-0.5))
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, first(case.launch()))


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.op)
def test_on_a_stream_of_its_own(case):
    case = case.to("cuda").mapped(lambda x: x.half())
    expected = first(case.launch())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = first(case.launch())
    stream.synchronize()
    assert torch.equal(found, expected)


def test_measures_and_remembers(monkeypatch, tmp_path):
    monkeypatch.setenv("VITSPARSE_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "_chosen", {})
    case = cases.linear(2, 65, 256, 768).to("cuda").mapped(lambda x: x.half())
    case.launch()
    (name, fastest), = json.loads(tune.path().read_text())["fastest"].items()
    assert torch.cuda.get_device_name() in name
    assert fastest["BLOCK_M"] >= 16
