"""The native library: built or not, described, and never in the way."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from quarterdeck.errors import InputError
from quarterdeck.kernels import int8, native

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of a library that is not there (yet), as seen by a fresh process."""
    path = tmp_path / "_native.so"
    monkeypatch.setattr(native, "_LIBRARY", path)
    for cached in (native.library, native.levels):
        monkeypatch.setattr(native, cached.__name__, cached.__wrapped__)
    return path


def test_levels_are_in_order_and_described() -> None:
    if native.library() is None:
        pytest.skip(native.describe())
    assert native.levels()[0] == "portable"
    assert [name for name in native.LEVELS if name in native.levels()] == list(native.levels())
    assert native.describe().startswith(native.levels()[-1])


def test_threads_are_pytorchs() -> None:
    if native.library() is None or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip(native.describe())
    assert "PyTorch's OpenMP" in native.describe()


def test_without_a_library_the_reference_computes(somewhere_else: Path) -> None:
    packed, x = int8.pack(*int8.quantize(torch.randn(20, 30))), torch.randn(3, 30)
    assert native.describe().startswith("not built")
    assert native.levels() == ()
    assert torch.equal(int8.linear(x, packed), int8.linear_reference(x, packed))
    with pytest.raises(InputError, match="what can: reference"):
        int8.linear(x, packed, level="avx2")


def test_the_reason_of_a_failed_build_is_told(somewhere_else: Path) -> None:
    somewhere_else.with_suffix(".txt").write_text("no C++ compiler\nwas found\n")
    assert native.describe() == "not built, PyTorch is used: no C++ compiler was found"


def test_a_file_that_is_no_library_is_told(somewhere_else: Path) -> None:
    somewhere_else.write_text("something")
    assert native.describe().startswith("built for another machine")


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip(native.describe())
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    assert native.library() is not None
    monkeypatch.setattr(native, "_ABI", native._ABI + 1)
    assert native.library() is None
    assert "from other sources, PyTorch is used; install the package again" in native.describe()


def test_a_compiler_that_fails_leaves_a_reason(tmp_path: Path) -> None:
    if not (ROOT / "setup.py").is_file():
        pytest.skip("no checkout")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    environment = {"PATH": "/usr/bin:/bin", "CXX": "false"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    built = tmp_path / "quarterdeck" / "kernels"
    assert not (built / "_native.so").exists()
    assert "false" in (built / "_native.txt").read_text()


def copy_of_the_checkout(folder: Path) -> Path:
    """As little of the checkout as builds: the folder of the kernels in it."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("no checkout")
    package = folder / "src" / "quarterdeck"
    shutil.copytree(ROOT / "src" / "quarterdeck" / "kernels" / "native", package / "kernels" / "native")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("__init__.py", "_version.py", "py.typed", "kernels/__init__.py"):
        shutil.copy(ROOT / "src" / "quarterdeck" / name, package / name)
    return package / "kernels"


def setup_py(folder: Path, compiler: str, *command: str) -> None:
    """Run a command of setup.py with a compiler made of a shell script."""
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{compiler}\n")
    script.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "CXX": str(script), "PYTHONUTF8": "1"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", *command], cwd=folder, env=environment, check=True, capture_output=True
    )


def build_in_place(folder: Path, compiler: str) -> list[str]:
    """What lies beside the sources after a build in place."""
    setup_py(folder, compiler, "build_ext", "--inplace")
    return [path.name for path in (folder / "src" / "quarterdeck" / "kernels").glob("_native*")]


COMPILES = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'


def test_building_in_place_leaves_the_library_or_the_reason(tmp_path: Path) -> None:
    kernels = copy_of_the_checkout(tmp_path)
    (kernels / "_native.so").write_text("of an earlier build")
    # what a compiler says need not be UTF-8
    assert build_in_place(tmp_path, "printf 'erreur \\351trange' >&2; exit 1") == ["_native.txt"]
    assert (kernels / "_native.txt").read_text(encoding="utf-8") == "erreur \ufffdtrange\n"
    assert build_in_place(tmp_path, COMPILES) == ["_native.so"]
    assert (kernels / "_native.so").read_text() == "made\n"
    assert build_in_place(tmp_path, "exit 1") == ["_native.txt"]


def test_the_cpp_library_is_inside_where_the_compiler_can(tmp_path: Path) -> None:
    copy_of_the_checkout(tmp_path)
    told = f'echo "$@" >> {tmp_path}/commands\n'
    assert build_in_place(tmp_path, told + COMPILES) == ["_native.so"]
    assert "-static-libstdc++" in (tmp_path / "commands").read_text().splitlines()[-1]
    refuses = 'case "$*" in *-static-libstdc++*) exit 1;; esac\n'
    assert build_in_place(tmp_path, told + refuses + COMPILES) == ["_native.so"]
    tried, linked = (tmp_path / "commands").read_text().splitlines()[-2:]
    assert "-static-libstdc++" in tried
    assert "-static" not in linked


@pytest.mark.parametrize("compiler", [COMPILES, "exit 1"], ids=["built", "not built"])
def test_a_wheel_holds_no_sources_and_is_for_all_platforms_without_a_library(tmp_path: Path, compiler: str) -> None:
    copy_of_the_checkout(tmp_path)
    setup_py(tmp_path, compiler, "bdist_wheel", "--dist-dir", "out")
    (wheel,) = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if name.startswith("quarterdeck/")}
        (about,) = (file.read(name).decode() for name in file.namelist() if name.endswith("/WHEEL"))
    native_part = "_native.so" if compiler == COMPILES else "_native.txt"
    python = {f"quarterdeck/{name}" for name in ("__init__.py", "_version.py", "py.typed", "kernels/__init__.py")}
    assert held == python | {f"quarterdeck/kernels/{native_part}"}
    assert wheel.name.endswith("-py3-none-any.whl") == (native_part == "_native.txt")
    assert f"Root-Is-Purelib: {'true' if native_part == '_native.txt' else 'false'}" in about


def test_the_librarys_own_threads_do_the_same(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip(native.describe())
    # without PyTorch in the process there is no OpenMP to be found
    code = f"""
import ctypes
library = ctypes.CDLL({str(native._LIBRARY)!r})
library.quarterdeck_threads.restype = ctypes.c_char_p
assert library.quarterdeck_threads() == b"own"
pointer, number = ctypes.c_void_p, ctypes.c_int64
function = library.quarterdeck_dense_linear
function.argtypes = [ctypes.c_int, ctypes.c_int, pointer, ctypes.c_int, number, number, number, *[pointer] * 3]
rows, columns = 997, 33
weights = (ctypes.c_float * (rows * columns))(*[i % 7 - 3 for i in range(rows * columns)])
x = (ctypes.c_float * columns)(*range(columns))
expected = [sum(weights[row * columns + c] * c for c in range(columns)) for row in range(rows)]
for threads in (1, 2, 5, 2):
    for _ in range(20):
        out = (ctypes.c_float * rows)()
        assert function(0, threads, x, 0, 1, rows, columns, weights, None, out) == 0
        assert list(out) == expected
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_addresses_are_none_or_the_tensors() -> None:
    x = torch.arange(3.0)
    assert native.pointer(None) is None
    assert ctypes.c_float.from_address(native.pointer(x) + 4).value == 1.0
