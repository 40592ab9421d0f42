"""``vitsparse doctor``: what is installed, built and usable here, and why not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..backends import facts


def main(argv: Sequence[str]) -> int:
    """Print the facts, as text or with ``--json`` as one JSON object. Status 0: a missing backend is no error."""
    parser = argparse.ArgumentParser(prog="vitsparse doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    wants_json = parser.parse_args(argv).json
    found = facts.collect()
    print(json.dumps(found, indent=2) if wants_json else as_text(found))
    return 0


def as_text(found: dict[str, Any]) -> str:
    """The facts of :func:`vitsparse.backends.facts.collect` as a page for a person."""
    machine, built = found["machine"], found["built"]
    lines = ["versions", *(f"  {name:14} {version or 'not installed'}" for name, version in found["versions"].items())]
    lines += ["", "machine",
              f"  system         {machine['system']}, {machine['cores']} cores, {machine['threads']} torch threads",
              f"  CPU kernels    {machine['cpu_isa'] or 'not built'}",
              f"  torch's CUDA   {machine['torch_cuda'] or 'none'}",
              f"  driver's CUDA  {machine['driver_cuda'] or 'none'}"]
    lines += [f"  GPU            {_gpu(gpu)}" for gpu in machine["gpus"]] or ["  GPU            none"]
    lines += ["", "built", *_built(built)]
    lines += ["", "backends"]
    for name, backend in found["backends"].items():
        lines.append(f"  {name:14} {'usable' if backend['usable'] else 'not usable: ' + '; '.join(backend['why_not'])}")
    return "\n".join([*lines, "", f"GPU kernels: {found['gpu_verification']['text']}"])


def _gpu(gpu: dict[str, Any]) -> str:
    code = f"level {gpu['cuda_level']}, {gpu['cuda_code']}" if gpu["cuda_code"] else "no code for it in this build"
    return f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_bytes'] / 2**30:.1f} GiB; {code}"


def _built(built: dict[str, Any]) -> list[str]:
    if not built:
        return ["  nothing: run `pip install .` in the source folder"]
    cuda = f"yes, nvcc {built['cuda_compiler']}, for {built['cuda_architectures'].replace(';', ', ')}"
    return [f"  with           {built['compiler']}, headers of torch {built['torch_headers'] or '(none found)'}",
            f"  CPU ops        {'yes' if built['cpu_ops'] else 'no: ' + built['why_no_cpu_ops']}",
            f"  CUDA ops       {cuda if built['cuda_ops'] else 'no: ' + built['why_no_cuda_ops']}"]
