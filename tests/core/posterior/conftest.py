"""Labels that posteriors over a small MACE learn from."""

from dataclasses import replace

import numpy as np
import pytest

from core.contracts import LabelSet
from tests.core.finetuning.sample_labels import frames, labelled, small_mace


@pytest.fixture(scope="package")
def labels() -> LabelSet:
    """Eight frames of ethanol by another model, the constant between the two removed."""
    found = labelled(small_mace(2), frames(["CH3CH2OH"], 8))
    own = small_mace(1).predict(found.structures).energies
    return replace(found, energies=found.energies - np.mean(found.energies - own))
