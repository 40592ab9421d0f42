"""A search that is killed goes on where it was and finds the same; a journal that does not fit is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.discovery.search import CONFIG, GRAPH, search
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.discovery import journal as journal_module
from vitsparse.discovery.journal import Decision, Journal
from vitsparse.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("c", "b", "a")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Circuit, bytes]:
    """The circuit of an uninterrupted search, and its journal."""
    path = tmp_path_factory.mktemp("finished") / "journal"
    circuit = search(path)
    assert 0 < circuit.num_kept < GRAPH.num_edges
    return circuit, path.read_bytes()


def test_killed_with_sigkill_and_started_again(tmp_path, finished):
    circuit, content = finished
    path = tmp_path / "journal"
    for lines in (4, 11):
        killed_after(path, lines)
        assert lines <= path.read_bytes().count(b"\n") < content.count(b"\n")
        assert content.startswith(path.read_bytes())
    found = search(path)
    assert found == circuit
    assert found.provenance == circuit.provenance
    assert path.read_bytes() == content


def killed_after(path: Path, lines: int) -> None:
    """Run the search in a process of its own and kill it once the journal has that many lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "tests.discovery.search", str(path)], cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_off_anywhere_it_goes_on(tmp_path, finished, data):
    """Whatever a crash leaves of the last lines, the journal ends up the same."""
    circuit, content = finished
    header = content.index(b"\n") + 1
    path = tmp_path / "journal"
    path.write_bytes(content[: data.draw(st.integers(header, len(content)))])
    assert search(path) == circuit
    assert path.read_bytes() == content


def test_a_finished_search_is_not_run_again(tmp_path, monkeypatch, finished):
    circuit, content = finished
    path = tmp_path / "journal"
    path.write_bytes(content)
    monkeypatch.setattr(Journal, "record", None)
    assert search(path) == circuit


def test_no_edge_is_decided_twice(tmp_path, monkeypatch, finished):
    _, content = finished
    path = tmp_path / "journal"
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))
    recorded = []
    monkeypatch.setattr(Journal, "record", lambda journal, decision: recorded.append(decision.edge))
    search(path)
    assert recorded == list(GRAPH.edge_names[::-1][9:])


@pytest.mark.parametrize(("field", "changes"), [
    ("threshold", lambda: {"threshold": 2e-3}),
    ("metric", lambda: {"metric": "ce"}),
    ("model", lambda: {"seed": 2}),
    ("data", lambda: {"batches": make_batches(CONFIG, (2, 3))}),
    ("images", lambda: {"batches": make_batches(CONFIG, (3,))}),
    ("graph", lambda: {"graph": Graph(2, 2, "block")}),
    ("ablation", lambda: {"ablation": make_ablation(make_model(CONFIG, 1), GRAPH, "zero")}),
])
def test_a_journal_of_another_search_is_refused(tmp_path, finished, field, changes):
    path = tmp_path / "journal"
    path.write_bytes(finished[1])
    with pytest.raises(InputError, match=rf"of another search\n  where: .*journal: {field}\n"):
        search(path, **changes())
    assert path.read_bytes() == finished[1]


def test_a_journal_of_other_versions_is_refused(tmp_path, finished):
    path = tmp_path / "journal"
    for field in ("torch", "vitsparse"):
        header, rest = finished[1].split(b"\n", 1)
        header = json.loads(header)
        header["search"][field] = "0.0"
        path.write_bytes(json.dumps(header).encode() + b"\n" + rest)
        with pytest.raises(InputError, match=f"of another search\n  where: .*: {field}\n"):
            search(path)


@pytest.mark.parametrize("content", [
    b"my notes\n", b"my notes", b"[1]\n", b"\xff\xfe\x00\n", b'{"format": "vitsparse.circuit"}\n', b"\n", b"[" * 10**5,
    b'{"format": "vitsparse.journal", "version": 1}\n',
])
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a journal of a search\n  where: .*notes\.txt"):
        Journal(path, {"threshold": 1.0}, ORDER)
    assert path.read_bytes() == content


def test_a_journal_of_another_version_is_refused(tmp_path):
    path = tmp_path / "journal"
    path.write_text('{"format": "vitsparse.journal", "version": 2, "search": {}}\n')
    with pytest.raises(InputError, match=r"another version\n  where: .*version\n  expected: 1\n  found: 2"):
        Journal(path, {}, ORDER)


@pytest.mark.parametrize("line", [
    "", "nonsense", "[]", '{"edge": "b", "kept": true, "metric": 1.0}', '{"edge": "c", "kept": 1, "metric": 1.0}',
    '{"edge": "c", "kept": true}', '{"edge": "c", "kept": false, "metric": null}',
    '{"edge": "c", "kept": true, "metric": NaN}', '{"edge": "c", "kept": false, "metric": "1.0"}',
    '{"edge": "c", "kept": false, "metric": true}',
    '{"edge": "c", "kept": false, "metric": 1.0, "more": 0}',
])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "journal"
    with Journal(path, {}, ORDER):
        pass
    header = path.read_text()
    path.write_text(header + line + '\n{"edge": "b", "kept": true, "metric": 1.0}\n')
    with pytest.raises(InputError, match=r"damaged\n  where: .*line 2\n  expected: a decision about c\n"):
        Journal(path, {}, ORDER)


def test_lines_after_the_last_edge_are_damage(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, {}, ("c",)) as journal:
        journal.record(Decision("c", True, 1.0))
        journal.record(Decision("b", True, 1.0))
    with pytest.raises(InputError, match=r"line 3\n  expected: no line after the last edge"):
        Journal(path, {}, ("c",))


@given(metric=st.floats())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_metric_comes_back_bit_by_bit(tmp_path, metric):
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    with Journal(path, {}, ORDER) as journal:
        journal.record(Decision("c", True, metric))
    with Journal(path, {}, ORDER) as journal:
        back, = journal.lines
    finite = metric - metric == 0
    assert back.metric.hex() == metric.hex() if finite else back.metric != back.metric


def test_two_searches_do_not_share_a_journal(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, {}, ORDER), pytest.raises(InputError, match="in use by another process"):
        Journal(path, {}, ORDER)
    with Journal(path, {}, ORDER) as journal:
        assert journal.lines == []


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_stops_the_search_and_loses_nothing(tmp_path, monkeypatch, finished, fails):
    circuit, content = finished
    path = tmp_path / "journal"
    record, calls = Journal.record, []

    def full(file: int, data: bytes = b"") -> int:
        if fails == "write" and not calls.append(1) and len(calls) == 1:
            return write(file, data[: len(data) // 2])  # the disk takes half of the line, and then nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def record_until_full(journal: Journal, decision: Decision) -> None:
        if decision.edge == GRAPH.edge_names[::-1][7]:
            monkeypatch.setattr(journal_module.os, fails, full)
            monkeypatch.setattr(journal_module, "SYNC_SECONDS", 0.0)
        record(journal, decision)

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", record_until_full)
        with pytest.raises(OSError, match=r"No space left.*every edge recorded before is safe.*journal") as raised:
            search(path)
        assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == (8 if fails == "write" else 9)
    assert search(path) == circuit
    assert path.read_bytes() == content
