"""The two parametrised detectors: one table of numbers each.

Detectors differ by these numbers only; a third one is one more entry of `DETECTORS`.
Sources: k4geo (CLIC_o3_v14, CLD_o2) for field, radii and layers, the Delphes CLICdet card for resolutions, the CLICdet and CLD
conceptual designs (arXiv:1812.07337, arXiv:1911.12230) for disks and half lengths, which are rounded. Units: mm, GeV, tesla, rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from pfscale.errors import unknown_name


@dataclass(frozen=True)
class MomentumResolution:
    """sigma(pt)/pt = `slope` * pt (+) `constant`, or `electron_constant` for electrons, for absolute eta below `eta_max`."""

    eta_max: float
    slope: float
    constant: float
    electron_constant: float


@dataclass(frozen=True)
class DetectorModel:
    """Everything that the simulation knows about a detector."""

    name: str
    sqrt_s: MappingProxyType[str, float]  # process -> GeV
    crossing_angle: float
    beam_sigma: MappingProxyType[float, tuple[float, float, float]]  # sqrt(s) -> luminous region
    b_field: float
    # tracker
    barrel_layers: tuple[tuple[float, float], ...]  # radius, half length
    disks: tuple[tuple[float, float, float], ...]  # abs(z), inner radius, outer radius
    vertex_layers: int  # how many of the barrel layers are pixel layers (impact parameter)
    track_eta_max: float
    momentum_resolution: tuple[MomentumResolution, ...]
    d0_asymptotic: float  # for a first hit on the innermost layer
    d0_scattering: float  # mm GeV, same
    tracker_x0: float  # radiation lengths of the whole tracker at normal incidence
    tracker_lambda: float  # interaction lengths, same
    material_shares: tuple[float, ...]  # parts of both that each of the barrel layers holds, their sum is 1
    # calorimeters; the barrel is a cylinder, the endcaps are disks of the same depth
    ecal_radius: float
    ecal_z: float
    ecal_thickness: float
    ecal_sections: int
    ecal_cell: float
    ecal_x0: float
    ecal_lambda: float
    ecal_mip: float  # calibrated energy of a minimum-ionising particle in one section
    hcal_gap: float  # between the back of the ECAL and the front of the HCAL
    hcal_thickness: float
    hcal_sections: int
    hcal_cell: float
    hcal_lambda: float
    hcal_x0: float
    hcal_mip: float
    endcap_inner_radius: float
    # muon chambers in the yoke: cylinders and disks at equal distances between the two numbers
    muon_radius: tuple[float, float]
    muon_z: tuple[float, float]
    muon_inner_radius: float  # of the disks
    muon_layers: int = 6
    muon_cell: float = 30.0
    muon_efficiency: float = 0.95
    muon_loss: float = 0.35  # GeV between two chambers: about 200 mm of steel
    muon_hit: float = 1e-4  # GeV, calibrated energy of a hit
    # tracking efficiency: plateau, pt (GeV) of the turn-on, width in eta of the edge of the acceptance, radius (mm) where it is halved
    track_efficiency: float = 0.99
    track_pt_turn_on: float = 0.12
    track_eta_edge: float = 0.05
    track_displacement: float = 500.0
    track_separation: float = 0.3  # mm on the innermost layer within which neighbours spoil a track (confusion.py)
    dedx_resolution: float | None = None  # relative; silicon trackers' real files have none
    ecal_threshold: float = 0.002
    hcal_threshold: float = 0.0115
    ecal_stochastic: float = 0.156
    ecal_constant: float = 0.01
    # CALICE's steel and scintillator stack in test beams, 10 to 80 GeV pions: 0.58 / sqrt(E) as it is, 0.45 with software compensation
    # (arXiv:1207.4210, abstract), which CLD's Pandora settings switch on. The card's 0.31 to 0.34 is not to be had alone: its fit has 1.1
    # to 1.4 GeV besides, together 0.44 / sqrt(E) at 20 GeV and 0.53 / sqrt(E) at 10 GeV.
    hcal_stochastic: float = 0.45
    hcal_uncompensated: float = 0.58  # what the above becomes towards zero energy (hadron_resolution.py)
    hcal_constant: float = 0.05  # the card, all angles; what leaks through the back comes on top

    @property
    def calorimeter_outer_radius(self) -> float:
        """Radius where the HCAL barrel ends, mm."""
        return self.ecal_radius + self.ecal_thickness + self.hcal_gap + self.hcal_thickness


def _resolution(*, scale: float, electron_factor: float | None) -> tuple[MomentumResolution, ...]:
    """The CLICdet card's bins with the constant terms scaled: B R of the two trackers differ, B R^2 hardly.

    `electron_factor`: constant term of electrons over that of hadrons; None: the card's own for electrons, 1.2 to 1.7 times the hadrons'.
    """
    bins = (
        (0.18, 1.33e-5, 2.1e-3, 2.9e-3),
        (0.45, 1.28e-5, 2.2e-3, 3.2e-3),
        (0.88, 1.17e-5, 2.6e-3, 4.0e-3),
        (1.32, 1.12e-5, 3.9e-3, 6.6e-3),
        (1.74, 8.6e-5, 1.5e-2, 1.8e-2),
        (9.0, 17.2e-5, 3.0e-2, 3.6e-2),
    )
    return tuple(
        MomentumResolution(eta, slope, hadron * scale, (electron if electron_factor is None else electron_factor * hadron) * scale)
        for eta, slope, hadron, electron in bins
    )


# 0.4% of a radiation length in a double layer of CLICdet's vertex detector (CERN TWiki, ClicNDM_Vertex), 0.2% in each of six, beside 10%
# of the whole tracker. Estimates: that the six tracker layers share the rest alike, that CLD's layers have the same parts, and that the
# beam pipe is among the first layers' parts.
_MATERIAL_SHARES = (0.02,) * 6 + (0.88 / 6.0,) * 6


_CLIC = DetectorModel(
    name="clic",
    sqrt_s=MappingProxyType({"ttbar": 380.0, "qq": 380.0, "WW": 380.0}),
    crossing_angle=0.020,
    beam_sigma=MappingProxyType({380.0: (1e-4, 2e-6, 0.050)}),
    b_field=4.0,
    barrel_layers=(
        (31.0, 130.0),
        (33.0, 130.0),
        (44.0, 130.0),
        (46.0, 130.0),
        (58.0, 130.0),
        (60.0, 130.0),
        (127.0, 482.0),
        (340.0, 482.0),
        (554.0, 692.0),
        (819.0, 1264.0),
        (1153.0, 1264.0),
        (1486.0, 1264.0),
    ),
    disks=(
        (160.0, 33.0, 102.0),
        (162.0, 33.0, 102.0),
        (217.0, 33.0, 102.0),
        (219.0, 33.0, 102.0),
        (300.0, 33.0, 102.0),
        (302.0, 33.0, 102.0),
        (524.0, 72.0, 405.0),
        (808.0, 99.0, 550.0),
        (1093.0, 131.0, 550.0),
        (1377.0, 164.0, 550.0),
        (1661.0, 196.0, 550.0),
        (1946.0, 228.0, 550.0),
        (2190.0, 256.0, 550.0),
        (1310.0, 618.0, 1430.0),
        (1617.0, 618.0, 1430.0),
        (1883.0, 618.0, 1430.0),
        (2190.0, 618.0, 1430.0),
    ),
    vertex_layers=6,
    track_eta_max=2.54,
    momentum_resolution=_resolution(scale=1.0, electron_factor=None),
    d0_asymptotic=0.002,
    d0_scattering=0.015,
    tracker_x0=0.10,
    tracker_lambda=0.025,
    material_shares=_MATERIAL_SHARES,
    ecal_radius=1500.0,
    ecal_z=2307.0,
    ecal_thickness=202.0,
    ecal_sections=10,
    ecal_cell=10.2,
    ecal_x0=22.0,
    ecal_lambda=1.0,
    ecal_mip=0.024,
    hcal_gap=38.0,
    hcal_thickness=1590.0,
    hcal_sections=30,
    hcal_cell=60.0,
    hcal_lambda=7.5,
    hcal_x0=68.0,
    hcal_mip=0.054,
    endcap_inner_radius=250.0,
    muon_radius=(4461.0, 6450.0),
    muon_z=(4179.0, 5700.0),
    muon_inner_radius=490.0,
)

_CLD = DetectorModel(
    name="cld",
    sqrt_s=MappingProxyType({"ttbar": 365.0, "qq": 365.0, "WW": 365.0, "ZH": 240.0}),
    crossing_angle=0.030,
    beam_sigma=MappingProxyType({365.0: (0.027, 4.9e-5, 1.3), 240.0: (0.010, 2.6e-5, 0.64)}),
    b_field=2.0,
    barrel_layers=(
        (13.0, 109.0),
        (15.0, 109.0),
        (35.0, 109.0),
        (37.0, 109.0),
        (57.0, 109.0),
        (59.0, 109.0),
        (127.0, 482.0),
        (400.0, 482.0),
        (670.0, 692.0),
        (1000.0, 1264.0),
        (1568.0, 1264.0),
        (2136.0, 1264.0),
    ),
    disks=(
        (160.0, 24.0, 102.0),
        (162.0, 24.0, 102.0),
        (230.0, 34.0, 102.0),
        (232.0, 34.0, 102.0),
        (300.0, 45.0, 102.0),
        (302.0, 45.0, 102.0),
        (524.0, 80.0, 457.0),
        (808.0, 123.0, 652.0),
        (1093.0, 165.0, 663.0),
        (1377.0, 207.0, 661.0),
        (1661.0, 249.0, 661.0),
        (1946.0, 292.0, 660.0),
        (2190.0, 330.0, 647.0),
        (1310.0, 718.0, 2080.0),
        (1617.0, 718.0, 2080.0),
        (1883.0, 718.0, 2080.0),
        (2190.0, 718.0, 2080.0),
    ),
    vertex_layers=6,
    track_eta_max=2.56,
    momentum_resolution=_resolution(scale=1.39, electron_factor=1.25),  # the cards: one factor for electrons
    d0_asymptotic=0.002,
    d0_scattering=0.014,
    tracker_x0=0.10,
    tracker_lambda=0.025,
    material_shares=_MATERIAL_SHARES,
    ecal_radius=2150.0,
    ecal_z=2307.0,
    ecal_thickness=202.0,
    ecal_sections=10,
    ecal_cell=10.2,
    ecal_x0=22.0,
    ecal_lambda=1.0,
    ecal_mip=0.024,
    hcal_gap=48.0,
    hcal_thickness=1166.0,
    hcal_sections=22,
    hcal_cell=60.0,
    hcal_lambda=5.5,
    hcal_x0=50.0,
    hcal_mip=0.054,
    endcap_inner_radius=340.0,
    muon_radius=(4479.0, 6000.0),
    muon_z=(3755.0, 5300.0),
    muon_inner_radius=400.0,
)

DETECTORS: MappingProxyType[str, DetectorModel] = MappingProxyType({"clic": _CLIC, "cld": _CLD})


def detector_model(name: str) -> DetectorModel:
    """The table of detector `name`.

    Raises:
        UnknownNameError: no such detector.
    """
    if name not in DETECTORS:
        raise unknown_name("detector", name, tuple(DETECTORS))
    return DETECTORS[name]
