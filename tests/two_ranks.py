"""Functions run in two gloo processes, as ``torchrun --nproc-per-node 2`` would.

Importing torch is most of the time of a short program, so one process imports it once for all tests and forks the
ranks. It runs neither threads nor autograd itself, because neither survives a fork.

    def test_it(two_ranks):                                  # the fixture of conftest.py
        first, second = two_ranks("tests.data.test_ranks:sums", 3)    # sums(3) in both; what it returns must be JSON
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORLD = 2


class Launcher:
    """Starts functions named ``module:function`` in two ranks; :meth:`close` ends the process that forks them."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-W", "error", "-m", "tests.two_ranks"], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, function: str, *arguments: Any, may_die: bool = False) -> list[Any]:
        """What each rank's ``function(*arguments)`` returned; an exception in one of them fails with its traceback.

        A rank that ends without an answer fails too, or gives None where it ``may_die``.
        """
        self._server.stdin.write(json.dumps([function, arguments]) + "\n")
        self._server.stdin.flush()
        answers = json.loads(self._server.stdout.readline())
        for rank, answer in enumerate(answers):
            error = answer.get("error") or (None if answer or may_die else "it was killed")
            if error:
                raise AssertionError(f"rank {rank} of {function}:\n{error}")
        return [answer.get("value") for answer in answers]

    def close(self) -> None:
        with self._server:
            self._server.stdin.close()


@contextlib.contextmanager
def launcher() -> Iterator[Launcher]:
    launch = Launcher()
    try:
        yield launch
    finally:
        launch.close()


def serve() -> None:
    """Answer each line of standard input, a JSON [function, arguments], with a line of both ranks' answers."""
    import torch

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports half of torch: once here, not in every rank
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the functions print is for people
        for line in sys.stdin:
            function, arguments = json.loads(line)
            print(json.dumps(in_ranks(function, arguments)), file=answers, flush=True)


def in_ranks(function: str, arguments: list[Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
        listener.close()
        files = [Path(folder, str(rank)) for rank in range(WORLD)]
        children = [_fork(function, arguments, rank, file) for rank, file in enumerate(files)]
        for child in children:
            os.waitpid(child, 0)
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def _fork(function: str, arguments: list[Any], rank: int, file: Path) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    try:
        module, name = function.split(":")
        answer = {"value": getattr(importlib.import_module(module), name)(*arguments)}
        text = json.dumps(answer)
    except BaseException:
        text = json.dumps({"error": traceback.format_exc()})
    file.write_text(text)
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    serve()
