"""Distinct neutral closed-shell molecules of H, C, N and O, grown from valence rules alone.

Two ways of growing: substituents put on cores, and random graphs built atom by atom. Molecules
are compared by their skeleton (which atoms are bonded, with bond orders forgotten), so that
resonance forms count once and no test molecule slips in under another Lewis structure.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.neighborlist import natural_cutoffs, neighbor_list
from rdkit import Chem, RDLogger

from fragments import CHAIN_CORES, RING_CORES, SUBSTITUENTS, WHOLE, words

RDLogger.DisableLog("rdApp.*")

ELEMENTS = ("H", "C", "N", "O")
VALENCE = {6: 4, 7: 3, 8: 2}
CAMPAIGN_TESTS = (
    "NC1=NC=CC=C1OCC1=CC=CC=C1",  # 3BPA
    "CCC=O",
    "CNC=O",
    "OCC=O",
    "CC(N)C(=O)O",
    "OCCO",
    "NCCO",
    "O=CCC=O",
    "O=CC=CO",
    "CCO",
    "CC(N)=O",
)
WANTED_BY_HEAVY_ATOMS = {
    1: 20, 2: 60, 3: 220, 4: 560, 5: 900, 6: 850, 7: 620, 8: 400, 9: 240, 10: 110, 11: 60, 12: 50,
}  # fmt: skip
UNSTABLE = tuple(
    Chem.MolFromSmarts(s)
    for s in (
        "[OX2][OX2][OX2]",
        "[#7]~[#7]~[#7]~[#7;!a]",
        "[NX3][NX3][NX3][!H]",
        "[OX2][OX2][NX3]",
        "[NX3][OX2][OX2]",
        "[NX3][OX2][NX3]",
        "[OX2][NX3][OX2]",
        "[OX2][NX2]=[NX2]",
        "[OX2][OX2][NX2]",
        "[r3,r4,r5,r6,r7]#*",
        "[r3,r4,r5,r6]=[*;r3,r4,r5,r6;D2]=[r3,r4,r5,r6]",
        "[r3]=[r3]=*",
        "[OX2H][CX4][OX2][OX2]",
        "[CX4]([OX2H])([OX2H])[OX2H]",
        "[#8]~[#8]~[#7]~[#8]",
        "[R3]=[*]",
    )
)
EXOTIC = tuple(
    Chem.MolFromSmarts(s)
    for s in (
        "[O;!a][O;!a]",
        "[NX3;!a][NX3;!a]",
        "[NX3;!a][OX2;!a]",
        "[r3]",
        "[r4]",
        "C([OX2])[OX2]",
    )
)
EXOTIC_SHARE = 0.5


def skeleton(numbers: Sequence[int], bonds: Sequence[tuple[int, int]]) -> str:
    """Canonical string of a bonded graph with every hydrogen a node and bond orders forgotten."""
    graph = Chem.RWMol()
    for number in numbers:
        atom = Chem.Atom(int(number))
        atom.SetNoImplicit(True)
        graph.AddAtom(atom)
    for i, j in bonds:
        graph.AddBond(int(i), int(j), Chem.BondType.SINGLE)
    mol = graph.GetMol()
    Chem.FastFindRings(mol)
    mol.UpdatePropertyCache(strict=False)
    return Chem.MolToSmiles(mol)


def skeleton_of_smiles(smiles: str) -> str:
    """Skeleton of a molecule given as SMILES."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()]
    return skeleton([a.GetAtomicNum() for a in mol.GetAtoms()], bonds)


def skeleton_of_geometry(atoms: Atoms, scale: float = 1.25) -> str:
    """Skeleton of a geometry: atoms closer than `scale` times their covalent radii are bonded."""
    i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=scale))
    return skeleton(atoms.numbers, [(a, b) for a, b in zip(i, j, strict=True) if a < b])


def g2_closed_shell() -> list[str]:
    """Names of the closed-shell molecules of H, C, N and O in ASE's g2 collection."""
    names = []
    for name in g2.names:
        atoms = molecule(name)
        even = atoms.numbers.sum() % 2 == 0
        unpolarised = np.abs(atoms.get_initial_magnetic_moments()).sum() < 0.1
        if set(atoms.symbols) <= set(ELEMENTS) and even and unpolarised and len(atoms) > 1:
            names.append(name)
    return names


def forbidden_skeletons() -> set[str]:
    """Skeletons of all test molecules: g2 (closed shell or not) and the named campaigns."""
    found = {skeleton_of_smiles(s) for s in CAMPAIGN_TESTS}
    for name in g2.names:
        atoms = molecule(name)
        if set(atoms.symbols) <= set(ELEMENTS):
            found |= {skeleton_of_geometry(atoms, s) for s in (1.15, 1.25, 1.35)}
    return found


def is_plausible(mol: Chem.Mol) -> bool:
    """Whether a molecule is neutral, closed shell and free of groups known to fall apart."""
    if any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()) or Chem.GetFormalCharge(mol) != 0:
        return False
    if any(a.GetAtomicNum() not in VALENCE for a in mol.GetAtoms()) or mol.GetNumHeavyAtoms() > 12:
        return False
    if any(len(ring) > 8 for ring in mol.GetRingInfo().AtomRings()):
        return False
    return not any(mol.HasSubstructMatch(pattern) for pattern in UNSTABLE)


def canonical(smiles_or_mol: str | Chem.Mol) -> str | None:
    """Canonical SMILES without stereo marks, or None where the molecule is not acceptable."""
    mol = Chem.MolFromSmiles(smiles_or_mol) if isinstance(smiles_or_mol, str) else smiles_or_mol
    if mol is None or Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return None
    smiles = Chem.MolToSmiles(mol, isomericSmiles=False)
    again = Chem.MolFromSmiles(smiles)
    if again is None or "." in smiles or not is_plausible(again):
        return None
    return smiles


def substitute(core: str, substituents: Sequence[str], rng: np.random.Generator) -> str | None:
    """A core with substituents put on randomly chosen atoms in place of hydrogens."""
    mol = Chem.RWMol(Chem.MolFromSmiles(core))
    for text in substituents:
        sites = [a.GetIdx() for a in mol.GetAtoms() if a.GetTotalNumHs() > 0]
        if not sites:
            return None
        site = mol.GetAtomWithIdx(int(rng.choice(sites)))
        if site.GetNumExplicitHs():
            site.SetNumExplicitHs(site.GetNumExplicitHs() - 1)
        first, here = mol.GetNumAtoms(), site.GetIdx()
        group = Chem.MolFromSmiles(text, sanitize=False)
        mol = Chem.RWMol(Chem.CombineMols(mol, group))
        mol.AddBond(here, first, Chem.BondType.SINGLE)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
    return canonical(mol.GetMol())


def random_graph(n_heavy: int, rng: np.random.Generator) -> str | None:
    """A random molecule of `n_heavy` C, N and O atoms: a tree grown atom by atom, then rings."""
    hetero = 0.0 if rng.random() < 0.3 else rng.uniform(0.05, 0.5)
    numbers = rng.choice([6, 7, 8], size=n_heavy, p=[1 - hetero, hetero / 2, hetero / 2])
    free = np.array([VALENCE[int(z)] for z in numbers])
    order = np.zeros((n_heavy, n_heavy), dtype=int)
    for new in range(1, n_heavy):
        hosts = np.flatnonzero(free[:new] > 0)
        if not hosts.size:
            return None
        host = int(rng.choice(hosts))
        _add_bond(order, free, host, new, 1)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.45, 0.4, 0.12, 0.03]))):
        pairs = [p for p in _ring_pairs(order) if free[p[0]] > 0 and free[p[1]] > 0]
        if pairs:
            _add_bond(order, free, *pairs[int(rng.integers(len(pairs)))], 1)
    for _ in range(int(rng.integers(0, 1 + n_heavy))):
        i, j = np.nonzero(np.triu(order))
        k = int(rng.integers(len(i))) if len(i) else -1
        if k >= 0 and free[i[k]] > 0 and free[j[k]] > 0 and rng.random() < 0.8:
            _add_bond(order, free, int(i[k]), int(j[k]), 1)
    return _smiles_of_graph(numbers, order)


def _add_bond(order: np.ndarray, free: np.ndarray, i: int, j: int, more: int) -> None:
    order[i, j] += more
    order[j, i] += more
    free[[i, j]] -= more


def _ring_pairs(order: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of atoms that a bond would close to a ring of three to seven."""
    reach = np.where(order > 0, 1, 99)
    np.fill_diagonal(reach, 0)
    for k in range(len(order)):
        reach = np.minimum(reach, reach[:, k, None] + reach[None, k])
    wanted = np.triu((reach >= 2) & (reach <= 6))
    pairs = [(int(i), int(j)) for i, j in np.argwhere(wanted)]
    often = {2: 1, 3: 1, 4: 4, 5: 4, 6: 1}
    return [p for p in pairs for _ in range(often[int(reach[p])])]


def _smiles_of_graph(numbers: np.ndarray, order: np.ndarray) -> str | None:
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for z in numbers:
        mol.AddAtom(Chem.Atom(int(z)))
    for i, j in np.argwhere(np.triu(order)):
        if order[i, j] > 3:
            return None
        mol.AddBond(int(i), int(j), kinds[int(order[i, j])])
    return canonical(mol.GetMol())


def candidates(rng: np.random.Generator) -> Iterator[str]:
    """An endless stream of acceptable canonical SMILES, repeats included."""
    cores = (words(CHAIN_CORES), words(RING_CORES))
    groups = words(SUBSTITUENTS)
    for text in words(WHOLE) + cores[0] + cores[1]:
        if (smiles := canonical(text)) is not None:
            yield smiles
    while True:
        if rng.random() < 0.55:
            table = cores[int(rng.random() < 0.5)]
            core = table[int(rng.integers(len(table)))]
            n_groups = int(rng.choice([1, 2, 3, 4], p=[0.45, 0.35, 0.15, 0.05]))
            smiles = substitute(core, rng.choice(groups, size=n_groups).tolist(), rng)
        else:
            smiles = random_graph(int(rng.integers(1, 11)), rng)
        if smiles is not None and rng.random() < EXOTIC_SHARE ** count_exotic(smiles):
            yield smiles


def count_exotic(smiles: str) -> int:
    """How many kinds of strained or weak bonds a molecule has; such molecules are thinned out."""
    mol = Chem.MolFromSmiles(smiles)
    return sum(mol.HasSubstructMatch(pattern) for pattern in EXOTIC)


def is_exotic(smiles: str) -> bool:
    """Whether a molecule has one of the strained or rare groups of `EXOTIC`."""
    return count_exotic(smiles) > 0


def generate(seed: int, patience: int = 150_000) -> list[str]:
    """Distinct molecules, `WANTED_BY_HEAVY_ATOMS` of each size or as many as `patience` draws find.

    Returns canonical SMILES in random order, none of them a test molecule.
    """
    rng = np.random.default_rng(seed)
    seen = forbidden_skeletons()
    left = dict(WANTED_BY_HEAVY_ATOMS)
    found: list[str] = []
    known: set[str] = set()
    stream = candidates(rng)
    for _ in range(patience):
        smiles = next(stream)
        if smiles in known:
            continue
        known.add(smiles)
        mol = Chem.MolFromSmiles(smiles)
        size = mol.GetNumHeavyAtoms()
        if left.get(size, 0) == 0 or (graph := skeleton_of_smiles(smiles)) in seen:
            continue
        seen.add(graph)
        left[size] -= 1
        found.append(smiles)
        if not any(n for s, n in left.items() if s >= 5):
            break
    return [found[i] for i in rng.permutation(len(found))]
