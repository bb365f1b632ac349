"""Everything that `inspect` knows of a model on this machine, put together. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine import kernels
from engine.advising.advice import MEASURED_CONTEXT, Advice, Option, Speed
from engine.advising.gpu_advice import GpuAdvice
from engine.advising.inspection import Inspection
from engine.describing.architecture import LLAMA_2_SIZES, Precision
from engine.describing.footprint import size, step_bytes
from engine.machine.machine import Resources


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured; nothing without `--measure`. `bandwidth` is in bytes a second."""

    speeds: Mapping[Precision, Speed] = field(default_factory=dict)
    own: Speed | None = None
    bandwidth: float | None = None
    num_layers: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is known of a model on this machine."""

    found: Inspection
    machine: Resources
    advice: Advice | None
    measured: Measured
    gpu: GpuAdvice | None = None

    @property
    def problems(self) -> list[str]:
        """What keeps the model from being used, memory included."""
        problems, description = list(self.found.problems), self.found.description
        if description is None or self.advice is None or self._fits_gpu(description.precision):
            return problems
        if description.precision is not None:
            option = self.advice.option(description.precision)
            if option.fit == "no":
                problems.append(
                    f"It needs {size(option.memory.total)} of memory, but there are only "
                    f"{size(self.machine.memory_bytes)}. Convert it to fewer bits, or lower --context."
                )
        elif self.advice.chosen is None:
            problems.append(self.advice.sentences[0])
        return problems

    def _fits_gpu(self, precision: Precision | None) -> bool:
        """Return whether the GPU holds the model as it is, or in some precision if it is not converted."""
        candidates = () if self.gpu is None else self.gpu.candidates
        fitting = [option.precision for option in candidates if option.fit != "no"]
        return precision in fitting if precision is not None else bool(fitting)

    def predictions(self) -> list[str]:
        """Say what the recommended precision would do with other sizes, at the same share of the floor."""
        best = None if self.advice is None else self.advice.chosen
        floor = None if best is None else self.floor(best.precision)
        if best is None or best.speed is None or floor is None or self.measured.bandwidth is None:
            return []
        reached, told = self.measured.bandwidth * best.speed.single / floor, []
        for name, config in LLAMA_2_SIZES.items():
            read = step_bytes(config, best.precision, num_tokens=MEASURED_CONTEXT, num_conversations=1)
            told.append(f"{reached / read:.2g} with {name}")
        return [
            f"At the same share of the memory's bandwidth {best.precision} would give one conversation "
            f"{' and '.join(told)} (tokens/s); larger models come closer to it."
        ]

    def floor(self, precision: Precision) -> float | None:
        """Return the tokens a second of one conversation that the memory's bandwidth allows at most."""
        if self.found.description is None or self.measured.bandwidth is None:
            return None
        config = self.found.description.config
        tokens = min(MEASURED_CONTEXT, config.context_length)
        return self.measured.bandwidth / step_bytes(config, precision, num_tokens=tokens, num_conversations=1)


def as_json(report: Report) -> dict[str, object]:
    """Return the report as an object for JSON."""
    found, advice, measured = report.found, report.advice, report.measured
    description = None if found.description is None else dataclasses.asdict(found.description)
    if found.description is not None and description is not None:
        description["num_parameters"] = found.description.config.num_parameters
        description["config"] = dataclasses.asdict(found.description.config)
    machine = {
        "memory_bytes": report.machine.memory_bytes,
        "free_bytes": report.machine.free_bytes,
        "num_cores": report.machine.num_cores,
        "processor": report.machine.processor.describe(),
        "products": kernels.describe(),
        "bandwidth_bytes_per_s": measured.bandwidth,
    }
    return {
        "path": str(found.path),
        "kind": found.kind,
        "num_bytes": found.num_bytes,
        "model": description,
        "machine": machine,
        "load": None if advice is None else dataclasses.asdict(advice.load),
        "options": [] if advice is None else [_option_json(report, option) for option in advice.candidates],
        "recommended": None if advice is None or advice.chosen is None else str(advice.chosen.precision),
        "advice": [] if advice is None else [*advice.sentences, *report.predictions()],
        "gpu": None if report.gpu is None else dataclasses.asdict(report.gpu),
        "measured": None if measured.own is None else dataclasses.asdict(measured.own),
        "notes": found.notes,
        "problems": report.problems,
    }


def _option_json(report: Report, option: Option) -> dict[str, object]:
    return {
        "precision": str(option.precision),
        "disk_bytes": option.disk_bytes,
        "weight_bytes": option.memory.weights,
        "kv_bytes": option.memory.kv,
        "memory_bytes": option.memory.total,
        "fit": str(option.fit),
        "speed": None if option.speed is None else dataclasses.asdict(option.speed),
        "floor_tokens_per_s": report.floor(option.precision),
    }
