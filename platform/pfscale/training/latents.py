"""The latent cache: what a registered model makes of every event of a data set, once, for hundreds of downstream trainings.

Candidates and jets are always those of one model; the latents attached to them are its own, or those of another encoder on the same
elements (another model's, or an untrained one's as a control), so that only the latents differ between two caches.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pfscale import __version__
from pfscale.errors import InputFileError, OutputExistsError, ResourceError, ShardError
from pfscale.models.bundle import Bundle, load_bundle
from pfscale.models.mlpf import LatentConfig, Mlpf
from pfscale.physics.jets import cluster_jets
from pfscale.physics.kinematics import cartesian
from pfscale.physics.matching import match_jets
from pfscale.ray_cluster import is_running, ray_cluster
from pfscale.shards.lock import claimed
from pfscale.shards.manifest import FileName, Manifest, content_hash, load_manifest
from pfscale.shards.objects import OBJECTS_VERSION, EventObjects, joined_objects, object_schema, objects_from_arrow, objects_to_arrow
from pfscale.shards.ragged import INPUT_COLUMNS, TRACK_FEATURES, RaggedEvents, from_arrow, list_leaves, struct_leaf
from pfscale.shards.schema import SPLITS
from pfscale.shards.storage import Folder, open_folder, opened_shard
from pfscale.shards.workers import count_workers, map_unordered
from pfscale.tasks.reconstruction import Candidates, ReconstructionConfig
from pfscale.tracking.registry import weights_digest
from pfscale.training.inference import run_encoder, run_model
from pfscale.training.lookup import locate_model
from pfscale.training.shared_model import SharedModel

MANIFEST = "latents.json"
SAME, RANDOM = "same", "random"  # encoders: the model's own; `random:SEED`, of its architecture and normalisation
_NO_GEN_JET = {"gen_energy": np.nan, "gen_pt": np.nan, "flavour": -1, "top_role": 0}
_COV_D0, _COV_Z0 = 0, 9  # of (D0, phi, omega, Z0, tanLambda), lower triangle by row
_TARGETS = tuple(f"{kind}_target.list.element.particle_number" for kind in ("track", "cluster"))
_GEN = (
    *(f"gen_jet.list.element.{name}" for name in ("pt", "eta", "phi", "energy", "flavour", "top_role")),
    *("gen_met.px", "gen_met.py", "gen_particle.list.element.origin", "event.split", "event.split_hash"),
)
COLUMNS = (*INPUT_COLUMNS, "track.list.element.cov.list.element", *_TARGETS, *_GEN)


class LatentManifest(BaseModel):
    """`latents.json`, written last: a folder that has one is complete.

    Attributes:
        key: names what the files hold: model, encoder, choice of latents, data.
        model: address of the model whose candidates these are; `encoder`: whose latents; `same`, an address, or `random:SEED`.
        files: in the order of the event shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    pfscale: str
    model: str
    model_hash: str
    encoder: str
    latents: LatentConfig
    width: int
    data: str
    detector: str
    simulation: str
    process: str
    files: tuple[FileName, ...]
    num_events: int
    num_candidates: int
    num_jets: int


@dataclass(frozen=True)
class LatentPlan:
    """What is to be cached.

    Attributes:
        place, bundle: of the model.
        address: of the model, as it never changes.
        encoder: bundle whose latents are taken; `encoder_name`, `encoder_digest`: what it is called, and what it is.
    """

    shards: str
    place: Path
    bundle: Bundle
    address: str
    model_hash: str
    encoder_name: str
    encoder_digest: str
    encoder: Bundle
    latents: LatentConfig
    manifest: Manifest

    @property
    def key(self) -> str:
        """12 hex digits."""
        parts = (self.model_hash, self.encoder_digest, self.latents.model_dump(), self.manifest.hash, OBJECTS_VERSION)
        return content_hash("latents", *parts)[:12]

    def folder(self, storage: str | Path) -> Path:
        """Where trainings that keep their runs in `storage` look for it."""
        return Path(storage).resolve() / f"latents-{self.key}"


def plan_latents(
    model: str, shards: str | Path, *, encoder: str = SAME, latents: LatentConfig | None = None, tracking_uri: str
) -> LatentPlan:
    """What would be cached.

    Args:
        encoder: `same`, `random:SEED`, or a model whose latents are attached to this model's candidates.

    Raises:
        ModelNotFoundError, ShardError: no such model or data; the data are of another detector than the model.
        ConfigError: the encoder has fewer layers than asked for. InputFileError: not the name of an encoder.
    """
    manifest = load_manifest(shards)
    place, address = locate_model(model, tracking_uri=tracking_uri)
    bundle = load_bundle(place)
    if bundle.card["detector"] != manifest.detector:
        trained = bundle.card["detector"]
        what = f"shards of {manifest.detector}, but the model was trained on {trained}"
        raise ShardError(what, where=str(shards), hint=f"give {trained} shards")
    name, digest, chosen = _encoder(encoder, bundle, tracking_uri)
    latents = latents or LatentConfig()
    chosen.model.require_layer(latents)
    model_hash = content_hash("model", weights_digest(place), bundle.model.config.model_dump(mode="json"), bundle.card["task"])
    return LatentPlan(str(shards), place, bundle, address, model_hash, name, digest, chosen, latents, manifest)


def cache_latents(
    plan: LatentPlan, output: str | Path, *, num_workers: int | None = None, progress: Callable[[int], None] | None = None
) -> LatentManifest:
    """The complete cache in `output`; what is there already is kept.

    Raises:
        OutputExistsError: the folder holds another cache. ResourceError: another process is at work there, or the disk is full.
        ShardError: a shard is torn.
    """
    folder = open_folder(output)
    found = _read_manifest(folder)
    if found is not None:
        if found.key != plan.key:
            what = f"holds latents of {found.model} (encoder {found.encoder}, data {found.data[:12]})"
            raise OutputExistsError(what, where=str(output), hint="choose another --output")
        return found
    folder.make()
    with claimed(folder, verb="latent cache") as claim:
        names = [f"objects-{plan.key}-{number:05d}.parquet" for number in range(len(plan.manifest.shards))]
        there = set(folder.names())
        missing = [number for number, name in enumerate(names) if name not in there]
        for _, count in _made(plan, [(plan.manifest.shards[n].file, names[n]) for n in missing], folder, num_workers):
            claim.require()
            if progress is not None:
                progress(count)
        result = _manifest(plan, folder, names)
        claim.require(now=True)
        folder.write_text(MANIFEST, result.model_dump_json(indent=1))
    return result


def load_objects(folder: str | Path) -> tuple[LatentManifest, EventObjects]:
    """The events of a complete cache.

    Raises:
        ShardError: there is none.
    """
    opened = open_folder(folder)
    manifest = _read_manifest(opened)
    if manifest is None:
        raise ShardError("no latents here", where=str(folder), hint="pfscale latents MODEL SHARDS --output " + str(folder))
    parts = []
    for name in manifest.files:
        with opened_shard(opened.locate(name)) as parquet:
            parts.append(objects_from_arrow(parquet.read()))
    return manifest, joined_objects(parts)


def select_objects(objects: EventObjects, split: str, num_events: int | None = None) -> NDArray[np.int64]:
    """Rows of the events of a split in the order of their hash; with `num_events` the first so many, as `select_events` does for shards."""
    members = np.flatnonzero(objects.event["split"] == SPLITS.index(split))
    members = members[np.argsort(objects.event["split_hash"][members], kind="stable")]
    return members if num_events is None else members[:num_events]


def _encoder(name: str, bundle: Bundle, tracking_uri: str) -> tuple[str, str, Bundle]:
    """(what it is called, what names its weights, the bundle) of the encoder that is asked for."""
    if name == SAME:
        return SAME, SAME, bundle
    if name.split(":")[0] != RANDOM:
        place, address = locate_model(name, tracking_uri=tracking_uri)
        return address, weights_digest(place), load_bundle(place)
    seed = name.partition(":")[2] or "1"
    if not seed.isdecimal():
        raise InputFileError(f"'{name}' is no encoder", hint="same, random:SEED, or a model")
    torch.manual_seed(int(seed))
    model = Mlpf(bundle.model.config)
    model.encoder.standardise.load_state_dict(bundle.model.encoder.standardise.state_dict())
    return f"{RANDOM}:{seed}", f"{RANDOM}:{seed}", Bundle(model.eval(), bundle.card)


def _made(plan: LatentPlan, files: Sequence[tuple[str, str]], folder: Folder, num_workers: int | None) -> Iterator[tuple[int, int]]:
    """(number, events) of every file that was made, as they come."""
    if not files:
        return
    has_cluster = is_running() or bool(os.environ.get("RAY_ADDRESS"))
    shards = plan.shards if "://" in plan.shards else str(Path(plan.shards).resolve())
    work: dict[str, Any] = {"shards": shards, "address": folder.address, "latents": plan.latents, "has_own": plan.encoder_name == SAME}
    if not has_cluster and min(num_workers or len(os.sched_getaffinity(0)), len(files)) <= 1:
        models = (SharedModel(plan.model_hash, plan.bundle), SharedModel(plan.key, plan.encoder))
        for number, file in enumerate(files):
            yield number, _make(file, model=models[0], encoder=models[1], **work)
        return
    import ray

    with ray_cluster():
        workers, cpus_each = count_workers(num_workers)
        workers = min(workers, len(files))
        threads = max(1, int(ray.cluster_resources().get("CPU", 1) // workers))
        models = (SharedModel(plan.model_hash, ray.put(plan.bundle), threads), SharedModel(plan.key, ray.put(plan.encoder), threads))
        task = functools.partial(_make, model=models[0], encoder=models[1], **work)
        yield from map_unordered(files, task, on_death=_died, workers=workers, cpus_each=cpus_each, tasks_per_worker=len(files))


def _died(file: tuple[str, str]) -> int:
    raise ResourceError("its worker was killed every time, most likely for want of memory", where=file[0], hint="use fewer --workers")


def _make(
    file: tuple[str, str], *, model: SharedModel, encoder: SharedModel, shards: str, address: str, latents: LatentConfig, has_own: bool
) -> int:
    """Writes the objects of one event shard; the number of its events."""
    source, name = file
    bundle, of_latents = model.bundle(), encoder.bundle()
    task, count = ReconstructionConfig(**bundle.card["task"]), 0
    schema = object_schema(of_latents.model.latent_width(latents))
    options: Any = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with (
        opened_shard(open_folder(shards).locate(source)) as parquet,
        open_folder(address).draft(name) as draft,
        pq.ParquetWriter(draft, schema, **options) as writer,
    ):
        for group in range(parquet.num_row_groups):
            events = from_arrow(parquet.read_row_group(group, columns=list(COLUMNS)))
            prediction = run_model(bundle.model, events, task, with_latents=has_own, config=latents)
            values = prediction.latents if has_own else run_encoder(of_latents.model, events, latents)
            assert values is not None
            writer.write_table(objects_to_arrow(find_objects(events, prediction.candidates, values)))
            count += events.num_events
    return count


def find_objects(events: RaggedEvents, candidates: Candidates, latents: NDArray[np.float32], *, with_truth: bool = True) -> EventObjects:
    """Candidates with their tracks, jets and latents.

    Args:
        events: with the columns COLUMNS; without truth, with those of `extract_events`.
        candidates: by event and element.
        latents: (elements, K).
        with_truth: False: nothing has a partner, and events are of no split.
    """
    num = events.num_events
    element = events.offsets[candidates.event] + candidates.element_index
    jets = cluster_jets(
        num_events=num, event=candidates.event, px=candidates.px, py=candidates.py, pz=candidates.pz, energy=candidates.energy
    )
    names = ("element_index", "pdg", "charge", "px", "py", "pz", "energy")
    candidate = {name: np.asarray(getattr(candidates, name)) for name in names}
    candidate |= {"jet_idx": jets.jet_of_particle}
    candidate |= {name: values[element] for name, values in _impact_parameters(events).items()}
    candidate["origin"] = _origins(events)[element] if with_truth else np.full(len(element), -1, np.int8)
    px, py, pz = cartesian(jets.pt, jets.eta, jets.phi)
    jet = {"px": px, "py": py, "pz": pz, "energy": jets.energy}
    jet |= _truth_of_jets(events, jets) if with_truth else {name: np.full(len(jets), value) for name, value in _NO_GEN_JET.items()}
    return EventObjects(
        event=_identity(events, with_truth=with_truth),
        candidate_offsets=np.searchsorted(candidates.event, np.arange(num + 1)),
        candidate=candidate,
        jet_offsets=np.searchsorted(jets.event, np.arange(num + 1)),
        jet=jet,
        gen_met={name: struct_leaf(events.table, "gen_met", name) if with_truth else np.full(num, np.nan) for name in ("px", "py")},
        latents=latents[element].astype(np.float16),
    )


def _identity(events: RaggedEvents, *, with_truth: bool) -> dict[str, NDArray]:
    if not with_truth:
        return {"uid": events.uid, "split": np.full(events.num_events, -1, np.int8), "split_hash": events.uid}
    splits = [SPLITS.index(name) for name in struct_leaf(events.table, "event", "split")]
    return {"uid": events.uid, "split": np.array(splits, np.int8), "split_hash": struct_leaf(events.table, "event", "split_hash")}


def _truth_of_jets(events: RaggedEvents, jets: Any) -> dict[str, NDArray]:
    """What the gen jets matched to the jets are."""
    offsets, gen = list_leaves(events.table, "gen_jet")
    gen_event = np.repeat(np.arange(events.num_events), np.diff(offsets))
    matches = match_jets(
        num_events=events.num_events,
        reco_event=jets.event,
        reco_eta=jets.eta,
        reco_phi=jets.phi,
        gen_event=gen_event,
        gen_eta=gen["eta"],
        gen_phi=gen["phi"],
    )
    found: dict[str, NDArray] = {}
    for name, nothing in _NO_GEN_JET.items():
        source = np.asarray(gen[name.removeprefix("gen_")])
        found[name] = np.full(len(jets), nothing, source.dtype)
        found[name][matches.reco] = source[matches.gen]
    return found


def _origins(events: RaggedEvents) -> NDArray[np.int8]:
    """(elements,) origin of the particle that each element carries, -1: none."""
    offsets, particles = list_leaves(events.table, "gen_particle")
    number = np.full(len(events.is_track), -1, np.int64)
    for column, rows in (("track_target", events.is_track), ("cluster_target", ~events.is_track)):
        number[rows] = list_leaves(events.table, column)[1]["particle_number"]
    found = np.full(len(number), -1, np.int8)
    carried = number >= 0
    found[carried] = particles["origin"][offsets[events.event[carried]] + number[carried]]
    return found


def _impact_parameters(events: RaggedEvents) -> dict[str, NDArray[np.float32]]:
    """Field -> (elements,): d0, z0, their errors (mm) and phi of tracks; NaN for clusters."""
    _, tracks = list_leaves(events.table, "track")
    covariance = _flat(tracks["cov"]).reshape(-1, 15)
    values = {
        "d0": events.features[events.is_track, TRACK_FEATURES.index("d0")],
        "z0": events.features[events.is_track, TRACK_FEATURES.index("z0")],
        "d0_error": np.sqrt(np.maximum(covariance[:, _COV_D0], 0)),
        "z0_error": np.sqrt(np.maximum(covariance[:, _COV_Z0], 0)),
        "phi": np.arctan2(*(events.features[events.is_track, TRACK_FEATURES.index(n)] for n in ("sin_phi", "cos_phi"))),
    }
    found = {name: np.full(len(events.is_track), np.nan, np.float32) for name in values}
    for name, of_tracks in values.items():
        found[name][events.is_track] = of_tracks
    return found


def _flat(lists: Any) -> NDArray[np.float32]:
    return lists.flatten().to_numpy(zero_copy_only=False)


def _manifest(plan: LatentPlan, folder: Folder, names: Sequence[str]) -> LatentManifest:
    def counts(name: str) -> tuple[int, int, int]:
        with opened_shard(folder.locate(name)) as parquet:
            table = parquet.read(columns=["candidate.list.element.charge", "jet.list.element.flavour"])
        sizes = [pa.compute.sum(pa.compute.list_value_length(table.column(c))).as_py() or 0 for c in ("candidate", "jet")]
        return table.num_rows, sizes[0], sizes[1]

    with ThreadPoolExecutor(4) as pool:
        totals = np.sum(list(pool.map(counts, names)) or [(0, 0, 0)], axis=0).tolist()
    return LatentManifest(
        key=plan.key,
        pfscale=__version__,
        model=plan.address,
        model_hash=plan.model_hash,
        encoder=plan.encoder_name,
        latents=plan.latents,
        width=plan.encoder.model.latent_width(plan.latents),
        data=plan.manifest.hash,
        detector=plan.manifest.detector,
        simulation=plan.manifest.simulation,
        process=plan.manifest.process,
        files=tuple(names),
        num_events=totals[0],
        num_candidates=totals[1],
        num_jets=totals[2],
    )


def _read_manifest(folder: Folder) -> LatentManifest | None:
    try:
        return LatentManifest.model_validate_json(folder.read_text(MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ShardError(f"{MANIFEST} is damaged ({error.error_count()} mistakes)", where=folder.address) from None
