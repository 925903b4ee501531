"""The main event-level metrics of a reconstruction with their bootstrap replicas: two reconstructions of the same events share these.

The definitions are those of `pfscale.physics.evaluation`, value for value and error for error.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pfscale.physics.bootstrap import EventBootstrap, quantiles
from pfscale.physics.comparable import Replicated
from pfscale.physics.evaluation import Candidates, GenReference
from pfscale.physics.jets import cluster_jets
from pfscale.physics.kinematics import Floats
from pfscale.physics.matching import match_jets
from pfscale.physics.met import MIN_RESPONSE_MET, missing_momentum
from pfscale.physics.response import IQR_PER_SIGMA, PT_BINS, response

_QUARTILES = (0.25, 0.5, 0.75)
_BLOCK = 32  # replicas whose event counts are floats at once


def replicated_metrics(particles: Candidates, gen: GenReference, bootstrap: EventBootstrap) -> dict[str, Replicated]:
    """Metric name -> its value and replicas: jets and missing momentum.

    Raises:
        PfscaleError: a candidate's momentum is not finite.
    """
    return {**_jets(particles, gen, bootstrap), **_missing_momentum(particles, gen, bootstrap)}


def _jets(particles: Candidates, gen: GenReference, bootstrap: EventBootstrap) -> dict[str, Replicated]:
    four = {name: getattr(particles, name) for name in ("px", "py", "pz", "energy")}
    jets = cluster_jets(num_events=gen.num_events, event=particles.event, **four)
    places = {f"gen_{name}": getattr(gen, f"jet_{name}") for name in ("event", "eta", "phi")}
    matches = match_jets(num_events=gen.num_events, reco_event=jets.event, reco_eta=jets.eta, reco_phi=jets.phi, **places)
    gen_event, gen_pt = np.asarray(gen.jet_event, np.int64), np.asarray(gen.jet_pt, np.float64)[matches.gen]
    event = gen_event[matches.gen]
    pt = response(jets.pt[matches.reco], gen_pt)
    energy = response(jets.energy[matches.reco], np.asarray(gen.jet_energy)[matches.gen])
    of_pt, of_energy = _Spread(pt, event, bootstrap), _Spread(energy, event, bootstrap)
    num_matched, num_gen, num_reco = (np.bincount(e, minlength=gen.num_events) for e in (event, gen_event, jets.event))
    found = {
        "jet_response_median": of_pt.median,
        "jet_response_iqr": of_pt.iqr,
        "jet_response_iqr_over_median": of_pt.iqr_over_median,
        "jet_energy_response_median": of_energy.median,
        "jet_energy_response_iqr_over_median": of_energy.iqr_over_median,
        "jet_matched_fraction": _ratio(num_matched, num_gen, bootstrap),
        "jet_spurious_fraction": _ratio(num_reco - num_matched, num_reco, bootstrap),
    }
    for low, high in pairwise(PT_BINS):
        members = (gen_pt >= low) & (gen_pt < high)
        in_bin = _Spread(pt[members], event[members], bootstrap)
        found[f"jet_response_median_pt_{low:.0f}_{high:.0f}"] = in_bin.median
        found[f"jet_response_iqr_over_median_pt_{low:.0f}_{high:.0f}"] = in_bin.iqr_over_median
    return found


def _missing_momentum(particles: Candidates, gen: GenReference, bootstrap: EventBootstrap) -> dict[str, Replicated]:
    px, py = missing_momentum(particles.event, particles.px, particles.py, num_events=gen.num_events)
    true_px, true_py = np.asarray(gen.met_px, np.float64), np.asarray(gen.met_py, np.float64)
    true, phi = np.hypot(true_px, true_py), np.arctan2(true_py, true_px)
    along, across = px * np.cos(phi) + py * np.sin(phi), py * np.cos(phi) - px * np.sin(phi)
    pooled = _Spread(np.concatenate([along - true, across]), np.tile(np.arange(len(px)), 2), bootstrap)
    event = np.flatnonzero(true > MIN_RESPONSE_MET)
    return {
        "met_response": _Spread(along[event] / true[event], event, bootstrap).median,
        "met_resolution": pooled.resolution,
        "met_resolution_parallel": _Spread((along - true)[event], event, bootstrap).resolution,
        "met_resolution_perpendicular": _Spread(across[event], event, bootstrap).resolution,
    }


class _Spread:
    """Median and IQR of values with those of every replica."""

    def __init__(self, values: Floats, event: NDArray[np.int64], bootstrap: EventBootstrap) -> None:
        central, replicas = quantiles(values, event, _QUARTILES, bootstrap)
        if len(np.unique(event)) < 2:  # nothing to resample
            replicas = np.full_like(replicas, np.nan)
        self.median = Replicated(float(central[1]), replicas[:, 1])
        self.iqr = Replicated(float(central[2] - central[0]), replicas[:, 2] - replicas[:, 0])

    @property
    def resolution(self) -> Replicated:
        return Replicated(self.iqr.value / IQR_PER_SIGMA, self.iqr.replicas / IQR_PER_SIGMA)

    @property
    def iqr_over_median(self) -> Replicated:
        medians = np.concatenate([[self.median.value], self.median.replicas])
        iqrs = np.concatenate([[self.iqr.value], self.iqr.replicas])
        relative = np.divide(iqrs, medians, out=np.full(len(medians), np.nan), where=medians > 0)
        return Replicated(float(relative[0]), relative[1:])


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64], bootstrap: EventBootstrap) -> Replicated:
    """sum(numerator) / sum(denominator) over events."""
    columns = np.stack([numerator, denominator], 1).astype(np.float64)
    starts = range(0, len(bootstrap.counts), _BLOCK)
    sums = np.concatenate([columns.sum(0)[None], *(bootstrap.counts[s : s + _BLOCK].astype(np.float64) @ columns for s in starts)])
    values = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
    if (denominator != 0).sum() < 2:
        values[1:] = np.nan
    return Replicated(float(values[0]), values[1:])
