"""The training loop that every stage shares: seeded, resumable, with a progress bar, a configuration file and a log.

It knows nothing of models: a stage gives it a module and a function from the step's number to a loss. Batches must depend on
the step's number alone, so that a resumed run sees what an unbroken one would have seen. Several processes, one for each GPU,
share a step's images; only the main one writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from flmm_core.training.settings import LoopConfig
from flmm_core.weights.cache_manifest import require_equal, write_record

Losses = dict[str, torch.Tensor]
"""Named losses of one step; their sum is minimised. Names that begin with "_" are only logged."""


def accelerator_on(device: torch.device) -> Accelerator:
    """What this process knows of the others; alone, unless ``torchrun`` or ``accelerate launch`` started it."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # an image may name nothing
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[unused])


def parameter_groups(parameters: Iterable[nn.Parameter], config: LoopConfig, *, factor: float = 1.0) -> list[dict[str, Any]]:
    """Groups of an optimiser: matrices with the configured decay, norms and biases without.

    Args:
        parameters: those that require no gradient are left out.
        config: learning rate and weight decay.
        factor: of the learning rate.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rate = factor * config.learning_rate
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    rest = [parameter for parameter in trained if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": rate, "weight_decay": config.weight_decay},
        {"params": rest, "lr": rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: Iterable[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW on some parameter groups, with the configured betas."""
    return torch.optim.AdamW(list(groups), betas=(config.beta1, config.beta2))


def train(
    module: nn.Module,
    loss_at: Callable[[int], Losses],
    *,
    out: Path,
    config: LoopConfig,
    settings: Any,
    accelerator: Accelerator,
    optimizers: Sequence[torch.optim.Optimizer],
    every: tuple[int, Callable[[int], dict[str, float]]] | None = None,
) -> None:
    """Train what requires a gradient in ``module``; a run that stopped goes on from ``out/checkpoint.pt``.

    Args:
        module: trained in place; must be on the accelerator's device, and prepared by it where there are several processes.
        loss_at: losses of pass ``i``; a step of the optimiser takes ``config.accumulate`` passes.
        out: folder of ``config.json``, ``log.jsonl``, ``checkpoint.pt`` and ``tensorboard``.
        config: how long and how fast.
        settings: the stage's own dataclass, kept in ``config.json``.
        accelerator: of :func:`accelerator_on`.
        optimizers: of the module's parameters; the schedule scales the learning rate of each of their groups.
        every: a period in steps, and what to measure then; the figures are logged.

    Raises:
        ValueError: ``out`` holds a checkpoint of another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        _require_config(out, {"loop": asdict(config), "settings": asdict(settings)})
    accelerator.wait_for_everyone()
    bare = accelerator.unwrap_model(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, config)) for optimizer in optimizers
    ]
    stateful: list[Any] = [*optimizers, *schedulers]
    first = _resume(out / "checkpoint.pt", bare, stateful)
    main = accelerator.is_main_process
    saved = time.monotonic()
    with (
        tqdm(total=config.steps, initial=first, desc=out.name, unit="step", mininterval=2.0, disable=not main) as bar,
        (out / "log.jsonl" if main else Path(os.devnull)).open("a", buffering=1) as log,
    ):
        progress = _Progress(bar, log, SummaryWriter(str(out / "tensorboard"), purge_step=first) if main else None)
        for step in range(first, config.steps):
            module.zero_grad(set_to_none=True)
            losses: Losses = {}
            for part in range(config.accumulate):
                last_part = part + 1 == config.accumulate
                with nullcontext() if last_part else accelerator.no_sync(module):
                    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.bf16):
                        found = loss_at(step * config.accumulate + part)
                    total = torch.stack([value for name, value in found.items() if not name.startswith("_")]).sum()
                    if not torch.isfinite(total):
                        raise FloatingPointError(f"step {step}: expected a finite loss, got {total.item()}")
                    accelerator.backward(total / config.accumulate)
                for name, value in found.items():
                    losses[name] = losses.get(name, torch.zeros(())) + value.detach().cpu() / config.accumulate
            nn.utils.clip_grad_norm_(parameters, config.clip)
            for one in stateful:
                one.step()
            last = step + 1 == config.steps
            progress.advance(step + 1, losses, log=(step + 1) % 50 == 0 or last)
            if every is not None and ((step + 1) % every[0] == 0 or last):
                progress.measured(step + 1, every[1](step + 1))
            if main and (last or time.monotonic() - saved > config.checkpoint_seconds):
                _save(out / "checkpoint.pt", bare, stateful, step + 1)
                saved = time.monotonic()


class _Progress:
    """Running averages of the losses of a run, on its bar, in its log and in TensorBoard's."""

    def __init__(self, bar: tqdm, log: TextIO, board: SummaryWriter | None) -> None:
        self._bar = bar
        self._log = log
        self._board = board
        self._averages: dict[str, float] = {}

    def advance(self, done: int, losses: Losses, *, log: bool) -> None:
        """One more step is done; with ``log`` the averages go into the log, too."""
        for name, value in losses.items():
            figure = value.item()
            self._averages[name] = 0.98 * self._averages.get(name, figure) + 0.02 * figure
        self._bar.update()
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in self._averages.items()}, refresh=False)
        if log:
            self._write(done, {name: round(value, 5) for name, value in self._averages.items()})

    def measured(self, done: int, figures: dict[str, float]) -> None:
        """Figures that were measured after ``done`` steps."""
        self._write(done, figures)
        self._bar.write(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _write(self, done: int, figures: dict[str, float]) -> None:
        self._log.write(json.dumps({"step": done, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, done)
            self._board.flush()


def _require_config(out: Path, config: dict[str, Any]) -> None:
    """Keep the configuration of a new run; refuse to go on with a run of another one."""
    path, checkpoint = out / "config.json", out / "checkpoint.pt"
    if not checkpoint.exists():
        write_record(path, config)
    elif not path.exists():
        raise ValueError(f"{checkpoint}: expected the run's config.json beside it, got none; delete {checkpoint} to start anew")
    else:
        require_equal(path, config, remedy=f"give another folder, or delete {checkpoint} to start anew")


def _schedule(step: int, config: LoopConfig) -> float:
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.fall > 0:
        return min(1.0, (config.steps - step) / (config.fall * config.steps))
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def _save(path: Path, module: nn.Module, stateful: Sequence[Any], step: int) -> None:
    trained = {name for name, p in module.named_parameters() if p.requires_grad} | {name for name, _ in module.named_buffers()}
    weights = {name: value for name, value in module.state_dict().items() if name in trained}
    temporary = path.with_suffix(".tmp")
    torch.save({"weights": weights, "states": [part.state_dict() for part in stateful], "step": step}, temporary)
    temporary.replace(path)


def _resume(path: Path, module: nn.Module, stateful: Sequence[Any]) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    _, unexpected = module.load_state_dict(saved["weights"], strict=False)
    if unexpected:
        raise ValueError(
            f"{path}: expected weights of this stage's model, got {unexpected[0]} and {len(unexpected) - 1} more unknown names"
        )
    for part, state in zip(stateful, saved["states"], strict=True):
        part.load_state_dict(state)
    return int(saved["step"])
