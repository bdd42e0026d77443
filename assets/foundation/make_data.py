"""Make the training data of the bundled foundation model: molecules, geometries, GFN1-xTB labels.

    python make_data.py --out work

Writes `molecules.json`, `valid.npz`, `valid_geometries.npz`, `g2_test.npz`, `atoms.npz`, `tiny.npz`
and for each family of molecules `FAMILY_XXXX.npz`. Molecules are in random order, so any prefix of
a family's files is a fair sample. A second start goes on where the first one stopped.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from itertools import combinations_with_replacement, islice
from pathlib import Path

import numpy as np
from ase.build import molecule as g2_molecule
from ase.data import covalent_radii

from dataset import NUMBERS, Sample, save
from geometries import (
    Molecule,
    collision,
    distort,
    embed,
    handed_over,
    has_bonds_of,
    is_broken,
    pair,
    torn,
)  # fmt: skip
from labels import Frame, NotConvergedError, Surface, dynamics, isolated_atom, relax
from molecules import FAMILIES, FIRST_ID, g2_closed_shell, generate, held_out, scaffold
from tiny import tiny_samples

SEED = 20250
MOLECULES_PER_CHUNK = 30
RELAX_STEPS = 10
MD_FRAMES = 8
SKIPPED, STRIDE = 3, 2
"""Steps of a training trajectory before its first frame, and from one frame to the next."""
HEAVY, FRICTION = 4.0, 0.05
"""Least mass, u, and friction, 1/fs, of the atoms in training trajectories."""
DISTORTED = 2
PAIRS, PAIRS_OF_TESTS = (0.8, 0.3, 0.3), (1.2, 0.5, 0.4)
"""Dimers, close collisions and transfers for each molecule, to train on and to test on."""
TORN = 2
MOST_DRAWS = 60
"""Pairs drawn for each one wanted; most do not have the elements in question."""
HOT = (2000.0, 4000.0)
HOT_SHARE = 0.3
LARGEST_FORCE = 30.0
LARGEST_FORCE_IN_SCANS = 60.0
LARGEST_DIMER = 22
VALID_TEMPERATURES = (300.0, 600.0, 1200.0)
TEST_TEMPERATURES = (300.0, 1200.0)


Job = tuple[str, list[int], list[tuple[int, str]], Path]
"""Name and seed of a chunk, its molecules (id, SMILES), and the folder it goes to."""


def keep(frame: Frame, kind: str) -> bool:
    """Whether a frame is worth training on: bounded forces and nothing flown off or merged.

    Pairs of molecules may be any distance apart.
    """
    limit = LARGEST_FORCE_IN_SCANS if kind == "scan" else LARGEST_FORCE
    pair_of_bodies = kind in ("dimer", "scan", "reaction")
    whole = pair_of_bodies or not is_broken(frame.numbers, frame.positions)
    return frame.largest_force <= limit and whole


def sample(frame: Frame, molecule: int, kind: str, temperature: float = 0.0) -> Sample:
    """A labelled frame with its origin."""
    return Sample(
        frame.numbers, frame.positions, frame.forces, frame.energy, molecule, kind, temperature
    )


def draw_temperature(rng: np.random.Generator) -> float:
    """Log-uniform in 300-1,000 K for seven of ten trajectories, else in 1,000-2,000 K."""
    low, high = (300, 1000) if rng.random() < 0.7 else (1000, 2000)
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def relaxed(molecule: Molecule, surface: Surface, seed: int, steps: int) -> list[Frame]:
    """The path of a short relaxation; empty where the molecule falls apart or cannot be built."""
    start = embed(molecule, seed)
    if start is None:
        return []
    try:
        path = list(relax(surface, start, steps))
    except NotConvergedError:
        return []
    sane = has_bonds_of(molecule, path[-1].positions) and path[-1].largest_force < 3.0
    return path if sane else []


def trajectory(
    surface: Surface, start: np.ndarray, temperature: float, frames: int, rng: np.random.Generator
) -> list[Frame]:
    """Every eighth step (tenth above 1,000 K) of Langevin dynamics; stops where it breaks."""
    timestep = 1.0 if temperature <= 1000 else 0.5
    stride = 8 if temperature <= 1000 else 10
    steps = dynamics(surface, start, temperature, timestep, rng)
    return _sound(islice(steps, 20, 20 + stride * frames, stride))


def _sound(steps: Iterable[Frame]) -> list[Frame]:
    """The frames up to the first that is not worth keeping or does not converge."""
    stored: list[Frame] = []
    try:
        for frame in steps:
            if not keep(frame, "md"):
                break
            stored.append(frame)
    except NotConvergedError:
        pass
    return stored


def frames_of_molecule(
    molecule: Molecule, rng: np.random.Generator
) -> tuple[list[Sample], list[Frame]]:
    """Equilibrium, MD and distorted frames of one molecule, and its frames for use in dimers."""
    surface = Surface(molecule.numbers)
    path = relaxed(molecule, surface, int(rng.integers(2**31)), RELAX_STEPS)
    if not path:
        return [], []
    found = [sample(f, molecule.id, "equilibrium") for f in (path[len(path) // 3], path[-1])]
    bases = [path[-1]]
    start = path[-1].positions
    for half in range(2):
        if half and rng.random() < 0.5:
            other = relaxed(molecule, surface, int(rng.integers(2**31)), RELAX_STEPS // 2)
            start = other[-1].positions if other else start
        temperature = draw_temperature(rng)
        stored = sampled(surface, start, temperature, MD_FRAMES // 2, rng)
        found += [sample(f, molecule.id, "md", temperature) for f in stored]
        bases += stored[:: max(1, len(stored) - 1)]
    for _ in range(DISTORTED):
        base = bases[int(rng.integers(len(bases)))]
        found += labelled(surface, distort(molecule, base.positions, rng), molecule.id, "distorted")
    for _ in range(TORN):
        base = bases[int(rng.integers(len(bases)))]
        found += labelled(surface, torn(molecule, base.positions, rng), molecule.id, "reaction")
    if rng.random() < HOT_SHARE:
        temperature = float(rng.uniform(*HOT))
        stored = sampled(surface, start, temperature, MD_FRAMES // 2, rng)
        found += [sample(f, molecule.id, "reaction", temperature) for f in stored]
    return found, bases


def sampled(
    surface: Surface, start: np.ndarray, temperature: float, frames: int, rng: np.random.Generator
) -> list[Frame]:
    """Frames to train on: as thermal as those of `trajectory`, for a fifth of the calculations.

    Heavy hydrogens allow steps of 3 fs (1.5 fs above 1,000 K), so that every second is worth it.
    """
    timestep = 3.0 if temperature <= 1000 else 1.5
    steps = dynamics(surface, start, temperature, timestep, rng, FRICTION, HEAVY)
    return _sound(islice(steps, SKIPPED, SKIPPED + STRIDE * frames, STRIDE))


def labelled(surface: Surface, positions: np.ndarray, molecule: int, kind: str) -> list[Sample]:
    """The frame at these positions in a list, or no frame where it is not worth keeping."""
    try:
        frame = surface(positions)
    except NotConvergedError:
        return []
    return [sample(frame, molecule, kind)] if keep(frame, kind) else []


def dimer(
    pool: list[tuple[Molecule, Frame]], rng: np.random.Generator
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Two of the pool's frames in random orientations, contacts of 1.2-6 Å, mostly 1.6-3.5 Å."""
    (first, a), (_, b) = (pool[int(k)] for k in rng.integers(len(pool), size=2))
    if len(a.numbers) + len(b.numbers) > LARGEST_DIMER:
        return None
    edges = ((1.2, 1.6), (1.6, 3.5), (3.5, 6.0))
    distance = rng.uniform(*edges[int(rng.choice(3, p=[0.2, 0.6, 0.2]))])
    numbers = np.concatenate([a.numbers, b.numbers])
    return first.id, numbers, pair(a.positions, b.positions, distance, rng)


def impact(
    pool: list[tuple[Molecule, Frame]], rng: np.random.Generator
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Two of the pool's frames with one atom of each close by, all element pairs alike."""
    known = np.unique(np.concatenate([f.numbers for _, f in pool]))
    pairs = list(combinations_with_replacement(known.tolist(), 2))
    wanted = pairs[int(rng.integers(len(pairs)))]
    (first, a), (_, b) = (pool[int(k)] for k in rng.integers(len(pool), size=2))
    here = np.flatnonzero(a.numbers == wanted[0])
    there = np.flatnonzero(b.numbers == wanted[1])
    if not (here.size and there.size) or len(a.numbers) + len(b.numbers) > LARGEST_DIMER:
        return None
    atoms = (int(rng.choice(here)), int(rng.choice(there)))
    numbers = np.concatenate([a.numbers, b.numbers])
    distance = rng.uniform(0.3, 0.9) * covalent_radii[list(wanted)].sum() + 0.2
    return first.id, numbers, collision(a.positions, b.positions, atoms, distance, rng)


def transfer(
    pool: list[tuple[Molecule, Frame]], rng: np.random.Generator
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Two of the pool's frames, a hydrogen or halogen of the first between both of them."""
    (first, a), (_, b) = (pool[int(k)] for k in rng.integers(len(pool), size=2))
    if len(a.numbers) + len(b.numbers) > LARGEST_DIMER:
        return None
    positions = handed_over(first, a.positions, b.numbers, b.positions, rng)
    return None if positions is None else (first.id, np.append(a.numbers, b.numbers), positions)


def frames_of_pairs(
    pool: list[tuple[Molecule, Frame]], rng: np.random.Generator, shares: tuple[float, ...]
) -> list[Sample]:
    """Dimers, close collisions and transfers between the molecules of one chunk."""
    found: list[Sample] = []
    small = [(m, f) for m, f in pool if len(f.numbers) <= LARGEST_DIMER - 5]
    n_molecules = len({m.id for m, _ in pool})
    ways = ((dimer, "dimer"), (impact, "scan"), (transfer, "reaction"))
    for (make, kind), share in zip(ways, shares, strict=True):
        wanted, have = int(share * n_molecules), 0
        for _ in range(MOST_DRAWS * wanted):
            made = make(small, rng) if small and have < wanted else None
            if made is not None:
                new = labelled(Surface(made[1]), made[2], made[0], kind)
                have += len(new)
                found += new
    return found


def make_chunk(job: Job) -> tuple[str, int, float]:
    """Write one chunk; returns its name, its number of frames and the seconds it took."""
    name, seed, entries, out = job
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    found: list[Sample] = []
    pool: list[tuple[Molecule, Frame]] = []
    for id_, smiles in entries:
        molecule = Molecule.from_smiles(id_, smiles)
        frames, bases = frames_of_molecule(molecule, rng)
        found += frames
        pool += [(molecule, base) for base in bases]
    found += frames_of_pairs(pool, rng, PAIRS)
    order = rng.permutation(len(found))
    save(out / f"{name}.npz", [found[k] for k in order])
    return name, len(found), time.perf_counter() - started


def make_atoms(path: Path) -> None:
    """Isolated atoms, for reference, and the repulsive walls of diatomics, inside equilibrium."""
    found = [sample(isolated_atom(z), -1, "atom") for z in NUMBERS]
    for numbers in combinations_with_replacement(NUMBERS, 2):
        bond = covalent_radii[list(numbers)].sum()
        surface = Surface(np.array(numbers), unpaired=sum(numbers) % 2)
        for distance in np.linspace(0.5, 0.85 * bond, 8):
            ends = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
            found += labelled(surface, ends, -1, "scan")
    save(path, found)


def md_samples(
    surface: Surface, start: np.ndarray, id_: int, plan: tuple[tuple[float, int], ...], seed: int
) -> list[Sample]:
    """MD frames of one molecule, (temperature, number of frames) after the plan."""
    rng = np.random.default_rng([SEED, 1, seed])
    found: list[Sample] = []
    for temperature, frames in plan:
        stored = trajectory(surface, start, temperature, frames, rng)
        found += [sample(f, id_, "md", temperature) for f in stored]
    return found


def make_valid(molecules: list[dict], path: Path) -> None:
    """Ten MD frames of each held-out molecule at each temperature."""
    found: list[Sample] = []
    for entry in molecules:
        molecule = Molecule.from_smiles(entry["id"], entry["smiles"])
        surface = Surface(molecule.numbers)
        relaxation = relaxed(molecule, surface, SEED, 40)
        if relaxation:
            plan = tuple((t, 10) for t in VALID_TEMPERATURES)
            start = relaxation[-1].positions
            found += md_samples(surface, start, molecule.id, plan, molecule.id)
    save(path, found)


def make_valid_geometries(molecules: list[dict], path: Path) -> None:
    """Distorted and torn frames of each held-out molecule, and close pairs of them."""
    found: list[Sample] = []
    pool: list[tuple[Molecule, Frame]] = []
    rng = np.random.default_rng([SEED, 2])
    for entry in molecules:
        molecule = Molecule.from_smiles(entry["id"], entry["smiles"])
        surface = Surface(molecule.numbers)
        relaxation = relaxed(molecule, surface, SEED, 40)
        if relaxation:
            start = relaxation[-1]
            pool.append((molecule, start))
            found.append(sample(start, molecule.id, "equilibrium"))
            for make, kind, times in ((distort, "distorted", 6), (torn, "reaction", 4)):
                for _ in range(times):
                    positions = make(molecule, start.positions, rng)
                    found += labelled(surface, positions, molecule.id, kind)
    save(path, found + frames_of_pairs(pool, rng, PAIRS_OF_TESTS))


def make_g2_test(out: Path) -> None:
    """The g2 geometry and five MD frames at each temperature, for g2's closed-shell molecules.

    `g2_names.json` lists the names; `molecule` is the place in that list.
    """
    names = g2_closed_shell()
    found: list[Sample] = []
    for index, name in enumerate(names):
        atoms = g2_molecule(name)
        surface = Surface(atoms.numbers)
        found.append(sample(surface(atoms.positions), index, "equilibrium"))
        plan = tuple((t, 5) for t in TEST_TEMPERATURES)
        start = list(relax(surface, atoms.positions, 40))[-1].positions
        found += md_samples(surface, start, index, plan, 10**6 + index)
    (out / "g2_names.json").write_text(json.dumps(names, indent=1))
    save(out / "g2_test.npz", found)


def list_molecules(out: Path, patience: int) -> list[dict]:
    """The molecules with id, SMILES and split; generated once and kept in `molecules.json`.

    Those held out come with the recipe; nothing of their ring scaffolds is trained on.
    """
    path = out / "molecules.json"
    entries: list[dict] = json.loads(path.read_text()) if path.exists() else []
    there = {entry["family"] for entry in entries}
    tested = held_out()
    unseen = [smiles for members in tested.values() for smiles in members]
    kept = {scaffold(smiles) for smiles in tested["mixed"]} - {""}
    for place, (family, how) in enumerate(FAMILIES.items()):
        if family in there:
            continue
        others = [*unseen, *(entry["smiles"] for entry in entries)]
        found = generate(how, SEED + place, others, patience)
        splits = {s: "unused" if scaffold(s) in kept else "train" for s in found}
        splits |= dict.fromkeys(tested.get(family, ()), "valid")
        entries += [
            {"id": FIRST_ID * place + k, "family": family, "smiles": s, "split": split}
            for k, (s, split) in enumerate(splits.items())
        ]
    path.write_text(json.dumps(entries, indent=0))
    return entries


def make_side_files(out: Path, molecules: list[dict]) -> None:
    """Validation, test and reference files, those that are missing."""
    unseen = [m for m in molecules if m["split"] == "valid"]
    if not (out / "valid.npz").exists():
        make_valid(unseen, out / "valid.npz")
    if not (out / "valid_geometries.npz").exists():
        make_valid_geometries(unseen, out / "valid_geometries.npz")
    if not (out / "g2_test.npz").exists():
        make_g2_test(out)
    if not (out / "atoms.npz").exists():
        make_atoms(out / "atoms.npz")
    if not (out / "tiny.npz").exists():
        save(out / "tiny.npz", tiny_samples(SEED))


def chunk_jobs(out: Path, molecules: list[dict], rounds: int, first: int) -> list[Job]:
    """The chunks still to be made, of all families in turn, each from its chunk `first`.

    Each round goes through all molecules with other draws.
    """
    jobs: list[Job] = []
    for place, family in enumerate(dict.fromkeys(m["family"] for m in molecules)):
        train = [
            (m["id"], m["smiles"])
            for m in molecules
            if m["split"] == "train" and m["family"] == family
        ]
        parts = [
            train[k : k + MOLECULES_PER_CHUNK] for k in range(0, len(train), MOLECULES_PER_CHUNK)
        ] * rounds
        jobs += [
            (f"{family}_{k:04d}", [SEED + place, k], part, out)
            for k, part in enumerate(parts)
            if k >= first
        ]
    jobs.sort(key=lambda job: job[1][1])
    return [job for job in jobs if not (out / f"{job[0]}.npz").exists()]


def main() -> None:
    """Parse, make the side files, then the chunks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="times each molecule is used")
    parser.add_argument("--first", type=int, default=0, help="chunk of each family to begin with")
    parser.add_argument("--patience", type=int, default=150_000, help="molecules drawn of a family")
    parser.add_argument("--chunks", type=int, default=None, help="stop after this many new chunks")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.out.mkdir(parents=True, exist_ok=True)
    molecules = list_molecules(options.out, options.patience)
    jobs = chunk_jobs(options.out, molecules, options.rounds, options.first)[: options.chunks]
    started, total = time.perf_counter(), 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        sides = pool.apply_async(make_side_files, (options.out, molecules))
        for done, (name, frames, seconds) in enumerate(pool.imap_unordered(make_chunk, jobs), 1):
            total += frames
            left = (time.perf_counter() - started) / done * (len(jobs) - done)
            line = f"{name}: {frames} frames in {seconds:.0f} s; {total} so far"
            print(f"{line}; {left:.0f} s left", flush=True)
        sides.get()


if __name__ == "__main__":
    main()
