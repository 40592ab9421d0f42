"""The command ``vitsparse``: help for every verb, one readable message and status 2 for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitsparse.cli import VERBS, main, shared
from vitsparse.cli import data as data_verb
from vitsparse.cli.config import Config
from vitsparse.cli.evaluate import row_names
from vitsparse.data.ranks import Ranks
from vitsparse.errors import InputError
from vitsparse.version import __version__


def status(arguments: list[str]) -> int:
    """The exit status; flags end in SystemExit as in any Python program."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def test_without_a_verb_the_verbs_are_listed(capsys):
    assert (main([]), main(["--help"])) == (2, 0)
    page = capsys.readouterr().out
    assert all(verb in page for verb in VERBS)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitsparse {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert status([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"vitsparse {verb}" in page
    assert not any(flag in page for flag in ("--train.seed", "--finetune.seed", "--train.distill_weight"))
    if verb != "doctor":
        assert all(flag in page for flag in ("--config", "--preset", "--seed", "--device", "--out", "--resume"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["trian"], "did you mean 'train'?"),
    (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    (["train", "--preset", "digit"], "did you mean 'digits'?"),
    (["train", "--train.epohs", "3"], "--train.epochs"),
    (["train", "--train.epochs", "three"], "three"),
    (["train", "--train.epochs", "-3"], "at least 1"),
    (["discover"], "folder of the dense model"),
    (["data", "--data.name", "digit"], "digit"),
    (["evaluate", "--dense", "here", "--bench.batches", "1", "0"], "each at least 1"),
    (["evaluate", "--dense", "here", "--bench.batches"], "one batch size or more"),
    (["evaluate", "--dense", "here", "--bench.repeats", "0"], "repeats expected: an integer, at least 1"),
    (["evaluate", "--dense", "here", "--bench.min_seconds", "nan"], "min_seconds"),
    (["evaluate", "--dense", "here", "a/pruned", "b/pruned"], "'pruned', which is a/pruned"),
    (["evaluate", "--dense", "here", "there/dense"], "'dense', which is here"),
    (["discover", "here", "--discover.images", "0"], "images expected: an integer, at least 1"),
    (["sparsify", "here", "there", "--bench.repeats", "3"], "--bench.repeats"),
])
def test_bad_input_is_one_message_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(arguments) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["data", "--preset", "tiny-imagenet-small"], "tiny_imagenet needs to know where its images are"),
    (["data", "--preset", "tiny-imagenet-small", "--data", "nowhere"], "nowhere"),
    (["data", "--data", "somewhere"], "the digits are embedded"),
    (["data", "--data.train_images", "0"], "data.train_images"),
    (["data", "--classes", "11"], "1 to 10"),
    (["train", "--device", "gpu"], "auto, cpu or cuda"),
    (["train", "--model.patch_size", "3"], "a multiple of patch_size=3"),
    (["discover", "nowhere"], "nowhere"),
    (["evaluate", "nowhere", "--dense", "nowhere"], "nowhere"),
    (["finetune", "nowhere"], "distillation needs the dense model"),
    (["sparsify", "nowhere", "nowhere.json"], "nowhere.json"),
])
def test_what_is_wrong_with_the_input_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status([*arguments, "--out", "out"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("vitsparse: ")
    assert not (tmp_path / "out").exists()


def test_rows_are_named_after_folders_however_they_are_written(tmp_path, monkeypatch):
    (tmp_path / "pruned").mkdir()
    (tmp_path / "other").symlink_to("pruned")
    monkeypatch.chdir(tmp_path / "pruned")
    names = row_names(Path("d"), [Path("."), tmp_path / "other"])
    assert names == {"dense": Path("d"), "pruned": Path("."), "other": tmp_path / "other"}


def test_an_output_that_is_a_file_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert status(["data", "--out", str(tmp_path / "out")]) == 2
    assert "folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_debug_shows_the_traceback():
    with pytest.raises(InputError):
        main(["trian", "--debug"])


def test_only_the_first_rank_does_what_is_not_shared(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(data_verb, "main", lambda _: pytest.fail("the first rank does this"))
    assert main(["data"]) == 0


def test_every_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for local, device in enumerate(["cuda:0", "cuda:1"]):
        monkeypatch.setattr(shared, "ranks", lambda local=local: Ranks(local, 3, local))
        assert shared.device_of(Config()) == shared.device_of(Config(device="cuda")) == device
        assert shared.device_of(Config(device="cpu")) == "cpu"
    monkeypatch.setattr(shared, "ranks", lambda: Ranks(2, 3, 2))
    with pytest.raises(InputError, match=r"more ranks than GPUs(.|\n)*at most 2"):
        shared.device_of(Config())
    monkeypatch.setattr(shared, "ranks", Ranks)
    assert shared.device_of(Config()) == "cuda"


@pytest.mark.parametrize("cause", [None, KeyboardInterrupt()])
def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys, cause):
    def interrupted(_):
        raise (RuntimeError("Error calling __set_name__") if cause else KeyboardInterrupt) from cause

    monkeypatch.setattr(data_verb, "main", interrupted)
    assert main(["data"]) == 130
    assert "--resume" in capsys.readouterr().err
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        main(["data", "--debug"])


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(data_verb, "main", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["data"])


def test_a_reader_that_goes_away_is_no_error():
    program = subprocess.Popen([sys.executable, "-m", "vitsparse", "doctor"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    program.stdout.close()
    assert (program.stderr.read(), program.wait(timeout=120)) == ("", 141)
    program.stderr.close()
