"""The pages beside published weights, in Markdown: a card for each model, and the page of the folder.

Every number is read from a result file, from the index or from the model's configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vitsparse.data import tiny_imagenet
from vitsparse.evaluation.intervals import share_interval
from vitsparse.model.config import ViTConfig
from vitsparse.model.pretrained import Pretrained

from .journal import plain_values
from .judge import answers

LICENCE = ("The weights are under the licence of the project (MIT, see `LICENSE`). They were trained on Tiny ImageNet, "
           "whose images come from ImageNet and are for non-commercial research and education; what that means for "
           "another use of the weights is for the user to judge.")
_KINDS = {"vit": "dense", "sparse_vit": "sparse"}


@dataclass(frozen=True)
class Card:
    """What a card is made of: the entry of the index, the model's ``config``, and the files of its cell. ``changed`` is
    how many test images float16 answers differently, right or wrong; None where that was not looked at."""

    name: str
    entry: Pretrained
    config: ViTConfig
    result: Mapping[str, Any]
    latency: Mapping[str, Any] | None = None
    changed: int | None = None

    def text(self) -> str:
        """The whole card."""
        sections = [("", self._head()), ("How to load it", self._loading()), ("What it is", self._facts()),
                    ("Data", self._data()), ("Recipe", self._recipe()), ("Accuracy", self._accuracy()),
                    ("Latency", self._latency()), ("Where it comes from", self._origin()), ("Licence", [LICENCE]),
                    ("Limits of use", self._limits())]
        return "\n\n".join("\n".join([*([f"## {title}", ""] if title else []), *lines]) for title, lines in sections
                           ) + "\n"

    def _head(self) -> Iterator[str]:
        yield "---"
        yield yaml.safe_dump({
            "license": "mit", "library_name": "vitsparse", "pipeline_tag": "image-classification",
            "datasets": ["tiny-imagenet"], "metrics": ["accuracy"],
            "tags": ["vision-transformer", *(["pruned"] if self.entry.architecture == "sparse_vit" else [])],
        }, sort_keys=False).rstrip()
        yield from ("---", "", f"# {self.name}", "", f"{self.entry.description}.")

    def _loading(self) -> Iterator[str]:
        c = self.config
        yield from ("```python", "import vitsparse as vs", "",
                    f'model = vs.create_model("{self.name}", pretrained=True).eval()',
                    f"logits = model(images)    # float32 [B, {c.in_chans}, {c.img_size}, {c.img_size}] -> "
                    f"[B, {c.num_classes}]", "```", "")
        yield (f"Images are RGB, 0 to 1, minus the mean {tiny_imagenet.MEAN}, divided by {tiny_imagenet.STD}. "
               "The files hold float16 and become float32 on loading; each is compared with its pinned sha256 first.")

    def _facts(self) -> Iterator[str]:
        row, c = self.result["row"], self.config
        yield from ("| | |", "| --- | --- |")
        yield (f"| architecture | ViT, {c.depth} layers, width {c.embed_dim}, {c.num_heads} heads, patches of "
               f"{c.patch_size} x {c.patch_size}, {_KINDS[self.entry.architecture]} |")
        yield f"| parameters | {row['parameters']:,} ({self.entry.bytes / 1e6:.2f} MB of files) |"
        yield f"| FLOPs an image | {row['flops'] / 1e6:,.1f} M |"
        yield f"| S: dense FLOPs over these | {row['S']:.2f} |"
        if row["edges"] is not None:
            yield f"| edges kept | {row['edges_kept']:,} of {row['edges']:,} |"
            yield f"| nodes dead, constant | {row['nodes_dead']}, {row['nodes_constant']} of {row['nodes']} |"

    def _data(self) -> Iterator[str]:
        first = tiny_imagenet.FIRST_TEST_NUMBER
        yield (f"Tiny ImageNet, the first {self.config.num_classes} of its 200 classes (labels sort by wnid). Of each "
               f"class the training images 0 to {first - 1} train, those from {first} on test, and the official "
               "validation images validate.")

    def _recipe(self) -> Iterator[str]:
        training = self.result["training"]
        if training:
            yield (f"{training['epochs']} epochs in {training['seconds']:,.0f} s, "
                   f"{training['images_per_second']:,.0f} images a second. What decided the result:")
            yield ""
        yield from ("| setting | value |", "| --- | --- |")
        yield from (f"| {name} | {value} |" for name, value in plain_values(self.result["settings"]))

    def _accuracy(self) -> Iterator[str]:
        row, before = self.result["row"], self.result["before"]
        kl = "" if row["kl"] is None else f", KL from the dense model {row['kl']:.4f} nats"
        yield f"{share(row)} of {row['images']:,} test images (95 % interval, Wilson); loss {row['loss']:.4f} nats{kl}."
        if before:
            yield f"Before fine-tuning: {share(before)}."
        rounded = ("the float16 files were not measured" if self.changed is None else
                   f"with the float16 files {self.changed} images change between right and wrong")
        yield f"Measured before rounding; {rounded}."

    def _latency(self) -> Iterator[str]:
        if self.latency is None:
            yield "Not measured."
            return
        yield "Milliseconds of a call, p50 [p20, p80], beside the dense model of this size, all taking turns."
        yield from ("", "| batch | this model | dense | times as fast as the strongest |", "| --: | --- | --- | --- |")
        for batch, found in self.latency["batches"].items():
            dense = "<br>".join(f"{runtime} {_spread(times)}" for runtime, times in found["dense"].items())
            yield (f"| {batch} | {found['model']['backend']} {_spread(found['model'])} | {dense} | "
                   f"{_spread(found['speedup'])} ({found['strongest']}) |")
        yield from ("", f"{_machine(self.latency)}. On another machine only the ratios mean something.")

    def _origin(self) -> Iterator[str]:
        result = self.result
        yield f"Cell `{result['cell']}` of the experiments, size `{result['size']}`: `{result['command']}`."
        yield f"{_machine(result)}."

    def _limits(self) -> Iterator[str]:
        c = self.config
        yield (f"A model for research on pruning, trained on images of {c.img_size} x {c.img_size} pixels. It names "
               f"one of {c.num_classes} classes whatever it is shown, and is often wrong; its confidence is not "
               "calibrated, and shifted or adversarial images were not looked at. Not for decisions about people.")


def describe(architecture: str, result: Mapping[str, Any], num_classes: int) -> str:
    """A line about a model."""
    row, kind = result["row"], _KINDS[architecture].capitalize()
    size = f" (S = {row['S']:.2f})" if architecture == "sparse_vit" else ""
    return f"{kind}{size}, {num_classes} classes of Tiny ImageNet: {share(row)} of {row['images']:,} test images"


def share(row: Mapping[str, Any]) -> str:
    """The accuracy in a row with its 95 % interval."""
    low, high = share_interval(answers(row))
    return f"{row['accuracy']:.2%} [{low:.2%}, {high:.2%}]"


def index_page(models: Mapping[str, Pretrained]) -> str:
    """The page of the folder of all weights."""
    rows = [f"| [{name}]({name}/README.md) | {entry.description} | {entry.bytes / 1e6:.2f} | "
            f"`{entry.files['model.safetensors'].sha256[:16]}` |" for name, entry in models.items()]
    return "\n".join([
        "# Weights", "", "Written by `python -m experiments.publish`; each model has a card.", "",
        "| name | what it is | MB | sha256 of model.safetensors |", "| --- | --- | --: | --- |", *rows, "",
        "```python", "import vitsparse as vs", "", "vs.list_models(pretrained=True)",
        "model = vs.create_model(NAME, pretrained=True).eval()    # outside a checkout: weights=FOLDER or an https URL",
        "```", "",
        "Files are float16 safetensors. `vitsparse/model/pretrained.json` pins the sha256 and the size of every one;",
        "a file that differs is never parsed. So a copy of this folder may lie anywhere: name it in `weights=` or in",
        "`VITSPARSE_WEIGHTS`.", "", LICENCE]) + "\n"


def _spread(times: Mapping[str, float]) -> str:
    return f"{times['p50']:.3g} [{times['p20']:.3g}, {times['p80']:.3g}]"


def _machine(found: Mapping[str, Any]) -> str:
    facts = found["machine"]
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} threads"
    return f"{where}, torch {facts['torch']}, {str(facts['date'])[:10]}, commit {facts['commit']}"
