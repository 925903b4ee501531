"""Elements as a pandas table, one row per track or cluster: how somebody without shards hands events to a registered model.

Columns: `event` (any integers or strings), `elemtype` (1 track, 2 cluster), and the features of both kinds under the names and in the units
of the shards (`pfscale.shards.schema.COLUMNS`); those of the other kind are NaN or left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.errors import InputTableError, closest
from pfscale.shards.dataset import load_index, read_events, select_events
from pfscale.shards.ragged import CLUSTER_FEATURES, NUM_FEATURES, NUM_MOMENTUM_FEATURES, TRACK_FEATURES, RaggedEvents

EVENT, ELEMTYPE = "event", "elemtype"
TRACK, CLUSTER = 1, 2
FEATURES = tuple(dict.fromkeys((*TRACK_FEATURES, *CLUSTER_FEATURES)))
_NAMES = {TRACK: TRACK_FEATURES, CLUSTER: CLUSTER_FEATURES}
_KINDS = {TRACK: "track", CLUSTER: "cluster"}
# Momenta and directions of candidates are predicted relative to these: where one is missing, nothing can be said.
_NEVER_MISSING = {TRACK: TRACK_FEATURES[:NUM_MOMENTUM_FEATURES], CLUSTER: CLUSTER_FEATURES[:NUM_MOMENTUM_FEATURES]}


@dataclass(frozen=True)
class TableEvents:
    """The events of a table of elements.

    Attributes:
        events: E events in the order in which they first appear; within each, tracks before clusters, otherwise in the table's order.
        labels: (E,) what the table calls them.
        row: (n,) for each element of `events`, which of its event's rows it was in the table, 0 first.
    """

    events: RaggedEvents
    labels: pd.Index
    row: NDArray[np.int64]


def element_table(shards: str | Path, *, split: str = "test", num_events: int | None = None) -> pd.DataFrame:
    """The elements of events in shards: what a registered model's `predict` takes. `event` is the event's uid.

    Args:
        num_events: those of lowest hash; None: all of the split.

    Raises:
        ShardError, NotEnoughDataError, UnknownNameError: as the reader of shards.
    """
    index = load_index(shards)
    return to_table(read_events(index, select_events(index, split, num_events)))


def to_table(events: RaggedEvents) -> pd.DataFrame:
    """One row per element, tracks before clusters in each event; float32 features, NaN where missing and where of the other kind."""
    columns: dict[str, NDArray] = {
        EVENT: np.repeat(events.uid, events.lengths),
        ELEMTYPE: np.where(events.is_track, TRACK, CLUSTER).astype(np.int64),
    }
    for name in FEATURES:
        columns[name] = np.full(len(events.is_track), np.nan, np.float32)
        for kind, members in ((TRACK, events.is_track), (CLUSTER, ~events.is_track)):
            if name in _NAMES[kind]:
                columns[name][members] = events.features[members, _NAMES[kind].index(name)]
    return pd.DataFrame(columns)


def from_table(table: pd.DataFrame) -> TableEvents:
    """The events of a table; the elements of an event need not be next to each other, and columns that are not asked for are left alone.

    Raises:
        InputTableError: a column is missing or no numbers, an `event` is missing, an `elemtype` is neither 1 nor 2, or a momentum or
            direction is not finite.
    """
    if not isinstance(table, pd.DataFrame):
        raise InputTableError(f"a {type(table).__name__}, not a pandas DataFrame", hint="one row per track or cluster")
    _require(table, (EVENT, ELEMTYPE), "every table")
    code, labels = pd.factorize(table[EVENT])
    if (code < 0).any():
        first = int(np.argmax(code < 0))
        raise InputTableError(f"{int((code < 0).sum())} rows have no event (first: row {first})", where="column 'event'")
    elemtype = _numbers(table, ELEMTYPE)
    known = np.isin(elemtype, (TRACK, CLUSTER))
    if not known.all():
        what = f"'{table[ELEMTYPE].iloc[int(np.argmin(known))]}' in row {int(np.argmin(known))} is no kind of element"
        raise InputTableError(what, where="column 'elemtype'", hint="1: track, 2: cluster")
    is_track = elemtype == TRACK
    features = np.full((len(table), NUM_FEATURES), np.nan, np.float32)
    for kind, members in ((TRACK, is_track), (CLUSTER, ~is_track)):
        if members.any():
            features[members, : len(_NAMES[kind])] = _features(table[members], kind)
    order = np.lexsort((~is_track, code))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(code, minlength=len(labels)))]).astype(np.int64)
    events = RaggedEvents(offsets, features[order], is_track[order], {}, np.arange(len(labels), dtype=np.uint64), pa.table({}))
    return TableEvents(events, pd.Index(labels), _rank(code, offsets)[order])


def _features(rows: pd.DataFrame, kind: int) -> NDArray[np.float32]:
    """(n, F) features of the elements of one kind."""
    names = _NAMES[kind]
    _require(rows, names, f"a table with {_KINDS[kind]}s")
    values = np.stack([_numbers(rows, name) for name in names], 1).astype(np.float32)
    for name in _NEVER_MISSING[kind]:
        bad = ~np.isfinite(values[:, names.index(name)])
        if bad.any():
            what = f"{int(bad.sum())} of {len(bad)} {_KINDS[kind]}s have no finite value (first: label {rows.index[int(np.argmax(bad))]})"
            raise InputTableError(what, where=f"column '{name}'", hint="leave such elements out")
    return values


def _require(table: pd.DataFrame, names: tuple[str, ...], who: str) -> None:
    absent = [name for name in names if name not in table]
    if not absent:
        return
    others = [str(column) for column in table if column not in (EVENT, ELEMTYPE, *FEATURES)]
    near = {name: found[0] for name in absent if (found := closest(name, others, count=1))}
    guess = "".join(f"; is '{column}' meant for '{name}'?" for name, column in near.items())
    raise InputTableError(f"no column {', '.join(absent)}", where="the table of elements", hint=f"{who} needs {', '.join(names)}{guess}")


def _numbers(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    column = table[name]
    if not isinstance(column, pd.Series):
        raise InputTableError("there are several columns of this name", where=f"column '{name}'")
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputTableError(f"not numbers ({error})", where=f"column '{name}'") from None


def _rank(code: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) which row of its event each row of the table is."""
    by_event = np.argsort(code, kind="stable")
    rank = np.empty(len(code), np.int64)
    rank[by_event] = np.arange(len(code)) - np.repeat(offsets[:-1], np.diff(offsets))
    return rank
