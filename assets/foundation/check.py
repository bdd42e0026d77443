"""Try the bundled model where a table of errors cannot: in dynamics, and when atoms are pressed.

    python assets/foundation/check.py BUNDLE --out work/checks.json

Forty held-out molecules run 2 ps at 500 K as one batch; those that break run again with GFN1-xTB,
which may break them too. Every pair of elements is pressed together to 0.5 Å.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import ase.units
import numpy as np
import torch
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ase

from core.potentials import load as load_potential
from core.potentials.base import TorchPotential
from core.structures import Structure
from dataset import Sample, load
from labels import Surface, dynamics

WORK = Path(__file__).resolve().parent / "work"
MOLECULES, PICOSECONDS, KELVIN, TIMESTEP, FRICTION = 40, 2.0, 500.0, 0.5, 0.01
LOOK = 50
"""Steps between looks at the bonds."""
STRETCHED = 1.6
"""A bond is broken beyond this multiple of the sum of covalent radii."""


def bonds(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the bonded pairs (B, 2), i < j."""
    atoms = ase.Atoms(numbers, positions)
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    return np.stack([i, j], axis=1)[i < j]


def has_broken(numbers: np.ndarray, positions: np.ndarray, pairs: np.ndarray) -> bool:
    """Whether a bond of `pairs` is gone, or positions are no numbers."""
    if not np.isfinite(positions).all():
        return True
    length = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)
    radii = covalent_radii[numbers]
    return bool((length > STRETCHED * (radii[pairs[:, 0]] + radii[pairs[:, 1]])).any())


def run(potential: TorchPotential, starts: list[Sample], seed: int = 1) -> list[int]:
    """Run all molecules as one batch; return the indices of those that broke."""
    rng = np.random.default_rng(seed)
    structures = [Structure(s.numbers, s.positions.astype(float)) for s in starts]
    ends = np.cumsum([0, *(len(s) for s in structures)])
    positions = np.concatenate([s.positions for s in structures])
    numbers = np.concatenate([s.numbers for s in structures])
    masses = atomic_masses[numbers][:, None]
    thermal = np.sqrt(ase.units.kB * KELVIN / masses)
    velocities = thermal * rng.standard_normal(positions.shape)
    step = TIMESTEP * ase.units.fs
    keep = np.exp(-FRICTION * TIMESTEP)
    known = [bonds(s.numbers, s.positions) for s in structures]
    broken: set[int] = set()

    def forces() -> np.ndarray:
        moved = [
            s.moved(positions[a:b])
            for s, (a, b) in zip(structures, itertools.pairwise(ends), strict=True)
        ]
        _, force = potential.energy_and_forces(potential.graphs(moved))
        return force.numpy().astype(float)

    force = forces()
    for k in range(round(1000 * PICOSECONDS / TIMESTEP)):  # BAOAB
        velocities += 0.5 * step * force / masses
        positions += 0.5 * step * velocities
        noise = rng.standard_normal(positions.shape)
        velocities = keep * velocities + np.sqrt(1 - keep**2) * thermal * noise
        positions += 0.5 * step * velocities
        force = forces()
        velocities += 0.5 * step * force / masses
        if k % LOOK == 0:
            for n, (a, b) in enumerate(itertools.pairwise(ends)):
                if n not in broken and has_broken(numbers[a:b], positions[a:b], known[n]):
                    broken.add(n)
            for n in broken:  # at rest from here on, so that it harms no other
                positions[ends[n] : ends[n + 1]] = structures[n].positions
                velocities[ends[n] : ends[n + 1]] = 0.0
    return sorted(broken)


def also_breaks(start: Sample, seed: int = 1) -> bool:
    """Whether GFN1-xTB breaks the molecule too."""
    surface, rng = Surface(start.numbers), np.random.default_rng(seed)
    pairs = bonds(start.numbers, start.positions)
    frames = dynamics(surface, start.positions, KELVIN, TIMESTEP, rng)
    seen = itertools.islice(frames, 0, round(1000 * PICOSECONDS / TIMESTEP), LOOK)
    return any(has_broken(start.numbers, frame.positions, pairs) for frame in seen)


def pressed(potential: TorchPotential) -> dict[str, float]:
    """Return for each pair of elements the smallest push apart, eV/Å, when pressed together.

    From 0.7 times the sum of covalent radii down to 0.5 Å; negative where they attract.
    """
    found = {}
    for a, b in itertools.combinations_with_replacement(potential.elements, 2):
        bond = covalent_radii[a] + covalent_radii[b]
        distances = np.arange(0.5, max(0.7 * bond, 0.52), 0.02)
        pairs = [
            Structure(np.array([a, b]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, d]]))
            for d in distances
        ]
        forces = potential.predict(pairs).forces
        push = min(float(f[1, 2]) for f in forces)
        found[f"{chemical_symbols[a]}-{chemical_symbols[b]}"] = round(push, 2)
    return found


def main() -> None:
    """Check a bundle and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--out", type=Path, default=WORK / "checks.json")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    potential = load_potential(arguments.bundle)
    push = pressed(potential)
    attracted = [name for name, force in push.items() if force <= 0]
    print(f"{len(push)} pairs pressed; not repulsive: {attracted or 'none'}", flush=True)
    first: dict[int, Sample] = {}
    for sample in load([WORK / "valid.npz"]):
        if sample.temperature == 300:
            first.setdefault(sample.molecule, sample)
    spread = np.linspace(0, len(first) - 1, MOLECULES).astype(int)
    starts = [list(first.values())[k] for k in spread]
    broken = run(potential, starts)
    kept = [n for n in broken if not also_breaks(starts[n])]
    print(
        f"{len(starts)} molecules, {PICOSECONDS} ps at {KELVIN:.0f} K: {len(broken)} broke, "
        f"{len(kept)} of them GFN1-xTB keeps"
    )
    listed = {m["id"]: m["smiles"] for m in json.loads((WORK / "molecules.json").read_text())}
    arguments.out.write_text(
        json.dumps(
            {
                "pairs": len(push), "smallest_push_eV_per_A": min(push.values()),
                "not_repulsive": attracted, "molecules": len(starts), "picoseconds": PICOSECONDS,
                "kelvin": KELVIN, "broken": [listed[starts[n].molecule] for n in broken],
                "broken_but_kept_by_GFN1": [listed[starts[n].molecule] for n in kept],
            },
            indent=1,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
