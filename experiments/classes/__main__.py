"""``python -m experiments.classes``: the journal of this experiment alone, with what it starts from."""

import sys

from experiments.__main__ import main

sys.exit(main(sys.argv[1:], "classes"))
