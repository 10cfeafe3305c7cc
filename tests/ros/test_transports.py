"""A node without shared memory, as launch starts one that it starts again."""

import os
import re
from pathlib import Path

import pytest
from bench import Bench
from conftest import SCRIPTED

from flmm_cli.ask_client import AskClient
from flmm_ros.transports import without_shared_memory

LOCAL = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def test_what_it_takes():
    assert without_shared_memory({}) == {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}
    local = without_shared_memory({**LOCAL, "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"})
    assert local["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT" and Path(local["FASTDDS_DEFAULT_PROFILES_FILE"]).is_file()


@pytest.mark.parametrize(
    "chosen",
    [
        {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
        {"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"},
        {"FASTDDS_DEFAULT_PROFILES_FILE": "mine.xml"},
    ],
)
@pytest.mark.parametrize("environment", [{}, LOCAL])
def test_what_the_user_has_chosen_stays(chosen, environment):
    assert without_shared_memory({**environment, **chosen}) == {}


def shared(process):
    return set(re.findall(r"/dev/shm/(fastdds_\S+)", Path(f"/proc/{process.pid}/maps").read_text()))


def addresses(process):
    """Of every UDP socket of a process."""
    links = (os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{process.pid}/net/udp").read_text().splitlines()[1:]]
    numbers = [bytes.fromhex(row[1].split(":")[0])[::-1] for row in rows if row[9] in sockets]
    return {".".join(map(str, number)) for number in numbers}


def test_it_serves_on_this_machine_alone_and_shares_no_memory(processes):
    pair = {}
    for name, environment in (("shares", {}), ("apart", without_shared_memory(os.environ))):
        arguments = ["--ros-args", "-r", f"__ns:=/{name}"]
        pair[name] = processes.start(name, SCRIPTED, arguments, environment)
        with AskClient(f"/{name}/grounding") as client:
            bench = Bench(client, f"/{name}/grounding")
            bench.process = pair[name]
            bench.connect(processes.check)
            bench.still_serves()
    assert any(name.startswith("fastdds_port") for name in shared(pair["shares"])), "the measure itself"
    assert shared(pair["apart"]) == set()
    assert addresses(pair["apart"]) == {"127.0.0.1", "239.255.0.1"}  # the multicast group on the loopback
