"""What is said to a person who looks elsewhere."""

import pytest

from app.notices import notices, tab_name

from .test_wording import glance, query


def now(**given):
    return glance(**{"started": True, "step": 10, **given})


FAILED = {"queue": (query(status="failed", failure="did not converge"),)}


REFUSED = {
    "updates_refused": 1,
    "queue": (query(status="withdrawn", failure="set aside: it contradicts the others"),),
}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"step": 20}, []),
        ({}, {"trusted": True}, ["success The first labels are learned"]),
        ({"trusted": True}, {"trusted": True}, []),
        ({}, FAILED, ["warning No label for step 120: did not converge"]),
        (FAILED, FAILED, []),
        ({}, REFUSED, ["warning New weights were refused; the simulation goes on with the former"]),
        (REFUSED, REFUSED, []),
        ({}, {"step": 5000}, ["success All 5\u202f000 steps are done"]),
        ({}, {"stopped": True}, []),
        ({}, {"paused": "Paused by Ada."}, []),
        ({}, {"paused": "All 9 labels are used."}, ["warning Paused. All 9 labels are used."]),
        ({}, {"failure": "Trace\nOSError: full"}, ["error Stopped by an error. OSError: full"]),
        ({}, {"alive": False}, ["error Engine stopped."]),
        ({"alive": False}, {"alive": False}, []),
    ],
)
def test_only_what_matters_is_told(before, after, told):
    found = [f"{n.tone} {n.text}" for n in notices(now(**before), now(**after))]
    assert len(found) == len(told)
    assert all(text.startswith(wanted) for text, wanted in zip(found, told, strict=True))


def test_a_label_that_was_set_aside_is_named():
    (notice,) = notices(now(), now(**REFUSED))
    assert notice.text.endswith(
        "The label of step 120 contradicts what is known and was set aside."
    )


def test_the_tab_says_when_a_person_is_needed():
    assert tab_name(now(), "argon") == "argon · Flywise"
    asks = now(trusted=True, queue=(query(),))
    assert tab_name(asks, "argon") == "● Your turn · argon · Flywise"
    assert tab_name(now(alive=False), "argon").startswith("▲ Engine stopped")
