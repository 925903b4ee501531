"""The detectors that files can come from, as data: field, angle and collection names. A new detector is one entry in DETECTORS.

Sources: k4geo (field, crossing angle), CLICPerformance and CLDConfig (collection names), physics-spec 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from pfscale.errors import unknown_name


class Subdetector(IntEnum):
    """What a calorimeter hit counts as in the energies of its cluster."""

    ECAL = 0
    HCAL = 1
    OTHER = 2


@dataclass(frozen=True)
class CaloCollection:
    """One collection of reconstructed calorimeter hits; a file may lack those that are not `required`."""

    name: str
    subdetector: Subdetector
    required: bool = False


@dataclass(frozen=True)
class TrackerChain:
    """Collections that lead from a reconstructed tracker hit to its simulated hit, which names its particle."""

    hits: str
    relation: str
    sim_hits: str


@dataclass(frozen=True)
class Detector:
    """Everything that the reader and the truth definition must know about one detector.

    Attributes:
        magnetic_field: tesla, along z.
        crossing_angle: rad, full angle between the beams.
        simulation: what made the files when they do not say themselves.
        particle_aliases: other names under which links mean `particles`, in files that do not hold a collection of that name
            (reconstruction through LCIO calls it `MCParticle` and writes only one of the two).
        baseline: collection of the rule-based candidates; None: the detector has none.
    """

    name: str
    magnetic_field: float
    crossing_angle: float
    calo_hits: tuple[CaloCollection, ...]
    tracker_chains: tuple[TrackerChain, ...] = ()
    simulation: str = "geant4"
    particles: str = "MCParticles"
    particle_aliases: tuple[str, ...] = ("MCParticle",)
    tracks: str = "SiTracks_Refitted"
    dqdx: str | None = "SiTracks_Refitted_dQdx"
    clusters: str = "PandoraClusters"
    calo_link: str = "CalohitMCTruthLink"
    track_link: str = "SiTracksMCTruthLink"
    baseline: str | None = "PandoraPFOs"
    header: str = "EventHeader"

    @property
    def required(self) -> dict[str, str]:
        """Collections without which no event can be made, with what each is needed for."""
        hits = {c.name: "the hits of clusters" for c in self.calo_hits if c.required}
        return {self.particles: "truth", self.tracks: "tracks", self.clusters: "clusters", **hits}


SILICON_TRACKER = (
    TrackerChain("ITrackerHits", "InnerTrackerBarrelHitsRelations", "InnerTrackerBarrelCollection"),
    TrackerChain("ITrackerEndcapHits", "InnerTrackerEndcapHitsRelations", "InnerTrackerEndcapCollection"),
    TrackerChain("OTrackerHits", "OuterTrackerBarrelHitsRelations", "OuterTrackerBarrelCollection"),
    TrackerChain("OTrackerEndcapHits", "OuterTrackerEndcapHitsRelations", "OuterTrackerEndcapCollection"),
    TrackerChain("VXDTrackerHits", "VXDTrackerHitRelations", "VertexBarrelCollection"),
    TrackerChain("VXDEndcapTrackerHits", "VXDEndcapTrackerHitRelations", "VertexEndcapCollection"),
)

# Barrels and endcaps hold nearly all energy, so a file without them is broken; the small systems are left out by fast sources.
_SAMPLING_CALORIMETERS = (
    CaloCollection("ECALBarrel", Subdetector.ECAL, required=True),
    CaloCollection("ECALEndcap", Subdetector.ECAL, required=True),
    CaloCollection("HCALBarrel", Subdetector.HCAL, required=True),
    CaloCollection("HCALEndcap", Subdetector.HCAL, required=True),
    CaloCollection("HCALOther", Subdetector.HCAL),
    CaloCollection("MUON", Subdetector.OTHER),
)

DETECTORS = {
    detector.name: detector
    for detector in (
        Detector(
            name="clic",
            magnetic_field=4.0,
            crossing_angle=0.020,
            calo_hits=(
                *_SAMPLING_CALORIMETERS,
                CaloCollection("ECALOther", Subdetector.ECAL),
                CaloCollection("LumiCal_Hits", Subdetector.OTHER),
            ),
            tracker_chains=SILICON_TRACKER,
        ),
        Detector(
            name="cld",
            magnetic_field=2.0,
            crossing_angle=0.030,
            calo_hits=_SAMPLING_CALORIMETERS,
            tracker_chains=SILICON_TRACKER,
        ),
    )
}


def find_detector(name: str) -> Detector:
    """The entry of the detector called `name`.

    Raises:
        UnknownNameError: no such detector; lists those that there are.
    """
    if name not in DETECTORS:
        raise unknown_name("detector", name, tuple(DETECTORS))
    return DETECTORS[name]
