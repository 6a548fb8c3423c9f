"""Plain paragraphs out of the outside texts: country profiles, Python manual, speeches, Moby-Dick.

Each reader yields documents (strings of whole sentences). Tables, code, lists of numbers and markup are left out: a
model of four million parameters learns more from simple prose than from anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SPACE = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u00a0": " ",
        "\u2026": "...",
    }
)


def tidy(text: str) -> str:
    """One line, plain quotes and dashes, single spaces."""
    return _SPACE.sub(" ", text.translate(PLAIN)).strip()


def sentences(text: str) -> list[str]:
    """Split tidy prose after full stops that a capital letter follows."""
    return _SENTENCE_END.split(text)


def chunk(text: str, size: int = 900) -> Iterator[str]:
    """Cut long prose into documents of about `size` characters at sentence ends."""
    part: list[str] = []
    length = 0
    for sentence in sentences(text):
        part.append(sentence)
        length += len(sentence)
        if length >= size:
            yield " ".join(part)
            part, length = [], 0
    if length > 100:
        yield " ".join(part)


# ---------------------------------------------------------------- country profiles


def _text(profile: dict[str, Any], section: str, field: str) -> str:
    value = profile.get(section, {}).get(field, {})
    text = value.get("text") if isinstance(value, dict) else None
    return tidy(text) if isinstance(text, str) else ""


def country_name(profile: dict[str, Any]) -> str:
    """The short conventional name, or "" for oceans and odd entries."""
    names = profile.get("Government", {}).get("Country name", {})
    short = names.get("conventional short form", {}).get("text") or ""
    short = tidy(short.split(";")[0])
    if not re.fullmatch(r"[A-Z][A-Za-z.' -]+", short) or short.lower() in ("none", "na"):
        return ""
    return short


def capital(profile: dict[str, Any]) -> str:
    """The capital as one plain name, or "" where the profile says something longer."""
    name = profile.get("Government", {}).get("Capital", {}).get("name", {}).get("text") or ""
    name = tidy(name.split(";")[0].split("(")[0])
    return name if re.fullmatch(r"[A-Z][A-Za-z.' -]+", name) and len(name.split()) <= 3 else ""


def profiles(folder: Path) -> Iterator[dict[str, Any]]:
    """All country profiles, in the order of their file names."""
    for path in sorted((folder / "package").glob("*/*.json")):
        profile = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(profile, dict) and "Geography" in profile:
            yield profile


def _phrases(name: str, profile: dict[str, Any]) -> Iterator[str]:
    """The profile's note-form fields, put into sentences."""
    forms = (
        ("Geography", "Location", "{n} lies in {t}."),
        ("Geography", "Climate", "The climate of {n} is {t}."),
        ("Geography", "Terrain", "The land of {n} is {t}."),
        ("Geography", "Natural resources", "The natural resources of {n} are {t}."),
        ("Geography", "Natural hazards", "Natural hazards in {n} are {t}."),
        ("Geography", "Environment - current issues", "Problems of the environment in {n} are {t}."),
        ("Economy", "Agriculture - products", "Farmers in {n} produce {t}."),
        ("Economy", "Industries", "The industries of {n} are {t}."),
        ("Economy", "Exports - commodities", "{n} sells {t} to other countries."),
        ("Economy", "Imports - commodities", "{n} buys {t} from other countries."),
        ("Government", "Legal system", "The legal system of {n} is a {t}."),
        ("Government", "Government type", "The government of {n} is a {t}."),
        ("Government", "Flag description", "The flag of {n} has {t}."),
        ("People and Society", "Languages", "The languages of {n} are {t}."),
    )
    for section, field, form in forms:
        text = re.sub(r"\s*\([^)]*\)", "", _text(profile, section, field)).replace(" ++ ", ", ").replace(";", ",")
        text = re.sub(r"\s*[\d.<>-]+%", "", text).strip(" .,")
        if 8 < len(text) < 400 and text.lower() not in ("none", "na"):
            yield form.format(n=name, t=text)


def factbook(folder: Path) -> Iterator[str]:
    """Country profiles as prose: the written sections whole, the note-form fields as sentences."""
    written = (
        ("Introduction", "Background"),
        ("Economy", "Economy - overview"),
        ("Transnational Issues", "Trafficking in persons"),
        ("Communications", "Broadcast media"),
    )
    for profile in profiles(folder):
        name = country_name(profile)
        for section, field in written:
            text = _text(profile, section, field).replace(" ++ ", " ")
            if len(text) > 120 and name:
                yield from chunk(text)
        lines = list(_phrases(name, profile)) if name else []
        for start in range(0, len(lines), 5):
            yield " ".join(lines[start : start + 5])


# ---------------------------------------------------------------- the Python manual

_ROLE = re.compile(r":[a-zA-Z:+-]+:`!?~?([^`<]*?)(?:\s*<[^>]*>)?`")
_LITERAL = re.compile(r"``([^`]*)``")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>]*>`_+")


def _plain_rst(block: str) -> str:
    text = _ROLE.sub(r"\1", tidy(block))
    text = _LINK.sub(r"\1", _LITERAL.sub(r"\1", text))
    return tidy(text.replace("*", "").replace("`", "").replace("---", "-"))


def _is_prose(text: str) -> bool:
    """Whether a paragraph reads as English: starts and ends as a sentence, mostly letters, little code."""
    if len(text) < 80 or not text[0].isupper() or text[-1] not in ".!?":
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters / len(text) > 0.93 and not re.search(r"[_=<>{}|\\]|::|\(\)", text)


def python_manual(folder: Path) -> Iterator[str]:
    """Paragraphs of running English from the manual's sources, neighbours joined to about 900 characters."""
    for path in sorted(folder.rglob("*.rst.txt")):
        kept: list[str] = []
        for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            text = _plain_rst(block)
            if _is_prose(text):
                kept.append(text)
        yield from chunk(" ".join(kept))


# ---------------------------------------------------------------- speeches and the whale


def speeches(folder: Path, since: int = 1934) -> Iterator[str]:
    """State of the Union addresses from the year `since` on, in documents of about 900 characters."""
    for path in sorted((folder / "package/sotu/data").glob("[12]*.json")):
        address = json.loads(path.read_text(encoding="utf-8"))
        if int(address["year"]) >= since:
            text = re.sub(r"\[[^\]]*\]|\([^)]*(?:Applause|Laughter)[^)]*\)", "", tidy(address["text"]))
            yield from chunk(text)


def moby_dick(folder: Path) -> Iterator[str]:
    """The chapters of Moby-Dick in documents of about 900 characters."""
    for path in sorted((folder / "package/moby-dick/data").glob("chapter_*.txt")):
        text = tidy(path.read_text(encoding="utf-8").replace("--", " - ").replace("_", ""))
        yield from chunk(re.sub(r"^CHAPTER \d+\.?\s*", "", text))
