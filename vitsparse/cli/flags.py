"""Flags of the verbs: each is a frozen dataclass of :class:`Common`, its own files, and the sections it needs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .config import Config, load_config


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes. ``preset`` and ``config`` are read first: they decide the defaults of all other flags.

    So does the method of discovery, where a verb has one.
    """

    preset: str
    """digits, tiny-imagenet-small or tiny-imagenet"""
    config: str | None = None
    """YAML file with values over the preset's; flags go over both"""
    seed: int
    device: str
    """auto, cpu or cuda"""
    out: Path
    """folder for everything that is written"""
    resume: bool = False
    """go on where an earlier run stopped; without it, the verb starts anew"""


F = TypeVar("F", bound=Common)


def parse(kind: type[F], argv: Sequence[str], **files: Any) -> tuple[F, Config]:
    """The flags of a verb and the configuration they resolve to.

    ``files`` are the defaults of the verb's own fields. It writes into ``runs/<preset>/<verb>``, and ``run`` into
    ``runs/<preset>``, unless ``--out`` says otherwise. Bad flags end the program with status 2, bad values in the file
    raise :class:`InputError`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config")
    first.add_argument("--method", "--discover.method")
    known, _ = first.parse_known_args(argv)
    config = load_config(known.preset, known.config, method=known.method)
    names = [field.name for field in dataclasses.fields(kind) if hasattr(config, field.name)]
    defaults = {name: getattr(config, name) for name in names}
    verb = kind.__module__.rpartition(".")[2]
    defaults["out"] = Path(config.out or Path("runs", config.preset, "" if verb == "run" else verb))
    flags = tyro.cli(kind, prog=f"vitsparse {verb}", args=list(argv), default=kind(**defaults, **files),
                     use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))
    values = {name: getattr(flags, name) for name in names}
    return flags, dataclasses.replace(config, **{**values, "out": str(flags.out)})
