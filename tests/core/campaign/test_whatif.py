import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from core.campaign import events as ev
from core.campaign import whatif
from core.campaign.loop import advance
from core.campaign.reader import CampaignReader
from core.campaign.state import State
from core.campaign.whatif import Cost, Trace

from .test_quality import label, state_of


def made(rng: np.random.Generator, n: int) -> Trace:
    scale, freedom = np.exp(rng.normal(-4, 0.6, n)), rng.choice(np.linspace(8, 33.5, 40), n)
    bound = stats.t.ppf(0.975, freedom) * scale
    return Trace(bound, rng.uniform(0, 0.2, n), scale, freedom)


def test_labels_are_exact_and_misses_are_summed_probabilities(rng):
    trace = made(rng, 5000)
    tolerances = np.array([0.01, 0.03, 0.1])
    found = whatif.curve(trace, tolerances, 0.15, Cost(2.0, 1.0))
    for k, tolerance in enumerate(tolerances):
        kept = (trace.bound <= tolerance) & (trace.force_bound <= 0.15)
        missed = 2 * stats.t.sf(tolerance / trace.scale[kept], trace.freedom[kept])
        assert found.labels[k] == (~kept).sum()
        assert found.seconds[k] == 3.0 * found.labels[k]
        assert found.misses[k] == pytest.approx(missed.sum(), rel=0.01)


def test_without_a_force_tolerance_only_the_energy_flags(rng):
    trace = made(rng, 1000)
    found = whatif.curve(trace, np.array([1e-9, 1e9]), None, None)
    assert found.labels.tolist() == [1000, 0] and np.isnan(found.seconds).all()
    assert found.misses == pytest.approx([0.0, 0.0], abs=1e-6)


def test_an_empty_trace_costs_nothing():
    empty = Trace(*(np.zeros(0) for _ in range(4)))
    found = whatif.curve(empty, np.array([0.1, 0.2]), 0.1, Cost(1.0, 1.0))
    assert found.labels.tolist() == [0, 0] and found.misses.tolist() == [0, 0]


def test_a_hundred_thousand_frames_take_a_moment(rng):
    trace = made(rng, 100_000)
    started = time.process_time()
    whatif.curve(trace, np.geomspace(0.005, 0.2, 60), 0.15, Cost(2.0, 1.0))
    assert time.process_time() - started < 0.2


def test_the_tolerance_in_force_gives_back_what_was_flagged(strict):
    with CampaignReader(strict) as reader:
        columns, state = reader.frames_since(0), reader.state()
        trace = whatif.trace(columns, reader.snapshots())
        cost = whatif.cost(reader)
    judged = columns["kind"] != "untrusted"
    found = whatif.curve(trace, np.array([state.energy_tolerance]), state.force_tolerance, cost)
    assert len(trace) == judged.sum() > 0
    assert 0 < found.labels[0] == (columns["kind"] == "flagged").sum() < len(trace)
    within = 2 * stats.t.cdf(state.energy_tolerance / trace.scale, trace.freedom) - 1
    np.testing.assert_allclose(within, columns["probability"][judged], atol=1e-9)
    assert cost is not None and cost.label_s > 0 and cost.intervention_s > 0


def test_stretches_of_a_trace_join(rng):
    trace = made(rng, 10)
    halves = [Trace(*(getattr(trace, f)[s] for f in vars(trace))) for s in (slice(4), slice(4, 10))]
    np.testing.assert_array_equal(whatif.joined(halves).scale, trace.scale)


def test_the_cost_is_per_label_and_leaves_the_first_update_out():
    rows = [label(1, 0.0), replace(label(2, 0.0), wall_s=3.0)]
    updates = [
        ev.Updated(snapshot=i, n_labels=n, weights="w", seconds=s)
        for i, (n, s) in enumerate([(8, 90.0), (12, 8.0), (14, 4.0)], 1)
    ]
    assert whatif.cost_of(rows, updates) == Cost(2.0, 2.0)
    assert whatif.cost_of(rows, updates[:1]) == Cost(2.0, 11.25)
    assert whatif.cost_of(rows, []) == Cost(2.0, 0.0)
    assert whatif.cost_of([], updates) is None


def test_the_preview_takes_what_the_command_approves(ready):
    state: State = replace(state_of(ready, 4), started=True, trusted=True)
    chances = (0.1, 0.5, 0.9, 0.5)
    state = replace(
        state,
        queue=tuple(replace(q, probability=p) for q, p in zip(state.queue, chances, strict=True)),
        settings=state.settings.with_value("labelling.mode", "approve"),
    )
    for threshold, n in [(0.05, 0), (0.5, 1), (0.6, 3), (1.0, 4)]:
        seen = whatif.preview(state.queue, threshold, Cost(1.5, 0.5))
        after, _ = advance(state, ev.ApplyThreshold(probability=threshold))
        assert len(seen) == n and seen.ids == after.ids("approved") and seen.seconds == 2.0 * n
    assert np.isnan(whatif.preview(state.queue, 0.6, None).seconds)
