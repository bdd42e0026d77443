"""Frames of the molecules of g2 that are too small to be like any other, and of water in clusters.

What a model learns from larger molecules does not reach H2, CO, O3 or H2O: without frames of their
own they are the worst of all. Larger molecules of g2 stay unseen.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
from ase.build import molecule as g2_molecule
from ase.neighborlist import natural_cutoffs, neighbor_list

from dataset import Sample
from geometries import Molecule, distort, pair, shake, torn
from labels import Frame, NotConvergedError, Surface, dynamics, relax
from molecules import TINY, g2_closed_shell

FIRST_ID = -2
"""Ids of tiny molecules go down from here."""
TEMPERATURES = (300.0, 600.0, 1200.0, 2500.0)
MD_FRAMES, STRIDE, SHAKEN, DISTORTED, TORN = 10, 8, 12, 12, 6
SCAN = (0.55, 1.9, 28)
"""Lengths of a diatomic's bond over that at rest: from, to, how many."""
DIMERS, WATERY = 1500, 0.4
"""Pairs of tiny molecules, and the share of them that have a water."""
CLUSTERS, LARGEST_CLUSTER = 60, 6
LARGEST_FORCE = 30.0


def tiny_molecules() -> dict[str, Molecule]:
    """Return name -> molecule of the closed-shell ones of g2 with at most `TINY` atoms."""
    found = {}
    for name in g2_closed_shell():
        atoms = g2_molecule(name)
        if len(atoms) <= TINY:
            i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
            bonds = np.stack([i, j], axis=1)[i < j]
            found[name] = Molecule(FIRST_ID - len(found), name, atoms.numbers, bonds)
    return found


def tiny_samples(seed: int) -> list[Sample]:
    """Return frames of each tiny molecule, of pairs of them, and of clusters of water."""
    rng = np.random.default_rng(seed)
    molecules = tiny_molecules()
    found: list[Sample] = []
    pool: dict[str, list[Frame]] = {}
    for name, molecule in molecules.items():
        samples, pool[name] = _of_one(molecule, rng)
        found += samples
    found += _pairs(molecules, pool, rng)
    return found + _clusters(molecules["H2O"], pool["H2O"], rng)


def _of_one(molecule: Molecule, rng: np.random.Generator) -> tuple[list[Sample], list[Frame]]:
    """Return all frames of one molecule, and those of modest temperature for use in pairs."""
    surface = Surface(molecule.numbers)
    path = list(relax(surface, g2_molecule(molecule.smiles).positions, 60))
    rest = path[-1].positions
    found = [_sample(path[-1], molecule, "equilibrium")]
    bases = [path[-1]]
    for temperature in TEMPERATURES:
        for _ in range(2):
            stored = _trajectory(surface, rest, temperature, rng)
            found += [_sample(f, molecule, "md", temperature) for f in stored]
            bases += stored if temperature < 1000 else []
    moved = [shake(rest, rng) for _ in range(SHAKEN)]
    if len(rest) == 2:
        middle = rest.mean(0)
        moved += [middle + scale * (rest - middle) for scale in np.linspace(*SCAN)]
    else:
        starts = [bases[int(k)].positions for k in rng.integers(len(bases), size=DISTORTED)]
        moved += [distort(molecule, start, rng) for start in starts]
        moved += [torn(molecule, start, rng) for start in starts[:TORN]]
    for positions in moved:
        found += _labelled(surface, positions, molecule, "distorted")
    return found, bases


def _pairs(
    molecules: dict[str, Molecule], pool: dict[str, list[Frame]], rng: np.random.Generator
) -> list[Sample]:
    found: list[Sample] = []
    for _ in range(DIMERS):
        names = [str(name) for name in rng.choice(list(molecules), size=2)]
        if rng.random() < WATERY:
            names[0] = "H2O"
        a, b = (pool[name][int(rng.integers(len(pool[name])))] for name in names)
        edges = ((1.3, 1.7), (1.7, 3.2), (3.2, 6.0))
        distance = rng.uniform(*edges[int(rng.choice(3, p=[0.15, 0.6, 0.25]))])
        numbers = np.append(a.numbers, b.numbers)
        positions = pair(a.positions, b.positions, distance, rng)
        found += _labelled(Surface(numbers), positions, molecules[names[0]], "dimer")
    return found


def _clusters(water: Molecule, pool: list[Frame], rng: np.random.Generator) -> list[Sample]:
    found: list[Sample] = []
    for k in range(CLUSTERS):
        positions, size = pool[0].positions, 2 + k % (LARGEST_CLUSTER - 1)
        for _ in range(size - 1):
            one = pool[int(rng.integers(len(pool)))].positions
            positions = pair(positions, one, rng.uniform(1.6, 2.0), rng)
        surface = Surface(np.tile(water.numbers, size))
        try:
            start = list(relax(surface, positions, 12))[-1].positions
        except NotConvergedError:
            continue
        temperature = float(rng.choice((300.0, 500.0)))
        stored = _trajectory(surface, start, temperature, rng)
        found += [_sample(f, water, "dimer", temperature) for f in stored]
    return found


def _trajectory(
    surface: Surface, start: np.ndarray, temperature: float, rng: np.random.Generator
) -> list[Frame]:
    timestep = 0.5 if temperature > 1000 else 1.0
    frames = islice(dynamics(surface, start, temperature, timestep, rng), 15, None, STRIDE)
    stored: list[Frame] = []
    try:
        for frame in islice(frames, MD_FRAMES):
            if frame.largest_force > LARGEST_FORCE:
                break
            stored.append(frame)
    except NotConvergedError:
        pass
    return stored


def _labelled(
    surface: Surface, positions: np.ndarray, molecule: Molecule, kind: str
) -> list[Sample]:
    try:
        frame = surface(positions)
    except NotConvergedError:
        return []
    return [_sample(frame, molecule, kind)] if frame.largest_force <= LARGEST_FORCE else []


def _sample(frame: Frame, molecule: Molecule, kind: str, temperature: float = 0.0) -> Sample:
    return Sample(
        frame.numbers, frame.positions, frame.forces, frame.energy, molecule.id, kind, temperature
    )
