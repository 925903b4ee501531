"""A trained model as one ONNX file for onnxruntime, compared with the model itself before anybody gets it.

    pfscale export models:/mlpf-clic@candidate SHARDS -o model.onnx      half a minute of CPU time; relative differences of 1e-5

Inputs, outputs and metadata of the file: `pfscale.models.onnx_model`, which also runs it (`OnnxModel`).
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfscale import __version__
from pfscale.errors import NotEnoughDataError, OutputExistsError, PfscaleError, ShardError
from pfscale.models.batch import collate, traced_batch
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.models.mlpf import Mlpf
from pfscale.models.onnx_model import ELEMENTS, INPUTS, OUTPUTS, OnnxModel, interface_metadata, require_onnx
from pfscale.shards.dataset import EventIndex, cut_by_tokens, load_index, read_events
from pfscale.shards.ragged import NUM_FEATURES, RaggedEvents
from pfscale.tasks.reconstruction import ElementParticles, ReconstructionConfig, describe
from pfscale.tracking.attachments import attach_files
from pfscale.tracking.registry import resolve, weights_digest
from pfscale.training.lookup import locate_model, mismatches

OPSET = 18
MIN_EVENTS = 100
TOLERANCE, CHANGED_TOLERANCE = 1e-4, 1e-3
ONNX_FILE, CHECK_SUFFIX = "model.onnx", ".check.json"
_TOKENS_PER_CALL = 1024  # of the calls with several events
_DISCRETE = ("is_candidate", "pdg", "charge")
_SCALE = {"pt": 1e-3, "energy": 1e-3}  # GeV; differences are relative to the larger of the value and this; 1 for numbers without a unit


@dataclass(frozen=True)
class OutputDifference:
    """The largest difference of one output: absolute, and relative to the value (to 1 where that is smaller; 0.001 GeV for momenta)."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class Agreement:
    """The exported graph beside the model, on real events, one event per call and several per call.

    Attributes:
        differences: of the outputs that are real numbers.
        changed_fraction: of elements, those with another class, sign of charge, or answer to whether they are candidates: where two answers
            are equally likely, the last bit decides.
        tolerance: of the relative differences.
        changed_tolerance: of the changed fraction.
    """

    num_events: int
    num_elements: int
    differences: dict[str, OutputDifference]
    changed_fraction: float
    tolerance: float = TOLERANCE
    changed_tolerance: float = CHANGED_TOLERANCE

    @property
    def largest(self) -> float:
        """The largest relative difference of all outputs; NaN if one is."""
        return float(np.max([difference.relative for difference in self.differences.values()]))

    @property
    def is_good(self) -> bool:
        """Whether all differences are within the tolerances; NaN are not."""
        is_within = all(difference.relative <= self.tolerance for difference in self.differences.values())
        return is_within and self.changed_fraction <= self.changed_tolerance


@dataclass(frozen=True)
class Export:
    """The file, how well it agrees, the registered version that it was added to (None: the model is a folder), what to keep in mind."""

    path: Path
    agreement: Agreement
    version: str | None
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few lines for the terminal."""
        c = self.agreement
        lines = [f"{self.path}: agrees with the model on {c.num_events} events, {c.num_elements} elements (tolerance {c.tolerance:g})"]
        lines += [f"  {name:8} largest difference {d.absolute:.2g}, relative {d.relative:.2g}" for name, d in c.differences.items()]
        lines.append(f"  elements with another class, charge or answer: {c.changed_fraction:.2g} of all")
        lines += [f"added to {self.version}"] if self.version else []
        return "\n".join([*lines, *(f"warning: {note}" for note in self.notes)])


def export_model(
    model: str, shards: str | Path, *, output: str | Path, num_events: int = 200, tracking_uri: str = "sqlite:///mlflow.db"
) -> Export:
    """The model as an ONNX file, with the comparison beside it (`<output>.check.json`) and, if the model is registered, in the registry.

    Args:
        model: `models:/name@alias`, `models:/name/version`, or a folder with a model bundle.
        shards: events to compare on, of any split; those of lowest hash are taken.
        num_events: of them, at least 100.

    Raises:
        PfscaleError: the graph does not agree with the model; no file is left.
        OutputExistsError: there is a file of that name which is no earlier export.
        NotEnoughDataError, ModelNotFoundError, InputFileError, ShardError, TrackingError.
        ResourceError: onnx, onnxscript or onnxruntime is not installed.
    """
    output = Path(output)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require_onnx(module)
    _require_free(output)
    folder, name = locate_model(model, tracking_uri=tracking_uri)
    bundle, index = load_bundle(folder), load_index(shards)
    if bundle.card["detector"] != index.manifest.detector:
        what = f"shards of {index.manifest.detector}, but {name} is a model of {bundle.card['detector']}"
        raise ShardError(what, where=str(shards), hint=f"give {bundle.card['detector']} shards: the comparison is kept with the model")
    events = _sample(index, num_events, str(shards))
    notes = mismatches(bundle.card, detector=index.manifest.detector, simulation=index.manifest.simulation, what="the shards")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as draft:
        file, check = Path(draft) / ONNX_FILE, Path(draft) / f"{ONNX_FILE}{CHECK_SUFFIX}"
        write_onnx(bundle, file, name=name, weights=weights_digest(folder))
        agreement = agreement_of(bundle, OnnxModel(file, num_threads=torch.get_num_threads()), events)
        if not agreement.is_good:
            raise PfscaleError(
                _complaint(agreement), where=model, hint="no file was written; tell us the versions of torch and onnxruntime"
            )
        check.write_text(json.dumps(asdict(agreement), indent=2))
        version = resolve(tracking_uri, name) if name.startswith("models:/") else None
        if version is not None:
            tags = {"onnx": ONNX_FILE, "onnx_difference": f"{agreement.largest:.2g}", "onnx_events": str(agreement.num_events)}
            attach_files(version, [file, check], tags=tags)
        shutil.move(check, _check_path(output))
        shutil.move(file, output)
    return Export(output, agreement, version.uri if version else None, notes)


def write_onnx(bundle: Bundle, path: Path, *, name: str, weights: str) -> None:
    """Writes the graph of the model with its metadata; `weights` is their hash."""
    onnx = require_onnx("onnx")
    card = bundle.card
    task = ReconstructionConfig(**card["task"])
    elements = torch.export.Dim(ELEMENTS, min=0)
    example = (torch.ones(7, NUM_FEATURES), torch.arange(7) < 3, torch.arange(7) // 4)
    with _quiet():
        program = torch.onnx.export(
            _Graph(bundle.model, task).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in INPUTS],
            output_names=[port.name for port in OUTPUTS],
            dynamic_shapes=({0: elements},) * len(INPUTS),
            custom_translation_table={torch.ops.aten.hypot.default: _hypot},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    metadata = {
        **interface_metadata(),
        "pfscale_version": __version__,
        "model": name,
        "detector": str(card["detector"]),
        "simulation": str(card["simulation"]),
        "weights": weights,
        "threshold": str(task.threshold),
    }
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def agreement_of(bundle: Bundle, exported: OnnxModel, events: RaggedEvents) -> Agreement:
    """The exported graph beside the model on the given events, each alone and several in one call; the larger differences count."""
    task = ReconstructionConfig(**bundle.card["task"])
    alone = [np.array([row]) for row in range(events.num_events)]
    expected = _join([_outputs_of(bundle.model, events, rows, task) for rows in alone])
    found: dict[str, list[OutputDifference]] = {}
    changed = 0.0
    for calls in (alone, cut_by_tokens(events.lengths, _TOKENS_PER_CALL)):
        got = _join([_run(exported, events, rows) for rows in calls])
        for port in OUTPUTS:
            if port.name not in _DISCRETE:
                found.setdefault(port.name, []).append(_difference(expected[port.name], got[port.name], _SCALE.get(port.name, 1.0)))
        is_other = np.any([expected[name] != got[name] for name in _DISCRETE], axis=0)
        changed = max(changed, float(is_other.mean()) if len(is_other) else 0.0)
    largest = {
        name: OutputDifference(*(float(np.max([getattr(d, kind) for d in differences])) for kind in ("absolute", "relative")))
        for name, differences in found.items()
    }
    return Agreement(events.num_events, int(events.lengths.sum()), largest, changed)


class _Graph(nn.Module):
    """The model with raw features in and physical outputs out, as tensors in the order of OUTPUTS."""

    def __init__(self, model: Mlpf, task: ReconstructionConfig) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.heads = _RenamedHeads({f"{name}_head": head for name, head in self.model.heads.items()})
        self.task = task

    def forward(self, features: Tensor, is_track: Tensor, event: Tensor) -> tuple[Tensor, ...]:
        batch = traced_batch(features, is_track, event)
        by_name = _by_name(describe(self.model(batch), batch, self.task))
        return tuple(by_name[port.name] for port in OUTPUTS)


class _RenamedHeads(nn.ModuleDict):
    """The heads under names that torch.export can write into Python code, which `class` is not."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(f"{key}_head")


def _by_name(found: ElementParticles) -> dict[str, Tensor]:
    """Output name -> tensor."""
    integers = {name: getattr(found, name).to(torch.int32) for name in ("pdg", "charge")}
    return {"scores": found.scores, "is_candidate": found.is_candidate, **integers, **vars(found.momentum)}


def _outputs_of(model: Mlpf, events: RaggedEvents, rows: NDArray[np.int64], task: ReconstructionConfig) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        batch = collate(events, rows)
        return {name: values.numpy() for name, values in _by_name(describe(model(batch), batch, task)).items()}


def _run(exported: OnnxModel, events: RaggedEvents, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    part = slice(events.offsets[rows[0]], events.offsets[rows[-1] + 1])
    inputs = {"features": events.features[part], "is_track": events.is_track[part], "event": np.repeat(rows, events.lengths[rows])}
    return vars(exported.run(inputs))


def _join(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {port.name: np.concatenate([part[port.name] for part in parts]) for port in OUTPUTS}


def _difference(expected: NDArray[np.floating], got: NDArray[np.floating], scale: float) -> OutputDifference:
    if not expected.size:
        return OutputDifference(0.0, 0.0)
    absolute = np.abs(expected.astype(np.float64) - got)
    relative = absolute / np.maximum(np.abs(expected), scale)
    return OutputDifference(float(absolute.max()), float(relative.max()))


def _complaint(agreement: Agreement) -> str:
    worst = max(agreement.differences, key=lambda name: np.nan_to_num(agreement.differences[name].relative, nan=np.inf))
    return (
        f"the exported graph does not agree with the model: {worst} differs by {agreement.differences[worst].relative:.2g} relatively, "
        f"{agreement.changed_fraction:.2g} of the elements get another class or charge; {agreement.tolerance:g} and "
        f"{agreement.changed_tolerance:g} are allowed"
    )


def _sample(index: EventIndex, num_events: int, where: str) -> RaggedEvents:
    if num_events < MIN_EVENTS:
        raise NotEnoughDataError(f"{num_events} events are too few to compare on", hint=f"--num-events {MIN_EVENTS} or more")
    if num_events > index.num_events:
        raise NotEnoughDataError(
            f"{num_events} events asked for, the data set has {index.num_events}", where=where, hint="ask for fewer, or ingest more files"
        )
    return read_events(index, np.argsort(index.split_hash, kind="stable")[:num_events])


def _require_free(output: Path) -> None:
    if output.is_dir():
        raise OutputExistsError("a folder, not a file", where=str(output), hint="-o FOLDER/model.onnx")
    if output.exists() and not _check_path(output).is_file():
        raise OutputExistsError("the file is no earlier export", where=str(output), hint="choose a new --output")


def _check_path(output: Path) -> Path:
    return output.with_name(output.name + CHECK_SUFFIX)


def _hypot(a: Any, b: Any) -> Any:
    """ONNX has no hypot; momenta are far from where squares overflow."""
    from onnxscript import opset18 as op

    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and on names of axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
