"""Starting and distorted geometries of molecules and pairs of molecules; no energies here.

Lengths in Å, angles in rad; positions are (N, 3) arrays.
"""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.spatial.transform import Rotation

BONDED = 1.35
PASSED_ON = (1, 9, 17, 35)
"""Elements that one molecule hands to another: hydrogen and the halogens."""


@dataclass(frozen=True)
class Molecule:
    """A molecule as a bonded graph: id, SMILES, numbers (N,), bonds (B, 2) of atom indices."""

    id: int
    smiles: str
    numbers: np.ndarray
    bonds: np.ndarray

    @classmethod
    def from_smiles(cls, id: int, smiles: str) -> "Molecule":
        """Hydrogens are added; the atom order is RDKit's."""
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
        numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
        return cls(id, smiles, numbers, np.array(bonds).reshape(-1, 2))


def embed(molecule: Molecule, seed: int) -> np.ndarray | None:
    """One conformer from distance geometry and a classical force field; None where that fails."""
    mol = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
    options = AllChem.ETKDGv3()
    options.randomSeed = seed
    options.maxIterations = 30
    if AllChem.EmbedMolecule(mol, options) != 0:
        options.useRandomCoords = True
        if AllChem.EmbedMolecule(mol, options) != 0:
            return None
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol, maxIters=200)
    elif AllChem.UFFHasAllMoleculeParams(mol):
        AllChem.UFFOptimizeMolecule(mol, maxIters=200)
    return mol.GetConformer().GetPositions()


def has_bonds_of(molecule: Molecule, positions: np.ndarray) -> bool:
    """Whether exactly the molecule's bonds are within `BONDED` times the covalent radii."""
    radii = covalent_radii[molecule.numbers]
    near = squareform(pdist(positions)) < BONDED * (radii[:, None] + radii)
    bonded = np.zeros_like(near)
    bonded[tuple(molecule.bonds.T)] = True
    bonded |= bonded.T
    loose = squareform(pdist(positions)) < 0.9 * BONDED * (radii[:, None] + radii)
    return not (bonded & ~near).any() and not (np.triu(loose, 1) & ~bonded).any()


def is_broken(numbers: np.ndarray, positions: np.ndarray) -> bool:
    """Whether some atom has left all others by more than 4 Å, or two nuclei have merged."""
    if len(numbers) < 2:
        return False
    distance = squareform(pdist(positions)) + 99 * np.eye(len(numbers))
    return bool(distance.min(1).max() > 4.0 or distance.min() < 0.45)


def side_of_bond(molecule: Molecule, bond: int) -> np.ndarray | None:
    """Mask (N,) of the atoms on the second atom's side of a bond; None for a bond in a ring."""
    i, j = molecule.bonds[bond]
    others = np.delete(molecule.bonds, bond, axis=0)
    side = np.zeros(len(molecule.numbers), dtype=bool)
    side[j] = True
    while True:
        grown = side.copy()
        for a, b in others:
            grown[a] |= side[b]
            grown[b] |= side[a]
        if grown[i]:
            return None
        if (grown == side).all():
            return side
        side = grown


def stretch(molecule: Molecule, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale a random bond's length by 0.75-1.6, its two sides moving as rigid bodies."""
    bond = int(rng.integers(len(molecule.bonds)))
    side = side_of_bond(molecule, bond)
    if side is None:
        return shake(positions, rng)
    i, j = molecule.bonds[bond]
    scale = rng.uniform(0.75, 1.0) if rng.random() < 0.4 else rng.uniform(1.0, 1.6)
    moved = positions.copy()
    moved[side] += (scale - 1) * (positions[j] - positions[i])
    return moved


def bend(molecule: Molecule, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn one side of a random bond about the bond's first atom by up to 0.45 rad."""
    bond = int(rng.integers(len(molecule.bonds)))
    side = side_of_bond(molecule, bond)
    if side is None:
        return shake(positions, rng)
    pivot = positions[molecule.bonds[bond][0]]
    axis = _unit(rng) * rng.uniform(0.1, 0.45)
    return _turned(positions, side, pivot, axis)


def twist(molecule: Molecule, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn one side of a random bond about the bond itself by any angle."""
    sides = [side_of_bond(molecule, k) for k in range(len(molecule.bonds))]
    rotatable = [k for k, s in enumerate(sides) if s is not None and 1 < s.sum() < len(s) - 1]
    if not rotatable:
        return bend(molecule, positions, rng)
    bond = int(rng.choice(rotatable))
    i, j = molecule.bonds[bond]
    axis = positions[j] - positions[i]
    axis = axis / np.linalg.norm(axis) * rng.uniform(-np.pi, np.pi)
    return _turned(positions, sides[bond], positions[j], axis)


def shake(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move each coordinate by a Gaussian of one random width between 0.02 and 0.1 Å."""
    return positions + rng.uniform(0.02, 0.1) * rng.normal(size=positions.shape)


def torn(molecule: Molecule, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pull a random bond to 1.4-2.6 times its length: its sides part, or its ring opens."""
    bond = int(rng.integers(len(molecule.bonds)))
    i, j = molecule.bonds[bond]
    pull = (rng.uniform(1.4, 2.6) - 1) * (positions[j] - positions[i])
    side = side_of_bond(molecule, bond)
    moved = positions.copy()
    if side is not None:
        moved[side] += pull
    else:  # a ring: each atom moves the less the nearer to the other end it is
        near = cdist(positions, positions[[i, j]])
        moved += (near[:, :1] / near.sum(1, keepdims=True) - 0.5) * pull
    return moved + rng.uniform(0, 0.08) * rng.normal(size=positions.shape)


def handed_over(
    molecule: Molecule,
    first: np.ndarray,
    numbers: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Two bodies with a hydrogen or halogen of the first on its way to an atom of the second.

    Args:
        molecule: of `first`. numbers: of `second`, (M,).
    """
    ends = [
        (int(i), int(j)) if int(z) in PASSED_ON else (int(j), int(i))
        for i, j in molecule.bonds
        for z in (molecule.numbers[i],)
    ]
    ends = [(h, x) for h, x in ends if molecule.numbers[h] in PASSED_ON and molecule.numbers[x] > 1]
    acceptors = np.flatnonzero((numbers != 1) & ~np.isin(numbers, PASSED_ON))
    if not ends or not acceptors.size:
        return None
    passed, donor = ends[int(rng.integers(len(ends)))]
    acceptor = int(rng.choice(acceptors))
    axis = first[passed] - first[donor]
    moved = first.copy()
    moved[passed] += axis * rng.uniform(0.0, 0.6)
    length = covalent_radii[[molecule.numbers[passed], numbers[acceptor]]].sum()
    return collision(moved, second, (passed, acceptor), length * rng.uniform(0.95, 1.7), rng)


def distort(molecule: Molecule, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the four distortions above, the first three followed by a slight shake."""
    move = rng.choice(["stretch", "bend", "twist", "shake"], p=[0.4, 0.2, 0.15, 0.25])
    if move == "shake" or len(molecule.numbers) < 3:
        return shake(positions, rng)
    moved = {"stretch": stretch, "bend": bend, "twist": twist}[move](molecule, positions, rng)
    return moved + rng.uniform(0, 0.04) * rng.normal(size=positions.shape)


def pair(
    first: np.ndarray, second: np.ndarray, distance: float, rng: np.random.Generator
) -> np.ndarray:
    """Two bodies in random orientations, their closest atoms `distance` apart."""
    first = _random_orientation(first, rng)
    second = _random_orientation(second, rng)
    direction = _unit(rng)
    low, high = 0.0, 30.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        closest = cdist(first, second + middle * direction).min()
        low, high = (middle, high) if closest < distance else (low, middle)
    return np.concatenate([first, second + high * direction])


def collision(
    first: np.ndarray,
    second: np.ndarray,
    atoms: tuple[int, int],
    distance: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Two bodies with the given atoms `distance` apart, turned so that no other atoms are close.

    Of 30 random orientations the one is taken in which all other pairs are farthest apart.
    """
    best, best_gap = None, -1.0
    for _ in range(30):
        a = _random_orientation(first - first[atoms[0]], rng, centre=False)
        b = _random_orientation(second - second[atoms[1]], rng, centre=False)
        b = b + np.array([distance, 0.0, 0.0])
        gaps = cdist(a, b)
        gaps[atoms] = np.inf
        if gaps.min() > best_gap:
            best, best_gap = np.concatenate([a, b]), gaps.min()
    return best


def _random_orientation(
    positions: np.ndarray, rng: np.random.Generator, centre: bool = True
) -> np.ndarray:
    origin = positions.mean(0) if centre else 0.0
    return Rotation.random(rng=rng).apply(positions - origin)


def _turned(
    positions: np.ndarray, side: np.ndarray, pivot: np.ndarray, axis: np.ndarray
) -> np.ndarray:
    moved = positions.copy()
    moved[side] = pivot + Rotation.from_rotvec(axis).apply(positions[side] - pivot)
    return moved


def _unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)
