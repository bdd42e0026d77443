"""Posteriors over a potential's weights, one module each, behind `core.contracts.Posterior`."""

from __future__ import annotations

from collections.abc import Sequence

from core.contracts import Posterior, Potential
from core.errors import SettingsError
from core.posterior.linearised import Linearised
from core.posterior.sghmc import Schedule, Sghmc
from core.settings import PosteriorSettings

__all__ = ["make"]


def make(
    potential: Potential, settings: PosteriorSettings, *, energy_tolerance: float,
    elements: Sequence[int] | None = None, stress: bool = False,
) -> Posterior:  # fmt: skip
    """Return the posterior the settings ask for, centred on the weights now in force.

    `energy_tolerance` (eV) sets the energy noise of `sghmc`, as published; `elements` are the
    atomic numbers of all structures to come, by default all the potential knows; with `stress`,
    labels have one and it is learned from.
    """
    if settings.kind == "sghmc":
        if stress:
            raise SettingsError(
                "posterior.kind 'sghmc' does not learn from stress; use 'linearised', or no "
                "trust.stress_tolerance."
            )
        return Sghmc(
            potential,
            prior_std=settings.sghmc_prior_std,
            energy_tolerance=energy_tolerance,
            chains=settings.chains,
            schedule=Schedule(
                steps=settings.sghmc_steps,
                learning_rate=settings.sghmc_learning_rate,
                friction=settings.sghmc_friction,
            ),
        )
    return Linearised(
        potential,
        elements=elements,
        prior_std=settings.prior_std,
        noise_energy=settings.noise_energy,
        noise_force=settings.noise_force,
        noise_stress=settings.noise_stress if stress else None,
        members=settings.members,
        max_iterations=settings.iterations,
    )
