"""Downstream heads after the particle-flow model: what `reconstruct` writes of jets and missing momentum, from data without truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pfscale.errors import InputFileError
from pfscale.models.bundle import Bundle
from pfscale.models.mlpf import LatentConfig
from pfscale.shards.objects import EventObjects
from pfscale.shards.ragged import RaggedEvents
from pfscale.tasks.arms import has_latents, set_data
from pfscale.tasks.jet_energy import JetEnergy
from pfscale.tasks.jet_flavour import JetFlavour
from pfscale.tasks.missing_momentum import MissingMomentum
from pfscale.tracking.registry import weights_digest
from pfscale.training.downstream import Head, load_head
from pfscale.training.inference import Prediction, run_encoder
from pfscale.training.latents import SAME, find_objects
from pfscale.training.lookup import locate_model

_MOMENTUM = ("px", "py", "pz", "energy")


@dataclass(frozen=True)
class ChainedHead:
    """A head, its address that never changes, and what names its weights."""

    address: str
    digest: str
    head: Head


@dataclass(frozen=True)
class ChainColumns:
    """What heads say of events: jet column -> (m,) with offsets per event, and missing momentum (E, 2) in GeV or None."""

    jet_offsets: NDArray[np.int64]
    jet: dict[str, NDArray[np.float32]]
    met: NDArray[np.float32] | None


@dataclass(frozen=True)
class HeadChain:
    """Heads of different tasks on one model."""

    heads: tuple[ChainedHead, ...] = field(default=())

    @property
    def settings(self) -> list[str]:
        """What names them, for manifests."""
        return [f"{head.address} {head.digest[:12]}" for head in self.heads]

    @property
    def jet_columns(self) -> tuple[str, ...]:
        """Names of the columns of a jet."""
        found = list(_MOMENTUM)
        for chained in self.heads:
            task = chained.head.module.task
            if isinstance(task, JetFlavour):
                found += [f"score_{name}" for name in task.classes]
            elif isinstance(task, JetEnergy):
                found.append("energy_corrected")
        return tuple(found)

    @property
    def has_met(self) -> bool:
        """Whether one of them says the missing momentum."""
        return any(isinstance(chained.head.module.task, MissingMomentum) for chained in self.heads)

    @property
    def needs_latents(self) -> bool:
        """Whether one of them sees latents."""
        return any(has_latents(chained.head.config.arm) for chained in self.heads)

    def apply(self, bundle: Bundle, events: RaggedEvents, prediction: Prediction) -> ChainColumns:
        """What they say.

        Args:
            prediction: with latents of the default kind, where heads see any.
        """
        latents: dict[str, NDArray[np.float32]] = {}
        jet: dict[str, NDArray[np.float32]] = {}
        met, objects = None, _objects(events, prediction, np.zeros((len(events.is_track), 0), np.float32))
        for chained in self.heads:
            config, task = chained.head.config, chained.head.module.task
            of_head = objects
            if has_latents(config.arm):
                key = config.latents.model_dump_json()
                if key not in latents:
                    own = prediction.latents if config.latents == LatentConfig() else run_encoder(bundle.model, events, config.latents)
                    assert own is not None
                    latents[key] = own
                of_head = _objects(events, prediction, latents[key], like=objects)
            examples = task.everything(of_head)
            said = chained.head.predict(set_data(config.arm, of_head, examples)[0])
            if isinstance(task, JetFlavour):
                jet |= {f"score_{name}": column for name, column in zip(task.classes, said.reshape(-1, len(task.classes)).T, strict=True)}
            elif isinstance(task, JetEnergy):
                jet["energy_corrected"] = objects.jet["energy"] * said[:, said.shape[1] // 2]
            else:
                met = said
        momenta = {name: np.asarray(objects.jet[name], np.float32) for name in _MOMENTUM}
        return ChainColumns(objects.jet_offsets, {name: ({**momenta, **jet})[name] for name in self.jet_columns}, met)

    def schema_fields(self) -> list[pa.Field]:
        """Arrow fields of what is written."""
        jet = pa.struct([pa.field(name, pa.float32(), nullable=False) for name in self.jet_columns])
        fields = [pa.field("jet", pa.list_(pa.field("element", jet, nullable=False)), nullable=False)]
        if self.has_met:
            fields.append(
                pa.field("met", pa.struct([pa.field(name, pa.float32(), nullable=False) for name in ("px", "py")]), nullable=False)
            )
        return fields

    def arrays(self, columns: ChainColumns) -> list[pa.Array]:
        """The columns as Arrow arrays, in the order of the fields."""
        fields = self.schema_fields()
        struct = fields[0].type.value_type
        values = pa.StructArray.from_arrays([pa.array(columns.jet[f.name], pa.float32()) for f in struct], fields=list(struct))
        found: list[pa.Array] = [pa.ListArray.from_arrays(pa.array(columns.jet_offsets.astype(np.int32)), values, type=fields[0].type)]
        if columns.met is not None:
            parts = [pa.array(np.ascontiguousarray(column), pa.float32()) for column in columns.met.T]
            found.append(pa.StructArray.from_arrays(parts, fields=list(fields[1].type)))
        return found


NO_HEADS = HeadChain()


def chain_of(heads: Sequence[str], *, model: str, model_hash: str, tracking_uri: str) -> HeadChain:
    """The heads, each checked to be of this model.

    Args:
        model: as it is called in messages.

    Raises:
        ModelNotFoundError: no such head.
        InputFileError: it is no head, was trained on another model or with another encoder, or two do the same.
    """
    found: list[ChainedHead] = []
    for name in heads:
        place, address = locate_model(name, tracking_uri=tracking_uri)
        head = load_head(place)
        task, config = head.module.task, head.config
        if not isinstance(task, JetFlavour | JetEnergy | MissingMomentum):
            raise InputFileError(f"a head for {config.task.kind}, which is not written beside candidates", where=address)
        if head.card["parent_hash"] != model_hash:
            hint = f"train it on this model: pfscale downstream CONFIG backbone={model}"
            raise InputFileError(f"trained on candidates of {head.card['parent']}, not of {model}", where=address, hint=hint)
        if has_latents(config.arm) and (config.state != "pretrained-frozen" or config.encoder != SAME):
            hint = "heads with state=pretrained-frozen and the model's own encoder (encoder=same) can be chained"
            raise InputFileError(
                f"its latents are not the model's own ({config.state}, encoder {config.encoder})", where=address, hint=hint
            )
        if any(type(other.head.module.task) is type(task) for other in found):
            raise InputFileError(f"a second head for {config.task.kind}", where=address, hint="name one of each kind")
        found.append(ChainedHead(address, weights_digest(place), head))
    return HeadChain(tuple(found))


def _objects(
    events: RaggedEvents, prediction: Prediction, latents: NDArray[np.float32], *, like: EventObjects | None = None
) -> EventObjects:
    """Objects without truth; `like`: the same with other latents, so that jets are made once."""
    if like is None:
        return find_objects(events, prediction.candidates, latents, with_truth=False)
    candidates = prediction.candidates
    element = events.offsets[candidates.event] + candidates.element_index
    return EventObjects(**{**vars(like), "latents": latents[element].astype(np.float16)})
