import numpy as np
import pytest

from core import settings
from core.campaign import store
from core.campaign.state import State
from core.settings import Settings
from core.structures import Structure, check

ARGON = 18


@pytest.fixture
def cluster() -> Structure:
    """Seven argon atoms near a pentagonal bipyramid."""
    ring = [(np.cos(a), np.sin(a), 0.0) for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)]
    shape = np.array([*ring, (0, 0, 0.65), (0, 0, -0.65)])
    return check(Structure(np.full(7, ARGON), 3.2 * shape))


@pytest.fixture
def make_settings(cluster, tmp_path):
    """Settings of a short campaign on the cluster, with overrides by path."""
    file = tmp_path / "cluster.xyz"
    cluster.to_atoms().write(file, format="extxyz")

    def make(**overrides) -> Settings:
        made = settings.from_dict(
            {
                "structure": {"file": str(file)},
                "potential": {"model": "lennard-jones", "dtype": "float64"},
                "dynamics": {"temperature_K": 25, "timestep_fs": 4, "steps": 200},
                "trust": {"initial_labels": 3, "initial_stride": 10},
            }
        )
        for path, value in overrides.items():
            made = made.with_value(path.replace("__", "."), value)
        return made

    return make


@pytest.fixture
def campaign(tmp_path, make_settings, cluster):
    """Directory of a campaign that has not started."""
    directory = tmp_path / "campaign"
    store.create(directory, make_settings(), cluster)
    return directory


@pytest.fixture
def ready(make_settings) -> State:
    """State of a campaign that has not started."""
    return State(make_settings(), n_atoms=7)
