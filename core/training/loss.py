"""Loss of a batch: energies per atom and force components, squared or Huber."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.training.data import Example


@dataclass(frozen=True)
class Loss:
    """Weighted mean over structures and force components.

    L = w_E · mean[ρ((E - Ê)/N^p)] + w_F · mean[ρ(F - F̂)], with ρ(x) = x² or, for a finite
    `huber` (eV and eV/Å), Huber's function scaled to x² near zero.

    Attributes:
        per_atom: p above; 1 weighs energies per atom, 0 total energies.
    """

    energy: float = 1.0
    force: float = 10.0
    per_atom: float = 1.0
    huber: float | None = None

    def __call__(
        self,
        example: Example,
        energy: torch.Tensor,
        forces: torch.Tensor,
        of: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Return the scalar loss of predicted energies (S,) and forces (ΣN, 3).

        Args:
            of: structures and force components of the batch this is a part of; the losses of its
                parts add up to that of the batch.
        """
        structures, components = of or (energy.numel(), forces.numel())
        residual_energy = (energy - example.energies) / example.n_atoms**self.per_atom
        return (
            self.energy * self.rho(residual_energy).sum() / structures
            + self.force * self.rho(forces - example.forces).sum() / components
        )

    def rho(self, x: torch.Tensor) -> torch.Tensor:
        """Return the penalty of each residual."""
        if self.huber is None:
            return x * x
        return 2 * torch.nn.functional.huber_loss(
            x, torch.zeros_like(x), reduction="none", delta=self.huber
        )
