"""The one error users meet when what they handed in is wrong.

Every message says what is wrong, where, what was expected, what was found, and how to mend it, so that nobody has to
read a traceback to know which file or field to change. It is a ``ValueError``; files that do not exist raise
:class:`MissingFile`, which is a ``FileNotFoundError`` too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: a file, a field, an argument.

    ``what`` is the sentence; ``where`` the file, field or argument; ``expected`` and ``found`` the two sides of the
    disagreement; ``remedy`` what to do about it. All but ``what`` are optional and left out of the message when empty.
    """

    def __init__(self, what: str, *, where: object = "", expected: object = "", found: object = "", remedy: str = ""):
        self.what, self.where, self.expected, self.found, self.remedy = what, where, expected, found, remedy
        parts = [f"{label}: {value}" for label, value in
                 (("where", where), ("expected", expected), ("found", found), ("remedy", remedy)) if str(value)]
        super().__init__("\n  ".join([what, *parts]))

    def within(self, place: object) -> InputError:
        """The same complaint, with ``place`` (a file, say) in front of where it is."""
        return InputError(self.what, where=f"{place}: {self.where}", expected=self.expected, found=self.found,
                          remedy=self.remedy)


class MissingFile(InputError, FileNotFoundError):
    """A file or folder that should exist does not."""

    # FileNotFoundError would print its errno form; the message of InputError is the readable one.
    __str__ = ValueError.__str__


def nearest(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
