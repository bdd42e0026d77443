"""Labels whose forces belong to other atoms, in a real campaign: MACE learning GFN2-xTB."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core import worker
from core.campaign import events as ev
from core.campaign.engine import Engine
from core.campaign.reader import CampaignReader
from core.settings import load

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "ethanol.toml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_they_are_refused_and_the_simulation_goes_on(tmp_path, monkeypatch):
    honest = Engine.poll
    rng = np.random.default_rng(5)
    spoilt: list[int] = []  # three in a row would ask a person

    def poll(self):
        found = honest(self)
        for k, (query, label) in enumerate(found):
            if self.knowledge.snapshot >= 2 and len(spoilt) < 2:
                spoilt.append(query)
                order = rng.permutation(len(label.forces))
                found[k] = query, replace(label, forces=label.forces[order])
        return found

    monkeypatch.setattr(Engine, "poll", poll)
    settings = load(EXAMPLE).with_value("dynamics.steps", 600)
    settings = settings.with_value("labelling.every", 40)
    directory = tmp_path / "campaign"
    worker.prepare(directory, settings)
    state = worker.run_inline(directory)
    with CampaignReader(directory) as reader:
        events = [event for _, event in reader.events_since(0)]
        scored = {label.query_id for label in reader.labels() if label.z is not None}
    refused = [e for e in events if isinstance(e, ev.UpdateRefused)]
    assert spoilt and sorted(i for e in refused for i in e.contradicting) == sorted(spoilt)
    assert all("belonged to other atoms" in e.reason for e in refused)
    assert state.phase == "finished" and set(state.ids("withdrawn")) == set(spoilt)
    updates = [e for e in events if isinstance(e, ev.Updated)]
    assert events.index(updates[-1]) > events.index(refused[-1]), "honest labels are learned again"
    assert not scored & set(spoilt), "they do not spoil the calibration"
    for update in updates[2:]:
        before, after = update.info["receipt"]["errors"]["old"]["force"]
        assert after < 0.1, "eV/Å, on honest labels"
