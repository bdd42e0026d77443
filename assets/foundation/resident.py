"""All training data on one device, and padded batches of it without work for the processor.

`pack` writes frames in 13 bytes an atom, so that they can be taken to the machine that has the
card: positions and forces as 16-bit integers with a scale for each frame, which moves atoms by
less than 1e-4 Å. Edges are found on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.potentials.mace import MacePotential
from dataset import Sample
from gradients import FAR, Inputs, Shape

STEPS = 32767
"""Of a 16-bit integer on each side of zero."""
FRAMES_AT_ONCE = 4096
"""Frames of which edges are found together."""


def pack(path: Path, frames: Sequence[Sample]) -> None:
    """Write numbers, positions, forces and energies of `frames`."""
    np.savez_compressed(
        path,
        n_atoms=np.array([len(f.numbers) for f in frames], dtype=np.uint8),
        numbers=np.concatenate([f.numbers for f in frames]).astype(np.uint8),
        energy=np.array([f.energy for f in frames]),
        **_rounded("positions", [f.positions - f.positions.mean(0) for f in frames]),
        **_rounded("forces", [f.forces for f in frames]),
    )


def _rounded(name: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    scales = np.array([np.abs(v).max() / STEPS + 1e-12 for v in values], dtype=np.float32)
    rounded = [np.rint(v / s) for v, s in zip(values, scales, strict=True)]
    return {name: np.concatenate(rounded).astype(np.int16), f"{name}_scale": scales}


class Resident:
    """Labelled frames on the potential's device; a source of inputs for `Gradients`.

    Args:
        path: a file that `pack` wrote.
    """

    def __init__(self, potential: MacePotential, path: Path) -> None:
        with np.load(path) as file:
            given = {name: file[name] for name in file.files}
        n_atoms = given["n_atoms"].astype(int)
        species = np.searchsorted(np.array(potential.elements), given["numbers"])
        isolated = np.add.reduceat(potential.isolated_energies[species], _starts(n_atoms))
        self._device = potential.device
        values = {
            name: given[name] * np.repeat(given[f"{name}_scale"], n_atoms)[:, None]
            for name in ("positions", "forces")
        }
        # the last row is what missing atoms are filled with
        self._positions = self._with_filler(values["positions"])
        self._forces = self._with_filler(values["forces"])
        self._one_hot = self._with_filler(np.eye(len(potential.elements))[species])
        self._energies = self._with_filler(given["energy"] - isolated)
        self._n_atoms, self._first_atom = n_atoms, _starts(n_atoms)
        self._find_edges(potential.cutoff)

    def _with_filler(self, values: np.ndarray) -> torch.Tensor:
        filled = np.concatenate([values, np.zeros((1, *values.shape[1:]))])
        return torch.as_tensor(filled, dtype=torch.float32, device=self._device)

    def _find_edges(self, cutoff: float) -> None:
        """Keep sender, receiver (in the frame) and rank among the receiver's edges, (3, E)."""
        found, counts, self.width = [], [], 0
        most = int(self._n_atoms.max())
        for start in range(0, len(self), FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            sizes = torch.as_tensor(self._n_atoms[part], device=self._device)
            first = torch.as_tensor(self._first_atom[part], device=self._device)
            atoms = torch.arange(most, device=self._device)
            there = atoms < sizes[:, None]
            places = torch.where(there, first[:, None] + atoms, 0)
            at = self._positions[places]
            near = torch.cdist(at, at, compute_mode="donot_use_mm_for_euclid_dist") < cutoff
            near &= there[:, :, None] & there[:, None]
            near.diagonal(dim1=1, dim2=2).fill_(False)
            frame, receiver, sender = near.nonzero().T
            rank = (near.cumsum(2) - 1)[frame, receiver, sender]
            self.width = max(self.width, int(rank.max()) + 1)
            found.append(torch.stack([sender, receiver, rank]).to(torch.int16))
            counts.append(torch.bincount(frame, minlength=len(sizes)).cpu().numpy())
        filler = torch.zeros(3, 1, dtype=torch.int16, device=self._device)
        self._edges = torch.cat([*found, filler], dim=1)
        self._n_edges = np.concatenate(counts)
        self._first_edge = _starts(self._n_edges)

    def __len__(self) -> int:
        return len(self._n_atoms)

    def size(self, index: int) -> tuple[int, int]:
        """Return the numbers of atoms and of edges of one frame."""
        return int(self._n_atoms[index]), int(self._n_edges[index])

    def inputs(self, batch: Sequence[int], shape: Shape) -> Inputs:
        """Return the padded inputs of some frames; see `gradients.padded`."""
        chosen = np.asarray(batch)
        n, m, s = self._n_atoms[chosen], self._n_edges[chosen], len(chosen)
        atoms, edges, first = int(n.sum()), int(m.sum()), _starts(n)
        of_atoms = np.full((2, shape.atoms), [[len(self._positions) - 1], [shape.structures - 1]])
        of_atoms[0, :atoms] = np.repeat(self._first_atom[chosen] - first, n) + np.arange(atoms)
        of_atoms[1, :atoms] = np.repeat(np.arange(s), n)
        of_edges = np.full((2, shape.edges), [[self._edges.shape[1] - 1], [0]])
        of_edges[0, :edges] = np.repeat(self._first_edge[chosen] - _starts(m), m) + np.arange(edges)
        of_edges[1, :edges] = np.repeat(first, m)
        of_frames = np.full(shape.structures, len(self._energies) - 1)
        of_frames[:s] = chosen
        sizes = np.ones(shape.structures)
        sizes[:s] = n
        atom, index = self._there(of_atoms)
        edge, offset = self._there(of_edges)
        positions = self._positions[atom]
        positions[-1, 0] = FAR
        sender, receiver, rank = self._edges[:, edge].long() + torch.stack(
            [offset, offset, torch.zeros_like(offset)]
        )
        sender[edges:], receiver[edges:], rank[edges:] = shape.atoms - 2, shape.atoms - 1, 0
        return [
            positions, sender, receiver, receiver * shape.width + rank, self._one_hot[atom], index,
            self._there(sizes).float(), self._energies[self._there(of_frames)],
            self._forces[atom],
            self._there(np.where(np.arange(shape.structures) < s, 1 / s, 0.0)).float(),
            self._there(np.where(np.arange(shape.atoms) < atoms, 1 / (3 * atoms), 0.0))
            .float()[:, None],
        ]  # fmt: skip

    def _there(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values).to(self._device, non_blocking=True)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Return where each of consecutive runs begins."""
    return np.cumsum(counts) - counts
