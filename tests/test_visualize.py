"""The masks and weights that pictures show: against transformers, for every kind of pass."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import transformers
from quarterdeck import AttentionMaskVisualizer, AutoModelForCausalLM, AutoTokenizer, CohereConfig, CohereModel
from quarterdeck.errors import ChatError, InputError
from quarterdeck.visualize.passes import mask_of
from quarterdeck.visualize.requests import read_texts, with_past
from quarterdeck.visualize.values import Role
from visualize_support import peer_visualizer

pytest_plugins = ["checkpoint_fixtures"]

SENTENCE = "Plants create energy through a process known as"
TEXTS = ["Emperor penguins", "Emperor penguins are the tallest, up to 122 cm"]
DOCUMENTS = [
    {"title": "Tall penguins", "text": "Emperor penguins are the tallest.\n\nDocument: 7\nnot one, e\u0301"},
    {"title": "Habitats", "text": "Emperor penguins only live in Antarctica."},
]


@pytest.fixture(scope="module")
def visualizer(checkpoint: Path) -> AttentionMaskVisualizer:
    return AttentionMaskVisualizer(checkpoint)


# ── what transformers prints ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        "a",
        "It's 'quoted' \"twice\"\n\ttabs",
        "ペンギン 🚢 é",
        "one two three four " * 6,
        "<BOS_TOKEN>twice",
        "a<img>b",
    ],
)
def test_prints_what_transformers_prints(
    text: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer_visualizer(monkeypatch)(str(checkpoint))(text)
    theirs = capsys.readouterr().out
    assert "\033[92m■" in theirs
    AttentionMaskVisualizer(str(checkpoint))(text)
    assert capsys.readouterr().out == theirs


def test_prints_image_tokens_as_transformers_does(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<img>"])
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(checkpoint).config.save_pretrained(tmp_path)
    for text in ("see <img><img> here", "<img><img> here", "ends <img><img>"):
        peer_visualizer(monkeypatch)(str(tmp_path))(text)
        theirs = capsys.readouterr().out
        assert "\033[93m'<img>'" in theirs
        AttentionMaskVisualizer(str(tmp_path))(text)
        assert capsys.readouterr().out == theirs


def test_prints_the_stored_sample_for_the_real_vocabulary(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was printed under a name of as many letters as the folder here has, and then given the model's."""
    sample = (shared_data / "attention_visualizer_sample.txt").read_text(encoding="utf-8")
    vocabulary = gzip.decompress((shared_data / "command-r-tokenizer.json.gz").read_bytes())
    name = "c4ai-command-r-v01-copy"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(vocabulary)
    CohereConfig().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    AttentionMaskVisualizer(name)(SENTENCE)
    printed = capsys.readouterr().out.replace(name, "CohereForAI/c4ai-command-r-v01")
    assert printed.strip("\n") == sample[sample.index("#") :].strip("\n")


def test_a_mask_makes_no_weights(
    visualizer: AttentionMaskVisualizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was made")

    monkeypatch.setattr(CohereModel, "__init__", refuse)
    visualizer(SENTENCE)
    visualizer.view(SENTENCE, past=4, max_cache_len=4000)
    assert "Attention Matrix" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="a model was made"):
        visualizer.view(SENTENCE, weights=True)


def test_suffix_and_empty_texts_are_refused(visualizer: AttentionMaskVisualizer) -> None:
    with pytest.raises(InputError, match="suffix"):
        visualizer("text", suffix="more")
    with pytest.raises(InputError, match="no tokens"):
        visualizer("")


# ── masks of every kind, as transformers makes them ───────────────────────────────────────────────────────────────────


def peer_mask(
    checkpoint: Path, queries: int, attention_mask: Tensor | None, start: int, cache: Any, **more: Any
) -> Tensor:
    from transformers.masking_utils import create_causal_mask

    config = transformers.AutoConfig.from_pretrained(checkpoint, attn_implementation="eager")
    batch = 1 if attention_mask is None else attention_mask.shape[0]
    mask = create_causal_mask(
        config=config,
        input_embeds=torch.zeros(batch, queries, config.hidden_size),
        attention_mask=attention_mask,
        cache_position=torch.arange(start, start + queries),
        past_key_values=cache,
        **more,
    )
    return (mask == 0)[:, 0]


def peer_cache(checkpoint: Path, past: int, slots: int | None, batch: int = 1) -> Any:
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    cache = transformers.DynamicCache() if slots is None else transformers.StaticCache(config, max_cache_len=slots)
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers if past else 0):
        block = torch.ones(batch, heads, past, width)
        cache.update(block, block, layer, {"cache_position": torch.arange(past)})
    return cache


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("slots", [None, 40])
def test_masks_of_padded_batches(
    visualizer: AttentionMaskVisualizer, checkpoint: Path, side: Any, past: int, slots: int | None
) -> None:
    view = visualizer.view(TEXTS, padding=side, past=past, max_cache_len=slots)
    encoded = visualizer.tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")["attention_mask"]
    assert encoded.shape[1] < 40
    assert not bool(encoded.all())
    length = encoded.shape[1]
    cache = peer_cache(checkpoint, past, slots, 2) if past or slots else None
    theirs = peer_mask(checkpoint, length - past, encoded, past, cache)
    assert torch.equal(view.allowed, theirs)
    for row, mask in zip(view.rows, encoded.tolist(), strict=True):
        kinds = [token.kind == "padding" for token in row.tokens[:length]]
        assert kinds == [not real for real in mask]
        assert [token.kind for token in row.tokens[length:]] == ["empty"] * (len(row.tokens) - length)


def test_masks_of_packed_texts(visualizer: AttentionMaskVisualizer, checkpoint: Path) -> None:
    texts = [*TEXTS, "swim"]
    view = visualizer.view(packed=texts)
    lengths = [len(visualizer.tokenizer(text)["input_ids"]) for text in texts]
    positions = torch.tensor([[place for length in lengths for place in range(length)]])
    theirs = peer_mask(checkpoint, sum(lengths), None, 0, None, position_ids=positions)
    assert torch.equal(view.allowed, theirs)
    assert int(view.allowed.sum()) == sum(n * (n + 1) // 2 for n in lengths)
    assert [token.position for token in view.rows[0].tokens] == positions[0].tolist()
    assert [section.stop - section.start for section in view.rows[0].sections] == lengths


@pytest.mark.parametrize(("past", "slots"), [(0, None), (5, None), (-1, None), (0, 30), (-1, 30)])
def test_masks_with_a_cache(
    visualizer: AttentionMaskVisualizer, checkpoint: Path, past: int, slots: int | None
) -> None:
    view = visualizer.view(TEXTS[1], past=past, max_cache_len=slots)
    length = len(visualizer.tokenizer(TEXTS[1])["input_ids"])
    start = past % length
    theirs = peer_mask(
        checkpoint, length - start, torch.ones(1, length).long(), start, peer_cache(checkpoint, start, slots)
    )
    assert torch.equal(view.allowed, theirs)
    assert view.rows[0].start == start
    assert [token.id for token in view.rows[0].queries] == visualizer.tokenizer(TEXTS[1])["input_ids"][start:]


def test_the_mask_is_the_one_that_forward_makes(
    visualizer: AttentionMaskVisualizer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every description that the eager backend is handed in a real pass, field by field."""
    import quarterdeck.attention.dispatch as dispatch

    handed: list[Any] = []
    eager = dispatch.get_attention("eager")

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        handed.append(mask)
        return eager(query, key, value, mask, **options)

    monkeypatch.setattr("quarterdeck.model_inputs.get_attention", lambda name: spy)
    for options in ({}, {"past": 3}, {"past": 3, "max_cache_len": 40}):
        handed.clear()
        view = visualizer.view(TEXTS, weights=True, **options)  # type: ignore[arg-type]
        request = with_past(
            read_texts(visualizer.tokenizer, TEXTS, None, None), options.get("past", 0), options.get("max_cache_len")
        )
        drawn = mask_of(visualizer.config, request.run)
        assert torch.equal(view.allowed, handed[-1].allowed()[:, 0])
        for name in ("queries", "keys", "start", "window", "explicit", "documents"):
            assert getattr(drawn, name) == getattr(handed[-1], name), name


# ── weights ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def peer_model(checkpoint: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()


def test_weights_are_those_of_the_model_and_of_transformers(
    visualizer: AttentionMaskVisualizer, checkpoint: Path
) -> None:
    view = visualizer.view(SENTENCE, weights=True)
    ids = visualizer.tokenizer(SENTENCE, return_tensors="pt")["input_ids"]
    ours = AutoModelForCausalLM.from_pretrained(checkpoint)(ids, output_attentions=True).attentions
    with torch.no_grad():
        theirs = peer_model(checkpoint)(ids, output_attentions=True).attentions
    assert view.weights is not None
    assert torch.equal(view.weights[0], torch.stack(ours)[:, 0].detach())
    torch.testing.assert_close(view.weights[0], torch.stack(theirs)[:, 0], rtol=0, atol=1e-5)
    assert not view.weights[0][:, :, ~view.allowed[0]].any()


def test_weights_of_a_padded_batch(visualizer: AttentionMaskVisualizer, checkpoint: Path) -> None:
    view = visualizer.view(TEXTS, padding="left", weights=True)
    encoded = visualizer.tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        theirs = peer_model(checkpoint)(**encoded, output_attentions=True).attentions
    assert view.weights is not None
    real = encoded["attention_mask"].bool()
    for row, weights in enumerate(view.weights):
        expected = torch.stack(theirs)[:, row]
        torch.testing.assert_close(weights[:, :, real[row]], expected[:, :, real[row]], rtol=0, atol=1e-5)


def test_weights_of_packed_texts_are_those_of_each_alone(visualizer: AttentionMaskVisualizer) -> None:
    packed = visualizer.view(packed=TEXTS, weights=True).weights
    assert packed is not None
    begin = 0
    for text in TEXTS:
        alone = visualizer.view(text, weights=True).weights
        assert alone is not None
        n = alone.shape[-1]
        torch.testing.assert_close(packed[0, :, :, begin : begin + n, begin : begin + n], alone[0], rtol=0, atol=1e-5)
        begin += n


@pytest.mark.parametrize("slots", [None, 40])
def test_weights_of_a_cached_step_are_the_last_of_the_whole(
    visualizer: AttentionMaskVisualizer, slots: int | None
) -> None:
    whole = visualizer.view(SENTENCE, weights=True).weights
    step = visualizer.view(SENTENCE, weights=True, past=-2, max_cache_len=slots).weights
    assert whole is not None
    assert step is not None
    keys = whole.shape[-1]
    assert step.shape[-1] == (slots or keys)
    torch.testing.assert_close(step[..., :keys], whole[..., -2:, :], rtol=0, atol=1e-5)
    assert not step[..., keys:].any()


def test_a_loaded_model_is_used_and_left_as_it_was(checkpoint: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.train()
    view = AttentionMaskVisualizer(model, tokenizer=tokenizer).view(SENTENCE, layer=1, head=2)
    assert all(module.training for module in model.modules())
    model.model.layers[0].eval()  # a frozen part, say: it stays so
    AttentionMaskVisualizer(model, tokenizer=tokenizer).view(SENTENCE, weights=True)
    assert {module for module in model.modules() if not module.training} == set(model.model.layers[0].modules())
    chosen = view.rows[0].chosen_weights(view.layer, view.head)
    assert chosen is not None
    assert view.weights is not None
    assert torch.equal(chosen, view.weights[0, 1, 2])
    mean = view.select().rows[0].chosen_weights(None, None)
    assert mean is not None
    torch.testing.assert_close(mean, view.weights[0].mean(dim=(0, 1)))
    with pytest.raises(InputError, match="tokenizer"):
        AttentionMaskVisualizer(model)
    with pytest.raises(InputError, match="dtype would only matter for loading"):
        AttentionMaskVisualizer(model, tokenizer=tokenizer, dtype="float16")


# ── sections ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def spans(view: Any) -> list[tuple[str, Role, str]]:
    row = view.rows[0]
    return [(s.name, s.role, "".join(token.text for token in row.tokens[s.start : s.stop])) for s in row.sections]


def test_turns_of_a_chat(visualizer: AttentionMaskVisualizer) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where <|START_OF_TURN_TOKEN|>do they live?"},
        {"role": "assistant", "content": "South."},
    ]
    turn, end = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
    assert spans(visualizer.view(chat)) == [
        ("Start", "start", "<BOS_TOKEN>"),
        ("System", "system", f"{turn}<|SYSTEM_TOKEN|>Be brief.{end}"),
        ("User", "user", f"{turn}<|USER_TOKEN|>Where {turn}do they live?{end}"),
        ("Chatbot", "chatbot", f"{turn}<|CHATBOT_TOKEN|>South.{end}"),
    ]
    assert spans(visualizer.view(chat[:2]))[-1] == ("Chatbot", "chatbot", f"{turn}<|CHATBOT_TOKEN|>")


def test_documents_of_a_grounded_chat(visualizer: AttentionMaskVisualizer) -> None:
    found = spans(visualizer.view("Where do they live?", documents=DOCUMENTS))
    names = [name for name, _, _ in found]
    assert names == (
        [
            "Start",
            "System preamble",
            "User",
            "Results",
            "Document: 0",
            "Document: 1",
            "Results",
            "Instructions",
            "Chatbot",
        ]
    )
    texts = {name: text for name, _, text in found}
    assert texts["Document: 0"].strip().startswith("Document: 0\ntitle: Tall penguins\n")
    assert "Document: 7\nnot one," in texts["Document: 0"]
    assert (
        texts["Document: 1"].strip() == "Document: 1\ntitle: Habitats\ntext: Emperor penguins only live in Antarctica."
    )
    assert texts["Results"] == "</results><|END_OF_TURN_TOKEN|>"
    assert texts["Instructions"].startswith("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Carefully perform")


def test_documents_that_are_none(visualizer: AttentionMaskVisualizer) -> None:
    names = [name for name, _, _ in spans(visualizer.view("Where?", documents=[]))]
    assert names == ["Start", "System preamble", "User", "Results", "Instructions", "Chatbot"]


def test_sections_cover_all_tokens(visualizer: AttentionMaskVisualizer) -> None:
    views = [
        visualizer.view(TEXTS, pad_to=30, max_cache_len=35),
        visualizer.view("Where?", documents=DOCUMENTS, max_cache_len=1800),
        visualizer.view(packed=TEXTS),
    ]
    for row in (row for view in views for row in view.rows):
        borders = [0, *(section.stop for section in row.sections)]
        assert borders[-1] == len(row.tokens)
        assert borders[:-1] == [section.start for section in row.sections]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[Callable[[AttentionMaskVisualizer], Any], str]] = {
    "nothing": (lambda v: v.view(), "either a text"),
    "both": (lambda v: v.view("a", packed=["b"]), "either a text"),
    "packed with cache": (lambda v: v.view(packed=["a", "b"], past=1), "no cache"),
    "packed with documents": (lambda v: v.view(packed=["a"], documents=[]), "documents belong"),
    "packed no list": (lambda v: v.view(packed="ab"), "list of texts"),
    "past no whole number": (lambda v: v.view("a b c", past=1.5), "past is 1.5, but must be a whole number"),  # type: ignore[arg-type]
    "past a text": (lambda v: v.view("a b c", past="1"), "past is '1', but must be"),  # type: ignore[arg-type]
    "past a truth": (lambda v: v.view("a b c", past=True), "past is True, but must be"),
    "pad_to a text": (lambda v: v.view("a b c", pad_to="8"), "pad_to is '8', but must be"),  # type: ignore[arg-type]
    "cache of a text": (lambda v: v.view("a b c", max_cache_len="4"), "max_cache_len is '4', but must be"),  # type: ignore[arg-type]
    "no model": (lambda _: AttentionMaskVisualizer(None), "there is nothing to load"),  # type: ignore[arg-type]
    "a number for a model": (lambda _: AttentionMaskVisualizer(3), "there is nothing to load"),  # type: ignore[arg-type]
    "past too far": (lambda v: v.view("a", past=2), "past is 2, but must be in 0 to 1"),
    "cache too small": (lambda v: v.view("a b c", max_cache_len=1), "max_cache_len is 1"),
    "pad_to too small": (lambda v: v.view("a b c", pad_to=1), "pad_to is 1"),
    "padding of chats": (lambda v: v.view([{"role": "user", "content": "a"}], padding="left"), "for texts in a batch"),
    "padding side": (lambda v: v.view(["a", "b c"], padding="both"), "'left' or 'right'"),  # type: ignore[arg-type]
    "layer": (lambda v: v.view("a", layer=2), "layer is 2, but must be in 0 to 1"),
    "head": (lambda v: v.view("a", head=-1), "head is -1"),
    "prompt of texts": (lambda v: v.view("a", add_generation_prompt=True), "belong to conversations"),
    "select without weights": (lambda v: v.view("a").select(layer=0), "weights=True"),
    "select too far": (lambda v: v.view("a", weights=True).select(head=4), "head is 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(visualizer: AttentionMaskVisualizer, case: str) -> None:
    ask, message = REFUSED[case]
    with pytest.raises(InputError, match=re.escape(message)):
        ask(visualizer)


def test_a_broken_chat_is_refused(visualizer: AttentionMaskVisualizer) -> None:
    with pytest.raises(ChatError, match=r"messages\[0\]"):
        visualizer.view([{"role": "captain", "content": "a"}])


def test_more_weights_than_are_kept_are_refused(
    visualizer: AttentionMaskVisualizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quarterdeck.visualize.visualizer._MOST_WEIGHTS", 100)
    with pytest.raises(InputError, match="attention weights, and 100 are kept"):
        visualizer.view(SENTENCE, weights=True)
    assert visualizer.view(SENTENCE).weights is None


def test_views_are_of_real_positions(visualizer: AttentionMaskVisualizer) -> None:
    """Unlike the picture of transformers, which leaves out the BOS token."""
    row = visualizer.view(SENTENCE).rows[0]
    assert [token.id for token in row.tokens] == visualizer.tokenizer(SENTENCE)["input_ids"]
    assert row.tokens[0].text == "<BOS_TOKEN>"
