"""Posteriors over a potential's weights, one module each, behind `core.contracts.Posterior`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.contracts import Posterior, Potential
from core.errors import SettingsError
from core.posterior.blip import Blip
from core.posterior.deep_ensemble import DeepEnsemble
from core.posterior.descent import Descent
from core.posterior.last_layer import LastLayer
from core.posterior.linearised import Linearised
from core.posterior.sghmc import Schedule, Sghmc
from core.settings import Noise, PosteriorSettings

__all__ = ["device_for", "make"]

PROCESSOR_ONLY = ("sghmc", "blip")
"""Kinds whose networks beside the potential's are not moved to a card."""


def device_for(kind: str, wanted: str) -> str:
    """Return the device a posterior of some kind computes on: "auto", "cpu" or "cuda".

    Raises:
        SettingsError: it cannot compute on the one wanted.
    """
    if kind not in PROCESSOR_ONLY:
        return wanted
    if wanted == "cuda":
        raise SettingsError(
            f"posterior.kind {kind!r} computes on the processor; set potential.device to cpu or "
            "auto, or take another posterior."
        )
    return "cpu"


def make(
    potential: Potential, settings: PosteriorSettings, noise: Noise, *, energy_tolerance: float,
    elements: Sequence[int] | None = None, moving: torch.Tensor | None = None,
) -> Posterior:  # fmt: skip
    """Return the posterior the settings ask for, centred on the weights now in force.

    Args:
        noise: of the labels; with one of stress, labels have a stress and it is learned from.
        energy_tolerance: eV, sets the energy noise of `sghmc`, as published.
        elements: atomic numbers of all structures to come, by default all the potential knows.
        moving: indices of the weights that may move, by default all.

    Raises:
        SettingsError: a posterior that does not learn from stress was to do so.
    """
    if settings.kind != "linearised" and noise.stress is not None:
        raise SettingsError(
            f"posterior.kind {settings.kind!r} does not learn from stress; use 'linearised', or no "
            "trust.stress_tolerance."
        )
    descent = Descent(settings.descent_steps, settings.descent_rate, noise.energy, noise.force)
    if settings.kind == "last-layer":
        return LastLayer(
            potential,
            elements=elements,
            moving=moving,
            prior_std=settings.prior_std,
            descent=descent,
            members=settings.members,
        )
    if settings.kind == "deep-ensemble":
        return DeepEnsemble(
            potential,
            descent=descent,
            members=settings.ensemble,
            noise=settings.ensemble_noise,
            moving=moving,
        )
    if settings.kind == "blip":
        return Blip(
            potential,
            noise_energy=noise.energy,
            noise_force=noise.force,
            passes=settings.passes,
            prior=settings.blip_prior,
            kl=settings.blip_divergence,
            noise=settings.blip_noise,
            steps=settings.descent_steps,
            rate=settings.descent_rate,
            moving=moving,
        )
    if settings.kind == "sghmc":
        return Sghmc(
            potential,
            prior_std=settings.sghmc_prior_std,
            energy_tolerance=energy_tolerance,
            chains=settings.chains,
            moving=moving,
            schedule=Schedule(
                steps=settings.sghmc_steps,
                learning_rate=settings.sghmc_learning_rate,
                friction=settings.sghmc_friction,
                frozen=settings.sghmc_frozen,
            ),
        )
    return Linearised(
        potential,
        elements=elements,
        moving=moving,
        prior_std=settings.prior_std,
        noise_energy=noise.energy,
        noise_force=noise.force,
        noise_stress=noise.stress,
        members=settings.members,
        max_rows=settings.max_rows,
        max_iterations=settings.iterations,
    )
