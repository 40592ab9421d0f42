"""What the frozen values share: read-only mappings, cheap copies, and a way through pickle of worker processes."""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any


class Frozen:
    """Base of a frozen dataclass. A copy of a value that cannot change is the value itself."""

    def _freeze(self, name: str) -> None:
        """Turn the mapping in field ``name`` into a read-only copy; to be called while initialising."""
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __copy__(self):
        return self

    def __deepcopy__(self, memo: dict):
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return type(self), tuple(dict(value) if isinstance(value, MappingProxyType) else value for value in values)
