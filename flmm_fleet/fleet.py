"""A fleet on this machine, or on a Ray cluster: its replicas, and the HTTP server in this process."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from flmm_core.config import GroundingConfig
from flmm_core.serving.wire import WireCommand
from flmm_fleet.deployment import Replica
from flmm_fleet.front import Front, HttpServer, ReplyLines
from flmm_fleet.settings import FleetSettings

_APPLICATION = "flmm"
_DESCRIBING = 4
"""Requests of `/describe` that a replica takes beside its commands."""


class Fleet:
    """Starts Ray on this machine unless it runs, the replicas, and the HTTP server; returns when they are ready.

    Args:
        config: of each replica's pipeline.
        settings: size of the fleet.

    Raises:
        ValueError: the replicas do not fit into the cluster, or the address cannot be used.
    """

    def __init__(self, config: GroundingConfig, settings: FleetSettings) -> None:
        replicas = _RayReplicas()
        self._http = HttpServer(Front(replicas, settings).app, settings.host, settings.port)
        self.address = self._http.address
        """For instance ``http://127.0.0.1:8000``."""
        try:
            _start_ray()
            _check_room(ray.nodes(), settings)
            replicas.handle = _deploy(config, settings)
            self._http.start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server, the replicas, and the Ray that was started for them; others on a cluster keep running."""
        self._http.stop()
        if ray.is_initialized():
            with suppress(RayServeException):  # it was not started
                serve.delete(_APPLICATION)
            ray.shutdown()


class _RayReplicas:
    """The replicas behind the handle of their deployment."""

    handle: DeploymentHandle

    def ground(self, command: WireCommand, image: bytes) -> ReplyLines:
        """Give a command to the replica that has least to do."""
        lines = self.handle.options(stream=True).ground.remote(command, image)
        assert isinstance(lines, DeploymentResponseGenerator)
        return lines

    async def describe(self) -> Mapping[str, Any]:
        """Model and health of one of them."""
        facts: Mapping[str, Any] = await self.handle.describe.remote()
        return facts


def _start_ray() -> None:
    """Start Ray, or connect to the cluster that ``RAY_ADDRESS`` names.

    Whoever reaches the ports of a Ray may run code in it, and they cannot be bound to the loopback interface. Its own cluster
    therefore demands a token (Ray's default), which only this process and its children know.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)


def _check_room(nodes: list[dict[str, Any]], settings: FleetSettings) -> None:
    """Refuse a fleet that cannot start.

    Args:
        nodes: as of ``ray.nodes()``.
        settings: of the fleet.

    Raises:
        ValueError: names what lacks.
    """
    sizes = [node["Resources"] for node in nodes if node["Alive"]]
    fit = 0
    for size in sizes:
        places = [int(size.get("CPU", 0))]
        if settings.gpus:
            own = size.get("GPU", 0)
            places.append(int(own / settings.gpus) if settings.gpus >= 1 else int(own) * math.floor(1 / settings.gpus))
        fit += min(places)
    if fit < settings.replicas:
        gpus, cpus = (sum(size.get(name, 0) for size in sizes) for name in ("GPU", "CPU"))
        wanted = f"one CPU core and {settings.gpus:g} GPUs" if settings.gpus else "one CPU core"
        raise ValueError(
            f"replicas: expected at most {fit}, each needs {wanted} and there are {cpus:g} cores and {gpus:g} GPUs,"
            f" got {settings.replicas}"
        )


def _deploy(config: GroundingConfig, settings: FleetSettings) -> DeploymentHandle:
    serve.start(proxy_location=ProxyLocation.Disabled)  # the HTTP server is in this process
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.most_replicas > settings.replicas:
        size = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.most_replicas,
                "target_ongoing_requests": settings.batch + 1,
            }
        }
    deployment = Replica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.commands + _DESCRIBING,
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.gpus},
        **size,
    )
    return serve.run(deployment.bind(config, settings), name=_APPLICATION, route_prefix=None)
