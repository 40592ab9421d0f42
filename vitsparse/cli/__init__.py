"""The command line: ``vitsparse VERB ...``, one file for each verb, imported only when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from ..errors import InputError, nearest
from ..version import __version__

VERBS = {
    "run": "the whole road in one folder: train, discover, sparsify, fine-tune, evaluate",
    "data": "read a data set, decode it into the cache, say what is in it",
    "train": "images -> dense model, curves, gradient flow",
    "discover": "dense model -> circuit, ablation, picture",
    "sparsify": "dense model + circuit -> sparse model, printed plan",
    "finetune": "sparse model -> the same circuit with better weights",
    "evaluate": "models -> accuracy, KL, FLOPs and latency, as JSON and as a table",
    "export": "model -> ONNX, OpenVINO or torch.export file, run and compared before it is kept",
    "bench": "latency of models beside the strongest baselines, measured and predicted; the cost table of a machine",
    "doctor": "what is installed, built and usable on this machine, and why not",
}
SHARED = ("run", "train", "discover", "finetune")  # verbs that the ranks of torchrun do together
USAGE = "\n".join(["usage: vitsparse VERB [options]    (vitsparse VERB --help lists them)", "",
                   *(f"  {verb:10} {text}" for verb, text in VERBS.items()), "",
                   "  --debug    show the traceback of an error", "  --version  print the version"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. Bad input ends in one readable message and status 2, not in a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vitsparse {__version__}")
        return 0
    rank = int(os.environ.get("RANK", 0))
    try:
        if arguments[0] not in VERBS:
            raise InputError("no verb has this name", where="vitsparse", expected=", ".join(VERBS), found=arguments[0],
                             remedy=nearest(arguments[0], VERBS))
        if rank and arguments[0] not in SHARED:
            return 0  # the first rank does it alone
        with contextlib.redirect_stdout(io.StringIO()) if rank else contextlib.nullcontext():
            status = importlib.import_module(f".{arguments[0]}", __name__).main(arguments[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has gone, as `head` does: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"vitsparse{f' (rank {rank})' * (rank > 0)}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # What interrupts the making of a class (in a long import, say) comes wrapped from Python 3.11.
        if debug or not any(isinstance(which, KeyboardInterrupt) for which in (error, error.__cause__)):
            raise
        print("\nvitsparse: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
