"""Run by test_killed.py in a fresh process: trains, is really killed with SIGKILL, resumes, prints what came out.

``kill_and_resume.py <folder> <JSON list of [what, number]>``: a child is forked for each entry and killed at the
``number``-th batch it draws, call of ``os.fsync`` or of ``os.replace``, or after ``number`` seconds; another child then
resumes to the end. Prints one JSON object per entry: whether the child was killed, and the digest of the final weights.
The parent imports everything, but runs neither threads nor autograd before it forks: neither survives a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import Blobs, small_recipe, small_vit

from vitsparse.evaluation.ablation import fingerprint
from vitsparse.training import fit


def arm(what: str, number: int) -> None:
    """Make the ``number``-th call of ``what`` the last thing this process does."""
    owner, name = (Blobs, "batch") if what == "batch" else (os, what)
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def deadly(*arguments):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, name, deadly)


def train(out: Path) -> None:
    model = small_vit()
    fit(model, Blobs(), small_recipe(), out=out, val_batches=Blobs().labelled(99), resume=True)
    (out / "digest").write_text(fingerprint(model))


def in_child(out: Path, what: str | None = None, number: float = 0) -> bool:
    """Train in a forked child, killed as told; True when SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        try:
            if what not in (None, "time"):
                arm(what, int(number))
            train(out)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if what == "time":
        time.sleep(number)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the training child failed")
    return os.WIFSIGNALED(status)


def main() -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW(small_vit().parameters())  # imports half of torch: once here, not in every child
    root, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    for index, (what, number) in enumerate(plan):
        out = root / str(index)
        killed = in_child(out, what, number)
        in_child(out)
        print(json.dumps({"killed": killed, "digest": (out / "digest").read_text()}), flush=True)


if __name__ == "__main__":
    main()
