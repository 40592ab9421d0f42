"""``vitsparse run``: the whole road in one folder: train, discover, sparsify, fine-tune, evaluate.

The folder's ``steps.json`` says of each finished step what it was made from (settings and input files) and what it
made, with sha256. With ``--resume`` a step whose entry still holds is left as it is, the others go on where they
stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..circuit.files import read_json, sha256_of, write_json
from ..data import SPLITS, Augmentation
from ..data.ranks import ranks
from ..errors import InputError
from ..version import __version__
from . import discover, evaluate, finetune, sparsify, train
from .config import (
    BenchConfig,
    Config,
    DataConfig,
    DenseRecipe,
    DiscoverConfig,
    ModelConfig,
    SparseRecipe,
    SparsifyConfig,
)
from .discover import ABLATION_FILE, CIRCUIT_FILE
from .flags import Common, parse
from .shared import begin, device_of

STEPS_FILE = "steps.json"
_MODEL = ("config.json", "model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """The whole road in one folder: train, discover, sparsify, fine-tune, evaluate."""

    data: DataConfig
    model: ModelConfig
    train: DenseRecipe
    augment: Augmentation
    discover: DiscoverConfig
    sparsify: SparsifyConfig
    finetune: SparseRecipe
    bench: BenchConfig


@dataclass(frozen=True)
class Step:
    """One verb of the road: the sections of the configuration and the files it depends on, and the files it makes."""

    name: str
    sections: tuple[str, ...]
    reads: tuple[Path, ...]
    makes: tuple[Path, ...]
    run: Callable[[bool], Any]
    """called with whether to go on where an earlier call was cut off"""
    shared: bool = True
    """whether all ranks do it together; else the first one alone"""


def main(argv: Sequence[str]) -> int:
    """Go the road; finished steps are skipped with ``--resume``."""
    flags, config = parse(Flags, argv)
    if config.discover.ablation == "counterfactual":
        raise InputError("a counterfactual ablation is for analysis and cannot be compiled", where="discover.ablation",
                         expected="mean, optimal or zero", found="counterfactual",
                         remedy="vitsparse discover finds its circuit")
    train.check_shape(config)
    out = begin(config, "run", splits=SPLITS)
    finished: dict[str, Any] = read_json(out / STEPS_FILE) if flags.resume and (out / STEPS_FILE).exists() else {}
    if not flags.resume and (out / STEPS_FILE).exists():
        print(f"starting anew: the run in {out} is replaced (--resume would go on with it)")
    start = time.perf_counter()
    for step in road(config, out):
        ranks().barrier()  # what the first one wrote is there for all, and all have read what it writes next
        identity = _identity(step, config, out)
        if finished.get(step.name) == {"from": identity, "made": _digests(step.makes, out)}:
            print(f"[{step.name}] finished before")
            continue
        print(f"[{step.name}]", flush=True)
        # What was finished from other inputs is made anew; only training, which takes longest, refuses to be lost.
        stale = finished.pop(step.name, None) is not None and step.name != "train"
        _note(finished, out)
        if step.shared or ranks().is_first:
            step.run(flags.resume and not stale)
        ranks().barrier()
        finished[step.name] = {"from": identity, "made": _digests(step.makes, out)}
        _note(finished, out)
    print(f"everything is in {out} ({time.perf_counter() - start:.0f} s)")
    return 0


def road(config: Config, out: Path) -> Iterator[Step]:
    """The steps in order; ``out/dense``, ``out/pruned`` and ``out/finetuned`` are the models."""
    dense, pruned, finetuned = (out / name for name in ("dense", "pruned", "finetuned"))
    dense_files, pruned_files, finetuned_files = (tuple(folder / file for file in _MODEL)
                                                  for folder in (dense, pruned, finetuned))
    circuit_files = (out / CIRCUIT_FILE, out / ABLATION_FILE)
    folders = {"dense": dense, "pruned": pruned, "finetuned": finetuned}
    yield Step("train", ("data", "model", "train", "augment"), (), dense_files,
               lambda resume: train.train(config, dense, resume=resume))
    cost = (Path(config.discover.cost),) if config.discover.cost else ()
    yield Step("discover", ("data", "discover"), (*dense_files, *cost), circuit_files,
               lambda resume: discover.discover(config, dense, out, resume=resume))
    yield Step("sparsify", ("sparsify",), (*dense_files, *circuit_files), pruned_files,
               lambda _: sparsify.sparsify(config, dense, out / CIRCUIT_FILE, pruned), shared=False)
    yield Step("finetune", ("data", "finetune", "augment", "sparsify"), (*dense_files, *pruned_files), finetuned_files,
               lambda resume: finetune.finetune(config, pruned, dense, finetuned, resume=resume))
    yield Step("evaluate", ("data", "sparsify", "bench"), (*dense_files, *pruned_files, *finetuned_files),
               (out / "results.json", out / "results.md"), lambda _: evaluate.evaluate(config, folders, out),
               shared=False)


def _identity(step: Step, config: Config, out: Path) -> dict[str, Any]:
    """What decides the outcome of a step: equal identities, equal outcome."""
    values = config.to_dict()
    return {"settings": {name: values[name] for name in ("seed", *step.sections)},
            "device": device_of(config).partition(":")[0], "files": _digests(step.reads, out), "vitsparse": __version__}


def _note(finished: dict[str, Any], out: Path) -> None:
    if ranks().is_first:
        write_json(out / STEPS_FILE, finished)


def _digests(paths: Sequence[Path], out: Path) -> dict[str, str | None]:
    return {os.path.relpath(path, out): sha256_of(path) if path.exists() else None for path in paths}
