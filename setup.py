"""Builds the native kernels as one plain shared library, loaded through ctypes: no tie to Python's or torch's ABI.

Each source file is compiled with the flags of its instruction set; those that the compiler does not know are left
out. The library holds the C++ library, so that it runs on older systems too, as far as their C library goes. Where
there is no compiler, or it fails, the package is installed without the library, works through PyTorch, and
``quarterdeck env`` tells the reason, which is written where the library would be.

    python setup.py build_ext --inplace     builds it again in a checkout
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/quarterdeck/kernels/native")
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
STATIC = ["-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *"-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512".split()]
LEVELS = {
    "avx2": AVX2,
    "avxvnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "amx": [*AVX512, *"-mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16".split()],
}


class BuildNative(build_ext):
    """Compiles the library; a failure leaves a reason instead of a library, and no error."""

    def get_ext_filename(self, fullname: str) -> str:
        """No tag of Python's ABI: nothing of Python is in it."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link, or write the reason why not."""
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        reason = library.with_suffix(".txt")
        try:
            build_library(library)
            reason.unlink(missing_ok=True)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            library.unlink(missing_ok=True)
            output = getattr(error, "stderr", None) or str(error)
            reason.write_text(output.strip()[-2000:] + "\n", encoding="utf-8")
            self.warn(f"native kernels were not built, PyTorch will be used: {output.strip()[-500:]}")

    def get_outputs(self) -> list[str]:
        """What an installation holds: the library or the reason."""
        paths = (Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions)
        return [str(found) for path in paths for found in (path, path.with_suffix(".txt")) if found.exists()]

    def copy_extensions_to_source(self) -> None:
        """Put the library or the reason beside the sources, and remove the other, which an earlier build left."""
        for ext in self.extensions:
            made, beside = Path(self.build_lib, self.get_ext_filename(ext.name)), Path(self.get_ext_fullpath(ext.name))
            for suffix in (".so", ".txt"):
                if made.with_suffix(suffix).exists():
                    put(made.with_suffix(suffix), beside.with_suffix(suffix))
                else:
                    beside.with_suffix(suffix).unlink(missing_ok=True)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3: on this platform, or on all of them where it holds no library."""

    def get_tag(self) -> tuple[str, str, str]:
        """Asked when all is built, and before what the wheel says of itself is written."""
        built = any(path.endswith(".so") for path in self.get_finalized_command("build_ext").get_outputs())
        platform_tag = super().get_tag()[2]
        self.root_is_pure = not built
        return "py3", "none", platform_tag if built else "any"


def build_library(library: Path) -> None:
    """Compile all files that fit this compiler and processor family and link them to ``library``."""
    compiler = find_compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as folder:
        levels = {name: flags for name, flags in LEVELS.items() if x86 and knows(compiler, flags, folder)}
        have = [f"-DQUARTERDECK_HAVE_{name.upper()}" for name in levels]
        sources = [path for path in sorted(NATIVE.glob("*.cpp")) if level_of(path) in {None, *levels}]
        objects = [str(Path(folder, path.stem + ".o")) for path in sources]

        def compile_one(source: Path, target: str) -> None:
            flags = levels.get(level_of(source) or "", [])
            if levels and source.stem == "level_portable":
                flags = ["-O2"]  # hardly ever run beside the others, and a third of the time that -O3 takes
            run([*compiler, *COMMON, *flags, *have, "-c", str(source), "-o", target])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        made = str(Path(folder, "library.so"))
        link(compiler, objects, made)
        put(Path(made), library)


def link(compiler: list[str], objects: list[str], made: str) -> None:
    """Make the shared library, with the C++ library inside it where the compiler can.

    It then runs where that is older or missing. What it defines stays hidden, so that PyTorch's copy is not met, and
    what is not used is left out, since parts of it want the newest C library. libgcc stays outside: it would want that
    too, and every system has one.
    """
    command = [*compiler, "-shared", "-pthread", *objects, "-o", made, "-ldl"]
    try:
        run([*command, *STATIC])
    except subprocess.CalledProcessError:  # no such options, or no static library
        run(command)


def put(made: Path, target: Path) -> None:
    """Copy a file in one step: a process that has the old library loaded keeps it, and none sees half of one."""
    shutil.copyfile(made, beside := f"{target}.new")
    os.replace(beside, target)


def level_of(source: Path) -> str | None:
    """The instruction set that a file is written for: the last part of its name, if it is one."""
    name = source.stem.rpartition("_")[2]
    return name if name in LEVELS else None


def find_compiler() -> list[str]:
    """CXX, or the compiler that built Python, or what is commonly there."""
    for command in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        words = command.split() if command else []
        if words and shutil.which(words[0]):
            return words
    raise RuntimeError("no C++ compiler was found: install one (Debian: apt install g++) and install the package again")


def knows(compiler: list[str], flags: list[str], folder: str) -> bool:
    """Whether the compiler takes the flags."""
    empty = Path(folder, "empty.cpp")
    empty.write_text("#include <immintrin.h>\nint main() {}\n", encoding="utf-8")
    command = [*compiler, *flags, "-c", str(empty), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run(command: list[str]) -> None:
    """Run a command; CalledProcessError holds what it said, in whatever encoding a compiler speaks."""
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")


setup(
    ext_modules=[
        Extension(
            "quarterdeck.kernels._native",
            sources=[path.as_posix() for path in sorted(NATIVE.glob("*.cpp"))],
            depends=[path.as_posix() for path in sorted(NATIVE.glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
