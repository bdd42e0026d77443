import dataclasses

import pytest

from core.campaign import events as ev
from core.errors import CampaignError

SAMPLES = {"str": "text", "int": 3, "float": 0.5, "Any": 0.9}


def sample(kind: type[ev.Event]) -> ev.Event:
    values = {}
    for field in dataclasses.fields(kind):
        name = str(field.type)
        if name.startswith("tuple"):
            values[field.name] = (1, 2) if "int" in name else ("energy",)
        else:
            values[field.name] = SAMPLES.get(name, {"moved": 0.1})
    return kind(**values)


@pytest.mark.parametrize("kind", ev.KINDS.values(), ids=ev.KINDS)
def test_every_event_survives_json(kind):
    event = sample(kind)
    assert ev.from_json(ev.to_json(event)) == event


def test_an_infinite_bound_survives_json():
    event = ev.FrameChecked(frame_id=1, step=1, key="k", snapshot=0, force_bound=float("inf"))
    assert ev.from_json(ev.to_json(event)) == event


def test_an_unknown_event_is_refused_by_name():
    with pytest.raises(CampaignError, match="Teleported"):
        ev.from_json('{"kind": "Teleported"}')
