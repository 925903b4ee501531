"""Events as flat branches in podio's naming: what the built-in source and the reconstruction write their files with (uproot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from pfscale.edm4hep.layout import collection_id

IntArray = npt.NDArray[np.int64]
Columns = dict[str, tuple[IntArray, npt.NDArray[Any]]]  # branch -> (objects per event, values)
ID_TABLE = "events___CollectionTypeInfo"


def write_tree(file: Any, name: str, content: Mapping[str, Any]) -> None:
    """Writes a tree of plain columns: numbers as arrays, strings as awkward arrays (given by type: uproot takes 10 ms to parse a name)."""
    types = {key: values.dtype if isinstance(values, np.ndarray) else values.type.content for key, values in content.items()}
    file.mktree(name, types).extend(content)


def write_ids(file: Any, collections: Sequence[str]) -> None:
    """Writes podio's table of the collections' ids, which references go by."""
    write_tree(file, "podio_metadata", {f"{ID_TABLE}.{member}": values for member, values in id_table(collections).items()})


def id_table(collections: Sequence[str]) -> dict[str, Any]:
    """Names and ids of the collections."""
    return {"name": ak.Array(list(collections)), "collectionID": np.array([collection_id(c) for c in collections], dtype=np.uint32)}


def write_strings(file: Any, name: str, values: Mapping[str, str]) -> None:
    """Writes a tree of keys and values."""
    write_tree(file, name, {"key": ak.Array(list(values)), "value": ak.Array(list(values.values()))})


def jagged(counts: IntArray, values: npt.NDArray[Any]) -> ak.Array:
    """Lists of `counts` values per event."""
    return ak.Array(listed(counts, ak.contents.NumpyArray(np.ascontiguousarray(values))))


def listed(counts: IntArray, content: ak.contents.Content) -> ak.contents.Content:
    """Lists of `counts` objects per event over flat content."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ak.contents.ListOffsetArray(ak.index.Index64(offsets), content)


def per_event(event: IntArray, num_events: int) -> IntArray:
    """Objects of each event."""
    return np.bincount(event, minlength=num_events)


def first_of_event(event: IntArray, num_events: int) -> IntArray:
    """Flat index of each event's first object."""
    counts = per_event(event, num_events)
    return np.cumsum(counts) - counts


def header(number: npt.NDArray[Any], run: npt.NDArray[Any], weight: npt.NDArray[Any]) -> Columns:
    """The branches of the event header."""
    one = np.ones(len(number), dtype=np.int64)
    return {
        "EventHeader.eventNumber": (one, number.astype(np.uint64)),
        "EventHeader.runNumber": (one, run.astype(np.uint32)),
        "EventHeader.timeStamp": (one, np.zeros(len(number), dtype=np.uint64)),
        "EventHeader.weight": (one, weight.astype(np.float64)),
    }


def vector(name: str, counts: IntArray, values: npt.NDArray[Any], dtype: type[np.floating[Any]]) -> Columns:
    """The branches of a vector: x, y, z of `values` (n, 3)."""
    return {f"{name}.{axis}": (counts, values[:, k].astype(dtype)) for k, axis in enumerate("xyz")}


def references(name: str, counts: IntArray, index: IntArray, collection: int | npt.NDArray[np.uint32]) -> Columns:
    """The branches of references to objects by `index` within their event and collection."""
    ids = np.broadcast_to(np.asarray(collection, dtype=np.uint32), index.shape)
    return {f"{name}.index": (counts, index.astype(np.int32)), f"{name}.collectionID": (counts, ids)}


def begin_end(name: str, counts: IntArray, per_object: IntArray, event: IntArray) -> Columns:
    """`_begin` and `_end` (within the event) of relations that are stored in the order of their objects."""
    end = np.cumsum(per_object)
    before = np.concatenate([[0], end])[first_of_event(event, len(counts))][event]
    return {
        f"{name}_begin": (counts, (end - per_object - before).astype(np.uint32)),
        f"{name}_end": (counts, (end - before).astype(np.uint32)),
    }
