"""A registered model for plain MLflow: `mlflow.pyfunc.load_model("models:/mlpf-cld@champion").predict(table)`, without Ray.

In: one row per track or cluster, with the columns of `pfscale.shards.elements` (which also makes such a table from shards).
Out: one row per candidate, or with `params={"latents": True}` one row per element with its latent vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pfscale.models.bundle import Bundle, load_bundle
from pfscale.shards.elements import ELEMTYPE, EVENT, FEATURES, TableEvents, from_table
from pfscale.shards.schema import CLASSES
from pfscale.tasks.reconstruction import ReconstructionConfig
from pfscale.tracking.flavour import Column, Pyfunc
from pfscale.training.inference import Prediction, run_model

LATENTS = "latents"
SCORES = tuple(f"score_{name}" for name in CLASSES)
PYFUNC = Pyfunc(
    loader_module=__name__,
    inputs=(
        Column(EVENT, "any"),
        Column(ELEMTYPE, "long"),
        *(Column(name, "double", required=False) for name in FEATURES),  # which are needed depends on the kinds of elements
    ),
    outputs=(
        Column(EVENT, "any"),
        Column("element_index", "long"),
        Column("is_track", "boolean"),
        Column("pdg", "integer"),
        Column("charge", "integer"),
        *(Column(name, "float") for name in ("px", "py", "pz", "energy", *SCORES)),
    ),
    params={LATENTS: False},
)


@dataclass(frozen=True)
class PyfuncModel:
    """What MLflow calls for every table."""

    bundle: Bundle

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row per candidate: event, element_index, is_track, pdg, charge, px, py, pz, energy (GeV), one score per class.

        `element_index` is the position of the element among the rows of its event in the table, 0 first. Events come in the order of their
        first row, candidates in the order of their elements; an event without candidates has no row. With the parameter `latents` there is
        one row per element instead: event, element_index, is_track, latent_0, latent_1, ...

        Raises:
            InputTableError: a column is missing or wrong, or a value is one that no element has.
        """
        given = from_table(table)
        task = ReconstructionConfig(**self.bundle.card["task"])
        wanted = bool((params or {}).get(LATENTS, False))
        prediction = run_model(self.bundle.model, given.events, task, with_latents=wanted)
        return _latents(given, prediction) if wanted else _candidates(given, prediction)


def _load_pyfunc(path: str) -> PyfuncModel:
    """The model in a folder; MLflow looks for a function of this name."""
    return PyfuncModel(load_bundle(path))


def _candidates(given: TableEvents, prediction: Prediction) -> pd.DataFrame:
    found = prediction.candidates
    row = given.row[given.events.offsets[found.event] + found.element_index]
    columns: dict[str, NDArray] = {
        "is_track": found.is_track,
        "pdg": found.pdg,
        "charge": found.charge.astype(np.int32),
        **{name: getattr(found, name) for name in ("px", "py", "pz", "energy")},
        **dict(zip(SCORES, found.scores.T, strict=True)),
    }
    return _labelled(given, found.event, row, columns)


def _latents(given: TableEvents, prediction: Prediction) -> pd.DataFrame:
    assert prediction.latents is not None
    columns = {"is_track": given.events.is_track, **{f"latent_{i}": values for i, values in enumerate(prediction.latents.T)}}
    return _labelled(given, given.events.event, given.row, columns)


def _labelled(given: TableEvents, event: NDArray[np.int64], row: NDArray[np.int64], columns: Mapping[str, NDArray]) -> pd.DataFrame:
    """The columns with the user's own names of events, in the user's order of elements."""
    order = np.lexsort((row, event))
    sorted_columns = {name: values[order] for name, values in columns.items()}
    return pd.DataFrame({EVENT: given.labels.take(event[order]), "element_index": row[order], **sorted_columns})
