"""Distinct neutral closed-shell molecules, grown from valence rules alone.

Four families: the organic one of H, C, N and O, one in which each molecule has B, F, Si, P, S, Cl
or Br as well, one of few atoms of any kind, in which strained and rare groups are not thinned out,
and two further ones of all kinds. From a sixth, `choose.py` takes those that an earlier model knows
least about.

Two ways of growing: substituents put on cores, and random graphs built atom by atom. Molecules
are compared by their skeleton (which atoms are bonded, with bond orders forgotten), so that
resonance forms count once and no test molecule slips in under another Lewis structure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.neighborlist import natural_cutoffs, neighbor_list
from rdkit import Chem, RDLogger
from rdkit.Chem.Scaffolds import MurckoScaffold

from fragments import (
    CHAIN_CORES,
    MORE_CHAIN_CORES,
    MORE_RING_CORES,
    MORE_SUBSTITUENTS,
    MORE_WHOLE,
    RING_CORES,
    SUBSTITUENTS,
    WHOLE,
    words,
)  # fmt: skip

RDLogger.DisableLog("rdApp.*")

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br")
VALENCE = {5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 3, 16: 2, 17: 1, 35: 1}
HETERO = {7: 0.16, 8: 0.2, 5: 0.06, 9: 0.13, 14: 0.08, 15: 0.08, 16: 0.14, 17: 0.1, 35: 0.05}
"""Element -> share among the atoms other than carbon in random graphs of the second family."""
HIGHEST_OXIDES = {15: 1, 16: 2}
"""Oxygen atoms that phosphorus and sulfur may take up besides their bonds."""
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
WANTED_SMALL = {2: 100, 3: 800, 4: 1800, 5: 2400}
WANTED_MORE = {
    1: 40, 2: 160, 3: 600, 4: 1300, 5: 1700, 6: 1600, 7: 1200, 8: 800, 9: 450, 10: 200, 11: 100,
    12: 80,
}  # fmt: skip
WANTED_FURTHER = {3: 150, 4: 500, 5: 1000, 6: 1300, 7: 1300, 8: 900, 9: 500}
WANTED_VARIOUS = {3: 300, 4: 1000, 5: 1800, 6: 2500, 7: 2500, 8: 2000, 9: 1200, 10: 600}
WANTED_CANDIDATES = {3: 500, 4: 1400, 5: 2000, 6: 2000, 7: 1600, 8: 1000, 9: 500}
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
        "[Si,B]#*",
        "[Si]=[!C]",
        "[F,Cl,Br][OX2][F,Cl,Br,O,N]",
        "[F,Cl,Br][NX3,NX2][OX2,NX3,SX2]",
        "[OX2][OX2][B,Si,P,S]",
        "[SX2][SX2][SX2][SX2]",
        "[Br][P,S;v5,v6]",
        "[BX2]=*",
        "[B;v4;+0]",
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
        "[F,Cl,Br][!#6;!#5;!#14;!#15]",
        "[Si,P]=[#6,#7,#14,#15]",
        "[P,S,Si,B][P,S,Si,B]",
        "[BH,BH2,BH3]",
    )
)


HELD_OUT = Path(__file__).with_name("held_out.txt")
TINY = 4
"""Molecules of up to so many atoms are trained on even where g2 has them: none are like them."""


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
    """Names of the closed-shell molecules of known elements in ASE's g2 collection."""
    names = []
    for name in g2.names:
        atoms = molecule(name)
        even = atoms.numbers.sum() % 2 == 0
        unpolarised = np.abs(atoms.get_initial_magnetic_moments()).sum() < 0.1
        if set(atoms.symbols) <= set(ELEMENTS) and even and unpolarised and len(atoms) > 1:
            names.append(name)
    return names


def forbidden_skeletons() -> set[str]:
    """Skeletons of all test molecules: the named campaigns, and g2 beyond the tiny ones."""
    found = {skeleton_of_smiles(s) for s in CAMPAIGN_TESTS}
    for name in g2.names:
        atoms = molecule(name)
        if set(atoms.symbols) <= set(ELEMENTS) and len(atoms) > TINY:
            found |= {skeleton_of_geometry(atoms, s) for s in (1.15, 1.25, 1.35)}
    return found


def scaffold(smiles: str) -> str:
    """Ring systems with their linkers, all atoms carbon and all bonds single; empty for chains."""
    core = MurckoScaffold.GetScaffoldForMol(Chem.MolFromSmiles(smiles))
    return Chem.MolToSmiles(MurckoScaffold.MakeScaffoldGeneric(core))


def held_out() -> dict[str, list[str]]:
    """Return family -> SMILES of the molecules that no bundled model was ever trained on.

    The organic ones were drawn at random. Of the mixed ones half are chains; the others have
    scaffolds that no molecule is trained on, neither the rarest, which are the oddest, nor the most
    common, which training needs.
    """
    found: dict[str, list[str]] = {}
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        family, smiles = line.split()
        found.setdefault(family, []).append(smiles)
    return found


def is_plausible(mol: Chem.Mol) -> bool:
    """Whether a molecule is neutral, closed shell and free of groups known to fall apart."""
    if any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()) or Chem.GetFormalCharge(mol) != 0:
        return False
    if any(a.GetAtomicNum() not in VALENCE for a in mol.GetAtoms()) or mol.GetNumHeavyAtoms() > 14:
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


def organic_atoms(n_heavy: int, rng: np.random.Generator) -> np.ndarray:
    """Atomic numbers of C, N and O."""
    hetero = 0.0 if rng.random() < 0.3 else rng.uniform(0.05, 0.5)
    return rng.choice([6, 7, 8], size=n_heavy, p=[1 - hetero, hetero / 2, hetero / 2])


def mixed_atoms(n_heavy: int, rng: np.random.Generator) -> np.ndarray:
    """Atomic numbers of all elements, hydrogen apart."""
    share = np.array(list(HETERO.values()))
    numbers = rng.choice(list(HETERO), size=n_heavy, p=share / share.sum())
    return np.where(rng.random(n_heavy) < rng.uniform(0.1, 0.7), numbers, 6)


def any_atoms(n_heavy: int, rng: np.random.Generator) -> np.ndarray:
    """Atomic numbers of all elements, carbon hardly preferred."""
    share = np.array([*HETERO.values(), 0.3])
    return rng.choice([*HETERO, 6], size=n_heavy, p=share / share.sum())


def random_graph(numbers: np.ndarray, rng: np.random.Generator) -> str | None:
    """A random molecule of these heavy atoms: a tree grown atom by atom, then rings."""
    n_heavy = len(numbers)
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
    return _smiles_of_graph(numbers, order, rng)


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


def _smiles_of_graph(
    numbers: np.ndarray, order: np.ndarray, rng: np.random.Generator
) -> str | None:
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for z in numbers:
        mol.AddAtom(Chem.Atom(int(z)))
    for i, j in np.argwhere(np.triu(order)):
        if order[i, j] > 3:
            return None
        mol.AddBond(int(i), int(j), kinds[int(order[i, j])])
    for i, z in enumerate(numbers):
        for _ in range(HIGHEST_OXIDES.get(int(z), 0)):
            if rng.random() < 0.25:
                mol.AddBond(i, mol.AddAtom(Chem.Atom(8)), Chem.BondType.DOUBLE)
    return canonical(mol.GetMol())


@dataclass(frozen=True)
class Family:
    """How molecules of one kind are grown, and how many of each size.

    Attributes:
        substituted: share grown from cores, the rest are random graphs.
        exotic_share: of molecules with one strained or weak group this share is kept, with two
            its square, and so on. must_have: one of these elements. largest: heavy atoms of a
            random graph.
    """

    cores: tuple[tuple[str, ...], tuple[str, ...]]
    substituents: tuple[str, ...]
    whole: tuple[str, ...]
    atoms: Callable[[int, np.random.Generator], np.ndarray]
    wanted: dict[int, int]
    substituted: float
    exotic_share: float
    must_have: frozenset[int] = frozenset()
    largest: int = 10


FAMILIES = {
    "organic": Family(
        (words(CHAIN_CORES), words(RING_CORES)), words(SUBSTITUENTS), words(WHOLE),
        organic_atoms, WANTED_BY_HEAVY_ATOMS, 0.55, 0.5,
    ),
    "mixed": Family(
        (words(MORE_CHAIN_CORES), words(MORE_RING_CORES)), words(MORE_SUBSTITUENTS),
        words(MORE_WHOLE), mixed_atoms, WANTED_MORE, 0.75, 0.3,
        frozenset({5, 9, 14, 15, 16, 17, 35}),
    ),
    "small": Family(
        ((), ()), (), (), any_atoms, WANTED_SMALL, 0.0, 1.0, largest=5,
    ),
    "further": Family(
        (words(CHAIN_CORES + MORE_CHAIN_CORES), words(RING_CORES + MORE_RING_CORES)),
        words(SUBSTITUENTS + MORE_SUBSTITUENTS), (), mixed_atoms, WANTED_FURTHER, 0.7, 0.5,
    ),
    "various": Family(
        (words(CHAIN_CORES + MORE_CHAIN_CORES), words(RING_CORES + MORE_RING_CORES)),
        words(SUBSTITUENTS + MORE_SUBSTITUENTS), (), mixed_atoms, WANTED_VARIOUS, 0.6, 0.7,
    ),
}  # fmt: skip
FIRST_ID = 10_000
"""Ids of a family's molecules begin at a multiple of this; those of chosen ones come last."""
CANDIDATES = Family(
    (words(CHAIN_CORES + MORE_CHAIN_CORES), words(RING_CORES + MORE_RING_CORES)),
    words(SUBSTITUENTS + MORE_SUBSTITUENTS), (), mixed_atoms, WANTED_CANDIDATES, 0.6, 0.7,
)  # fmt: skip
"""Molecules of which `choose.py` takes those worth most."""


def candidates(family: Family, rng: np.random.Generator) -> Iterator[str]:
    """An endless stream of acceptable canonical SMILES, repeats included."""
    cores, groups = family.cores, family.substituents
    for text in family.whole + cores[0] + cores[1]:
        if (smiles := canonical(text)) is not None:
            yield smiles
    while True:
        if rng.random() < family.substituted:
            table = cores[int(rng.random() < 0.5)]
            core = table[int(rng.integers(len(table)))]
            n_groups = int(rng.choice([1, 2, 3, 4], p=[0.45, 0.35, 0.15, 0.05]))
            smiles = substitute(core, rng.choice(groups, size=n_groups).tolist(), rng)
        else:
            smiles = random_graph(family.atoms(int(rng.integers(1, 1 + family.largest)), rng), rng)
        if smiles is not None and rng.random() < family.exotic_share ** count_exotic(smiles):
            yield smiles


def count_exotic(smiles: str) -> int:
    """How many kinds of strained or weak bonds a molecule has; such molecules are thinned out."""
    mol = Chem.MolFromSmiles(smiles)
    return sum(mol.HasSubstructMatch(pattern) for pattern in EXOTIC)


def is_exotic(smiles: str) -> bool:
    """Whether a molecule has one of the strained or rare groups of `EXOTIC`."""
    return count_exotic(smiles) > 0


def generate(
    family: Family, seed: int, others: Sequence[str] = (), patience: int = 150_000
) -> list[str]:
    """Distinct molecules, as many of each size as are wanted or as `patience` draws find.

    Returns canonical SMILES in random order, none of them a test molecule or one of `others`.
    """
    rng = np.random.default_rng(seed)
    seen = forbidden_skeletons() | {skeleton_of_smiles(smiles) for smiles in others}
    left = dict(family.wanted)
    found: list[str] = []
    known: set[str] = set()
    stream = candidates(family, rng)
    for _ in range(patience):
        smiles = next(stream)
        if smiles in known:
            continue
        known.add(smiles)
        mol = Chem.MolFromSmiles(smiles)
        size = mol.GetNumHeavyAtoms()
        if family.must_have and not family.must_have & {a.GetAtomicNum() for a in mol.GetAtoms()}:
            continue
        if left.get(size, 0) == 0 or (graph := skeleton_of_smiles(smiles)) in seen:
            continue
        seen.add(graph)
        left[size] -= 1
        found.append(smiles)
        if not any(n for s, n in left.items() if s >= min(5, family.largest)):
            break
    return [found[i] for i in rng.permutation(len(found))]
