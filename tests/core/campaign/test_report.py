import json

from core.campaign import events as ev
from core.campaign.reader import CampaignReader
from core.campaign.report import lines, summary, worked


def test_the_figures_of_a_campaign(finished):
    with CampaignReader(finished) as reader:
        figures = summary(reader)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["steps"] == 200 and figures["untrusted_steps"] == 30
    assert sum(figures["labels_by_reason"].values()) == figures["labels"]
    assert figures["labels_by_reason"]["initial"] == 3
    assert sum(figures["checks"].values()) == 20
    assert figures["wall_s"] > 0 and figures["updates"] >= 1


def test_lines_for_people(finished, campaign):
    with CampaignReader(finished) as reader:
        assert "200 of 200, trusted" in "\n".join(lines(summary(reader)))
    with CampaignReader(campaign) as reader:
        assert lines(summary(reader))[0] == "ready"


def test_time_between_sessions_is_not_work():
    def started(at):
        return ev.WorkerStarted(pid=1, at=at)

    events = [started(0.0), ev.Start(at=2.0), started(100.0), ev.Pause(at=103.0)]
    assert worked(events) == 5.0
    assert worked([]) == 0.0
