"""Builds the stubs with the C compiler, for whatever functions ONNX Runtime's CUDA provider asks for."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime

SOURCE = Path(__file__).with_name("stubs.c")
PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
STATE = "libllamacordstub.so"
"""What all the libraries share: one memory, one state."""
_SYMBOL = re.compile(r" U (\w+)(?:@(lib\w+\.so\.\d+))?$", re.MULTILINE)
_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nv)\w*\.so[.\d]*)\]")
_OURS = re.compile(r"cu[a-zA-Z]|__cuda")
_DEFINED = re.compile(r"^(?:\w[\w ]*[ *]+\**)(\w+)\(", re.MULTILINE)


def missing_tools() -> str:
    """Return why the stubs cannot be built here, "" where they can."""
    if platform.machine() != "x86_64":
        return "the stubs are written for x86-64"
    for tool in ("cc", "nm", "readelf"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    return "" if PROVIDER.exists() else "ONNX Runtime's CUDA provider is not installed"


def build(folder: Path) -> Path:
    """Write the libraries that the provider needs into `folder` and return it."""
    needed = _NEEDED.findall(_run("readelf", "-d", str(PROVIDER)))
    wanted: dict[str, list[str]] = {library: [] for library in needed}
    for name, library in _SYMBOL.findall(_run("nm", "-D", "--undefined-only", str(PROVIDER))):
        if library in wanted or re.match(r"cu[A-Z]", name):
            wanted.setdefault(library or "libcuda.so.1", []).append(name)
    defined = {name for name in _DEFINED.findall(SOURCE.read_text(encoding="utf-8")) if _OURS.match(name)}
    wanted["libcuda.so.1"] += [name for name in defined if re.match(r"cu[A-Z]", name)]
    _compile(folder, STATE, SOURCE, *(f"-D{name}=real_{name}" for name in defined))
    for library, names in wanted.items():
        _compile_library(folder, library, sorted(set(names)), defined)
    return folder


def environment(folder: Path, gpu: str = "") -> dict[str, str]:
    """Return the environment of a process that is to find the stubs; `gpu` is what stubs.c says."""
    preload = {"LD_LIBRARY_PATH": str(folder), "LLAMACORD_STUB_GPU": gpu}
    return {**os.environ, **preload}


def _compile_library(folder: Path, library: str, names: list[str], defined: set[str]) -> None:
    """Each function jumps to the one that stubs.c defines, or succeeds at once."""
    lines = ['asm(".text");']
    for name in names:
        jump = f"jmp *real_{name}@GOTPCREL(%rip)" if name in defined else "xorl %eax, %eax\\nret"
        lines.append(f'asm(".globl {name}\\n.type {name}, @function\\n{name}:\\n{jump}\\n");')
    source = folder / f"{library}.c"
    source.write_text("\n".join(lines), encoding="utf-8")
    script = folder / f"{library}.map"
    version = library if library != "libcuda.so.1" else ""
    exported = "".join(f"{name}; " for name in names) or "nothing; "
    script.write_text(f"{version} {{ global: {exported}local: *; }};", encoding="utf-8")
    links = [f"-L{folder}", f"-l:{STATE}", "-Wl,-rpath,$ORIGIN"]
    _compile(folder, library, source, f"-Wl,--version-script={script}", *links)


def _compile(folder: Path, library: str, source: Path, *options: str) -> None:
    inputs = [option for option in options if option.startswith("-l")]
    flags = [option for option in options if not option.startswith("-l")]
    command = ["cc", "-shared", "-fPIC", "-w", "-O1", f"-Wl,-soname,{library}", *flags]
    whole = [*command, "-o", str(folder / library), str(source), *inputs]
    subprocess.run(whole, check=True)  # noqa: S603


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
