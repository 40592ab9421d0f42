"""Under ``make sanitize``, what the tests run is the build with sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitsparse.backends import native


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="for make sanitize")
def test_the_native_parts_in_use_are_instrumented():
    for path in (native.path("cpu"), Path(native.core().__file__)):
        code = path.read_bytes()
        assert b"__asan_report_store" in code
        assert b"__ubsan_handle_type_mismatch" in code
    assert native.available("cpu")
