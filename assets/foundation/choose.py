"""Choose which molecules are worth labelling: those whose atoms an earlier model knows least about.

    python assets/foundation/choose.py --model assets/models/bundled --count 1800

Molecules are grown at random, strained and rare groups thinned out less than elsewhere, and built
by a force field. They are taken one by one, each the one with the largest leverage: the mean over
its atoms of fᵀ(Σ f fᵀ + ridge)⁻¹f, f being the features of the model's last layers and the sum
running over the atoms of all molecules known or taken already (the D-optimal design of a model
linear in the features). They join `molecules.json` as the family "chosen"; `make_data.py` goes on
with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from core.potentials import load as load_potential
from core.potentials.base import TorchPotential
from core.structures import Structure
from dataset import load
from geometries import Molecule, embed
from make_data import SEED
from molecules import CANDIDATES, FAMILIES, FIRST_ID, generate, scaffold

WORK = Path(__file__).resolve().parent / "work"
PLACE = len(FAMILIES)
"""Of the family of chosen molecules, after all others."""
RIDGE = 1e-3
"""Times the mean square of a feature."""


def features(potential: TorchPotential, structures: Sequence[Structure]) -> list[np.ndarray]:
    """Return the invariant features of every structure's atoms, (N, D) each."""
    found = potential.predict(structures, forces=False, features=True).features
    assert found is not None
    return [f.astype(float) for f in found]


def by_leverage(
    known: Sequence[np.ndarray], pool: Sequence[np.ndarray], count: int
) -> tuple[list[int], list[float]]:
    """Return which of `pool` to take, in that order, and the leverage each had when taken.

    Args:
        known: features of the atoms of each molecule known already, (N, D) each.
        pool: the same of those to choose from.
        count: how many to take, at most all.
    """
    seen = np.concatenate(known)
    scale = np.sqrt((seen**2).mean(axis=0)) + 1e-12
    seen, atoms = seen / scale, np.concatenate(pool) / scale
    sizes = np.array([len(f) for f in pool])
    owner = np.repeat(np.arange(len(pool)), sizes)
    ends = np.cumsum(sizes)
    inverse = np.linalg.inv(seen.T @ seen + RIDGE * len(seen) * np.eye(seen.shape[1]))
    leverage = ((atoms @ inverse) * atoms).sum(axis=1)
    left = np.ones(len(pool), dtype=bool)
    taken, scores = [], []
    for _ in range(min(count, len(pool))):
        means = np.bincount(owner, leverage) / sizes
        best = int(np.argmax(np.where(left, means, -np.inf)))
        left[best] = False
        taken.append(best)
        scores.append(float(means[best]))
        rows = atoms[ends[best] - sizes[best] : ends[best]]
        gained = inverse @ rows.T
        factor = np.linalg.cholesky(np.eye(len(rows)) + rows @ gained)
        lowered = np.linalg.solve(factor, gained.T)
        inverse -= lowered.T @ lowered
        leverage -= ((atoms @ lowered.T) ** 2).sum(axis=1)
    return taken, scores


def _built(smiles: str) -> Structure | None:
    molecule = Molecule.from_smiles(0, smiles)
    positions = embed(molecule, SEED)
    return None if positions is None else Structure(molecule.numbers, positions)


def main() -> None:
    """Grow candidates, choose among them, and add them to the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1800)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    potential = load_potential(str(options.model))
    assert isinstance(potential, TorchPotential)
    path = WORK / "molecules.json"
    entries = json.loads(path.read_text())
    tested = {scaffold(e["smiles"]) for e in entries if e["split"] != "train"} - {""}
    grown = generate(CANDIDATES, SEED + PLACE, [e["smiles"] for e in entries])
    grown = [smiles for smiles in grown if scaffold(smiles) not in tested]
    relaxed = {f.molecule: f for f in load(WORK.glob("*_[0-9]*.npz")) if f.kind == "equilibrium"}
    waiting = [e["smiles"] for e in entries if e["split"] == "train" and e["id"] not in relaxed]
    with Pool(options.processes) as workers:
        built = workers.map(_built, grown, chunksize=16)
        known = [s for s in workers.map(_built, waiting, chunksize=16) if s is not None]
    pool = [(smiles, s) for smiles, s in zip(grown, built, strict=True) if s is not None]
    known += [Structure(f.numbers, f.positions.astype(float)) for f in relaxed.values()]
    taken, scores = by_leverage(
        features(potential, known), features(potential, [s for _, s in pool]), options.count
    )
    print(f"{len(taken)} of {len(pool)} taken, {len(known)} known; leverage ", end="")
    print(f"{scores[0]:.3g} to {scores[-1]:.3g}")
    entries += [
        {"id": FIRST_ID * PLACE + k, "family": "chosen", "smiles": pool[i][0], "split": "train"}
        for k, i in enumerate(taken)
    ]
    path.write_text(json.dumps(entries, indent=0))


if __name__ == "__main__":
    main()
