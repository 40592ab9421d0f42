"""What the verbs share: the device, images, models from folders, and the facts written beside every result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data
from ..circuit.files import existing, read_json, write_json
from ..compiler import SparseViT
from ..data import Batches, ImageSet, TrainStream
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.latency import machine_facts
from ..model.vit import ViT
from ..model.weights import CONFIG_FILE, load_pretrained
from ..report import draw_curves, draw_gradient_flow, save_figure
from ..training import History
from .config import Config, write_config


def device_of(config: Config) -> str:
    """``auto`` is the GPU where there is one; a GPU asked for by name must be there. Each rank has its own."""
    if config.device == "auto" and not torch.cuda.is_available():
        return "cpu"
    device = "cuda" if config.device == "auto" else config.device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError("not a device", where="device", expected="auto, cpu or cuda", found=config.device) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no usable GPU", where="device", expected="auto or cpu", found=config.device,
                         remedy="vitsparse doctor says what is missing")
    here = ranks()
    if device != "cuda" or here.world == 1:
        return device
    if here.local >= torch.cuda.device_count():
        raise InputError("there are more ranks than GPUs", where="torchrun --nproc-per-node", found=here.local + 1,
                         expected=f"at most {torch.cuda.device_count()}")
    return f"cuda:{here.local}"


def load_images(config: Config, split: str) -> ImageSet:
    """The split ``train``, ``val`` or ``test``, cut to the size that the configuration asks for."""
    c = config.data
    images = data.load(c.name, split, root=c.root, num_classes=c.classes, splits=c.splits, strict=c.strict)
    limit, name = (c.train_images, "train_images") if split == "train" else (c.eval_images, "eval_images")
    if limit is None:
        return images
    if not 1 <= limit <= len(images):
        raise InputError("the data set does not have so many images", where=f"data.{name}",
                         expected=f"1 to {len(images)}", found=limit)
    return images.subset(slice(limit))


def train_stream(config: Config, section: str, images: ImageSet) -> TrainStream:
    """The augmented stream of the section ``train`` or ``finetune``."""
    return TrainStream(images, getattr(config, section).batch_size, seed=config.seed, num_classes=len(images.classes),
                       augmentation=config.augment, device=device_of(config), ranks=ranks())


def eval_batches(config: Config, split: str) -> Batches:
    """Batches for measuring."""
    return Batches(load_images(config, split), config.bench.batch_size, device=device_of(config))


def load_dense(folder: str | Path, config: Config) -> ViT:
    """A dense model from its folder, on the device of the run."""
    return load_pretrained(folder, device=device_of(config))


def load_model(folder: str | Path, config: Config) -> ViT | SparseViT:
    """A dense or a sparse model, as the folder's ``config.json`` says."""
    kind = read_json(Path(folder) / CONFIG_FILE)
    if isinstance(kind, dict) and kind.get("architecture") == "vit":
        return load_dense(folder, config)
    return SparseViT.from_pretrained(folder, backend=config.sparsify.backend).to(device_of(config))


def begin(config: Config, verb: str, *, splits: Sequence[str] = (), files: Sequence[Path | None] = ()) -> Path:
    """Make the output folder and write the resolved configuration and the facts of the machine into it.

    Before that, what the verb will read is looked at, the ``splits`` of the images and the ``files`` (None: not given):
    whoever mistypes a name finds the folder as it was.
    """
    folder = Path(str(config.out))
    if folder.exists() and not folder.is_dir():
        raise InputError("the output must be a folder", where="--out", found=folder)
    device_of(config)
    for file in files:
        if file is not None:
            existing(file)
    for split in splits:
        load_images(config, split)
    if ranks().is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder)
        write_json(folder / "environment.json", {"verb": verb, **machine_facts()})
    ranks().barrier()
    return folder


def draw_history(history: History, folder: Path, title: str) -> None:
    """``curves`` and ``gradient_flow``, as PNG and SVG."""
    save_figure(draw_curves(history.epochs, title), folder / "curves")
    if history.gradients:
        save_figure(draw_gradient_flow(history.gradients, f"{title}: gradient flow"), folder / "gradient_flow")


def check_classes(model: nn.Module, images: ImageSet, where: object) -> None:
    """Refuse a model that was made for other images."""
    wanted: dict[str, Any] = image_shape(images)
    for name, value in wanted.items():
        found = getattr(model.config, name)
        if found != value:
            raise InputError("the model is for other images", where=f"{where}: {name}",
                             expected=f"{value} (as in {images.name})", found=found,
                             remedy="give --data and --classes as in its training, or another model")


def image_shape(images: ImageSet) -> dict[str, int]:
    """The arguments of a ViT that the data set decides."""
    height, width, channels = images.images.shape[1:]
    if height != width:
        raise InputError("the images must be square", where=images.name, found=f"{height}x{width}")
    return {"img_size": height, "in_chans": channels, "num_classes": len(images.classes)}
