"""Build the native parts: one CMake project, called from ``build_ext``. Everything declarative is in pyproject.toml.

Environment:
    VITSPARSE_CUDA        ``auto`` (default: build the CUDA ops where nvcc >= 12 is), ``on`` (fail without), ``off``
    VITSPARSE_CUDA_ARCHS  CMake's list of architectures; default ``75-real;86-real;90`` (7.5 and 8.6 as machine code,
                          9.0 also as PTX for what comes after); A100: 80, Orin: 87, Ada: 89, Blackwell: 100 or 120
    VITSPARSE_TORCH_DIR   folder of an installed ``torch`` package whose headers to use
    VITSPARSE_SANITIZE    sanitizers to build with, ``address,undefined`` for example; in a build folder of their own
    MAX_JOBS              parallel compilations; default: one per core, but 2 GB of memory for each
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OP_LIBRARIES = ("libvitsparse_cpu.so", "libvitsparse_cuda.so")
STABLE_HEADER = "include/torch/csrc/stable/library.h"
BEGIN_AFRESH = ("VITSPARSE_CUDA", "VITSPARSE_NVCC", "VITSPARSE_TORCH_DIR")
DEFAULT_CUDA_ARCHS = "75-real;86-real;90"
MIN_CUDA_ARCH = 75


def find_torch() -> Path | None:
    """The folder of an installed torch that ships the stable headers. torch itself is never imported.

    A build isolated by pip cannot import the user's packages, but ``sysconfig`` still names their folder.
    """
    if named := os.environ.get("VITSPARSE_TORCH_DIR"):
        if not (Path(named) / STABLE_HEADER).is_file():
            sys.exit(f"VITSPARSE_TORCH_DIR={named} has no {STABLE_HEADER}: name the folder of torch >= 2.10")
        return Path(named)
    spec = importlib.util.find_spec("torch")
    candidates = [Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    return next((c for c in candidates if (c / STABLE_HEADER).is_file()), None)


def cuda_wanted() -> str:
    """VITSPARSE_CUDA, checked."""
    wanted = os.environ.get("VITSPARSE_CUDA", "auto").lower()
    if wanted not in ("auto", "on", "off"):
        sys.exit(f"VITSPARSE_CUDA={wanted}: expected auto, on or off")
    return wanted


def find_nvcc() -> tuple[Path | None, str]:
    """The CUDA compiler to use and an empty string, or None and the reason."""
    if cuda_wanted() == "off":
        return None, "switched off at build time by VITSPARSE_CUDA=off"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in homes if home)]
    nvcc = next((Path(c).resolve() for c in candidates if c and Path(c).is_file()), None)
    reason = "" if nvcc else "no nvcc was found at build time (CUDACXX, PATH, CUDA_HOME, /usr/local/cuda)"
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+)\.(\d+)", text)
        if release is None or int(release[1]) < 12:
            nvcc, reason = None, f"nvcc at build time was older than 12.0: {release[0] if release else text}"
    if reason and cuda_wanted() == "on":
        sys.exit(f"VITSPARSE_CUDA=on, but {reason}")
    return nvcc, reason


def cuda_archs() -> str:
    """VITSPARSE_CUDA_ARCHS, checked."""
    wanted = os.environ.get("VITSPARSE_CUDA_ARCHS") or DEFAULT_CUDA_ARCHS
    for entry in wanted.split(";"):
        number = re.fullmatch(r"(\d+)a?(-real|-virtual)?", entry)
        if number is None or int(number[1]) < MIN_CUDA_ARCH:
            sys.exit(f"VITSPARSE_CUDA_ARCHS={wanted}: expected numbers from {MIN_CUDA_ARCH} on, as in 80 or "
                     f"75-real;86; found {entry!r}")
    return wanted


def jobs() -> str:
    """Parallel compilations: MAX_JOBS, else as many as cores and memory carry."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return os.environ.get("MAX_JOBS") or str(max(1, min(os.cpu_count() or 1, memory // 2**31)))


def tool(name: str) -> str:
    """Path of ``cmake`` or ``ninja``: the package's own program first, so that PATH need not name the environment."""
    if importlib.util.find_spec(name):
        folder = Path(getattr(__import__(name), "CMAKE_BIN_DIR" if name == "cmake" else "BIN_DIR"))
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name) or sys.exit(f"{name} is needed to build vitsparse: pip install {name}")


def gpu_sources() -> str:
    """sha256 over everything that runs on a GPU, so that a record of a passed test run can name what it tested."""
    digest = hashlib.sha256()
    for folder in ("kernels/common", "kernels/cuda", "kernels/triton", "csrc/cuda"):
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp", ".py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class CMakeBuild(build_ext):
    """Configure, build, and put the results where Python will look for them."""

    def run(self) -> None:
        in_tree = self.inplace or self.editable_mode
        destination = ROOT / "vitsparse" if in_tree else Path(self.build_lib).resolve() / "vitsparse"
        kind = "sanitized" if os.environ.get("VITSPARSE_SANITIZE") else "native"
        build = ROOT / "build" / f"{kind}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.parent.mkdir(exist_ok=True)
        with open(build.parent / ".lock", "w") as lock:  # two builds at once would write the same objects
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.configure(build)
            subprocess.run([tool("cmake"), "--build", build, "--parallel", jobs()], check=True)
            self.collect(build / "lib", destination)

    def configure(self, build: Path) -> None:
        import pybind11

        torch, (nvcc, why_no_cuda) = find_torch(), find_nvcc()
        verified = json.loads((ROOT / "kernels/verified_on_gpu.json").read_text())
        defines = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "VITSPARSE_TORCH_DIR": torch or "",
            "VITSPARSE_WHY_NO_CUDA": why_no_cuda,
            "VITSPARSE_GPU_SOURCES": gpu_sources(),
            **{f"VITSPARSE_VERIFIED_{name.upper()}": value or "" for name, value in verified.items()},
            "VITSPARSE_CUDA": cuda_wanted(),
            "VITSPARSE_NVCC": nvcc or "",
            "VITSPARSE_SANITIZE": os.environ.get("VITSPARSE_SANITIZE", ""),
            "CMAKE_CUDA_ARCHITECTURES": cuda_archs(),
        }
        # CMake cannot change compilers in a configured folder, and libraries no longer made would stay in it.
        if any(self.remembered(build, name) not in (None, str(defines[name])) for name in BEGIN_AFRESH):
            shutil.rmtree(build)
        command = [tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja"]
        subprocess.run([*command, *(f"-D{name}={value}" for name, value in defines.items())], check=True)
        if torch is None:
            print("vitsparse: no torch headers found, so the op libraries are not built; install torch and build again")

    @staticmethod
    def remembered(build: Path, name: str) -> str | None:
        """A setting of the previous configuration in this build folder, or None."""
        cache = build / "CMakeCache.txt"
        found = re.search(rf"^{name}:\w+=(.*)$", cache.read_text(), re.M) if cache.is_file() else None
        return found[1] if found else None

    def collect(self, built: Path, destination: Path) -> None:
        """Replace libraries by rename: a process that has the old one mapped keeps it whole."""
        destination.mkdir(parents=True, exist_ok=True)
        for name in (Path(self.get_ext_filename("_core")).name, *OP_LIBRARIES):
            if (built / name).is_file():
                shutil.copy2(built / name, destination / f".{name}.new")
                os.replace(destination / f".{name}.new", destination / name)
            else:
                (destination / name).unlink(missing_ok=True)  # never leave a stale library behind

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "vitsparse"
        return [str(path) for path in folder.glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


if platform.system() != "Linux":
    sys.exit(f"vitsparse builds on Linux (also under WSL2), not on {platform.system()}")

setup(
    packages=[*find_packages(include=["vitsparse", "vitsparse.*"]), "vitsparse._triton"],
    package_dir={"vitsparse._triton": "kernels/triton"},
    package_data={"vitsparse": ["py.typed", "model/pretrained.json"]},
    ext_modules=[Extension("vitsparse._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
