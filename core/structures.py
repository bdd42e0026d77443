"""One immutable structure type, and how people's files, SMILES and names become one.

A file is read as text by ASE's own parser of a few declared formats: nothing that could be a
program (pickle, ASE's trajectory or database formats) is ever opened.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import ase
import ase.build
import ase.cell
import ase.data
import ase.geometry
import ase.io
import ase.neighborlist
import numpy as np
import scipy.spatial

from core.errors import StructureError, shorten

FORMATS = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".cif": "cif",
    ".pdb": "proteindatabank",
    ".sdf": "sdf",
    ".mol": "sdf",
    ".gen": "gen",
    ".vasp": "vasp",
    ".poscar": "vasp",
}
"""File suffixes that are accepted, and the ASE format each is read with."""

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_ATOMS = 20_000
FARTHEST = 1e5
"""Largest coordinate that is accepted, Å."""
THINNEST_CELL = 0.5
"""Least distance, Å, between two lattice planes that are a period apart."""
TOO_CLOSE = 0.4
"""Two atoms nearer than this fraction of the sum of their covalent radii overlap."""


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Which components of a stress (3, 3) are the independent six, in the usual order."""


def to_voigt(stress: np.ndarray) -> np.ndarray:
    """Return the six independent components (…, 6) of symmetric (…, 3, 3)."""
    return np.stack([stress[..., i, j] for i, j in VOIGT], axis=-1)


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms at one moment.

    Attributes:
        numbers: (N,) atomic numbers. positions: (N, 3), Å.
        cell: (3, 3), Å, rows are lattice vectors; zeros for a molecule. pbc: periodic directions.
        charge: total charge, e. spin: number of unpaired electrons.
        fixed: indices of atoms that do not move.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: tuple[bool, bool, bool] = (False, False, False)
    charge: int = 0
    spin: int = 0
    fixed: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order, for people."""
        return ase.Atoms(numbers=self.numbers).get_chemical_formula()

    @property
    def key(self) -> str:
        """Content hash of everything that decides a label (positions to 1e-6 Å)."""
        digest = hashlib.sha256()
        for part in (
            self.numbers.astype("<i4"),
            np.round(self.positions * 1e6).astype("<i8"),
            np.round(self.cell * 1e6).astype("<i8"),
            np.array([*self.pbc, self.charge, self.spin], dtype="<i4"),
        ):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:24]

    @property
    def is_bulk(self) -> bool:
        """Whether the structure repeats in all three directions, so that it has a stress."""
        return all(self.pbc)

    @property
    def volume(self) -> float:
        """Volume of the cell, Å³; nan unless the structure repeats in all three directions."""
        return abs(float(np.linalg.det(self.cell))) if self.is_bulk else float("nan")

    def moved(self, positions: np.ndarray, cell: np.ndarray | None = None) -> Structure:
        """Return the same atoms at other positions (N, 3), in another cell (3, 3) if given."""
        return Structure(
            self.numbers, np.array(positions, dtype=float),
            self.cell if cell is None else np.array(cell, dtype=float), self.pbc,
            self.charge, self.spin, self.fixed,
        )  # fmt: skip

    def to_atoms(self) -> ase.Atoms:
        """Return an ASE Atoms with constraints, charge and spin in `info`."""
        atoms = ase.Atoms(
            numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc
        )
        atoms.info.update(charge=self.charge, spin=self.spin)
        if self.fixed:
            from ase.constraints import FixAtoms

            atoms.set_constraint(FixAtoms(indices=list(self.fixed)))
        return atoms


def from_atoms(
    atoms: ase.Atoms, *, charge: int | None = None, spin: int | None = None
) -> Structure:
    """Return the structure of an ASE Atoms; constraints other than fixed atoms are not kept."""
    from ase.constraints import FixAtoms

    fixed = [c.get_indices() for c in atoms.constraints if isinstance(c, FixAtoms)]
    return Structure(
        numbers=np.array(atoms.numbers, dtype=int),
        positions=np.array(atoms.positions, dtype=float),
        cell=np.array(atoms.cell.array, dtype=float),
        pbc=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        charge=int(atoms.info.get("charge", 0) if charge is None else charge),
        spin=int(atoms.info.get("spin", 0) if spin is None else spin),
        fixed=tuple(int(i) for i in np.concatenate(fixed)) if fixed else (),
    )


def check(structure: Structure) -> Structure:
    """Return `structure` if it can be simulated.

    Raises:
        StructureError: no atoms, non-finite or overlapping positions, impossible spin.
    """
    n = len(structure)
    if n == 0:
        raise StructureError("The structure has no atoms; give at least one.")
    if n > MAX_ATOMS:
        raise StructureError(f"The structure has {n} atoms; at most {MAX_ATOMS} are accepted.")
    if not (np.abs(structure.positions) < FARTHEST).all():
        raise StructureError(
            f"The structure has positions that are not finite numbers, or beyond {FARTHEST:g} Å."
        )
    if (structure.numbers < 1).any() or (structure.numbers > 118).any():
        raise StructureError("The structure has atoms that are no chemical element.")
    _check_cell(structure)
    electrons = int(structure.numbers.sum()) - structure.charge
    if electrons < 0 or (electrons - structure.spin) % 2:
        raise StructureError(
            f"{structure.formula} with charge {structure.charge} has {electrons} electrons, which "
            f"cannot leave {structure.spin} unpaired; set structure.charge or structure.spin."
        )
    _check_distances(structure)
    return structure


def _check_cell(structure: Structure) -> None:
    periodic = np.array(structure.pbc)
    cell = structure.cell[periodic]
    good = bool((np.abs(cell) < FARTHEST).all()) and bool((np.abs(cell).max(axis=1) > 0).all())
    if good:
        a, b, c = _spanned(structure)
        faces = np.array([np.cross(b, c), np.cross(c, a), np.cross(a, b)])
        heights = abs(float(a @ faces[0])) / np.maximum(np.linalg.norm(faces, axis=1), 1e-300)
        good = bool((heights[periodic] >= THINNEST_CELL).all())
    if not good:
        raise StructureError(
            "The periodic cell is flat, too thin or not made of finite numbers: lattice planes "
            f"must lie at least {THINNEST_CELL} Å apart. Check Lattice (or the cell parameters) "
            "and which directions are periodic."
        )


def _spanned(structure: Structure) -> np.ndarray:
    """Return the cell (3, 3), Å, with unit normals in the directions that are not periodic."""
    cell = np.where(np.array(structure.pbc)[:, None], structure.cell, 0.0)
    return np.array(ase.cell.Cell(cell).complete())


def _check_distances(structure: Structure) -> None:
    pair = closest_pair(structure)
    if pair is None:
        return
    i, j, distance, limit = pair
    if distance < limit:
        names = [f"{ase.data.chemical_symbols[structure.numbers[k]]}{k + 1}" for k in (i, j)]
        raise StructureError(
            f"Atoms {names[0]} and {names[1]} are {distance:.2f} Å apart and overlap (at least "
            f"{limit:.2f} Å is accepted); check the coordinates and their unit (Å)."
        )


def closest_pair(structure: Structure) -> tuple[int, int, float, float] | None:
    """Return (i, j, distance Å, smallest acceptable distance Å) of the most overlapping pair."""
    radii = ase.data.covalent_radii[structure.numbers]
    i, j, d = _pairs(structure, 2 * TOO_CLOSE * float(radii.max()) + 1e-3)
    if len(d) == 0:
        return None
    limits = TOO_CLOSE * (radii[i] + radii[j])
    worst = int(np.argmin(d / limits))
    return int(i[worst]), int(j[worst]), float(d[worst]), float(limits[worst])


def _pairs(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first and second atom and distance (M,) of the pairs nearer than `cutoff`, Å."""
    positions, aperiodic = structure.positions, ~np.array(structure.pbc)
    if aperiodic.all():  # however far apart the atoms are
        i, j = scipy.spatial.cKDTree(positions).query_pairs(cutoff, output_type="ndarray").T
        return i, j, np.linalg.norm(positions[i] - positions[j], axis=1)
    cell = _spanned(structure)
    cell[aperiodic] *= 10.0 + float(np.ptp(positions, axis=0).max())
    return ase.neighborlist.primitive_neighbor_list(
        "ijd", structure.pbc, cell, positions, cutoff=cutoff, self_interaction=False
    )


def rmsd(structure: Structure, first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square distance, Å, between positions (N, 3) of the same atoms.

    A molecule is turned and shifted to fit best (Kabsch, doi 10.1107/S0567739476001873); in a
    periodic structure each atom's shortest displacement counts.
    """
    if any(structure.pbc):
        difference, _ = ase.geometry.find_mic(second - first, structure.cell, structure.pbc)
        difference = difference - difference.mean(axis=0)
        return float(np.sqrt((difference**2).sum(axis=1).mean()))
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    left, sizes, right = np.linalg.svd(a.T @ b)
    sizes[-1] *= np.sign(np.linalg.det(left @ right))
    squared = (a**2).sum() + (b**2).sum() - 2 * sizes.sum()
    return float(np.sqrt(max(squared, 0.0) / len(a)))


def from_smiles(smiles: str, *, seed: int = 1) -> Structure:
    """Embed a SMILES string in space (ETKDG, then MMFF94).

    Raises:
        StructureError: rdkit is absent, or the string is no molecule it can embed.
    """
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import AllChem
    except ImportError as error:
        raise StructureError(
            "Reading SMILES needs rdkit; install it with: pip install 'flywise[chem]'."
        ) from error
    RDLogger.DisableLog("rdApp.*")
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise StructureError(
            f"{smiles!r} is not a SMILES string rdkit can read; write for example 'CCO'."
        )
    molecule = Chem.AddHs(molecule)
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise StructureError(
            f"No 3D geometry could be built for {smiles!r}; give a structure file instead."
        )
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    return check(
        Structure(
            numbers=np.array([a.GetAtomicNum() for a in molecule.GetAtoms()]),
            positions=np.array(molecule.GetConformer().GetPositions()),
            charge=Chem.GetFormalCharge(molecule),
            spin=sum(a.GetNumRadicalElectrons() for a in molecule.GetAtoms()),
        )
    )


def from_name(name: str) -> Structure:
    """Return a molecule of ASE's library by name ("CH3CH2OH").

    Raises:
        StructureError: ASE does not know the name.
    """
    try:
        atoms = ase.build.molecule(name)
    except KeyError as error:
        raise StructureError(
            f"{name!r} is not in ASE's molecule library; names look like 'CH3CH2OH', 'H2O', "
            "'C6H6'. A SMILES string goes into structure.smiles."
        ) from error
    spin = int(round(abs(atoms.get_initial_magnetic_moments().sum())))
    return check(from_atoms(atoms, charge=0, spin=spin))


def from_file(
    path: str | Path, *, index: int = 0, charge: int | None = None, spin: int | None = None
) -> Structure:
    """Read one structure from a file in one of `FORMATS`.

    Args:
        charge: total charge, e; None for what the file says, else 0. spin: likewise.

    Raises:
        StructureError: missing, empty, too large, of another format, or not parseable.
    """
    path = Path(path)
    if not path.is_file():
        raise StructureError(f"There is no file {path}; give the path of a structure file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise StructureError(f"{path.name} is larger than {MAX_FILE_BYTES >> 20} MB.")
    return from_bytes(path.read_bytes(), path.name, index=index, charge=charge, spin=spin)


def from_bytes(
    data: bytes,
    filename: str,
    *,
    index: int = 0,
    charge: int | None = None,
    spin: int | None = None,
) -> Structure:
    """Read one structure from an upload; the suffix of `filename` decides the format.

    Raises:
        StructureError: as `from_file`.
    """
    suffix = Path(filename).suffix.lower()
    if suffix not in FORMATS:
        raise StructureError(
            f"{filename}: files ending in {suffix or '(nothing)'} are not accepted; "
            f"accepted: {', '.join(FORMATS)}."
        )
    if not data.strip():
        raise StructureError(f"{filename} is empty; it must hold at least one atom.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StructureError(f"{filename} is not a text file; nothing in it was opened.") from error
    if "\0" in text:
        raise StructureError(f"{filename} is not a text file; nothing in it was opened.")
    atoms = _parse(text, filename, FORMATS[suffix], index)
    try:
        structure = from_atoms(atoms, charge=charge, spin=spin)
    except (TypeError, ValueError, OverflowError) as error:
        raise StructureError(
            f"{filename}: charge and spin must be whole numbers, but the file says "
            f"charge={shorten(repr(atoms.info.get('charge')), 60)}, "
            f"spin={shorten(repr(atoms.info.get('spin')), 60)}."
        ) from error
    return check(structure)


def _check_counts(text: str, filename: str, fmt: str) -> None:
    """Refuse a file that announces more than it holds: ASE would make room for all of it first.

    Raises:
        StructureError: the file is cut off, or a header is wrong.
    """
    lines, at = text.splitlines(), 0
    if fmt == "vasp":  # species or counts stand in the sixth line, counts or a mode in the next
        for number in re.findall(r"[0-9]+", " ".join(lines[5:7])):
            _check_count(number, len(lines), 6, filename)
    count = re.compile(r"\s*\d+\s*", re.ASCII)
    while fmt == "extxyz" and at < len(lines) and count.fullmatch(lines[at]):
        _check_count(lines[at].strip(), max(len(lines) - at - 2, 0), at + 1, filename)
        wide = re.search(r":[A-Za-z]:(\d{4,})", "".join(lines[at + 1 : at + 2]))
        if wide is not None:
            raise StructureError(
                f"{filename}: line {at + 2} announces {shorten(wide[1], 20)} columns; correct "
                "Properties."
            )
        at += 2 + int(lines[at])


def _check_count(announced: str, left: int, line: int, filename: str) -> None:
    if len(announced) > 9 or int(announced) > left:
        raise StructureError(
            f"{filename}: line {line} announces {shorten(announced, 20)} atoms, but {left} lines "
            "are left; the file is cut off."
        )


def _parse(text: str, filename: str, fmt: str, index: int) -> ase.Atoms:
    _check_counts(text, filename, fmt)
    try:
        atoms = ase.io.read(io.StringIO(text), index=index, format=fmt)
    except Exception as error:  # ASE's parsers raise anything on malformed text
        raise StructureError(
            f"{filename} could not be read as {fmt}: {type(error).__name__}: "
            f"{shorten(str(error))}. Check the file, or convert it to extended XYZ."
        ) from error
    if isinstance(atoms, list) or not isinstance(atoms, ase.Atoms):
        raise StructureError(f"{filename} holds no structure at position {index}.")
    return atoms
