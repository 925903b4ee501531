"""An exported model (ONNX): what goes in and comes out, in a table that the export writes into the file, and a checked way to run it.

A graph needs nothing beside it. Normalisation and the meaning of the outputs are inside, one call takes the elements of one event or of
several. In C++ with onnxruntime the inputs and outputs are those of INPUTS and OUTPUTS; the file's metadata (strings) are:

    pfscale_version, schema_version, model, detector, simulation, weights (SHA-256), threshold
    inputs, outputs                      JSON lists of name, dtype, shape, meaning
    track_features, cluster_features     JSON lists of name and unit, by column of `features`
    classes                              JSON list, by column of `scores`: none, or the PDG code of a class

Shape letters: T elements of all events of a call, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfscale.errors import InputFileError, ResourceError, closest
from pfscale.models.inputs import require_momenta
from pfscale.shards.ragged import CLUSTER_FEATURES, NUM_FEATURES, TRACK_FEATURES
from pfscale.shards.schema import CLASSES, COLUMNS, SCHEMA_VERSION


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; the first axis is always the elements."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    meaning: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))}{',' * (len(self.shape) == 1)})"


ELEMENTS = "elements"
INPUTS = (
    Port(
        "features",
        "float32",
        (ELEMENTS, NUM_FEATURES),
        "raw, columns: track_features or cluster_features; NaN: missing (not in columns 0 to 3)",
    ),
    Port("is_track", "bool", (ELEMENTS,), "track or cluster, in any order"),
    Port("event", "int64", (ELEMENTS,), "equal for the elements of one event, which see each other; all 0 for a single event"),
)
OUTPUTS = (
    Port("scores", "float32", (ELEMENTS, len(CLASSES)), "probabilities of the classes; column 0: no particle"),
    Port("is_candidate", "bool", (ELEMENTS,), "1 - scores[0] is above the threshold"),
    Port("pdg", "int32", (ELEMENTS,), "of the likeliest particle class, signed"),
    Port("charge", "int32", (ELEMENTS,), "-1, 0 or 1, of the same"),
    Port("pt", "float32", (ELEMENTS,), "GeV"),
    Port("eta", "float32", (ELEMENTS,), "pseudorapidity"),
    Port("sin_phi", "float32", (ELEMENTS,), ""),
    Port("cos_phi", "float32", (ELEMENTS,), ""),
    Port("energy", "float32", (ELEMENTS,), "GeV, not below the momentum"),
)


@dataclass(frozen=True)
class OnnxParticles:
    """What the model says of every element, candidate or not: arrays of shape (T,), scores (T, 6); meanings and units as OUTPUTS."""

    scores: NDArray[np.float32]
    is_candidate: NDArray[np.bool_]
    pdg: NDArray[np.int32]
    charge: NDArray[np.int32]
    pt: NDArray[np.float32]
    eta: NDArray[np.float32]
    sin_phi: NDArray[np.float32]
    cos_phi: NDArray[np.float32]
    energy: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pt)


def interface_metadata() -> dict[str, str]:
    """The metadata of every exported model, whatever its weights: inputs, outputs, features with units, classes, schema version."""
    units = {column: {field.name: field.unit for field in COLUMNS[column][1]} for column in ("track", "cluster")}
    features = {"track": TRACK_FEATURES, "cluster": CLUSTER_FEATURES}
    return {
        "schema_version": str(SCHEMA_VERSION),
        "inputs": json.dumps([vars(port) for port in INPUTS]),
        "outputs": json.dumps([vars(port) for port in OUTPUTS]),
        **{f"{kind}_features": json.dumps([{"name": n, "unit": units[kind][n]} for n in names]) for kind, names in features.items()},
        "classes": json.dumps(CLASSES),
    }


class OnnxModel:
    """An exported model in onnxruntime, on the CPU, with inputs that are checked before onnxruntime sees them.

    Attributes:
        metadata: the strings that the export wrote (top of this file).
    """

    def __init__(self, path: str | Path, *, num_threads: int = 0) -> None:
        """Loads the file; `num_threads` 0: as many as onnxruntime likes.

        Raises:
            InputFileError: no such file, not an ONNX file, or not one that pfscale exported for inputs as this version knows them.
            ResourceError: onnxruntime is not installed.
        """
        self._where = str(path)
        runtime = require_onnx("onnxruntime")
        if not Path(path).is_file():
            raise InputFileError("no such file", where=self._where, hint="pfscale export MODEL SHARDS -o model.onnx makes one")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(self._where, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base
            raise InputFileError(f"not a model that onnxruntime can load ({str(error).splitlines()[0]})", where=self._where) from None
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._require_interface()

    @property
    def detector(self) -> str:
        """The detector that the model was trained on."""
        return self.metadata["detector"]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> OnnxParticles:
        """What the model says of every element, in the order of the inputs (INPUTS, by name); no elements give no rows.

        Raises:
            InputFileError: an input is missing, unknown, of another dtype or shape, or the momentum of an element is not finite.
        """
        self._require_inputs(inputs)
        require_momenta(inputs["features"], inputs["event"])
        names = [field.name for field in fields(OnnxParticles)]
        values = self._session.run(names, {port.name: np.ascontiguousarray(inputs[port.name]) for port in INPUTS})
        return OnnxParticles(**dict(zip(names, values, strict=True)))

    def _require_interface(self) -> None:
        if "pfscale_version" not in self.metadata:
            raise InputFileError(
                "an ONNX file that pfscale did not export", where=self._where, hint="pfscale export MODEL SHARDS -o model.onnx"
            )
        different = [key for key, value in interface_metadata().items() if self.metadata.get(key) != value]
        if different:
            raise InputFileError(
                f"exported by pfscale {self.metadata['pfscale_version']} with other {', '.join(different)} than this version knows",
                where=self._where,
                hint="export the model again",
            )

    def _require_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks names, dtypes and shapes; all mistakes at once."""
        takes = "the model takes " + "; ".join(map(str, INPUTS))
        known = [port.name for port in INPUTS]
        mistakes = [f"input '{name}' is missing" for name in known if name not in inputs]
        for name in inputs:
            if name not in known:
                near = closest(name, known, count=1)
                mistakes.append(f"unknown input '{name}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        for port in INPUTS:
            if port.name in inputs:
                mistakes += _mistakes(port, np.asarray(inputs[port.name]))
        lengths = {port.name: len(inputs[port.name]) for port in INPUTS if port.name in inputs and np.ndim(inputs[port.name])}
        if len(set(lengths.values())) > 1:
            mistakes.append(f"inputs of different lengths: {', '.join(f'{name} {length}' for name, length in lengths.items())}")
        if mistakes:
            raise InputFileError("; ".join(mistakes), where=self._where, hint=takes)


def require_onnx(module: str) -> Any:
    """The module `onnx`, `onnxscript` or `onnxruntime`.

    Raises:
        ResourceError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(f"{module} is not installed ({error})", hint="pip install 'pfscale[onnx]'") from None


def _mistakes(port: Port, values: NDArray[Any]) -> list[str]:
    """What is wrong with the dtype and the shape of one input."""
    found = []
    if values.dtype != np.dtype(port.dtype):
        found.append(f"input '{port.name}' is {values.dtype}, not {port.dtype}: use .astype(np.{port.dtype.replace('bool', 'bool_')})")
    wanted = port.shape
    if values.ndim != len(wanted) or any(have != want for have, want in zip(values.shape, wanted, strict=True) if isinstance(want, int)):
        found.append(f"input '{port.name}' has shape {values.shape}, not ({', '.join(map(str, wanted))}{',' * (len(wanted) == 1)})")
    return found
