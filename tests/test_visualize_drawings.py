"""Text, SVG and page show every cell as it is, escape whatever a text says, and say what they leave out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from quarterdeck import AttentionMaskVisualizer, AttentionView
from quarterdeck.errors import InputError
from quarterdeck.visualize.condensing import make_grid
from quarterdeck.visualize.page import WEIGHT_SCALE
from quarterdeck.visualize.palette import HEAT_EXPONENT, heat_color, heat_top, palettes
from quarterdeck.visualize.values import State, label
from visualize_support import SVG, Page, seen, svg_states, text_states

pytest_plugins = ["checkpoint_fixtures"]

SENTENCE = "Plants create energy"
TEXTS = ["Emperor penguins", "Emperor penguins are the tallest"]
CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A ship."}]
NASTY = "</script><b onclick='x'>&amp;<!--\x1b[31m\u202e]]> \"__DATA__\" \x00"

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (SENTENCE, {}),
    "left": (TEXTS, {"padding": "left"}),
    "right": (TEXTS, {"padding": "right", "pad_to": 30}),
    "packed": (None, {"packed": [*TEXTS, SENTENCE]}),
    "chat": (CHAT, {}),
    "step": (SENTENCE, {"past": -1}),
    "static": (SENTENCE, {"past": 4, "max_cache_len": 40}),
    "left static": (TEXTS, {"padding": "left", "past": 3, "max_cache_len": 40}),
}


@pytest.fixture(scope="module")
def visualizer(checkpoint: Path) -> AttentionMaskVisualizer:
    return AttentionMaskVisualizer(checkpoint)


@pytest.fixture(params=KINDS)
def view(request: pytest.FixtureRequest, visualizer: AttentionMaskVisualizer) -> AttentionView:
    text, options = KINDS[request.param]
    return visualizer.view(text, **options)


# ── every cell ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_every_cell(view: AttentionView) -> None:
    page = Page(view.html())
    for number, row in enumerate(view.rows):
        assert torch.equal(seen(page.states(number)), row.allowed)
        assert [token[2] for token in page.data["rows"][number]["tokens"]] == [token.id for token in row.tokens]
    assert len(page.data["rows"]) == len(view.rows)
    assert page.data["maps"] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_svg_shows_every_cell(view: AttentionView, theme: Any) -> None:
    drawn = svg_states(view.svg(theme))
    assert len(drawn) == len(view.rows)
    for states, row in zip(drawn, view.rows, strict=True):
        assert torch.equal(seen(states), row.allowed)
        assert torch.equal(states, row.states)


def test_the_text_shows_every_cell(view: AttentionView) -> None:
    queries, keys = view.allowed.shape[1:]
    drawn = text_states(view.text(width=200), queries, keys)
    assert len(drawn) == len(view.rows)
    for states, row in zip(drawn, view.rows, strict=True):
        assert torch.equal(states, row.states)


def test_why_a_cell_is_hidden(visualizer: AttentionMaskVisualizer) -> None:
    left = visualizer.view(TEXTS, padding="left", past=1, max_cache_len=40).rows[0]
    pads = sum(token.kind == "padding" for token in left.tokens)
    assert pads
    assert (left.states[:, :pads] == State.PADDING).all()
    assert (left.states[:, -5:] == State.EMPTY).all()
    assert left.states[-1, pads + 1] == State.SEES
    packed = visualizer.view(packed=["a", "b"]).rows[0]
    assert packed.states.tolist() == [[1, 2, 2, 2], [0, 1, 2, 2], [5, 5, 1, 2], [5, 5, 0, 1]]


def test_weights_of_the_page_are_the_models(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view(TEXTS, padding="left", weights=True, past=2)
    page = Page(view.html())
    assert view.weights is not None
    layers, heads = view.weights.shape[1:3]
    assert len(page.data["maps"]) == (layers + 1) * (heads + 1)
    for row in range(2):
        allowed = view.allowed[row]
        for layer in (None, *range(layers)):
            for head in (None, *range(heads)):
                chosen = view.rows[row].chosen_weights(layer, head)
                assert chosen is not None
                torch.testing.assert_close(
                    page.weights(layer, head, row), chosen * allowed, rtol=0, atol=0.6 / WEIGHT_SCALE
                )


def test_colours_of_the_svg_are_those_of_the_weights(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view(SENTENCE, layer=1, head=2)
    weights = view.rows[0].chosen_weights(1, 2)
    assert weights is not None
    top = heat_top(view.rows, [weights])
    fills = cell_fills(view.svg())
    expected = [[heat_color(float(weight) / top, "light") for weight in line] for line in weights]
    for i, line in enumerate(expected):
        assert fills[i][: i + 1] == line[: i + 1]
        assert set(fills[i][i + 1 :]) <= {palettes()["light"]["hidden"]}
    assert len({color for line in expected for color in line}) > 10


def cell_fills(picture: str) -> list[list[str]]:
    group = next(g for g in ElementTree.fromstring(picture).iter(f"{SVG}g") if g.get("class") == "cells")
    lines: dict[float, list[str]] = {}
    for rect in group.findall(f"{SVG}rect"):
        count = round(float(rect.get("width", "")) / float(rect.get("height", "")))
        lines.setdefault(float(rect.get("y", "")), []).extend([rect.get("fill", "")] * count)
    return [lines[y] for y in sorted(lines)]


def test_the_scale_of_weights() -> None:
    stops = palettes()["light"]["heat"]
    assert heat_color(0.0, "light") == stops[0]
    assert heat_color(1.0, "light") == heat_color(7.0, "light") == stops[-1]
    darkness = [sum(int(heat_color(w / 50, "light")[i : i + 2], 16) for i in (1, 3, 5)) for w in range(51)]
    assert darkness == sorted(darkness, reverse=True)
    assert heat_color(0.04, "light") == heat_color(0.2 ** (1 / HEAT_EXPONENT), "light")


def test_the_top_of_the_scale_fits_the_weights(visualizer: AttentionMaskVisualizer) -> None:
    row = visualizer.view("a " * 120, past=-1).rows[0]
    for value, top in ((0.004, 0.005), (0.011, 0.02), (0.3, 0.5), (0.7, 1.0), (1.0, 1.0)):
        assert heat_top([row], [torch.full(row.allowed.shape, value)]) == top
    assert heat_top([row], [None]) == 1.0


# ── whatever a text says ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_is_not_broken_by_a_text(visualizer: AttentionMaskVisualizer) -> None:
    harmless, nasty = Page(visualizer.view("harmless").html()), visualizer.view(NASTY, weights=True).html()
    page = Page(nasty)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert "onclick" not in {name for _, attributes in page.elements for name in attributes}
    shown = "".join(token[0] for token in page.data["rows"][0]["tokens"])
    assert shown.startswith("<BOS></script><b␣onclick='x'>&amp;<!--\\u{1b}[31m\\xe2\\x80\\xae]]>␣\"__DATA__\"␣\\u{0}")
    assert "\x1b" not in nasty
    assert "\u202e" not in nasty


def test_a_page_is_not_broken_by_the_name_of_a_model(visualizer: AttentionMaskVisualizer) -> None:
    view = AttentionView("</title><script>x", visualizer.view("a").rows, ("<i>",))
    page = Page(view.html())
    assert page.texts["title"] == "Attention mask · </title><script>x"
    assert [tag for tag, _ in page.elements].count("script") == 2


def test_a_page_needs_nothing_from_elsewhere(visualizer: AttentionMaskVisualizer) -> None:
    text = visualizer.view(SENTENCE, weights=True).html()
    page = Page(text)
    for _, attributes in page.elements:
        assert not {"src", "href", "onload", "action"} & set(attributes)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|@import|url\(|fetch\(|innerHTML|eval\(", text)
    assert not re.search(r"__[A-Z]+__", text)


def test_a_page_names_its_controls(visualizer: AttentionMaskVisualizer) -> None:
    page = Page(visualizer.view(SENTENCE, weights=True).html())
    grid = next(a for tag, a in page.elements if tag == "canvas")
    assert grid["tabindex"] == "0"
    assert grid["aria-label"]
    ids = {a.get("id") for _, a in page.elements}
    script = page.texts["script"]
    assert set(re.findall(r'\$\("([a-z-]+)"\)', script)) <= ids
    assert page.data["meanings"][State.SEES] == "sees"
    assert len(page.data["meanings"]) == len(page.data["stateColors"]) == len(State)


def test_an_svg_is_not_broken_by_a_text(visualizer: AttentionMaskVisualizer) -> None:
    picture = visualizer.view(NASTY).svg()
    root = ElementTree.fromstring(picture)
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names == {"svg", "title", "rect", "text", "g", "path"}
    assert len(svg_states(picture)[0]) == len(visualizer.view(NASTY).rows[0].tokens)


def test_a_terminal_is_not_commanded_by_a_text(visualizer: AttentionMaskVisualizer) -> None:
    picture = visualizer.view(NASTY).text(width=120)
    assert all(character.isprintable() for character in picture.replace("\n", ""))
    colored = visualizer.view(NASTY).text(width=120, color=True)
    assert set(re.findall(r"\x1b\[(\d+)m", colored)) == {"0", "2", "33", "34"}
    assert re.sub(r"\x1b\[\d+m", "", colored) == picture


def test_labels_show_spaces_and_no_commands() -> None:
    assert label(" a\n\tb") == "␣a⏎⇥b"
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", label("\x1b[31m\x9b\u202e\x00"))


def test_a_notebook_gets_the_page_in_a_frame(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view(NASTY)

    class Frame(Page):
        def feed(self, data: str) -> None:
            super().feed(data)
            self.texts["data"] = "{}"

    frame = Frame(view._repr_html_())
    ((tag, attributes),) = frame.elements
    assert (tag, attributes["srcdoc"], attributes["sandbox"]) == ("iframe", view.html(), "allow-scripts")


# ── long texts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [40, 61, 80, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_text_fits_its_width(visualizer: AttentionMaskVisualizer, kind: str, width: int) -> None:
    text, options = KINDS[kind]
    for line in visualizer.view(text, **options).text(width=width).splitlines():
        assert len(line) <= width, line


def test_a_long_text_is_condensed_and_says_so(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view("one two " * 60)
    keys = view.allowed.shape[-1]
    picture = view.text(width=80)
    said = re.search(r"condensed: a cell is (\d+) x \1 tokens", picture)
    assert said is not None
    block = int(said[1])
    lines = [line for line in picture.splitlines() if re.match(r" *\d+-\d+ ", line)]
    assert len(lines) == -(-keys // block)
    for number, line in enumerate(lines):
        first = number * block
        is_whole = first == keys - 1  # the last cell may be a single token, which sees itself
        assert (line.count("■"), line.count("▣")) == ((number + 1, 0) if is_whole else (number, 1))
    assert "condensed" not in view.text(width=2 * keys + 60)
    with pytest.raises(InputError, match="at least 40"):
        view.text(width=39)
    svg = view.svg()
    assert f"each cell is {-(-keys // 128)} × {-(-keys // 128)} tokens" in svg
    assert len(svg) < 40_000


def test_condensed_cells_hold_the_largest_weight_and_the_part_seen(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view("one two " * 30, weights=True, past=3)
    row, weights = view.rows[0], view.rows[0].chosen_weights(None, None)
    assert weights is not None
    grid = make_grid(row, weights, 20)
    assert grid.weights is not None
    assert grid.block == -(-weights.shape[1] // 20)
    for i, (top, bottom) in enumerate(grid.rows):
        for j, (left, right) in enumerate(grid.columns):
            part: tuple[Tensor, Tensor] = tuple(
                cells[top - row.start : bottom - row.start, left:right] for cells in (weights, row.allowed.float())
            )  # type: ignore[assignment]
            assert float(grid.weights[i, j]) == pytest.approx(float(part[0].max()))
            assert float(grid.seen[i, j]) == pytest.approx(float(part[1].mean()))
            assert (int(grid.states[i, j]) == State.SEES) == bool(part[1].any())


def test_a_page_with_too_many_weights_keeps_the_chosen_and_the_means(
    visualizer: AttentionMaskVisualizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = visualizer.view(SENTENCE, layer=1, head=3)
    monkeypatch.setattr("quarterdeck.visualize.page.MOST_NUMBERS", 4 * int(view.allowed.sum()))
    page = Page(view.html())
    assert page.data["maps"] == [[None, None], [0, None], [1, None], [1, 3]]
    assert page.data["notes"][-1] == "some heads left out, for size"
    assert "some heads left out, for size" not in view.notes


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_save_writes_what_the_name_asks_for(visualizer: AttentionMaskVisualizer, tmp_path: Path) -> None:
    view = visualizer.view(SENTENCE)
    assert view.save(tmp_path / "a.svg").read_text(encoding="utf-8") == view.svg()
    assert view.save(str(tmp_path / "a.HTML")).read_text(encoding="utf-8") == view.html()
    assert view.save(tmp_path / "a.txt").read_text(encoding="utf-8") == view.text(100) + "\n"
    with pytest.raises(InputError, match=r"'a\.png' does not say"):
        view.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no folder '.*not there' to write x\.html into"):
        view.save(tmp_path / "not there" / "x.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.HTML", "a.svg", "a.txt"]


def test_a_view_is_shown_in_one_line_and_printed_as_a_picture(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view(SENTENCE, past=2)
    assert repr(view) == f"<AttentionView: {view.title}, {', '.join(view.notes)}>"
    assert "2 in the cache" in repr(view)
    assert str(view) == view.text()


def test_titles_say_what_is_drawn(visualizer: AttentionMaskVisualizer) -> None:
    view = visualizer.view(SENTENCE, weights=True)
    assert view.title.endswith("all layers, mean of heads")
    assert view.select(layer=0, head=1).title.endswith("layer 0, head 1")
    assert "layer 0, head 1" in view.select(layer=0, head=1).svg()
    with pytest.raises(InputError, match="theme"):
        view.svg("sepia")  # type: ignore[arg-type]
