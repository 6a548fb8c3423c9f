"""What ``benchmarks/compare_engines.py`` tells of the engines and the machine, beside its figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from quarterdeck import __version__
from quarterdeck.kernels import native

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("compared", "engines", "results"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("scripts")
def test_the_table_ends_with_what_was_compared() -> None:
    from compared import compared
    from results import markdown

    said = compared({"llama.cpp": {"weights": "repacked", "system": "AVX2 = 1"}})
    facts: dict[str, Any] = {
        "shape": "small",
        "limits": {"threads": 1, "read_gb_per_second": 1.0, "float32_gflops": 1.0},
        "missing": [],
        "compared": said,
    }
    text = markdown(facts, [])
    assert "- llama.cpp: weights repacked; system AVX2 = 1\n" in text
    assert f"- versions: quarterdeck {__version__}" in text
    assert said["versions"]["torch"] in text
    assert f"- processor: {said['processor']['model']}" in text


@pytest.mark.usefixtures("scripts")
def test_flags_are_those_that_the_kernels_find() -> None:
    from compared import processor

    flags = processor()["flags"]
    if not native.levels() or not Path("/proc/cpuinfo").is_file():
        pytest.skip("nothing to compare with")
    assert ("avx2" in native.levels()) == ("avx2" in flags)
    assert ("amx" in native.levels()) <= ("amx_int8" in flags)


@pytest.mark.usefixtures("scripts")
def test_a_library_says_what_compiled_it(tmp_path: Path) -> None:
    from engines import compilers

    library = tmp_path / "x.so"
    assert compilers(library) == []
    library.write_bytes(
        b"\x00GCC: (Debian 12.2.0-14) 12.2.0\x00GCC: (Debian 12.2.0-14) 12.2.0\x00clang version 17.0.6\x00"
    )
    assert compilers(library) == ["GCC: (Debian 12.2.0-14) 12.2.0", "clang version 17.0.6"]
