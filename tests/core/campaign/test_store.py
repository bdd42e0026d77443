import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from core.campaign import events as ev
from core.campaign import store
from core.campaign.reader import CampaignReader, Commander
from core.contracts import Label
from core.errors import CampaignError


def frame(cluster, step: int) -> store.Frame:
    return store.Frame(
        step=step, time=4.0 * step, kind="trusted", positions=cluster.positions,
        velocities=np.ones((7, 3)), forces=np.full((7, 3), 0.25), sigma_atoms=np.full(7, 0.5),
        energy=-1.5, offset=2.0, force_bound=float("inf"), reasons=("energy", "force"),
    )  # fmt: skip


def test_a_new_campaign_holds_its_settings_and_start_structure(campaign, cluster, make_settings):
    reader = CampaignReader(campaign)
    assert reader.settings == make_settings()
    assert reader.structure.key == cluster.key
    assert reader.last_frame().id == 1 and np.isnan(reader.last_frame().energy)
    assert reader.state().phase == "ready"


def test_frames_come_back_as_written(campaign, cluster):
    writer, reader = store.Store(campaign), CampaignReader(campaign)
    written = frame(cluster, 10)
    assert writer.next_frame_id() == writer.add_frame(written) == 2
    read = reader.frame(2)
    for name in ("positions", "velocities", "forces", "sigma_atoms"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.energy, read.offset, read.reasons) == (-1.5, 2.0, ("energy", "force"))
    columns = reader.frames_since(1)
    assert columns["force_bound"][0] == np.inf and np.isnan(columns["probability"][0])


def test_rewinding_marks_later_frames(campaign, cluster):
    writer = store.Store(campaign)
    for step in (10, 20, 30):
        writer.add_frame(frame(cluster, step))
    writer.mark_rewound(after_step=10)
    assert CampaignReader(campaign).frames_since(1)["rewound"].tolist() == [0, 1, 1]


def test_rewound_frames_are_told_from_those_that_replaced_them(campaign, cluster):
    writer, reader = store.Store(campaign), CampaignReader(campaign)
    for step in (10, 20, 30):
        writer.add_frame(frame(cluster, step))
    writer.mark_rewound(after_step=10)
    writer.add_frame(frame(cluster, 20))
    assert reader.rewound_frames(10).tolist() == [3, 4]
    assert reader.rewound_frames(20).tolist() == [4]


def test_positions_of_some_atoms_are_read_without_the_others(campaign, cluster):
    writer, reader = store.Store(campaign), CampaignReader(campaign)
    writer.add_frame(frame(cluster, 10))
    ids, positions = reader.positions_since(1, (6, 0, 3))
    assert ids.tolist() == [2]
    np.testing.assert_array_equal(positions[0], cluster.positions[[6, 0, 3]])
    ids, positions = reader.positions_since(2, (1, 2))
    assert ids.shape == (0,) and positions.shape == (0, 2, 3)


def test_labels_keep_what_was_predicted_before(campaign, cluster):
    writer = store.Store(campaign)
    writer.add_label(1, 2, Label(cluster, -3.0, np.ones((7, 3)), "lj", 0.5))
    writer.score_label(1, predicted=-2.9, z=1.1, force_ratio=0.7)
    (label,) = CampaignReader(campaign).labels()
    assert (label.energy, label.predicted, label.z, label.learned) == (-3.0, -2.9, 1.1, None)
    assert label.forces.shape == (7, 3)


def test_a_snapshot_marks_the_labels_it_learned_first(campaign, cluster):
    writer = store.Store(campaign)
    writer.add_label(1, 2, Label(cluster, -3.0, np.ones((7, 3)), "lj"))
    snapshot = store.Snapshot(
        id=1, at=0.0, path="snapshots/1.safetensors", weights="ab", offset=1.0,
        offset_variance=0.1, n_labels=1, calibration={"weight": 1.0}, info={"iterations": 2},
    )  # fmt: skip
    writer.add_snapshot(snapshot, learned=(1,))
    writer.add_snapshot(replace(snapshot, id=2), learned=(1,))
    reader = CampaignReader(campaign)
    assert reader.snapshots()[0] == snapshot
    assert reader.labels()[0].learned == 1


def test_a_failed_transaction_leaves_nothing(campaign, cluster):
    writer = store.Store(campaign)
    with pytest.raises(RuntimeError), writer.transaction():
        writer.add_frame(frame(cluster, 10))
        writer.add_event(ev.Start())
        raise RuntimeError
    assert writer.next_frame_id() == 2
    assert CampaignReader(campaign).events_since(0) == []


def test_commands_wait_until_they_are_handled(campaign):
    command_id = Commander(campaign).post(ev.Approve(ids=(1, 2), who="Ada"))
    writer, reader = store.Store(campaign), CampaignReader(campaign)
    ((found, command),) = writer.new_commands()
    assert found == command_id and command.ids == (1, 2) and command.who == "Ada"
    assert reader.command(command_id).outcome is None
    writer.finish_command(command_id, "done")
    assert writer.new_commands() == []
    assert reader.commands_since(0)[0].outcome == "done"


def test_a_reader_follows_the_journal(campaign):
    writer, reader = store.Store(campaign), CampaignReader(campaign)
    assert reader.state().phase == "ready"
    writer.add_event(ev.Start())
    assert reader.state().phase == "running"
    writer.add_event(ev.Pause(who="Ada"))
    assert reader.state().paused == "Paused by Ada."


def test_an_open_reader_cannot_write(campaign):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        CampaignReader(campaign)._connection.execute("DELETE FROM events")


def test_what_is_no_campaign_is_refused(tmp_path, campaign, make_settings, cluster):
    with pytest.raises(CampaignError, match="holds no campaign"):
        store.connect(tmp_path)
    with pytest.raises(CampaignError, match="holds a campaign already"):
        store.create(campaign, make_settings(), cluster)
    store.Store(campaign).set_meta("version", "99")
    with pytest.raises(CampaignError, match="version 99"):
        CampaignReader(campaign)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / store.DATABASE).write_text("not a database at all, whatever its name" * 30)
    with pytest.raises(CampaignError, match="not a campaign's database"):
        store.connect(tmp_path / "x")


def test_a_network_file_system_is_noticed(tmp_path):
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
    assert store.network_filesystem(tmp_path / "a", mounts) == "nfs4"
    assert store.network_filesystem(tmp_path.parent, mounts) is None
