"""The stress program itself, for a short while."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.soak
def test_a_short_stress_loses_nothing(tmp_path, open_renderer, other_domain):
    open_renderer().close()
    command = [sys.executable, "-m", "flmm_cli", "soak", "--minutes", "0.3", "--out", str(tmp_path / "soak.json")]
    environment = {**os.environ, "ROS_DOMAIN_ID": other_domain}
    done = subprocess.run(
        [*command, "--logs", str(tmp_path / "logs")], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "soak.json").read_text())
    assert record["lost"] == record["duplicates"] == 0 and record["exit status"] == 0
    assert record["commands by topic"] > 20 and record["SIGKILL and restart"] == 2
    assert record["timer lateness, all, ms"]["n"] > 500


def test_a_length_that_is_none():
    command = [sys.executable, "-m", "flmm_cli", "soak", "--minutes", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "flmm soak: --minutes: expected more than 0, got -1\n"
