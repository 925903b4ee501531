"""Electromagnetic cores in clusters: narrow, early showers, as seen from the interaction point, that lie on top of something else.

The densest hit of a photon attracts what is near it, so a photon that falls beside a hadron shares its cluster (clustering.py). Seen from
the interaction point it is a peak of its own; if the hits of that peak have the depth and the width of an electromagnetic shower they
become a cluster. Tracks are not asked: a hadron shower that starts as narrow and early is split the same way. Units: mm, GeV.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pfscale.simulation.compiled import compiled
from pfscale.simulation.generator import FloatArray, IntArray

PIXEL = 8.0  # of the picture, at the distance of the cluster
PEAK_PIXELS = 3  # a peak is the highest within this many pixels
NEIGHBOUR_WEIGHT = 0.8  # of the eight pixels around one; less than 1, so that the middle of equal sums is the pixel with the hits
PEAK_ENERGY = 0.15  # least such sum
MAX_PEAKS = 64
REACH = 45.0  # hits belong to the nearest peak within this distance
RADIUS = 20.0
CORE_SHARE = 0.75  # least part of a core's energy within RADIUS
CORE_ENERGY = 0.5  # least
CORE_DEPTH = 0.45  # most, mean depth in parts of the ECAL's
FRONT_DEPTH = 0.2  # the front of the ECAL, in parts of its depth, ...
FRONT_SHARE = 0.02  # ... holds at least this part of the energy
REST_SHARE = 0.15  # a group with less than this part besides its largest core is left whole


@compiled
def separate_cores(xyz: FloatArray, energy: FloatArray, layer: IntArray, num_ecal: int, own: IntArray, count: int) -> tuple[IntArray, int]:
    """Group numbers after giving each electromagnetic core its own group, and the number of groups."""
    result = own.copy()
    order = np.argsort(own, kind="mergesort")
    bounds = np.searchsorted(own[order], np.arange(count + 1))
    for c in range(count):
        members = order[bounds[c] : bounds[c + 1]]
        ecal = members[layer[members] < num_ecal]
        if energy[ecal].sum() < 2.0 * CORE_ENERGY:
            continue
        u, v = _picture(xyz[ecal], energy[ecal])
        peak_u, peak_v = _peaks(u, v, energy[ecal])
        peak, is_core, inside = _cores(u, v, energy[ecal], (layer[ecal] + 0.5) / num_ecal, peak_u, peak_v)
        if not is_core.any():
            continue
        rest = energy[members].sum() - inside[is_core].sum()
        largest = np.argmax(np.where(is_core, inside, 0.0))
        number = np.full(len(is_core), -1, dtype=np.int64)
        for k in range(len(is_core)):
            if is_core[k] and not (k == largest and rest < REST_SHARE * inside[k]):
                number[k] = count
                count += 1
        for i in range(len(ecal)):
            if peak[i] >= 0 and number[peak[i]] >= 0:
                result[ecal[i]] = number[peak[i]]
    return result, count


@compiled
def _picture(xyz: FloatArray, energy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates of points across the line from the interaction point to their middle, at its distance."""
    middle = np.zeros(3)
    for i in range(len(energy)):
        for k in range(3):
            middle[k] += energy[i] * xyz[i, k]
    middle /= energy.sum()
    distance = np.sqrt((middle**2).sum())
    n = middle / distance
    a = np.array([-n[1], n[0], 0.0]) if abs(n[2]) < 0.9 else np.array([0.0, -n[2], n[1]])
    a /= np.sqrt((a**2).sum())
    b = np.cross(n, a)
    u, v = np.empty(len(energy)), np.empty(len(energy))
    for i in range(len(energy)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        scale = distance / (x * n[0] + y * n[1] + z * n[2])
        u[i], v[i] = (x * a[0] + y * a[1] + z * a[2]) * scale, (x * b[0] + y * b[1] + z * b[2]) * scale
    return u, v


@compiled
def _peaks(u: FloatArray, v: FloatArray, energy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Energy-weighted positions of the peaks of a picture, which are pixels with hits."""
    u0, v0 = u.min() - 1.5 * PIXEL, v.min() - 1.5 * PIXEL
    nu, nv = int((u.max() - u0) / PIXEL) + 3, int((v.max() - v0) / PIXEL) + 3
    pixels, smooth = np.zeros((nu, nv)), np.zeros((nu, nv))
    pixel_u, pixel_v = np.empty(len(energy), dtype=np.int64), np.empty(len(energy), dtype=np.int64)
    for i in range(len(energy)):
        pixel_u[i], pixel_v[i] = int((u[i] - u0) / PIXEL), int((v[i] - v0) / PIXEL)
        pixels[pixel_u[i], pixel_v[i]] += energy[i]
        for k in range(pixel_u[i] - 1, pixel_u[i] + 2):
            for m in range(pixel_v[i] - 1, pixel_v[i] + 2):
                smooth[k, m] += energy[i] * (1.0 if k == pixel_u[i] and m == pixel_v[i] else NEIGHBOUR_WEIGHT)
    is_done = np.zeros((nu, nv), dtype=np.bool_)
    peak_u, peak_v = np.empty(MAX_PEAKS), np.empty(MAX_PEAKS)
    count = 0
    for i in range(len(energy)):
        pu, pv = pixel_u[i], pixel_v[i]
        if is_done[pu, pv] or smooth[pu, pv] < PEAK_ENERGY or count == MAX_PEAKS or not _is_highest(smooth, pu, pv):
            continue
        is_done[pu, pv] = True
        weight, sum_u, sum_v = 0.0, 0.0, 0.0
        for k in range(pu - 1, pu + 2):
            for m in range(pv - 1, pv + 2):
                weight += pixels[k, m]
                sum_u += pixels[k, m] * (k + 0.5)
                sum_v += pixels[k, m] * (m + 0.5)
        peak_u[count], peak_v[count] = u0 + sum_u / weight * PIXEL, v0 + sum_v / weight * PIXEL
        count += 1
    return peak_u[:count], peak_v[:count]


@compiled
def _is_highest(values: FloatArray, i: int, j: int) -> bool:
    """Whether no value within PEAK_PIXELS of (i, j) is larger; of equal ones the first counts."""
    for k in range(max(i - PEAK_PIXELS, 0), min(i + PEAK_PIXELS + 1, values.shape[0])):
        for m in range(max(j - PEAK_PIXELS, 0), min(j + PEAK_PIXELS + 1, values.shape[1])):
            if values[k, m] > values[i, j] or (values[k, m] == values[i, j] and (k, m) < (i, j)):
                return False
    return True


@compiled
def _cores(
    u: FloatArray, v: FloatArray, energy: FloatArray, depth: FloatArray, peak_u: FloatArray, peak_v: FloatArray
) -> tuple[IntArray, npt.NDArray[np.bool_], FloatArray]:
    """(the peak of each hit or -1, which peaks are electromagnetic, the energy of each); `depth` in parts of the ECAL's."""
    count = len(peak_u)
    peak = np.full(len(energy), -1, dtype=np.int64)
    inside, narrow, deep, front = np.zeros(count), np.zeros(count), np.zeros(count), np.zeros(count)
    for i in range(len(energy)):
        best = REACH**2
        for k in range(count):
            d2 = (u[i] - peak_u[k]) ** 2 + (v[i] - peak_v[k]) ** 2
            if d2 < best:
                best = d2
                peak[i] = k
        if peak[i] < 0:
            continue
        inside[peak[i]] += energy[i]
        deep[peak[i]] += energy[i] * depth[i]
        if depth[i] < FRONT_DEPTH:
            front[peak[i]] += energy[i]
        if best < RADIUS**2:
            narrow[peak[i]] += energy[i]
    is_core = (inside > CORE_ENERGY) & (narrow > CORE_SHARE * inside) & (deep < CORE_DEPTH * inside) & (front > FRONT_SHARE * inside)
    return peak, is_core, inside
