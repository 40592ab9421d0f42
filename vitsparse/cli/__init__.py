"""The command line: ``vitsparse VERB ...``, one file for each verb, imported only when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ..errors import InputError, nearest

VERBS = {
    "doctor": "what is installed, built and usable on this machine, and why not",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. Bad input ends in one readable message and status 2, not in a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: vitsparse VERB [options]\n\n" + "\n".join(f"  {verb:12} {text}" for verb, text in VERBS.items()))
        return 0 if arguments else 2
    try:
        if arguments[0] not in VERBS:
            raise InputError("no verb has this name", where="vitsparse", expected=", ".join(VERBS), found=arguments[0],
                             remedy=nearest(arguments[0], VERBS))
        return importlib.import_module(f".{arguments[0]}", __name__).main(arguments[1:])
    except InputError as error:
        print(f"vitsparse: {error}", file=sys.stderr)
        return 2
