"""Builds the libraries in `lib/`. For developers: who runs Llamacord needs no compiler.

Needs `pip install ziglang==0.17.1`, which compiles for every system, and the header of ONNX Runtime's C API,
`onnxruntime_c_api.h`, of version 1.21, as Debian's libonnxruntime-dev 1.21.0 has it:

    python -m engine.kernels.build --headers /usr/include/onnxruntime

The same sources give the same bytes. `lib/sources.sha256` says which they were; a test compares.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = HERE / "lib"
STAMP = LIBRARIES / "sources.sha256"
ZIG = "0.17.1"
TARGETS = {
    "llamacord-linux-x86_64.so": "x86_64-linux-gnu.2.17",
    "llamacord-win32-x86_64.dll": "x86_64-windows-gnu",
}
_AVX512 = ["f", "vl", "bw", "dq", "vnni"]
_FLAGS = {
    "avx512.cc": [f"-mavx512{part}" for part in _AVX512] + ["-mfma", "-mf16c"],
    "attention_avx512.cc": [f"-mavx512{part}" for part in _AVX512] + ["-mfma", "-mf16c"],
    "avxvnni.cc": ["-mavx2", "-mavxvnni", "-mfma", "-mf16c"],
    "library.cc": [],
}
_WINDOWS = ["-D_Return_type_success_(how)="]
"""ONNX Runtime's header marks what functions return for a compiler of Microsoft's."""
_COMMON = [
    "-O3", "-std=c++20", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-g0", "-DNDEBUG",
    "-ffp-contract=off", "-fno-sanitize=all", "-Wall", "-Werror",
]  # fmt: skip


def sources_digest() -> str:
    """Return what tells one state of the sources from another."""
    digest = hashlib.sha256()
    for source in sorted([*HERE.glob("*.cc"), *HERE.glob("*.h"), Path(__file__)]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def build(name: str, target: str, headers: Path, folder: Path) -> None:
    """Compile and link one library into `folder`. Raises `CalledProcessError`."""
    zig = [sys.executable, "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for source, flags in _FLAGS.items():
            output = Path(scratch) / f"{source}.o"
            system = _WINDOWS if "windows" in target else ["-fPIC"]
            command = [*zig, "c++", "-target", target, *_COMMON, *system, *flags, "-isystem", str(headers)]
            subprocess.run([*command, "-c", source, "-o", str(output)], check=True, cwd=HERE)  # noqa: S603
            objects.append(str(output))
        repeatable = ["-Wl,-Brepro"] if "windows" in target else []  # no time of day in it
        command = [*zig, "cc", "-target", target, "-shared", "-s", *repeatable]
        command += ["-o", str(folder / name), *objects]
        subprocess.run(command, check=True, cwd=scratch)  # noqa: S603
        for leftover in folder.glob("*.lib"), folder.glob("*.pdb"):
            for path in leftover:
                path.unlink()


def main() -> None:
    """Build all libraries."""
    parser = argparse.ArgumentParser(description="Builds the libraries of engine/kernels.")
    parser.add_argument("--headers", type=Path, default=Path("/usr/include/onnxruntime"))
    headers = parser.parse_args().headers.resolve()
    LIBRARIES.mkdir(exist_ok=True)
    for name, target in TARGETS.items():
        build(name, target, headers, LIBRARIES)
    STAMP.write_text(sources_digest() + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
