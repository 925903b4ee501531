"""Supervised particle flow: for each element, is there a particle, which one, and with what momentum.

Loss terms follow the published MLPF set-up (binary presence, focal classification, robust regression of logarithmic ratios to the
element's own momentum, weighted by sqrt(pt)); source: physics specification of the MLPF reference, jpata/particleflow.
Shape letters: T elements of all events of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pfscale.config import Config
from pfscale.models.batch import Batch
from pfscale.models.mlpf import MlpfOutputs
from pfscale.physics.evaluation import Candidates as Particles
from pfscale.shards.schema import CLASSES

# The PDG codes that the classes are named after, as a table for class index -> code.
CLASS_PDG = np.array([0, *(int(name) for name in CLASSES[1:])], np.int32)
_NEUTRAL, _LEPTONS = (130, 22), (11, 13)
_NEUTRAL_CLASSES = torch.tensor([CLASSES.index(str(pdg)) for pdg in _NEUTRAL])
# class index, charge + 1 -> PDG code: 211 is positive, but 11 and 13 are negative leptons; without a charge the class's own.
_SIGNED_PDG = np.stack([-CLASS_PDG, CLASS_PDG, CLASS_PDG], 1)
_SIGNED_PDG[np.isin(CLASS_PDG, _LEPTONS)] *= np.array([-1, 1, -1], np.int32)
LOSS_TERMS = ("presence", "class", "charge", "pt", "energy", "eta", "phi")
_MIN_MOMENTUM = 1e-3  # GeV; below it logarithms of momenta are cut off
_MAX_ETA = 10.0  # 0.1 mrad from the beam: inside every beam pipe
_ANGLE_SCALE = 0.02  # rad; residuals in angle are counted in units of this


class ReconstructionConfig(Config):
    """Weights of the loss terms and the working point of the prediction."""

    presence_weight: float = Field(10.0, ge=0, description="weight of particle-or-not")
    class_weight: float = Field(1.0, ge=0, description="weight of the focal classification loss")
    charge_weight: float = Field(0.2, ge=0, description="weight of the charge")
    pt_weight: float = Field(1.0, ge=0, description="weight of log(pt / pt of the element)")
    energy_weight: float = Field(1.0, ge=0, description="weight of log(E / E of the element)")
    eta_weight: float = Field(0.05, ge=0, description="weight of eta")
    phi_weight: float = Field(0.05, ge=0, description="weight of (sin phi, cos phi)")
    focal_gamma: float = Field(2.0, ge=0, description="focusing exponent of the classification loss")
    threshold: float = Field(0.5, gt=0, lt=1, description="an element becomes a candidate above this probability")


@dataclass(frozen=True)
class Candidates(Particles):
    """Predicted particles with the elements that carry them, one row each.

    Attributes beside those of `pfscale.physics.evaluation.Candidates` (event, px, py, pz, energy, pdg, charge):
        element_index: (k,) element within its event, tracks first.
        is_track: (k,) bool.
        scores: (k, 6) probabilities of CLASSES.
    """

    element_index: NDArray[np.int64]
    is_track: NDArray[np.bool_]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Momentum:
    """Four-momentum per element, GeV, shape (T,); energy >= |p| by construction."""

    pt: Tensor
    eta: Tensor
    sin_phi: Tensor
    cos_phi: Tensor
    energy: Tensor


def momentum(outputs: MlpfOutputs, batch: Batch) -> Momentum:
    """The predicted four-momentum of each element."""
    pt = element_pt(batch) * outputs.log_pt_T.exp()
    eta = (batch.features_TF[:, 1] + outputs.eta_T).clamp(-_MAX_ETA, _MAX_ETA)
    p = pt * torch.cosh(eta)
    return Momentum(pt, eta, outputs.phi_T2[:, 0], outputs.phi_T2[:, 1], torch.hypot(p, outputs.mass_T))


def element_pt(batch: Batch) -> Tensor:
    """Transverse momentum of a track, transverse energy of a cluster, GeV, (T,); not below a cut-off."""
    return batch.features_TF[:, 0].clamp_min(_MIN_MOMENTUM)


def loss_terms(outputs: MlpfOutputs, batch: Batch, config: ReconstructionConfig) -> dict[str, Tensor]:
    """Sum over the batch's elements of each weighted loss term (LOSS_TERMS); divide by a number of elements for the mean.

    Sums, not means: the parts of a global batch may then be spread over any number of workers.
    """
    targets = batch.targets
    target_class = targets["class"].long()
    is_particle = target_class > 0
    presence = nnf.binary_cross_entropy_with_logits(outputs.presence_T, is_particle.float(), reduction="none")

    log_p = nnf.log_softmax(outputs.class_TC, -1).gather(-1, (target_class - 1).clamp_min(0)[..., None])[..., 0]
    focal = -((1 - log_p.exp()) ** config.focal_gamma) * log_p
    # A charged particle without its track is a neutral class; what is asked for is the candidate's charge.
    target_charge = torch.where(torch.isin(target_class, _NEUTRAL_CLASSES.to(target_class.device)), 0.0, targets["charge"].sign())
    charge = nnf.cross_entropy(outputs.charge_T3, (target_charge + 1).long(), reduction="none")

    predicted = momentum(outputs, batch)
    weight = targets["pt"].clamp(_MIN_MOMENTUM, 1e4).sqrt()
    pt = _huber(_log(predicted.pt) - _log(targets["pt"])) * weight
    energy = _huber(_log(predicted.energy) - _log(targets["energy"])) * weight
    eta = _huber((predicted.eta - targets["eta"]) / _ANGLE_SCALE)
    phi = _huber((predicted.sin_phi - targets["sin_phi"]) / _ANGLE_SCALE) + _huber((predicted.cos_phi - targets["cos_phi"]) / _ANGLE_SCALE)

    per_element = {
        "class": config.class_weight * focal,
        "charge": config.charge_weight * charge,
        "pt": config.pt_weight * pt,
        "energy": config.energy_weight * energy,
        "eta": config.eta_weight * eta,
        "phi": config.phi_weight * phi,
    }
    of_particles = {name: torch.where(is_particle, values, values.new_zeros(())).sum() for name, values in per_element.items()}
    return {"presence": (config.presence_weight * presence).sum(), **of_particles}


@dataclass(frozen=True)
class ElementParticles:
    """What the model says of every element, candidate or not; tensors of shape (T,), scores (T, 6).

    Attributes:
        is_candidate: bool, whether the presence probability passes the threshold.
        scores: probabilities of CLASSES.
        charge, pdg: int8 and int32, of the likeliest particle class; a charged one has the likelier sign.
        momentum: GeV.
    """

    is_candidate: Tensor
    scores: Tensor
    charge: Tensor
    pdg: Tensor
    momentum: Momentum


def describe(outputs: MlpfOutputs, batch: Batch, config: ReconstructionConfig) -> ElementParticles:
    """The physical meaning of the outputs, in tensors only: what `predict` selects from, and what an exported graph gives."""
    probability = outputs.presence_T.sigmoid()
    scores = torch.cat([1 - probability[:, None], probability[:, None] * outputs.class_TC.softmax(-1)], -1)
    best = outputs.class_TC.argmax(-1) + 1
    sign = torch.where(outputs.charge_T3[:, 2] >= outputs.charge_T3[:, 0], 1, -1)
    charge = torch.where((best[:, None] == _NEUTRAL_CLASSES.to(best.device)).any(-1), 0, sign)
    pdg = torch.from_numpy(_SIGNED_PDG).to(best.device)[best, charge + 1]
    return ElementParticles(probability > config.threshold, scores, charge.to(torch.int8), pdg, momentum(outputs, batch))


def predict(outputs: MlpfOutputs, batch: Batch, config: ReconstructionConfig) -> Candidates:
    """The candidates of a batch: elements whose presence probability passes the threshold; `event` is the row of the source events."""
    found = describe(outputs, batch, config)
    kept, four = found.is_candidate, found.momentum
    pt, eta = four.pt[kept], four.eta[kept]
    lengths, positions = np.asarray(batch.lengths, np.int64), kept.nonzero()[:, 0].numpy(force=True)
    event = np.repeat(np.arange(batch.num_events), lengths)[positions]
    return Candidates(
        event=batch.rows[event],
        element_index=positions - (np.cumsum(lengths) - lengths)[event],
        is_track=batch.is_track_T[kept].numpy(force=True),
        pdg=found.pdg[kept].numpy(force=True),
        charge=found.charge[kept].numpy(force=True),
        px=(pt * four.cos_phi[kept]).numpy(force=True),
        py=(pt * four.sin_phi[kept]).numpy(force=True),
        pz=(pt * torch.sinh(eta)).numpy(force=True),
        energy=four.energy[kept].numpy(force=True),
        scores=found.scores[kept].numpy(force=True),
    )


def target_candidates(
    *, event: NDArray[np.int64], element_index: NDArray[np.int64], is_track: NDArray[np.bool_], targets: dict[str, NDArray[np.float32]]
) -> Candidates:
    """The ceiling: what a perfect model would predict, from flat targets per element ((n,) each)."""
    kept = targets["class"] > 0
    t = {name: values[kept].astype(np.float64) for name, values in targets.items()}
    classes = t["class"].astype(int)
    charge = np.where(np.isin(CLASS_PDG[classes], _NEUTRAL), 0, t["charge"]).astype(np.int8)
    return Candidates(
        event=event[kept],
        element_index=element_index[kept],
        is_track=is_track[kept],
        pdg=_SIGNED_PDG[classes, np.sign(charge) + 1],
        charge=charge,
        px=(t["pt"] * t["cos_phi"]).astype(np.float32),
        py=(t["pt"] * t["sin_phi"]).astype(np.float32),
        pz=(t["pt"] * np.sinh(t["eta"])).astype(np.float32),
        energy=t["energy"].astype(np.float32),
        scores=np.eye(len(CLASSES), dtype=np.float32)[classes],
    )


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(_MIN_MOMENTUM).log()


def _huber(residual: Tensor) -> Tensor:
    return nnf.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=1.0)
