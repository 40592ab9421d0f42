"""``run_program``: a whole compiled plan over a batch of images in one call, and ``profile_program``, which times it.

This file owns the contract.

    cpu   kernels/cpu/program*.{h,cpp},  bound by csrc/cpu/run_program.cpp
    cuda  kernels/cuda/program*,         bound by csrc/cuda/run_program.cpp

The words of a program are described in kernels/common/program_format.h; the compiler writes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from .backend import choose
from .checks import expect


def run_program(images: Tensor, program: Tensor, weights: Tensor, device_program: Tensor | None = None,
                how: str = "steps") -> Tensor:
    """The result [B, rows, width] of ``program`` on ``images``; inference only, no gradient.

    ``images``: [B, C, S, S], float32 in CPU memory, or float32, float16 or bfloat16 on a GPU; ``program``: int64 vector
    in CPU memory, written for that backend; ``weights``: vector of every constant that the program names, dtype and
    device of the images. Every word is checked on every call, so that a wrong program raises and never reads or writes
    outside its memory; that steps which may run at once leave each other's memory alone is checked where a program is
    made (``_core.validate_program``). Raises :class:`~vitsparse.errors.InputError` naming the step and the field.

    On a GPU, ``device_program`` is the copy of the program there (trusted; None: copied on each call), and ``how`` is
    ``steps`` (launches of the ops' own kernels), ``waves`` (one launch for all steps of a wave) or ``persistent`` (one
    launch that stays for all waves: for a single image).
    """
    return _checked(call, images, program, weights, device_program, how)


def profile_program(images: Tensor, program: Tensor, weights: Tensor, repeats: int = 20) -> Tensor:
    """Microseconds of each wave of ``program``, float64 [waves]: the median over ``repeats`` runs of the whole program.

    As the calling thread sees them, from the end of the wave before to the end of this one; where a batch is run in
    groups of images, summed over groups and divided by the threads. Arguments and errors are those of
    :func:`run_program`; ``repeats`` is at least 1.
    """
    expect(repeats >= 1, "profile_program: repeats", "at least 1", repeats)
    expect(images.device.type == "cpu", "profile_program: images", "in CPU memory", images.device)
    return _checked(torch.ops.vitsparse.profile_program.default, images, program, weights, repeats)


def _checked(op: Callable[..., Tensor], images: Tensor, program: Tensor, weights: Tensor, *more: object) -> Tensor:
    """``op`` on these arguments; raises :class:`InputError`."""
    dtypes = DTYPES.get(images.device.type, ())
    expect(images.dim() == 4 and images.dtype in dtypes, "run_program: images",
           f"{' or '.join(map(str, dtypes))} [B, C, S, S]", f"{images.dtype} {list(images.shape)}")
    expect(weights.dim() == 1 and weights.dtype == images.dtype, "run_program: weights", f"a {images.dtype} vector",
           f"{weights.dtype} {list(weights.shape)}")
    expect(program.dim() == 1 and program.dtype == torch.int64, "run_program: program", "an int64 vector",
           f"{program.dtype} {list(program.shape)}")
    choose(images.device.type, images.device.type, (images.device.type,))
    try:
        return op(images, program, weights, *more)
    except (RuntimeError, ValueError) as error:
        raise InputError("the program cannot run", where="run_program", found=str(error).splitlines()[0]) from error


DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.float16, torch.bfloat16)}

torch.library.define("vitsparse::run_program", "(Tensor images, Tensor program, Tensor weights, "
                     "Tensor? device_program=None, str how='steps') -> Tensor")
torch.library.define("vitsparse::profile_program",
                     "(Tensor images, Tensor program, Tensor weights, int repeats) -> Tensor")


@torch.library.register_fake("vitsparse::run_program")
def _fake(images: Tensor, program: Tensor, weights: Tensor, device_program: Tensor | None = None,
          how: str = "steps") -> Tensor:
    """The shape depends on the words of the program, which tracing does not see: two unbacked sizes."""
    context = torch.library.get_ctx()
    return images.new_empty((images.shape[0], context.new_dynamic_size(), context.new_dynamic_size()))


@torch.library.register_fake("vitsparse::profile_program")
def _profile_fake(images: Tensor, program: Tensor, weights: Tensor, repeats: int) -> Tensor:
    """As many as the program has waves: an unbacked size."""
    return images.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.float64)


call = torch.ops.vitsparse.run_program.default
"""The op itself, for a caller whose tensors are right by construction; a wrong program raises ``RuntimeError``."""
