"""``python -m vitsparse`` is the ``vitsparse`` command, so that ``torchrun -m vitsparse`` works."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
