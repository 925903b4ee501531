"""What several tests of reconstruction share: small models, and files with events of any number of elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import torch

import podio_files as podio
from pfscale.models.bundle import save_bundle
from pfscale.models.mlpf import Mlpf, MlpfConfig
from pfscale.shards.ragged import NUM_FEATURES
from pfscale.tasks.reconstruction import ReconstructionConfig

CLD = Path(__file__).parent / "data" / "cld_zh_nunubb_240_1ev_podio1.2.root"
NUM_TRACKS, NUM_CLUSTERS = 24, 48  # of its event
COLLECTIONS = (
    "EventHeader",
    "SiTracks_Refitted",
    "PandoraClusters",
    "ECALBarrel",
    "ECALEndcap",
    "HCALBarrel",
    "HCALEndcap",
    "HCALOther",
    "MUON",
)
REPEATS = 209  # of the event's tracks: 5,016


def small_model(folder: Path, *, detector: str = "cld", seed: int = 1, fitted: bool = True) -> Path:
    """The folder of a model of random weights, normalised to something."""
    torch.manual_seed(seed)
    config = MlpfConfig(width=16, num_layers=1, num_heads=2)
    model = Mlpf(config)
    if fitted:
        rng = np.random.default_rng(seed)
        model.encoder.standardise.fit(rng.exponential(3.0, (100, NUM_FEATURES)).astype(np.float32), np.arange(100) % 2 == 0)
    card = {"kind": "mlpf", "detector": detector, "simulation": "builtin", "task": ReconstructionConfig().model_dump(mode="json")}
    return save_bundle(folder, config, model.state_dict(), card)


def events_of_any_size(path: Path, *, spoiled: int | None = None) -> Path:
    """A file without truth: the real CLD event, one without elements, one with a single track, one with 5,016 tracks.

    Args:
        spoiled: an event whose weight is no number.
    """
    whole = podio.read_leaves(CLD, COLLECTIONS)
    whole = {name: array for name, array in whole.items() if (array.ndim < 3 and "_trackerHits" not in name) or "covMatrix" in name}
    header = {name for name in whole if name.startswith("EventHeader")}
    of_tracks = {name for name in whole if name.startswith("SiTracks_Refitted.")}
    states = {name for name in whole if name.startswith("_SiTracks_Refitted_trackStates")}

    def variant(tracks: Any) -> podio.Leaves:
        def leaf(name: str, array: ak.Array) -> ak.Array:
            return tracks(array) if name in of_tracks else array if name in header | states else array[:, :0]

        return {name: leaf(name, array) for name, array in whole.items()}

    events = [whole, variant(lambda a: a[:, :0]), variant(lambda a: a[:, :1]), variant(lambda a: ak.concatenate([a] * REPEATS, axis=1))]
    events[1] = {name: array if name in header else array[:, :0] for name, array in events[1].items()}
    leaves = {name: ak.concatenate([event[name] for event in events]) for name in whole}
    if spoiled is not None:
        weight = ak.to_numpy(leaves["EventHeader.weight"]).copy()
        weight[spoiled] = np.nan
        leaves["EventHeader.weight"] = ak.from_regular(ak.Array(weight))
    return podio.write(path, leaves, podio.ids_of(CLD))


def candidates(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file of candidates."""
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def require_alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Checks that rows hold the same candidates; other numbers of threads add in another order."""
    assert len(one) == len(other)
    for here, there in zip(one, other, strict=True):
        assert [c["element_index"] for c in here["candidate"]] == [c["element_index"] for c in there["candidate"]]
        for name in ("pdg", "charge", "is_track"):
            assert [c[name] for c in here["candidate"]] == [c[name] for c in there["candidate"]]
        for name in ("px", "py", "pz", "energy", "scores"):
            np.testing.assert_allclose([c[name] for c in here["candidate"]], [c[name] for c in there["candidate"]], rtol=1e-4, atol=1e-4)
