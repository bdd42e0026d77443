"""A campaign of some seconds: Lennard-Jones argon learning another argon's parameters."""

import numpy as np
import pytest
from ase.build import bulk

from core import settings
from core.settings import Settings
from core.structures import Structure, check

ARGON = 18


def heptamer() -> Structure:
    """Seven argon atoms near a pentagonal bipyramid."""
    ring = [(np.cos(a), np.sin(a), 0.0) for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)]
    shape = np.array([*ring, (0, 0, 0.65), (0, 0, -0.65)])
    return check(Structure(np.full(7, ARGON), 3.2 * shape))


def argon_settings(folder) -> Settings:
    """Settings of the campaign; its structure file is written into `folder`."""
    file = folder / "cluster.xyz"
    heptamer().to_atoms().write(file, format="extxyz")
    return settings.from_dict(
        {
            "structure": {"file": str(file)},
            "potential": {"model": "lennard-jones", "dtype": "float64"},
            "dynamics": {"temperature_K": 25, "timestep_fs": 4, "steps": 200},
            "trust": {
                "initial_labels": 3, "initial_stride": 10,
                "energy_tolerance": 0.002, "force_tolerance": 0.01,
            },
            "posterior": {"noise_energy": 5e-4, "noise_force": 1e-3},
            "labelling": {"reference": "teacher:lennard-jones:0.0115:3.45"},
        }
    )  # fmt: skip


def crystal_settings(folder, **overrides) -> Settings:
    """Settings of a short campaign on 32 atoms of solid argon, with overrides by path."""
    file = folder / "crystal.xyz"
    bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2).write(file, format="extxyz")
    made = settings.from_dict(
        {
            "structure": {"file": str(file)},
            "potential": {"model": "lennard-jones"},
            "dynamics": {"temperature_K": 40, "timestep_fs": 5, "steps": 200},
            "trust": {
                "energy_tolerance": 0.02, "force_tolerance": 0.02, "initial_labels": 3,
                "initial_stride": 10,
            },
            "labelling": {"reference": "teacher:lennard-jones:0.0110:3.36"},
        }
    )  # fmt: skip
    for path, value in overrides.items():
        made = made.with_value(path.replace("__", "."), value)
    return made


@pytest.fixture(scope="session")
def crystal():
    """A function: folder, overrides -> settings of a campaign on a crystal."""
    return crystal_settings


@pytest.fixture(scope="session")
def argon():
    """A function: folder -> settings of the campaign."""
    return argon_settings


@pytest.fixture
def cluster() -> Structure:
    return heptamer()
