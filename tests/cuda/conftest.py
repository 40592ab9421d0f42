"""Kernels for CUDA, on an emulated device and on a real one: ``ops_on``.

``ops_on`` is an :class:`Ops`. A test that uses it runs twice: on the emulated device (tests/native/emulator: the
sources of kernels/cuda and csrc/cuda, compiled for this processor) and, under ``pytest -m gpu``, on the GPU:

    @pytest.mark.parametrize("level", LEVELS)
    def test_linear(ops_on, level):
        x = torch.randn(65, 48, dtype=torch.float16, device=ops_on.device)
        with ops_on.at_level(level), ops_on.seed(3):
            y = ops_on.linear(x, weight, None, "none")

``ops_on.X`` is ``torch.ops.vitsparse.X`` or its emulated twin; whatever it allocates begins as NaN. Settings are
context managers: ``at_level(75)``, ``half_accumulate()``; and, without meaning on a GPU, ``seed(n)`` (of the order of
threads: n % 3 is the temper of the schedule), ``shared_limit(bytes)``, ``multiprocessors(n)``, ``seconds(n)`` (of a
launch). A fault of a kernel is a RuntimeError that says which threads were where: threads that wait at different places
or forever, races, addresses that are not aligned or outside of shared memory or of a tensor, launches without end.
``emulated_ops`` is the emulated device alone.

The library is built once per session, incrementally, in build/emulated. VITSPARSE_EMULATE=linear,sum_norm compiles the
sources of these ops alone, in a folder of its own.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pkgutil
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitsparse.ops
from vitsparse.ops.cuda_level import using_cuda_level, using_half_accumulation

SOURCES = Path(__file__).resolve().parent.parent / "native" / "emulator"
TORCH = Path(torch.__file__).resolve().parent
DEFAULTS = {"level": 80, "half_accumulate": False, "multiprocessors": 4, "shared_limit": 99 * 1024, "seed": 0,
            "seconds": 60}


def _why_not_emulated() -> str:
    if not (SOURCES.parents[2] / "kernels" / "cuda").is_dir():
        return "the source tree is not here"
    if platform.system() != "Linux":
        return f"the emulator knows Linux, and this is {platform.system()}"
    if not (shutil.which("c++") or shutil.which("g++")):
        return "no C++ compiler"
    if not (TORCH / "include/torch/csrc/stable/library.h").is_file():
        return f"{TORCH} has no headers"
    return ""


def _tool(name: str) -> str:
    """The environment's own program first."""
    own = Path(sys.executable).parent / name
    return str(own) if own.is_file() else shutil.which(name) or pytest.fail(f"{name} is needed to build the emulator")


def _run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1200)
    if done.returncode:
        pytest.fail(f"the emulated kernels do not build:\n{(done.stdout + done.stderr)[-6000:]}", pytrace=False)


def _build() -> Path:
    selected = os.environ.get("VITSPARSE_EMULATE", "")
    folder = SOURCES.parents[2] / "build" / "-".join(["emulated", *filter(None, selected.split(","))])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:  # two builds at once would write the same objects
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(_tool("cmake"), "-S", SOURCES, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
             f"-DVITSPARSE_TORCH_DIR={TORCH}", f"-DVITSPARSE_EMULATE={selected}")
        _run(_tool("cmake"), "--build", folder, "--parallel", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)))
    return folder / "libvitsparse_emulated.so"


def _define_ops() -> None:
    """``vitsparse_emulated::X`` for each ``vitsparse::X``, with its schema."""
    for module in pkgutil.iter_modules(vitsparse.ops.__path__):
        importlib.import_module(f"vitsparse.ops.{module.name}")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("vitsparse::"):
            overload = getattr(torch.ops.vitsparse, name.removeprefix("vitsparse::")).default
            torch.library.define(name.replace("::", "_emulated::"), str(overload._schema).removeprefix(name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs the library waits for its build: only what the tests do themselves is timed."""
    for item in items:
        if {"emulated", "emulated_ops", "ops_on"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.fixture(scope="session")
def emulated() -> Any:
    """``torch.ops.vitsparse_emulated``, its library loaded."""
    if reason := _why_not_emulated():
        pytest.skip(reason)
    return load_emulated()


def load_emulated() -> Any:
    """The same for who is no test: benchmarks/static."""
    library = _build()
    _define_ops()
    torch.ops.load_library(str(library))
    return torch.ops.vitsparse_emulated


@contextmanager
def _poisoned() -> Iterator[None]:
    """What torch allocates meanwhile begins as NaN (whole numbers: the largest)."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _copied(value: Any, storages: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """The same tensors on copies of their memory; ``storages``: bytes and copied bytes, by address."""
    if isinstance(value, list | tuple):
        return type(value)(_copied(part, storages) for part in value)
    if not isinstance(value, Tensor) or not value.numel():
        return value
    storage = value.untyped_storage()
    if storage.data_ptr() not in storages:
        original = torch.empty(0, dtype=torch.uint8).set_(storage)
        storages[storage.data_ptr()] = original, original.clone()
    copy = storages[storage.data_ptr()][1].untyped_storage()
    return torch.empty(0, dtype=value.dtype).set_(copy, value.storage_offset(), value.shape, value.stride())


class Ops:
    """Ops of one kind of device; see the head of this file."""

    def __init__(self, device: str, ops: Any, properties: list[tuple[str, object]] | None = None) -> None:
        self.device, self.ops, self.settings = device, ops, dict(DEFAULTS)
        self.properties = [] if properties is None else properties  # of the test: see tests/conftest.py
        self.emulated = device == "cpu"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(self.ops, name)

        def call(*arguments: Any) -> Any:
            with _poisoned(), self._fenced(arguments) as inside:
                return op(*inside)
        return call

    @contextmanager
    def _fenced(self, arguments: Any) -> Iterator[Any]:
        """The arguments in memory that ends with the tensors (fence.cpp), and what was written there copied back."""
        if not self.emulated:
            yield arguments
            return
        self.ops.fence(True)
        try:
            storages: dict[int, tuple[Tensor, Tensor]] = {}
            yield _copied(arguments, storages)
        finally:
            self.ops.fence(False)
        for original, copy in storages.values():
            original.copy_(copy)

    @contextmanager
    def _with(self, **changes: Any) -> Iterator[None]:
        if not self.emulated:
            yield
            return
        before, self.settings = self.settings, {**self.settings, **changes}
        self.ops.configure(*self.settings.values())
        try:
            yield
        finally:
            self.settings = before
            self.ops.configure(*before.values())

    @contextmanager
    def at_level(self, level: int) -> Iterator[None]:
        if self.emulated:
            limit = min(self.settings["shared_limit"], 64 * 1024) if level == 75 else self.settings["shared_limit"]
            with self._with(level=level, shared_limit=limit):
                yield
            return
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < level or (level == 90 and major != 9):
            pytest.skip(f"this GPU has not level {level}")
        self.properties.append(("cuda_level", level))
        with using_cuda_level(level):
            yield

    @contextmanager
    def half_accumulate(self, wanted: bool = True) -> Iterator[None]:
        with self._with(half_accumulate=wanted) if self.emulated else using_half_accumulation(wanted):
            yield

    def seed(self, seed: int) -> Any:
        return self._with(seed=seed)

    def shared_limit(self, limit: int) -> Any:
        return self._with(shared_limit=limit)

    def seconds(self, limit: int) -> Any:
        return self._with(seconds=limit)

    def multiprocessors(self, count: int) -> Any:
        return self._with(multiprocessors=count)


@pytest.fixture
def emulated_ops(emulated: Any) -> Ops:
    emulated.configure(*DEFAULTS.values())
    return Ops("cpu", emulated)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops_on(request: pytest.FixtureRequest) -> Ops:
    """The ops of one kind of device, with its settings as at first."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_ops")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    with using_half_accumulation(False):  # loads the library, or says why not
        return Ops("cuda", torch.ops.vitsparse, request.node.user_properties)
