"""The detectors that files can come from, as data: field, angle and collection names. A new detector is one entry in DETECTORS.

Sources: k4geo (field, crossing angle), CLICPerformance and CLDConfig (collection names), physics-spec 1; for fast simulation the Delphes
card of IDEA and k4SimDelphes (DelphesEDM4HepConverter.cc).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from particle.pdgid import literals as pid

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
class ClusterCollection:
    """One collection of clusters; a detector's clusters are those of all its collections, event by event in their order.

    Attributes:
        subdetector: what a cluster's energy counts as where its hits carry none; None: its hits always do.
        is_at_hits: a cluster at (0, 0, 0) has no position of its own: it is where its hits are, its axis (iTheta) as seen from the
            interaction point.
    """

    name: str
    subdetector: Subdetector | None = None
    is_at_hits: bool = False


@dataclass(frozen=True)
class Identified:
    """A collection that only refers to those baseline candidates that were identified as particles of type `pdg` (either charge)."""

    name: str
    pdg: int


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
        calo_link, track_link: links from calorimeter hits and from tracks to particles, the truth of full simulation; None: there are none.
        candidate_link: links from baseline candidates to particles, the truth of fast simulation: the candidate's tracks and clusters are
            the particle's; None: there are none.
        baseline: names that the collection of rule-based candidates goes by, the first that a file has counts; empty: there is none.
            With a `candidate_link` the first must be there: the links are from its candidates.
        charged_pdg: PDG code of charged candidates that carry none because nothing identified them (either charge); 0: they are dropped.
        identified: collections that tell which candidates were identified, for candidates that carry no PDG code.
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
    clusters: tuple[ClusterCollection, ...] = (ClusterCollection("PandoraClusters"),)
    calo_link: str | None = "CalohitMCTruthLink"
    track_link: str | None = "SiTracksMCTruthLink"
    candidate_link: str | None = None
    baseline: tuple[str, ...] = ("PandoraPFOs", "RuleBasedPFOs")  # full simulation; the built-in source
    charged_pdg: int = 0
    identified: tuple[Identified, ...] = ()
    header: str = "EventHeader"

    @property
    def required(self) -> dict[str, str]:
        """Collections without which no event can be made, with what each is needed for."""
        needed = {self.particles: "truth", self.tracks: "tracks"}
        needed |= {c.name: "clusters" for c in self.clusters}
        needed |= {c.name: "the hits of clusters" for c in self.calo_hits if c.required}
        if self.candidate_link and self.baseline:
            needed |= dict.fromkeys((self.baseline[0], self.candidate_link), "truth: whose the tracks and clusters are")
        return needed


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
        # Delphes: towers instead of clusters, their position in a hit without energy, and the particles that made each candidate
        Detector(
            name="idea",
            magnetic_field=2.0,
            crossing_angle=0.030,
            calo_hits=(CaloCollection("CalorimeterHits", Subdetector.OTHER, required=True),),
            simulation="fast",
            particles="Particle",
            particle_aliases=(),
            tracks="EFlowTrack",
            dqdx=None,  # EFlowTrack_dNdx counts ionisation clusters: no dE/dx
            clusters=(
                ClusterCollection("EFlowPhoton", Subdetector.ECAL, is_at_hits=True),
                ClusterCollection("EFlowNeutralHadron", Subdetector.HCAL, is_at_hits=True),
            ),
            calo_link=None,
            track_link=None,
            candidate_link="MCRecoAssociations",
            baseline=("ReconstructedParticles",),
            charged_pdg=int(pid.pi_plus),
            identified=(Identified("Electron", int(pid.e_minus)), Identified("Muon", int(pid.mu_minus))),
        ),
    )
}


def detectors_of(collections: Collection[str]) -> list[str]:
    """Names of the detectors of which a file with these collections can be."""
    return [name for name, detector in DETECTORS.items() if all(needed in collections for needed in detector.required)]


def find_detector(name: str) -> Detector:
    """The entry of the detector called `name`.

    Raises:
        UnknownNameError: no such detector; lists those that there are.
    """
    if name not in DETECTORS:
        raise unknown_name("detector", name, tuple(DETECTORS))
    return DETECTORS[name]
