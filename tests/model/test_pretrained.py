"""Trained weights by name: found in every place they may be, checked before they are read, float32 when loaded."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from tests.compiler.cases import CONFIG, case_of
from tests.tolerances import STORED_IN_HALF, error
from vitsparse.compiler import SparseViT
from vitsparse.errors import InputError, MissingFile
from vitsparse.model import pretrained
from vitsparse.model.config import ViTConfig
from vitsparse.model.pretrained import Pretrained, Stamp, read_index, write_index
from vitsparse.model.registry import create_model, list_models
from vitsparse.model.vit import ViT
from vitsparse.model.weights import save_pretrained

ARCHITECTURE = "vit_digits_p2_d24_l2_h3"
DENSE, SPARSE = f"{ARCHITECTURE}.few", f"{ARCHITECTURE}.few_pruned"
CONFIG = ViTConfig(**{**CONFIG.to_dict(), "in_chans": 1})
CASE = case_of("sparse", config=CONFIG)


def entry_of(folder, kind: str) -> Pretrained:
    files = {path.name: Stamp.of(path) for path in sorted(folder.iterdir())}
    return Pretrained(kind, CONFIG.num_classes, "a random model", {"init_values": CONFIG.init_values}, files)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with both models, the package's index pinning them, and nothing in any other place."""
    folder = tmp_path / "place"
    save_pretrained(CASE.model, folder / DENSE, dtype=torch.float16)
    CASE.sparse().save_pretrained(folder / SPARSE, dtype=torch.float16)
    write_index({DENSE: entry_of(folder / DENSE, "vit"), SPARSE: entry_of(folder / SPARSE, "sparse_vit")},
                tmp_path / "index.json")
    monkeypatch.setattr(pretrained, "INDEX_FILE", tmp_path / "index.json")
    monkeypatch.setattr(pretrained, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VITSPARSE_WEIGHTS", raising=False)
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; remembers what was asked for."""

    def log_message(self, *_):
        self.server.asked.append(self.path)


@pytest.fixture
def server(place, monkeypatch):
    """(URL of ``place``, paths asked for so far)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=place)) as http_server:
        http_server.asked = []
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", http_server.asked
        http_server.shutdown()
        thread.join()


# --- both kinds, and what float16 on disk costs -----------------------------------------------------------------------

@torch.no_grad()
def test_both_kinds_come_back_as_they_were_but_for_rounding(place):
    dense, sparse = (create_model(name, pretrained=True, weights=place).eval() for name in (DENSE, SPARSE))
    assert (type(dense), type(sparse), dense.config) == (ViT, SparseViT, CONFIG)
    for found, original in ((dense, CASE.model), (sparse, CASE.sparse())):
        state = original.state_dict()
        assert found.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key].half().float()) for key, value in found.state_dict().items())
        assert 0 < error(found(CASE.images), original(CASE.images)) <= STORED_IN_HALF
    assert list(sparse.constants.buffers())
    assert sparse.circuit == CASE.circuit
    for name in (DENSE, SPARSE):
        assert {value.dtype for value in load_file(place / name / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("name", [DENSE, SPARSE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_dtype(place, name, dtype):
    model = create_model(name, pretrained=True, weights=place, dtype=dtype)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}


def test_numbers_beyond_float16_are_refused(tmp_path):
    dense, sparse = case_of("sparse", config=CONFIG).model, CASE.sparse()
    with torch.no_grad():
        dense.blocks[1].norm1.weight[3] = 7e4
        next(sparse.constants.buffers()).view(-1)[0] = -7e4
    with pytest.raises(InputError, match=r"too large for torch.float16[\s\S]*65504[\s\S]*found: blocks.1.norm1.weight"):
        save_pretrained(dense, tmp_path / "dense", dtype=torch.float16)
    with pytest.raises(InputError, match=r"too large for torch.float16[\s\S]*found: constants:"):
        sparse.save_pretrained(tmp_path / "sparse", dtype=torch.float16)
    assert not list(tmp_path.rglob("*.safetensors"))
    save_pretrained(dense, tmp_path / "dense")


# --- where they are looked for ----------------------------------------------------------------------------------------

def test_the_places_in_their_order(place, tmp_path, monkeypatch):
    with pytest.raises(MissingFile, match=r"no weights=, no VITSPARSE_WEIGHTS[\s\S]*checkout[\s\S]*cache[\s\S]*remedy"):
        create_model(DENSE, pretrained=True)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "weights").symlink_to(place)
    with pytest.raises(MissingFile, match="are not here"):  # a folder that only happens to be called so
        create_model(DENSE, pretrained=True)
    (checkout / "pyproject.toml").touch()
    assert isinstance(create_model(DENSE, pretrained=True), ViT)
    monkeypatch.setenv("VITSPARSE_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(MissingFile, match=f"elsewhere/{DENSE}"):
        create_model(DENSE, pretrained=True)
    assert isinstance(create_model(SPARSE, pretrained=True, weights=str(place)), SparseViT)
    monkeypatch.setenv("VITSPARSE_WEIGHTS", str(place))
    assert isinstance(create_model(SPARSE, pretrained=True), SparseViT)
    with pytest.raises(MissingFile, match=r"index\.json"):
        create_model(SPARSE, pretrained=True, weights=tmp_path / "index.json")


@pytest.mark.parametrize("name", [DENSE, SPARSE])
def test_a_url_is_downloaded_once_and_never_needed_again(place, server, tmp_path, monkeypatch, name):
    url, asked = server
    expected = create_model(name, pretrained=True, weights=place).state_dict()
    for weights in (f"{url}/", url, None):
        found = create_model(name, pretrained=True, weights=weights).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
    files = {path.name for path in (place / name).iterdir()}
    assert len(asked) == len(files)
    (kept,) = (tmp_path / "cache/vitsparse/weights").iterdir()
    assert {path.name for path in kept.iterdir()} == files
    (kept / "config.json").write_text("{}")
    monkeypatch.setenv("VITSPARSE_WEIGHTS", url)
    create_model(name, pretrained=True)
    assert len(asked) == len(files) + 1


@pytest.mark.parametrize("url", ["http://example.org/weights", "file:///weights", "ftp://localhost/weights",
                                 "https://[::1", "http://localhost.example.org"])
def test_addresses_that_are_not_fetched(place, url):
    with pytest.raises(InputError, match=r"not fetched from such an address[\s\S]*https://HOST/PATH"):
        create_model(DENSE, pretrained=True, weights=url)


def test_a_failed_download_says_so_and_leaves_nothing(place, server, tmp_path):
    url, _ = server
    (place / DENSE / "config.json").unlink()
    with pytest.raises(InputError, match=rf"cannot be downloaded[\s\S]*{url}/{DENSE}/config.json[\s\S]*404"):
        create_model(DENSE, pretrained=True, weights=url)
    with pytest.raises(InputError, match="cannot be downloaded"):
        create_model(DENSE, pretrained=True, weights="http://127.0.0.1:9")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# --- what is not the pinned file --------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["folder", "URL"])
@pytest.mark.parametrize("change", [lambda data: data[:-2], lambda data: data[:-1] + bytes([data[-1] ^ 1]),
                                    lambda data: data + b" ", lambda data: b""])
def test_a_file_that_differs_is_never_parsed(place, server, tmp_path, monkeypatch, change, how):
    file = place / SPARSE / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    monkeypatch.setattr("vitsparse.model.registry.open_folder", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(InputError, match="not the one that this version") as refusal:
        create_model(SPARSE, pretrained=True, weights=place if how == "folder" else server[0])
    found, expected = Stamp.of(file), read_index(tmp_path / "index.json")[SPARSE].files[file.name]
    for part in (f"{SPARSE}/{file.name}", f"expected: {expected}", f"found: {found}"):
        assert part in str(refusal.value)
    assert not list((tmp_path / "cache").rglob(file.name))


def test_a_file_that_is_gone(place):
    (place / SPARSE / "circuit.json").unlink()
    with pytest.raises(MissingFile, match=r"circuit\.json"):
        create_model(SPARSE, pretrained=True, weights=place)


# --- names and arguments ----------------------------------------------------------------------------------------------

def test_names(place):
    assert list_models(pretrained=True) == [DENSE, SPARSE]
    assert list_models("*pruned", pretrained=True) == [SPARSE]
    assert isinstance(create_model(ARCHITECTURE, pretrained=True, weights=place), ViT)
    with pytest.raises(InputError, match=rf"{DENSE} or {SPARSE}[\s\S]*did you mean '{SPARSE}'"):
        create_model(f"{ARCHITECTURE}.few_prunde", pretrained=True, weights=place)
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224[\s\S]*list_models\(pretrained=True\)[\s\S]*from_timm"):
        create_model("vit_tiny_patch16_224", pretrained=True)


def test_the_first_entry_stands_for_the_architecture(place, tmp_path):
    models = read_index()
    write_index({name: models[name] for name in (SPARSE, DENSE)}, tmp_path / "index.json")
    assert isinstance(create_model(ARCHITECTURE, pretrained=True, weights=place), SparseViT)


def test_a_tag_without_its_weights_is_the_architecture_they_are_for(place):
    model = create_model(DENSE, num_classes=None, drop_rate=0.5, device="meta")
    assert dataclasses.replace(model.config, drop_rate=0.0) == CONFIG
    assert create_model(DENSE, num_classes=3, device="meta").num_classes == 3
    with pytest.raises(InputError, match=f"pretrained=True[\\s\\S]*'{ARCHITECTURE}'"):
        create_model(SPARSE)
    with pytest.raises(InputError, match=f"did you mean '{DENSE}'"):
        create_model(f"{ARCHITECTURE}.fwe")
    with pytest.raises(InputError, match=r"local-dir:runs/best\.v2"):
        create_model("runs/best.v2")


def test_overrides_may_not_change_what_was_trained(place):
    load = functools.partial(create_model, pretrained=True, weights=place)
    with pytest.raises(InputError, match=r"another num_classes[\s\S]*reset_classifier"):
        load(DENSE, num_classes=3)
    with pytest.raises(InputError, match=r"num_classes': 3[\s\S]*num_classes': 5[\s\S]*with the same circuit"):
        load(SPARSE, num_classes=3)
    with pytest.raises(InputError, match="did you mean 'num_heads'"):
        load(SPARSE, num_head=3)
    assert load(DENSE, num_classes=5, drop_rate=0.5).config.drop_rate == 0.5
    assert load(SPARSE, num_classes=5, backend="reference").backend == "reference"
    for wrong, message in (({"checkpoint_path": "x.safetensors"}, "brings its own weights"),
                           ({"pretrained": False}, "where pretrained weights are")):
        with pytest.raises(InputError, match=message):
            load(DENSE, **wrong)
    with pytest.raises(InputError, match="where pretrained weights are"):
        load(f"local-dir:{place / DENSE}")


def test_a_folder_of_either_kind_opens_by_name(place):
    assert isinstance(create_model(f"local-dir:{place / DENSE}"), ViT)
    assert isinstance(create_model(f"local-dir:{place / SPARSE}", backend="torch"), SparseViT)


# --- the index --------------------------------------------------------------------------------------------------------

def test_the_index_of_the_package_names_what_the_package_can_make():
    for name in list_models(pretrained=True):
        entry = read_index()[name]
        assert {"config.json", "model.safetensors"} <= set(entry.files)
        assert entry.architecture in ("vit", "sparse_vit")
        assert create_model(name.partition(".")[0], device="meta", num_classes=entry.num_classes, **entry.model_args)


@pytest.mark.parametrize(("text", "message"), [
    ('{"format": "vitsparse.vit", "version": 1}', "no index"), ("[]", "no index"),
    ('{"format": "vitsparse.pretrained", "version": 1}', "damaged"),
    ('{"format": "vitsparse.pretrained", "version": 1, "models": {"a.b": {"files": {"x": {"sha256": "0"}}}}}',
     "damaged"),
    ('{"format": "vitsparse.pretrained", "version": 1, "models": {"a.b": []}}', "damaged"),
])
def test_a_damaged_index_is_refused(tmp_path, text, message):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_index(tmp_path / "index.json")


def test_an_index_survives_a_round_trip(place, tmp_path):
    write_index(read_index(), tmp_path / "again.json")
    assert read_index(tmp_path / "again.json") == read_index()
    assert list(json.loads((tmp_path / "again.json").read_text())["models"]) == [DENSE, SPARSE]
