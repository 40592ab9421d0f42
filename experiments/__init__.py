"""The experiments: the one this project grew from, again, and what becomes possible when cut edges are skipped.

    python -m experiments --size full --data PATH            # everything, in the order of experiments.cells
    python -m experiments.seed_table --size full --data PATH # one of them, with what it starts from
"""
