"""The rule-based candidates of a chunk: what the baseline found, and of which tracks and clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from particle import PDGID

from pfscale.edm4hep import layout
from pfscale.edm4hep.detectors import Detector
from pfscale.edm4hep.reader import EventSource, Rows
from pfscale.edm4hep.relations import Indices, Pairs, Problems, Targets, members, no_pairs, targets_of


@dataclass(frozen=True)
class Candidates:
    """Rule-based candidates; (candidate row, track row) and (candidate row, cluster row) pairs."""

    rows: Rows
    tracks: Pairs
    clusters: Pairs


def baseline_collection(source: EventSource, detector: Detector) -> str | None:
    """The first of the detector's baseline collections that the file has; None: it has none."""
    return next((name for name in detector.baseline if source.has(name)), None)


def read_candidates(
    source: EventSource, detector: Detector, span: tuple[int, int], tracks: Targets, clusters: Targets, problems: Problems
) -> Candidates:
    """The candidates of the detector's baseline; none where the file has none.

    Charged candidates without a PDG code get the detector's for what nothing identified, or that of the collection that identified them.
    """
    baseline = baseline_collection(source, detector)
    if baseline is None:
        return Candidates(Rows(np.zeros(span[1] - span[0] + 1, np.int64)), no_pairs(), no_pairs())
    rows = source.rows(baseline, layout.CANDIDATE, *span)
    to_clusters, to_tracks = layout.CANDIDATE.relations
    if detector.charged_pdg:
        rows = Rows(rows.offsets, {**rows.columns, "pdg": _identified(source, detector, baseline, span, rows, problems)})
    return Candidates(
        rows,
        members(source, baseline, to_tracks, rows, tracks, span, problems),
        members(source, baseline, to_clusters, rows, clusters, span, problems),
    )


def _identified(source: EventSource, detector: Detector, baseline: str, span: tuple[int, int], rows: Rows, problems: Problems) -> Indices:
    """The PDG code of each candidate, with the sign that its charge asks for where the file gives no code."""
    code = np.where(rows["charge"] != 0, detector.charged_pdg, 0)
    targets = targets_of(source, [(baseline, rows)], num_events=span[1] - span[0])
    for kind in detector.identified:
        references = source.subset(kind.name, *span)
        if references is not None:
            row = targets.resolve(references, problems, what=f"'{kind.name}'")
            code[row[row >= 0]] = kind.pdg
    for distinct in np.unique(code):
        code[(code == distinct) & (rows["charge"] * float(PDGID(int(distinct)).charge or 0) < 0)] *= -1
    return np.where(rows["pdg"] == 0, code, rows["pdg"])
