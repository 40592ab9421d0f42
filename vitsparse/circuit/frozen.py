"""What the frozen values share: read-only mappings, cheap copies, and a way through pickle of worker processes."""

from __future__ import annotations

import json
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from ..errors import InputError


class Frozen:
    """Base of a frozen dataclass. A copy of a value that cannot change is the value itself."""

    def _freeze(self, name: str) -> None:
        """Turn the mapping in field ``name`` into a read-only copy; to be called while initialising."""
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, MappingProxyType(dict(value)))

    def _freeze_json(self, name: str) -> None:
        """The same for a mapping that goes into a file: plain JSON values, and as the file will give them back."""
        plain: dict[str, Any] = {}
        for key, value in (getattr(self, name) or {}).items():
            try:
                plain |= json.loads(json.dumps({key: value}, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError("a value that cannot go into a file", where=f"{type(self).__name__}.{name}[{key!r}]",
                                 expected="plain JSON values", found=f"{type(value).__name__}: {error}",
                                 remedy="make it of numbers, strings, lists and dicts, e.g. int(x), x.tolist()"
                                 ) from error
        if getattr(self, name) is not None:
            object.__setattr__(self, name, MappingProxyType(plain))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo: dict):
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return type(self), tuple(dict(value) if isinstance(value, MappingProxyType) else value for value in values)
