"""From a model's name to files: the embedded model, folders, the hub."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from hub_stand_in import MAIN, OLDER, HubStandIn, Repository, hub_in_place
from quarterdeck import AutoConfig, AutoTokenizer, locate
from quarterdeck.errors import CheckpointError, CheckpointNotFoundError, InputError
from quarterdeck.locate import HubOptions, download, local_folder, resolve_file


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    yield from hub_in_place(monkeypatch)


@pytest.fixture
def served(hub: HubStandIn) -> HubStandIn:
    """A hub with one model of two shards, in two revisions."""
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 10 for i in (1, 2)}
    files = {"config.json": b"{}", "sub/config.json": b'{"sub": 1}', "pytorch_model.bin": b"pickle", **shards}
    older = {"config.json": b'{"older": 1}'}
    names = {"main": MAIN, "v1": OLDER}
    hub.repositories["crew/ship"] = Repository({MAIN: files, OLDER: older}, names)
    return hub


# -- this machine ----------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_file(tmp_path, "config.json") == tmp_path / "config.json"
    assert resolve_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert download(str(tmp_path)) == tmp_path


def test_a_relative_folder_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("models/a") == Path("models/a")
    assert local_folder("~/models/a") == tmp_path / "models" / "a"


def test_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text("{}")
    assert resolve_file(tmp_path, "config.json", subfolder="sub") == tmp_path / "sub" / "config.json"
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        resolve_file(tmp_path, "config.json", subfolder="nowhere")


def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_ASSETS", tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="missing from this installation"):
        resolve_file("midshipman", "config.json")
    (tmp_path / "midshipman").mkdir()
    (tmp_path / "midshipman" / "config.json").write_text("{}")
    assert resolve_file("midshipman", "config.json") == tmp_path / "midshipman" / "config.json"


def test_a_path_called_like_the_embedded_model_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_ASSETS", tmp_path / "assets")
    (tmp_path / "assets" / "midshipman").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    embedded = tmp_path / "assets" / "midshipman"
    assert local_folder(Path("midshipman")) == embedded
    (tmp_path / "midshipman").mkdir()
    assert local_folder(Path("midshipman")) == local_folder("./midshipman") == Path("midshipman")
    assert local_folder("midshipman") == embedded


def test_an_absent_file_is_an_error_unless_it_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    assert resolve_file(tmp_path, "config.json", required=False) is None
    with pytest.raises(CheckpointNotFoundError, match=r"no config.json in .*it holds weights.bin"):
        resolve_file(tmp_path, "config.json")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "a\\b", "org/name/", Path("x")])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(name: str | Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is no folder"):
        resolve_file(name, "config.json", required=False)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match="is a file; give the folder"):
        resolve_file(path, "config.json")


def test_an_empty_name() -> None:
    with pytest.raises(InputError, match="empty"):
        resolve_file("", "config.json")


@pytest.mark.parametrize("name", [None, 3, b"folder"], ids=repr)
def test_what_is_no_name(name: Any) -> None:
    for load in (local_folder, AutoTokenizer.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(InputError, match=f"there is nothing to load: a model's name is {name!r}"):
            load(name)


def test_a_local_folder_does_not_import_the_hub_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys; from quarterdeck.locate import resolve_file; resolve_file(sys.argv[1], 'config.json'); "
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(HubOptions(token="secret"))


# -- the hub ---------------------------------------------------------------------------------------------


def test_a_file_from_the_hub(served: HubStandIn, tmp_path: Path) -> None:
    path = resolve_file("crew/ship", "config.json", cache_dir=tmp_path)
    assert path.read_bytes() == b"{}"
    assert resolve_file("crew/ship", "config.json", subfolder="sub", cache_dir=tmp_path).read_bytes() == b'{"sub": 1}'


def test_a_revision(served: HubStandIn, tmp_path: Path) -> None:
    assert resolve_file("crew/ship", "config.json", revision="v1", cache_dir=tmp_path).read_bytes() == b'{"older": 1}'
    assert resolve_file("crew/ship", "config.json", revision=OLDER, cache_dir=tmp_path).read_bytes() == b'{"older": 1}'
    with pytest.raises(CheckpointNotFoundError, match="no revision 'v9'"):
        resolve_file("crew/ship", "config.json", revision="v9", cache_dir=tmp_path)


def test_files_are_fetched_once(served: HubStandIn, tmp_path: Path) -> None:
    for _ in range(2):
        resolve_file("crew/ship", "config.json", cache_dir=tmp_path)
    assert served.paths("GET") == ["/crew/ship/resolve/main/config.json"]
    resolve_file("crew/ship", "config.json", cache_dir=tmp_path, force_download=True)
    assert len(served.paths("GET")) == 2


def test_several_files_and_only_those(served: HubStandIn, tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    paths = HubOptions(cache_dir=tmp_path).resolve_files("crew/ship", names)
    assert [path.read_bytes() for path in paths] == [b"\1" * 10, b"\2" * 10]
    assert not any("pytorch_model" in path for path in served.paths())
    with pytest.raises(CheckpointNotFoundError, match=r"lacks absent.safetensors"):
        HubOptions(cache_dir=tmp_path).resolve_files("crew/ship", ["absent.safetensors"])


def test_pinning_to_the_commit_of_the_first_file(served: HubStandIn, tmp_path: Path) -> None:
    options = HubOptions(cache_dir=tmp_path)
    pinned = options.pinned_to(options.resolve_file("crew/ship", "config.json"))
    assert pinned.revision == MAIN
    served.repositories["crew/ship"].names["main"] = OLDER  # somebody pushes
    assert pinned.resolve_file("crew/ship", "sub/config.json").read_bytes() == b'{"sub": 1}'
    served.requests.clear()
    assert pinned.resolve_file("crew/ship", "config.json").read_bytes() == b"{}"
    assert served.requests == []  # the hub need not be asked about a commit
    assert options.pinned_to(tmp_path / "config.json") == options


def test_the_token_is_sent(served: HubStandIn, tmp_path: Path) -> None:
    served.repositories["crew/ship"].token = "hf_secret"
    with pytest.raises(CheckpointNotFoundError, match=r"neither a folder .* log in .* token="):
        resolve_file("crew/ship", "config.json", cache_dir=tmp_path, token=False)
    resolve_file("crew/ship", "config.json", cache_dir=tmp_path, token="hf_secret")
    assert served.requests[-1][2] == "Bearer hf_secret"


def test_a_gated_model(served: HubStandIn, tmp_path: Path) -> None:
    served.repositories["crew/ship"].gated = True
    with pytest.raises(CheckpointNotFoundError, match="restricted: accept its terms"):
        resolve_file("crew/ship", "config.json", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="restricted: accept its terms"):
        download("crew/ship", cache_dir=tmp_path)


def test_no_such_model_and_no_such_file(served: HubStandIn, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"neither a folder 'crew/raft' nor 'crew/raft' on the hub"):
        resolve_file("crew/raft", "config.json", cache_dir=tmp_path, required=False)
    with pytest.raises(CheckpointNotFoundError, match=r"no nothing.json in 'crew/ship' on the hub"):
        resolve_file("crew/ship", "nothing.json", cache_dir=tmp_path)
    assert resolve_file("crew/ship", "nothing.json", cache_dir=tmp_path, required=False) is None


@pytest.mark.parametrize("name", ["crew ship", "crew/ship?x", "-crew", "a" * 100])
def test_what_cannot_be_a_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="neither an existing folder nor a possible hub id"):
        resolve_file(name, "config.json", cache_dir=tmp_path)


def test_what_was_downloaded_serves_offline(served: HubStandIn, tmp_path: Path) -> None:
    online = resolve_file("crew/ship", "config.json", cache_dir=tmp_path)
    served.requests.clear()
    assert resolve_file("crew/ship", "config.json", cache_dir=tmp_path, local_files_only=True) == online
    assert resolve_file("crew/ship", "other.json", cache_dir=tmp_path, local_files_only=True, required=False) is None
    with pytest.raises(CheckpointNotFoundError, match="was not downloaded before"):
        resolve_file("crew/ship", "other.json", cache_dir=tmp_path, local_files_only=True)
    assert served.requests == []


def test_any_other_refusal_is_a_checkpoint_error(served: HubStandIn, tmp_path: Path) -> None:
    served.repositories["crew/ship"].refused = True
    with pytest.raises(CheckpointError, match="crew/ship"):
        resolve_file("crew/ship", "config.json", cache_dir=tmp_path)


def test_download_takes_what_is_needed_and_no_pickles(served: HubStandIn, tmp_path: Path) -> None:
    folder = download("crew/ship", cache_dir=tmp_path)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert found == ["config.json", *shards, "sub/config.json"]
    assert download("crew/ship", cache_dir=tmp_path, local_files_only=True) == folder


def test_in_a_process_of_its_own(served: HubStandIn, tmp_path: Path) -> None:
    """With the environment variables that users set: first from the hub, then offline."""
    code = "from quarterdeck.locate import download; import os; print(sorted(os.listdir(download('crew/ship'))))"
    online = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    runs = []
    for environment in (online, {**online, "HF_HUB_OFFLINE": "1"}):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout.replace("'", '"')))
    assert runs[0] == runs[1]
    assert "config.json" in runs[0]


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A hub that has been there and is not any more; gives the waits between tries."""
    for hub in hub_in_place(monkeypatch):
        hub.repositories["crew/ship"] = Repository({MAIN: {"config.json": b"{}"}}, {"main": MAIN})
        waits: list[float] = []
        monkeypatch.setattr("time.sleep", waits.append)
        yield waits


def test_an_unreachable_hub_is_said_once_and_at_once(
    unreachable: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_file("crew/ship", "config.json", cache_dir=tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        for required in (True, False):  # the first file of a model to be asked for may be an optional one
            with pytest.raises(
                CheckpointNotFoundError, match="'nope' on the hub was not downloaded before, and the hub"
            ):
                resolve_file("nope", "config.json", cache_dir=tmp_path, required=required)
        assert resolve_file("crew/ship", "config.json", cache_dir=tmp_path).read_bytes() == b"{}"
        assert resolve_file("crew/ship", "other.json", cache_dir=tmp_path, required=False) is None
        assert not HubOptions().has_file("crew/ship", "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="force_download=True needs the hub"):
            resolve_file("crew/ship", "config.json", cache_dir=tmp_path, force_download=True)
    assert unreachable == []
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
