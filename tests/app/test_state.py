import socket
import subprocess
import sys
import time

import pytest

from app import main, state
from core import worker
from core.campaign import events as ev
from core.errors import CampaignError, InputError
from core.worker import WorkerHandle

from .conftest import PATIENCE_S


def test_one_state_per_directory(argon):
    directory = argon()
    assert state.campaign(directory) is state.campaign(str(directory) + "/.")


def test_a_directory_without_a_campaign_is_refused(tmp_path):
    with pytest.raises(CampaignError, match="holds no campaign"):
        state.campaign(tmp_path)


def test_a_posted_command_waits_for_a_worker(argon):
    campaign = state.campaign(argon())
    number = campaign.post(ev.Pause())
    assert campaign.outcome(number) is None
    assert campaign.glance().state.phase == "ready"


def test_a_worker_that_leaves_is_replaced_while_a_command_waits(argon, monkeypatch):
    campaign = state.campaign(argon())
    started = []
    monkeypatch.setattr(WorkerHandle, "start", lambda self: started.append(1))
    monkeypatch.setattr(WorkerHandle, "alive", property(lambda self: False))
    monkeypatch.setattr(state, "ALIVE_S", 0.0)
    monkeypatch.setattr(state, "FRESH_S", 0.0)
    campaign.go()
    for _ in range(10):
        glance = campaign.glance()
    assert len(started) == 1 + state.MAX_STARTS
    assert glance.stuck == campaign.directory / "worker.log"


def test_more_steps_take_a_finished_campaign_up_again(argon):
    directory = argon("threshold", "0.2 kcal/mol", 50)
    worker.run_inline(directory)
    campaign = state.campaign(directory)
    assert campaign.glance().state.phase == "finished"
    campaign.post(ev.ChangeSetting(path="dynamics.steps", value=80))
    try:
        end = time.monotonic() + PATIENCE_S
        while campaign.glance().step < 80 or campaign.glance().state.phase != "finished":
            assert time.monotonic() < end, campaign.worker_log(20)
            time.sleep(0.1)
    finally:
        campaign.worker.kill()


def test_the_demo_is_made_once_and_found_again(tmp_path, monkeypatch):
    pytest.importorskip("rdkit")
    monkeypatch.setenv("FLYWISE_HOME", str(tmp_path))
    first = state.demo("ethanol")
    assert first.directory == (tmp_path / "campaigns" / "ethanol").resolve()
    assert first.glance().state.phase == "ready"
    assert state.demo("ethanol") is first


@pytest.mark.parametrize("name", ["../secret", "", "no such", "caffeine-in-space"])
def test_a_demo_that_does_not_exist_is_refused(name):
    from core.errors import FlywiseError

    with pytest.raises(FlywiseError):
        state.demo(name)


def test_a_port_in_use_is_named():
    with pytest.raises(InputError, match="is in use"), socket.socket() as taken:
        taken.bind((main.HOST, 0))
        taken.listen()
        main.free_port(taken.getsockname()[1])
    assert main.free_port(0) > 0


def test_the_served_page_loads_no_torch():
    code = "import sys, app.main; print(sorted({'torch', 'mace', 'e3nn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
