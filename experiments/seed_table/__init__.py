"""The table of the experiment this project grew from, again: its four rows, with its graph and with ours."""

from ..journal import Cell
from ..making import cut, cut_trained_again, trained_again

NAME = "seed_table"
CELLS = (
    Cell("operator", NAME, cut("dense-seed", "operator"), needs=("dense-seed",)),
    Cell("operator+5", NAME, cut_trained_again("dense-seed", "operator", "again"), needs=("dense-seed", "operator")),
    Cell("dense-seed+5", NAME, trained_again("dense-seed", "again"), needs=("dense-seed",)),
    Cell("head", NAME, cut("dense-seed", "head"), needs=("dense-seed",)),
    Cell("head+5", NAME, cut_trained_again("dense-seed", "head", "again"), needs=("dense-seed", "head")),
)
