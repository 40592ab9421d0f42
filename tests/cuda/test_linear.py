"""linear on CUDA: against float64, with each tile, level and dtype, from ragged and unaligned memory."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.ops.kernels import error
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.checks import offered

AT = [(75, torch.float16), (75, torch.float32), (80, torch.float16), (80, torch.bfloat16), (90, torch.float16),
      (90, torch.bfloat16)]
# The tile follows from the shape and the number of multiprocessors (linear_tile in kernels/cuda/linear.cu): images,
# tokens and outputs that lead to it with as many. A GPU, which has more of them, takes more images to reach the larger.
TILES = {"large": (1, 3, 65, 200), "medium": (1, 2, 33, 70), "small": (500, 2, 17, 70)}
IMAGES_ON_GPU = {"large": 512, "medium": 24, "small": 1}


@pytest.fixture(params=AT, ids=lambda at: f"{at[0]}-{at[1]}".replace("torch.", ""))
def at(request):
    return request.param


def operands(ops_on, images, tokens, inputs, outputs, dtype, bias="shared"):
    x = torch.randn(images, tokens, inputs)
    weight = 2 * torch.randn(outputs, inputs) / max(inputs, 1) ** 0.5
    biases = {"none": None, "shared": torch.randn(outputs), "per token": torch.randn(tokens, outputs)}
    return [None if t is None else t.to(dtype).to(ops_on.device) for t in (x, weight, biases[bias])]


def check(ops_on, level, given, activation, seed, multiprocessors, slack=1e-3):
    x, weight, bias = given
    exact = reference.linear(*(None if t is None else t.double() for t in (x, weight, bias)), activation)
    with ops_on.at_level(level), ops_on.seed(seed), ops_on.multiprocessors(multiprocessors):
        out = ops_on.linear(x, weight, bias, activation)
    assert out.is_contiguous()
    plain = error(reference.linear(x, weight, bias, activation), exact, at_least=1.0)
    assert error(out, exact, at_least=1.0) <= (1e-5 if x.dtype == torch.float32 else 2 * plain + slack)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("activation", "bias"), [("none", "none"), ("gelu", "shared"), ("none", "per token")])
def test_tiles(ops_on, at, tile, activation, bias):
    """Depths of less than a slice of the ring, of some slices and a part, and around the ring."""
    level, dtype = at
    multiprocessors, images, tokens, outputs = TILES[tile]
    images = images if ops_on.emulated else IMAGES_ON_GPU[tile]
    for seed, inputs in enumerate({"large": (40, 136), "medium": (24, 264), "small": (72, 1032)}[tile]):
        given = operands(ops_on, images, tokens, inputs, outputs, dtype, bias)
        check(ops_on, level, given, activation, seed, multiprocessors)


@pytest.mark.parametrize("tile", TILES)
def test_memory_of_any_kind(ops_on, at, tile):
    """Columns of something wider at odd addresses, rows and images apart, one row for all images."""
    level, dtype = at
    multiprocessors, images, tokens, outputs = TILES[tile]
    x, weight, bias = operands(ops_on, images, tokens + 2, 59, outputs, dtype)
    for seed, columns in enumerate((slice(1, 58), slice(8, 50), slice(0, 59, 2))):
        given = x[:, 1:-1, columns], weight[:, columns], bias
        check(ops_on, level, given, "none", seed, multiprocessors)
        given = x[:1, 1:-1, columns].expand(images, -1, -1), *given[1:]
        check(ops_on, level, given, "none", seed, multiprocessors)


@pytest.mark.parametrize("tile", TILES)
def test_outputs_that_end_anywhere(ops_on, at, tile):
    level, dtype = at
    multiprocessors, images, tokens, outputs = TILES[tile]
    for seed, more in enumerate((1, 2, 25, 26)):
        given = operands(ops_on, images, tokens, 16, outputs + more, dtype, "per token")
        check(ops_on, level, given, "gelu", seed, multiprocessors)


def test_random_shapes(ops_on, at):
    level, dtype = at
    generator = torch.Generator().manual_seed(level)
    for seed in range(12):
        sizes = [int(torch.randint(1, most, (), generator=generator)) for most in (4, 40, 150, 90)]
        bias = ("none", "shared", "per token")[seed % 3]
        given = operands(ops_on, *sizes, dtype, bias)
        check(ops_on, level, given, ("none", "gelu")[seed % 2], seed, 1 + seed)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("level", [75, 80])
def test_sums_in_float16(ops_on, level, tile):
    """Within 32 inputs, so the error stays near that of rounding, however many there are."""
    multiprocessors, images, tokens, outputs = TILES[tile]
    for seed, inputs in enumerate((32, 264)):
        given = operands(ops_on, images, tokens, inputs, outputs, torch.float16)
        with ops_on.half_accumulate():
            check(ops_on, level, given, "none", seed, multiprocessors, slack=2e-3)


def test_gelu_over_its_whole_range(ops_on, at):
    """Through a product with one."""
    level, dtype = at
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-3e4, -100, -0.0, 0, 100, 3e4])]).to(dtype)
    x, one = x[:, None].to(ops_on.device), torch.ones(1, 1, dtype=dtype, device=ops_on.device)
    with ops_on.at_level(level), ops_on.multiprocessors(1):
        y = ops_on.linear(x, one, None, "gelu")
    exact = torch.nn.functional.gelu(x.double())
    digits = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    assert ((y - exact).abs() <= digits * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (4,), (2, 2, 3, 4), (3, 4)])
def test_any_number_of_leading_dimensions(ops_on, shape):
    x, weight, bias = torch.randn(shape), torch.randn(6, 4), torch.randn(6)
    out = ops_on.linear(*(t.to(ops_on.device) for t in (x, weight, bias)), "none").cpu()
    assert out.shape == (*shape[:-1], 6)
    assert torch.allclose(out, reference.linear(x, weight, bias), atol=1e-5)


def test_a_bias_for_each_token_of_more_than_three_dimensions(ops_on):
    x, weight, bias = torch.randn(2, 2, 3, 4), torch.randn(6, 4), torch.randn(3, 6)
    out = ops_on.linear(*(t.to(ops_on.device) for t in (x, weight, bias)), "none").cpu()
    assert torch.allclose(out, reference.linear(x, weight, bias), atol=1e-5)


def test_a_product_over_nothing_is_the_bias(ops_on, at):
    level, dtype = at
    bias = torch.randn(40, dtype=dtype, device=ops_on.device)
    with ops_on.at_level(level):
        out = ops_on.linear(bias.new_zeros(2, 3, 0), bias.new_zeros(40, 0), bias, "none")
    assert torch.equal(out, bias.expand(2, 3, 40))


def test_what_does_not_fit_is_refused(ops_on):
    x, weight = torch.randn(2, 3, 4, device=ops_on.device), torch.randn(5, 4, device=ops_on.device)
    for wrong in ((x, weight[:, :3], None), (x, weight, weight[:4, 0]), (x, weight, weight[:2].mT),
                  (x, weight[0], None), (x, weight.half(), None), (x.double(), weight.double(), None)):
        with pytest.raises(RuntimeError, match=r"expected|takes float16"):
            ops_on.linear(*wrong, "none")
    with pytest.raises(RuntimeError, match="activation"):
        ops_on.linear(x, weight, None, "relu")
    with ops_on.at_level(75), pytest.raises(RuntimeError, match=r"bfloat16 needs compute capability 8\.0"):
        ops_on.linear(x.bfloat16(), weight.bfloat16(), None, "none")


def test_what_a_device_is_offered(monkeypatch):
    """Tensors on a GPU, without one."""
    with FakeTensorMode():
        tensors = {dtype: [torch.empty(2, 2, device="cuda", dtype=dtype)] for dtype in
                   (torch.float16, torch.float32, torch.bfloat16, torch.float64)}
    native = ("reference", "torch", "cuda", "triton")
    for capability, bfloat16 in (((7, 5), ("reference", "torch")), ((8, 6), native)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert offered("linear", tensors[torch.float16]) == offered("linear", tensors[torch.float32]) == native
        assert offered("linear", tensors[torch.bfloat16]) == bfloat16
        assert offered("linear", tensors[torch.float64]) == ("reference", "torch")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(InputError, match=r"(?s)bfloat16 needs compute capability 8\.0.*found: 7\.5"):
        offered("linear", tensors[torch.bfloat16], "cuda")
    with pytest.raises(InputError, match="linear: device"):
        offered("linear", [tensors[torch.float32][0], torch.empty(2, 2)])
