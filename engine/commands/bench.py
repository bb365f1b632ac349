"""`python -m engine bench`: how fast the engine is here, beside what memory allows and beside others."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.bench.figures import SHAPES, Figures, Plan
from engine.bench.random_model import write_random_model
from engine.bench.report import Run, as_json, columns, draw, require_pillow, rows, sentences, verdicts
from engine.bench.stages import run_bandwidth, run_engine, run_genai, run_loop
from engine.commands import Subparsers
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import load_manifest
from engine.errors import EngineError, ModelFormatError, ModelResourceError

_CHECKED = (Precision.FP16, Precision.INT4)
_FEWEST_TOKENS = 4
_DEFAULT_CONVERSATIONS = "1,8,32,64,128"


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("bench", help="measure how fast the engine is here")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, metavar="FOLDER", help="a converted model")
    which.add_argument(
        "--synthetic", choices=SHAPES, help="random weights in a model's real shape; default: 7b"
    )
    command.add_argument(
        "--precision",
        choices=[str(p) for p in Precision],
        default="int4",
        help="with --synthetic; default: int4",
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, default=0, help="CPU threads; default: 0, one per core")
    command.add_argument(
        "--conversations", type=_numbers, default=_numbers(_DEFAULT_CONVERSATIONS), metavar="N,N,…",
        help=f"how many at once; default: {_DEFAULT_CONVERSATIONS}",
    )  # fmt: skip
    command.add_argument(
        "--context", type=_positive, default=512, help="tokens before each answer; default: 512"
    )
    command.add_argument("--tokens", type=_several, default=128, help="tokens in each answer; default: 128")
    command.add_argument(
        "--seconds", type=float, default=30.0, help="longest time for an answer; default: 30"
    )
    command.add_argument("--temperature", type=float, default=0.7)
    command.add_argument(
        "--peer", choices=("loop", "genai"), action="append", default=[],
        help="also measure the published example loop, or onnxruntime-genai",
    )  # fmt: skip
    command.add_argument(
        "--genai-model", type=Path, metavar="FOLDER", help="a model made by onnxruntime-genai's builder"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the results to this file")
    command.add_argument(
        "--check", action="store_true",
        help="check everything on a GPU: run its tests, then compare Llama 2 7B's shape with the goals",
    )  # fmt: skip
    command.set_defaults(act=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        require_pillow()
    try:
        return _measure_all(arguments)
    except OSError as error:
        name = error.filename or "A temporary file"
        raise ModelResourceError(f"{name} could not be used: {error.strerror}.") from error


def _measure_all(arguments: argparse.Namespace) -> int:
    console, failed = Console(), False
    precisions: tuple[Precision, ...] = (Precision(arguments.precision),)
    if arguments.check:
        arguments.device, arguments.model, arguments.synthetic = "cuda", None, arguments.synthetic or "7b"
        arguments.peer, precisions = ["loop", *arguments.peer], _CHECKED
        failed = _run_gpu_tests() != 0
    runs = []
    for precision in precisions:
        with tempfile.TemporaryDirectory(prefix="llamacord-bench-") as scratch:
            runs.append(_measure(arguments, precision, Path(scratch)))
        _print_run(runs[-1], console)
    if arguments.check:
        failed |= not _print_verdicts(runs, console, tests_failed=failed)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(runs), indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        draw(runs, arguments.plot)
    return 1 if failed else 0


def _measure(arguments: argparse.Namespace, precision: Precision, scratch: Path) -> Run:
    """Measure one model, then memory and peers, each in a process of its own. Raises `EngineError`."""
    shape = arguments.synthetic or "7b"
    if arguments.model is None:
        folder = write_random_model(scratch / "model", SHAPES[shape], precision)
        title = f"{shape} shape, {precision}, random weights"
    else:
        folder, precision = arguments.model, load_manifest(arguments.model).precision
        title = f"{load_manifest(folder).name}, {precision}"
    config = load_manifest(folder).decoder
    plan = Plan(
        folder=str(folder.resolve()),
        conversations=arguments.conversations,
        context=arguments.context,
        tokens=arguments.tokens,
        seconds=arguments.seconds,
        device=arguments.device,
        threads=arguments.threads,
        temperature=arguments.temperature,
    )
    if plan.context + plan.tokens > config.context_length:
        raise ModelFormatError(f"--context and --tokens exceed the model's {config.context_length} tokens.")
    figures = run_engine(plan)
    bandwidth = run_bandwidth(figures.provider, plan.threads)
    notes: list[str] = []
    peers = tuple(_peers(arguments, plan, config, figures.provider, notes))
    return Run(title, config, precision, plan, figures, bandwidth, peers, tuple(notes))


def _peers(
    arguments: argparse.Namespace, plan: Plan, config: DecoderConfig, device: str, notes: list[str]
) -> Iterator[Figures]:
    """Measure the peers that were asked for; say in `notes` which of them could not be."""
    plan = Plan(**{**{name: getattr(plan, name) for name in Plan.__slots__}, "device": device})
    for peer in dict.fromkeys(arguments.peer):
        try:
            if peer == "loop":
                yield run_loop(plan, config)
            elif arguments.genai_model is None:
                raise ModelFormatError(
                    "--peer genai needs --genai-model: make one in the same shape with "
                    "python -m onnxruntime_genai.models.builder"
                )
            else:
                yield run_genai(plan, arguments.genai_model)
        except EngineError as error:
            notes.append(f"Not compared with {peer}: {error}")


def _run_gpu_tests() -> int:
    """Run the tests that need a GPU; return their exit status."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q"]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, check=False).returncode  # noqa: S603 - our own tests


def _print_run(run: Run, console: Console) -> None:
    _print_table(console, f"{run.title}, context {run.plan.context}", columns(run), rows(run))
    for sentence in sentences(run):
        console.print(f"• {sentence}", soft_wrap=True, highlight=False, markup=False)


def _print_verdicts(runs: list[Run], console: Console, *, tests_failed: bool) -> bool:
    """Print what must be reached and what was; return whether all of it was."""
    found = list(verdicts(runs))
    tests = ["tests marked gpu", "all pass", "some fail" if tests_failed else "all pass"]
    table = [[*tests, "FAIL" if tests_failed else "PASS"], *(verdict.cells() for verdict in found)]
    bandwidth = runs[0].bandwidth / 1e9
    title = f"Goals, in proportion to {bandwidth:.0f} GB/s of memory (an H100 has 3030)"
    _print_table(console, title, ("", "goal", "measured", ""), iter(table))
    return all(verdict.is_met for verdict in found)


def _print_table(console: Console, title: str, names: tuple[str, ...], lines: Iterator[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _numbers(written: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(number) for number in written.split(",")}))


def _several(written: str) -> int:
    """Return a number of tokens among which there is a speed."""
    number = int(written)
    if number < _FEWEST_TOKENS:
        raise argparse.ArgumentTypeError(f"must be at least {_FEWEST_TOKENS}")
    return number


def _positive(written: str) -> int:
    number = int(written)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
