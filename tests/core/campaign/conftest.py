import pytest

from core import worker
from core.campaign import store
from core.campaign.state import State
from core.settings import Settings

TIGHT = 3e-4
"""Energy tolerance, eV, that some checks of the argon campaign break and others keep."""


@pytest.fixture
def make_settings(tmp_path, argon):
    """Settings of a short campaign on the cluster, with overrides by path."""

    def make(**overrides) -> Settings:
        made = argon(tmp_path)
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


@pytest.fixture(scope="session")
def strict(tmp_path_factory, argon):
    """The same with tolerances so narrow that frames were flagged; do not change it."""
    folder = tmp_path_factory.mktemp("strict")
    directory = folder / "campaign"
    given = argon(folder).with_value("trust.energy_tolerance", TIGHT)
    worker.prepare(directory, given)
    assert worker.run_inline(directory).phase == "finished"
    return directory


@pytest.fixture(scope="session")
def finished(tmp_path_factory, argon):
    """Directory of a campaign that ran to its end; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    directory = folder / "campaign"
    worker.prepare(directory, argon(folder))
    assert worker.run_inline(directory).phase == "finished"
    return directory
