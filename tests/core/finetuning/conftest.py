import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from sample_labels import frames, labelled, small_mace


@pytest.fixture(scope="session")
def foundation():
    return small_mace(1)


@pytest.fixture(scope="session")
def labels():
    return labelled(small_mace(2), frames(["CH3CH2OH"], 20))


@pytest.fixture(scope="session")
def pretraining(foundation):
    return labelled(foundation, frames(["CH4", "H2O", "HCN", "NH3"], 40, seed=1))
