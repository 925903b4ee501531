"""Walks over the parent-daughter graph of MC particles, for all events of a chunk at once, in numpy.

Every walk takes one generation of relatives per step, so the number of steps is the depth of the graph, whatever the number of events;
nodes seen before are not entered again, so a loop in a damaged file ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Adjacency:
    """Neighbours of every node: those of node i are index[offsets[i] : offsets[i + 1]], ascending, each once."""

    offsets: Indices
    index: Indices

    def expand(self, nodes: Indices) -> tuple[Indices, Indices]:
        """(position in `nodes`, neighbour) for every neighbour of every node."""
        counts = self.offsets[nodes + 1] - self.offsets[nodes]
        position = np.repeat(np.arange(len(nodes)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return position, self.index[self.offsets[nodes][position] + within]


@dataclass(frozen=True)
class Ancestry:
    """Parents and daughters of every MC particle of a chunk, as rows of its flat particle arrays."""

    parents: Adjacency
    daughters: Adjacency

    @property
    def num_particles(self) -> int:
        """Number of particles."""
        return len(self.parents.offsets) - 1


def ancestry(parent: Indices, daughter: Indices, *, num_particles: int) -> Ancestry:
    """The ancestry given by parent -> daughter edges; repeated edges and edges to oneself are dropped.

    Writers fill the two relations of EDM4hep with different care, so the edges should be the union of both.
    """
    other = parent != daughter
    edges = (np.ones(int(other.sum()), np.int8), (parent[other], daughter[other]))
    below = sparse.coo_matrix(edges, shape=(num_particles, num_particles)).tocsr()
    below.sort_indices()
    return Ancestry(parents=_adjacency(below.tocsc()), daughters=_adjacency(below))


def _adjacency(matrix: sparse.csr_matrix | sparse.csc_matrix) -> Adjacency:
    return Adjacency(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64))


def ancestors_of(graph: Ancestry, members: Mask) -> Mask:
    """Which particles have a member among their descendants (a member itself only if it has another below it)."""
    found = np.zeros(graph.num_particles, bool)
    frontier = np.flatnonzero(members)
    while len(frontier):
        above = np.unique(graph.parents.expand(frontier)[1])
        frontier = above[~found[above]]
        found[frontier] = True
    return found


def descendants_of(graph: Ancestry, members: Mask) -> Mask:
    """Which particles have a member among their ancestors."""
    return ancestors_of(Ancestry(parents=graph.daughters, daughters=graph.parents), members)


def descendant_pairs(graph: Ancestry, roots: Indices) -> tuple[Indices, Indices]:
    """(position in `roots`, descendant) for every descendant of every root, the root itself included, each pair once."""
    size = np.int64(max(graph.num_particles, 1))
    frontier = np.arange(len(roots), dtype=np.int64) * size + roots
    levels = [frontier]
    seen = frontier
    while len(frontier):
        position, below = graph.daughters.expand(frontier % size)
        keys = np.unique((frontier // size)[position] * size + below)
        # particles rarely have two parents, so nearly every pair is new; `seen` guards against loops and shared daughters
        frontier = keys[~np.isin(keys, seen, assume_unique=True)]
        levels.append(frontier)
        seen = np.concatenate([seen, frontier])
    pairs = np.concatenate(levels)
    return pairs // size, pairs % size


def nearest_ancestor(graph: Ancestry, starts: Indices, stop: Mask, allowed: Mask, *, max_depth: int) -> Indices:
    """For each start the nearest ancestor in `stop`, at most `max_depth` generations up; -1: none, or not in `allowed`.

    Among several at the same distance the first in the file that is allowed.
    """
    size = np.int64(max(graph.num_particles, 1))
    nearest = np.full(len(starts), -1, np.int64)
    open_starts = np.ones(len(starts), bool)
    frontier = np.arange(len(starts), dtype=np.int64) * size + starts
    for _ in range(max_depth):
        position, above = graph.parents.expand(frontier % size)
        keys = np.unique((frontier // size)[position] * size + above)
        start, node = keys // size, keys % size
        hit = stop[node]
        chosen_start, first = np.unique(start[hit & allowed[node]], return_index=True)
        nearest[chosen_start] = node[hit & allowed[node]][first]
        open_starts[start[hit]] = False
        frontier = keys[open_starts[start]]
        if not len(frontier):
            break
    return nearest


def inherited(graph: Ancestry, values: NDArray[np.int8]) -> NDArray[np.int8]:
    """For each particle the value of its nearest ancestor whose value is not 0; of several at the same distance the smallest; 0: none."""
    found = np.zeros_like(values)
    frontier = np.flatnonzero(values)
    handed_down = values[frontier]
    while len(frontier):
        position, below = graph.daughters.expand(frontier)
        value = handed_down[position]
        smallest_first = np.argsort(value, kind="stable")
        below, first = np.unique(below[smallest_first], return_index=True)
        value = value[smallest_first][first]
        is_new = found[below] == 0  # what is below a particle with a value of its own has that already
        frontier, handed_down = below[is_new], value[is_new]
        found[frontier] = handed_down
    return found
