"""Reading and writing the labelled frames of the foundation model's data; numpy only.

A file holds many molecules one after the other: per-atom arrays are concatenated, and
`n_atoms` tells where each frame ends. Energies in eV, positions in Å, forces in eV/Å.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMBERS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35)
"""Elements of the model."""
KINDS = ("equilibrium", "md", "distorted", "dimer", "scan", "atom", "reaction")


@dataclass(frozen=True)
class Sample:
    """One labelled frame of N atoms.

    numbers (N,), positions (N, 3) in Å, forces (N, 3) in eV/Å, total energy in eV; `molecule` is
    the id in `molecules.json` (-1 for none; the first partner's id for a dimer), `temperature` in
    K is 0 outside MD.
    """

    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    energy: float
    molecule: int
    kind: str
    temperature: float


def load(paths: Iterable[str | Path]) -> list[Sample]:
    """Frames of all files, in the order of the files."""
    return [sample for path in paths for sample in _load_one(Path(path))]


def _load_one(path: Path) -> list[Sample]:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    ends = np.cumsum(arrays["n_atoms"].astype(int))
    starts = ends - arrays["n_atoms"]
    return [
        Sample(
            numbers=arrays["numbers"][a:b].astype(int),
            positions=arrays["positions"][a:b],
            forces=arrays["forces"][a:b],
            energy=float(arrays["energy"][k]),
            molecule=int(arrays["molecule"][k]),
            kind=KINDS[arrays["kind"][k]],
            temperature=float(arrays["temperature"][k]),
        )
        for k, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]


def save(path: Path, samples: Sequence[Sample]) -> None:
    """Write frames to one compressed file, which appears only once it is complete."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        numbers=np.concatenate([s.numbers for s in samples]).astype(np.uint8),
        n_atoms=np.array([len(s.numbers) for s in samples], dtype=np.int16),
        positions=np.concatenate([s.positions for s in samples]).astype(np.float32),
        forces=np.concatenate([s.forces for s in samples]).astype(np.float32),
        energy=np.array([s.energy for s in samples], dtype=np.float64),
        molecule=np.array([s.molecule for s in samples], dtype=np.int32),
        kind=np.array([KINDS.index(s.kind) for s in samples], dtype=np.uint8),
        temperature=np.array([s.temperature for s in samples], dtype=np.float32),
    )
    partial.replace(path)
