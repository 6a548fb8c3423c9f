"""Reading and writing the files of a tokenizer, and exchanging them with the peer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

from quarterdeck.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    TokenizerError,
    UnsupportedOptionError,
)
from quarterdeck.tokenizer import AddedToken, CohereTokenizer, CohereTokenizerFast
from tokenizer_support import TEMPLATE, TEXTS, hub_config, write_hub_files

pytest_plugins = ["tokenizer_fixtures"]

STATE = (
    "special_tokens_map",
    "added_tokens_encoder",
    "all_special_tokens",
    "all_special_ids",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "add_bos_token",
    "add_eos_token",
    "use_default_system_prompt",
    "split_special_tokens",
    "chat_template",
    "vocab_size",
    "model_input_names",
)


def state(tokenizer: Any) -> dict[str, Any]:
    """Everything that a tokenizer says of itself, and what it makes of texts."""
    found = {name: getattr(tokenizer, name) for name in STATE}
    added = {index: token.__getstate__() for index, token in tokenizer.added_tokens_decoder.items()}
    batch = tokenizer(list(TEXTS), padding=True).data
    return {**found, "added": added, "batch": batch, "decoded": tokenizer.batch_decode(batch["input_ids"], True)}


def changed(tokenizer: Any) -> Any:
    """The same tokenizer with something of everything changed."""
    tokenizer.add_tokens([AddedToken("<ordinary>", lstrip=True)])
    tokenizer.add_special_tokens(
        {"cls_token": "<CLS>", "additional_special_tokens": ["<A>", AddedToken("<B>", rstrip=True)]}
    )
    tokenizer.add_eos_token = True
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = 4096
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "{{ tools }}\n", "rag": "äöü {{ documents }}"}
    return tokenizer


@pytest.mark.parametrize("jinja_files", [True, False])
def test_round_trip(tiny: CohereTokenizerFast, tmp_path: Path, jinja_files: bool) -> None:
    before = state(changed(tiny))
    paths = tiny.save_pretrained(tmp_path / "new" / "folder", save_jinja_files=jinja_files)
    assert all(Path(path).is_file() for path in paths)
    assert {path.name for path in (tmp_path / "new" / "folder").rglob("*") if path.is_file()} == {
        Path(p).name for p in paths
    }
    assert ("chat_template.jinja" in {Path(path).name for path in paths}) == jinja_files
    again = CohereTokenizerFast.from_pretrained(tmp_path / "new" / "folder")
    assert state(again) == before
    again.save_pretrained(tmp_path / "twice", save_jinja_files=jinja_files)
    for path in map(Path, paths):
        other = tmp_path / "twice" / path.relative_to(tmp_path / "new" / "folder")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("jinja_files", [True, False])
def test_the_peer_reads_what_we_write(
    tiny: CohereTokenizerFast, tmp_path: Path, transformers: ModuleType, jinja_files: bool
) -> None:
    before = state(changed(tiny))
    tiny.save_pretrained(tmp_path, save_jinja_files=jinja_files)
    assert state(transformers.CohereTokenizerFast.from_pretrained(tmp_path)) == before
    automatic = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(automatic).__name__ == "CohereTokenizerFast"


@pytest.mark.parametrize("jinja_files", [True, False])
def test_we_read_what_the_peer_writes(
    tiny_folder: Path, tmp_path: Path, transformers: ModuleType, jinja_files: bool
) -> None:
    theirs = changed(transformers.CohereTokenizerFast.from_pretrained(tiny_folder))
    theirs.save_pretrained(tmp_path, save_jinja_files=jinja_files)
    expected = {**state(theirs), "padding_side": "left"}  # which the peer forgets, as it does here:
    assert transformers.CohereTokenizerFast.from_pretrained(tmp_path).padding_side == "left"
    ours = CohereTokenizerFast.from_pretrained(tmp_path)
    ours.padding_side = "right"
    assert {**state(ours), "padding_side": "left"} == expected


def test_the_real_vocabulary_both_ways(real_pair: tuple[Any, Any], tmp_path: Path, transformers: ModuleType) -> None:
    ours, theirs = real_pair
    ours.save_pretrained(tmp_path)
    again = transformers.CohereTokenizerFast.from_pretrained(tmp_path)
    assert state(again) == state(ours) == state(theirs)


def test_files_of_a_public_checkpoint(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    """Unknown keys of tokenizer_config.json are written back, and so is what is null."""
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["legacy"] is True
    assert config["sp_model_kwargs"] == {}
    assert config["unk_token"] is None
    assert config["tokenizer_class"] == "CohereTokenizerFast"
    assert config["padding_side"] == "left"
    assert config["model_max_length"] == 1000000000000000019884624838656
    assert "chat_template" not in config
    named = json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert set(named) == {"bos_token", "eos_token", "pad_token"}
    assert named["bos_token"]["content"] == "<BOS_TOKEN>"
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE


def test_properties_of_added_tokens_in_the_configuration_win(
    tiny_backend: Tokenizer, tmp_path: Path, transformers: ModuleType
) -> None:
    """As with the copy of tokenizer.json in which every marker is special: the configuration says it is not."""
    config = hub_config(tiny_backend)
    for token in config["added_tokens_decoder"].values():  # type: ignore[attr-defined]
        token["special"] = not token["special"]
        token["lstrip"] = token["content"] == "<|USER_TOKEN|>"
    folder = write_hub_files(tmp_path / "flipped", tiny_backend, added_tokens_decoder=config["added_tokens_decoder"])
    ours = CohereTokenizerFast.from_pretrained(folder)
    assert state(ours) == state(transformers.CohereTokenizerFast.from_pretrained(folder))
    ids = ours.encode("<|USER_TOKEN|>x", add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=True) == "x"


def test_tokenizer_json_alone(tiny_folder: Path, tmp_path: Path, transformers: ModuleType) -> None:
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path)
    ours = CohereTokenizerFast.from_pretrained(tmp_path)
    assert ours.encode(TEXTS[0]) == transformers.CohereTokenizerFast.from_pretrained(tmp_path).encode(TEXTS[0])
    assert CohereTokenizerFast.from_pretrained(tmp_path / "tokenizer.json").encode("a") == ours.encode("a")
    assert CohereTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json").encode("a") == ours.encode("a")


def test_old_files(tiny_folder: Path, tmp_path: Path, transformers: ModuleType) -> None:
    """Without added_tokens_decoder, special_tokens_map.json and added_tokens.json say what there is."""
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CohereTokenizer", "model_max_length": 99}')
    named = {
        "pad_token": "<PAD>",
        "bos_token": {"content": "<CLS>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False},
        "additional_special_tokens": ["<more>"],
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    ours, theirs = (c.from_pretrained(tmp_path) for c in (CohereTokenizerFast, transformers.CohereTokenizerFast))
    assert state(ours) == state(theirs)
    assert ours.encode("a")[0] == 2
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<added>": len(ours) - 1, "<more>": len(ours)}))
    again = CohereTokenizerFast.from_pretrained(tmp_path)
    assert again.convert_tokens_to_ids(["<added>", "<more>"]) == [len(ours) - 1, len(ours)]


@pytest.mark.parametrize("as_list", [True, False])
def test_templates_inside_the_configuration(tiny_backend: Tokenizer, tmp_path: Path, as_list: bool) -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    folder = write_hub_files(tmp_path / "old", tiny_backend, chat_template=listed if as_list else "D")
    expected = {"default": "D", "rag": "R"} if as_list else "D"
    assert CohereTokenizerFast.from_pretrained(folder).chat_template == expected
    (folder / "chat_template.jinja").write_text("from the file\n")
    assert CohereTokenizerFast.from_pretrained(folder).chat_template == "from the file\n"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T\r\n", newline="")
    found = CohereTokenizerFast.from_pretrained(folder).chat_template
    assert found == {"default": "from the file\n", "tool_use": "T\r\n"}


def test_templates_of_an_earlier_tokenizer_are_removed(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    tiny.chat_template = {"default": "D", "rag": "R"}
    tiny.save_pretrained(tmp_path)
    tiny.chat_template = {"tool_use": "T"}
    tiny.save_pretrained(tmp_path)
    assert CohereTokenizerFast.from_pretrained(tmp_path).chat_template == {"tool_use": "T"}
    tiny.chat_template = None
    tiny.save_pretrained(tmp_path)
    assert CohereTokenizerFast.from_pretrained(tmp_path).chat_template is None


def test_a_template_cannot_be_written_elsewhere(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    for name in ("../out", "a/b", ".hidden", ""):
        tiny.chat_template = {name: "x"}
        with pytest.raises(TokenizerError, match="cannot be a file's name"):
            tiny.save_pretrained(tmp_path / "in")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_a_failed_save_leaves_the_old_files(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tiny._kept_options["not json"] = object()
    with pytest.raises(TypeError):
        tiny.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_prefix_and_vocabulary(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    paths = tiny.save_pretrained(tmp_path, filename_prefix="mine")
    assert all(Path(path).name.startswith("mine-") for path in paths)
    vocabulary, merges = tiny.save_vocabulary(tmp_path, "mine")
    assert (Path(vocabulary).name, Path(merges).name) == ("mine-vocab.json", "mine-merges.txt")
    assert len(json.loads(Path(vocabulary).read_text(encoding="utf-8"))) == tiny.vocab_size
    again = CohereTokenizerFast(
        vocabulary, merges, added_tokens_decoder=tiny.added_tokens_decoder, pad_token="<PAD>", unk_token=None
    )
    assert [again.encode(text) for text in TEXTS] == [tiny.encode(text) for text in TEXTS]
    assert again.special_tokens_map == tiny.special_tokens_map
    with pytest.raises(TokenizerError, match=r"lack <\|END_OF_TURN_TOKEN\|>"):
        CohereTokenizerFast(vocabulary, merges)
    with pytest.raises(TokenizerError, match="go together"):
        CohereTokenizerFast(vocab_file=vocabulary)
    with pytest.raises(TokenizerError, match="is not a folder"):
        tiny.save_vocabulary(tmp_path / "nowhere")


def test_vocabulary_and_merges_under_the_names_of_transformers_5(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    vocabulary, merges = tiny.save_vocabulary(tmp_path)
    ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
    lines = [line for line in Path(merges).read_text(encoding="utf-8").splitlines() if not line.startswith("#version")]
    named: dict[str, Any] = {"added_tokens_decoder": tiny.added_tokens_decoder, "pad_token": "<PAD>", "unk_token": None}
    for sources in (
        {"vocab": vocabulary, "merges": merges},
        {"vocab": ids, "merges": lines},
        {"vocab": ids, "merges": [tuple(line.split(" ")) for line in lines]},
    ):
        again = CohereTokenizer(**sources, **named)
        assert [again.encode(text) for text in TEXTS] == [tiny.encode(text) for text in TEXTS]
    with pytest.raises(TokenizerError, match="vocab_file and vocab are one option"):
        CohereTokenizer(vocab_file=vocabulary, vocab=ids, merges=merges)
    with pytest.raises(TokenizerError, match="both paths, or a dictionary and a list"):
        CohereTokenizer(vocab=ids, merges=merges)
    with pytest.raises(TokenizerError, match="each must be two tokens"):
        CohereTokenizer(vocab=ids, merges=["a b c"])
    with pytest.raises(TokenizerError, match="do not fit"):
        CohereTokenizer(vocab={"a": 0}, merges=["a b"])


def test_overrides(tiny_folder: Path) -> None:
    tokenizer = CohereTokenizerFast.from_pretrained(
        tiny_folder,
        padding_side="right",
        pad_token="<EOS_TOKEN>",
        add_eos_token=True,
        model_max_length=7,
        chat_template="mine",
        use_fast=True,
        trust_remote_code=False,
        legacy=False,
    )
    assert tokenizer(["a", "b c d e f g h i"], padding=True, truncation=True)["input_ids"][0][-1] == 6
    assert (tokenizer.chat_template, tokenizer.add_eos_token) == ("mine", True)


def test_prefix_space_both_ways(tiny_folder: Path, tmp_path: Path) -> None:
    with_space = CohereTokenizerFast.from_pretrained(tiny_folder, add_prefix_space=True)
    without = CohereTokenizerFast.from_pretrained(tiny_folder)
    assert with_space.tokenize("Hey") == without.tokenize(" Hey") != without.tokenize("Hey")
    with_space.save_pretrained(tmp_path)
    assert CohereTokenizerFast.from_pretrained(tmp_path).tokenize("Hey") == with_space.tokenize("Hey")
    again = CohereTokenizerFast.from_pretrained(tmp_path, add_prefix_space=False)
    assert again.tokenize("Hey") == without.tokenize("Hey")
    assert (with_space.add_prefix_space, again.add_prefix_space) == (True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paddingside": "left"}, "no option paddingside; it has .*padding_side"),
        ({"get_vocab": True}, "no option get_vocab"),
        ({"tokenizer_file": "other.json"}, "no option tokenizer_file"),
        ({"kept_options": {}}, "no option kept_options"),
    ],
)
def test_unknown_overrides(tiny_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=message):
        CohereTokenizerFast.from_pretrained(tiny_folder, **options)


def test_saving_elsewhere_is_refused(tiny: CohereTokenizerFast, tmp_path: Path) -> None:
    for option in ("legacy_format", "push_to_hub"):
        with pytest.raises(UnsupportedOptionError, match=f"no {option}=True"):
            tiny.save_pretrained(tmp_path, **{option: True})
    (tmp_path / "file").touch()
    with pytest.raises(TokenizerError, match="is a file"):
        tiny.save_pretrained(tmp_path / "file")


def test_another_family(tiny_backend: Tokenizer, tmp_path: Path) -> None:
    folder = write_hub_files(tmp_path / "llama", tiny_backend, tokenizer_class="LlamaTokenizerFast")
    with pytest.raises(TokenizerError, match="are of a LlamaTokenizerFast"):
        CohereTokenizerFast.from_pretrained(folder)
    assert CohereTokenizerFast.from_pretrained(folder, tokenizer_class="CohereTokenizerFast").encode("a")[0] == 5
    for name in ("CohereTokenizer", "PreTrainedTokenizerFast", None):
        folder = write_hub_files(tmp_path / str(name), tiny_backend, tokenizer_class=name)
        assert CohereTokenizerFast.from_pretrained(folder).encode("a")[0] == 5


def test_ids_that_do_not_belong_together(tiny_backend: Tokenizer, tmp_path: Path) -> None:
    added = {"5": {"content": "<EOS_TOKEN>"}}
    folder = write_hub_files(tmp_path / "mixed", tiny_backend, added_tokens_decoder=added)
    with pytest.raises(TokenizerError, match=r"'<EOS_TOKEN>' should have the id 5 and has 6"):
        CohereTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("filename", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("contents", [b"{", b"[]", b"\xff\xfe", b""])
def test_damaged_files(tiny_folder: Path, tmp_path: Path, filename: str, contents: bytes) -> None:
    shutil.copytree(tiny_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / filename).write_bytes(contents)
    with pytest.raises(CheckpointCorruptError, match=filename):
        CohereTokenizerFast.from_pretrained(tmp_path / "damaged")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.json"):
        CohereTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="no folder"):
        CohereTokenizerFast.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(OSError, match="no file"):
        CohereTokenizerFast(tokenizer_file=tmp_path / "nowhere.json")


@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_from_the_hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str) -> None:
    """The hub replaced by a folder: which files are asked for, additional templates by pattern, all of one commit."""
    commit, asked = "a" * 40, []
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot / subfolder)

    def fetch_file(repository: str, filename: str, **options: Any) -> Path | None:
        asked.append((repository, options["revision"], filename))
        path = snapshot / options["subfolder"] / filename
        return path if path.is_file() else None

    def fetch_snapshot(repository: str, patterns: list[str], **options: Any) -> Path:
        asked.append((repository, options["revision"], *patterns))
        folder = snapshot / subfolder / "additional_chat_templates"
        folder.mkdir()
        (folder / "rag.jinja").write_text("R")
        return snapshot

    monkeypatch.setattr("quarterdeck.hub.fetch_file", fetch_file)
    monkeypatch.setattr("quarterdeck.hub.fetch_snapshot", fetch_snapshot)
    tokenizer = CohereTokenizerFast.from_pretrained("org/name", revision="main", subfolder=subfolder)
    assert tokenizer.chat_template == {"rag": "R"}
    assert asked[0] == ("org/name", "main", "tokenizer.json")
    assert {(name, revision) for name, revision, _ in asked[1:]} == {("org/name", commit)}
    prefix = f"{subfolder}/" if subfolder else ""
    assert asked[-1][2] == f"{prefix}additional_chat_templates/*.jinja"


def test_subfolder(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model" / "inner")
    tokenizer = CohereTokenizerFast.from_pretrained(tmp_path / "model", subfolder="inner")
    assert tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("limit", ["12", -3, 0, True])
def test_a_limit_that_is_no_number_of_tokens_is_refused(tiny_folder: Path, limit: Any) -> None:
    with pytest.raises(TokenizerError, match=f"model_max_length={limit!r} is not a number of tokens"):
        CohereTokenizerFast.from_pretrained(tiny_folder, model_max_length=limit)


def test_tokens_to_name_come_with_their_names(tiny: CohereTokenizerFast) -> None:
    wrong: Any = ["x"]
    with pytest.raises(TokenizerError, match=r"is given \['x'\]; give a dictionary from names to tokens"):
        tiny.add_special_tokens(wrong)
