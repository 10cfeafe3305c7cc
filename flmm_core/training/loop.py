"""The training loop of all stages: seeded, resumable, with a progress bar, a configuration file and logs.

It is independent of models: a stage passes a module and a function from the number of a pass to its losses. Batches must depend
on that number alone, so that a resumed run sees the same batches as an uninterrupted one. Several processes, one for each GPU,
share the images of a step; only the main process writes files.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from flmm_core.common.output_files import written_file
from flmm_core.common.plain_text import one_line
from flmm_core.errors import of_machine
from flmm_core.training.settings import LoopConfig
from flmm_core.weights.cache_manifest import require_equal, write_record

TIMED_STEPS = 10
"""First steps of a run, from whose time that of the rest is estimated."""

Losses = dict[str, torch.Tensor]
"""Named scalar losses, whose sum is minimised. Those whose names begin with "_" are only logged."""


def accelerator_on(device: torch.device) -> Accelerator:
    """The link to the other processes, if ``torchrun`` or ``accelerate launch`` started several; else for one process."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # an image without phrases gives some heads no gradient
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[unused])


def parameter_groups(parameters: Iterable[nn.Parameter], config: LoopConfig, *, factor: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: matrices with the configured weight decay, norms and biases without.

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
    """Train the parameters of ``module`` that require a gradient; an interrupted run continues from ``out/checkpoint.pt``.

    Args:
        module: trained in place; must be on the accelerator's device, and prepared by it if there are several processes.
        loss_at: losses of pass ``i``; a step of the optimiser takes ``config.accumulate`` passes.
        out: folder of ``config.json``, ``log.jsonl``, ``checkpoint.pt`` and ``tensorboard``.
        config: steps, learning rate and the like.
        settings: the stage's own dataclass, kept in ``config.json``.
        accelerator: of :func:`accelerator_on`.
        optimizers: of the module's parameters; the schedule scales the learning rate of each of their groups.
        every: a period in steps, and a function that measures figures after that many steps; they are logged.

    Raises:
        ValueError: ``out`` holds a checkpoint of another configuration.
        FloatingPointError: a loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    main = accelerator.is_main_process
    if main:
        _require_config(out, {"loop": asdict(config), "settings": asdict(settings)})
    accelerator.wait_for_everyone()
    accelerator.gradient_accumulation_steps = config.accumulate
    parameters = [p for p in module.parameters() if p.requires_grad]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_schedule, config=config)) for optimizer in optimizers]
    checkpoint = _Checkpoint(out / "checkpoint.pt", accelerator.unwrap_model(module), [*optimizers, *schedulers])
    first = checkpoint.resume()
    with _progress(out, config.steps, first, main) as progress:
        for step in range(first, config.steps):
            module.zero_grad(set_to_none=True)
            losses = _accumulated(module, loss_at, step, config, accelerator)
            nn.utils.clip_grad_norm_(parameters, config.clip)
            for one in checkpoint.stateful:
                one.step()
            last = step + 1 == config.steps
            progress.advance(step + 1, losses, log=(step + 1) % 50 == 0 or last)
            if every is not None and ((step + 1) % every[0] == 0 or last):
                progress.measured(step + 1, every[1](step + 1))
            if main and (last or checkpoint.age > config.checkpoint_seconds):
                checkpoint.save(step + 1)


def _accumulated(
    module: nn.Module, loss_at: Callable[[int], Losses], step: int, config: LoopConfig, accelerator: Accelerator
) -> Losses:
    """Gradients of all passes of a step, and the means of their losses, on the CPU."""
    losses: Losses = {}
    for part in range(config.accumulate):
        with accelerator.accumulate(module):
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.bf16):
                found = loss_at(step * config.accumulate + part)
            total = torch.stack([value for name, value in found.items() if not name.startswith("_")]).sum()
            if not torch.isfinite(total):
                raise FloatingPointError(f"step {step}: expected a finite loss, got {total.item()}")
            accelerator.backward(total)
        for name, value in found.items():
            losses[name] = losses.get(name, torch.zeros(())) + value.detach().cpu() / config.accumulate
    return losses


@contextmanager
def _progress(out: Path, steps: int, first: int, main: bool) -> Iterator[_Progress]:
    """The progress bar and the logs of a run, which only the main process has."""
    with (
        tqdm(total=steps, initial=first, desc=out.name, unit="step", mininterval=2.0, disable=not main) as bar,
        (out / "log.jsonl" if main else Path(os.devnull)).open("a", buffering=1) as log,
    ):
        board = SummaryWriter(str(out / "tensorboard"), purge_step=first) if main else None
        yield _Progress(bar, log, board, first, steps)


class _Progress:
    """Reports moving averages of the losses on the progress bar, in the log and in TensorBoard; and how long the rest takes."""

    def __init__(self, bar: tqdm, log: TextIO, board: SummaryWriter | None, first: int, steps: int) -> None:
        self._bar = bar
        self._log = log
        self._board = board
        self._averages: dict[str, float] = {}
        self._timed = first + TIMED_STEPS
        self._steps = steps
        self._began = time.monotonic()

    def advance(self, done: int, losses: Losses, *, log: bool) -> None:
        """Report a step; with ``log`` the averages are also written to the logs."""
        for name, value in losses.items():
            figure = value.item()
            self._averages[name] = 0.98 * self._averages.get(name, figure) + 0.02 * figure
        self._bar.update()
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in self._averages.items()}, refresh=False)
        if log:
            self._write(done, {name: round(value, 5) for name, value in self._averages.items()})
        if done == self._timed < self._steps and self._board is not None:
            taken = time.monotonic() - self._began
            left = self._steps - done
            rest = _duration(taken / TIMED_STEPS * left)
            self._bar.write(f"{TIMED_STEPS} steps took {_duration(taken)}: at this pace the other {left} take about {rest}")

    def measured(self, done: int, figures: dict[str, float]) -> None:
        """Report figures that were measured after ``done`` steps."""
        self._write(done, figures)
        self._bar.write(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def _write(self, done: int, figures: dict[str, float]) -> None:
        self._log.write(json.dumps({"step": done, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, done)
            self._board.flush()


def _duration(seconds: float) -> str:
    """Seconds, minutes, hours or days, for people."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _require_config(out: Path, config: dict[str, Any]) -> None:
    """Store the configuration of a new run; refuse to continue a run of another configuration."""
    path, checkpoint = out / "config.json", out / "checkpoint.pt"
    if not checkpoint.exists():
        write_record(path, config)
    elif not path.exists():
        raise ValueError(f"{checkpoint}: expected the run's config.json beside it, got none; delete {checkpoint} to start over")
    else:
        require_equal(path, config, remedy=f"give another folder, or delete {checkpoint} to start over")


def _schedule(step: int, config: LoopConfig) -> float:
    """Factor of the learning rate: a linear warm-up, then a cosine, or a constant and a linear fall.

    The schedules of transformers begin their warm-up with a step at rate zero; this one begins at ``1 / warmup``.
    """
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.fall > 0:
        return min(1.0, (config.steps - step) / (config.fall * config.steps))
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


class _Checkpoint:
    """The file from which an interrupted run continues: trained weights, buffers, optimisers and schedules.

    ``Accelerator.save_state`` writes a folder with all weights, frozen ones included, and not atomically: a run that is killed
    while it saves could not continue.
    """

    def __init__(self, path: Path, module: nn.Module, stateful: Sequence[Any]) -> None:
        self._path = path
        self._module = module
        self.stateful = stateful
        """Optimisers and schedules, in the order in which they take their steps."""
        self._saved = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last :meth:`save`, or since the start."""
        return time.monotonic() - self._saved

    def save(self, step: int) -> None:
        """Replace the file by the state after ``step`` steps."""
        module = self._module
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        trained |= {name for name, _ in module.named_buffers()}
        weights = {name: value for name, value in module.state_dict().items() if name in trained}
        with written_file(self._path) as temporary:
            torch.save({"weights": weights, "states": [part.state_dict() for part in self.stateful], "step": step}, temporary)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Load the file, if there is one; returns the count of steps done.

        Raises:
            ValueError: it is damaged, or holds weights of another model.
        """
        if not self._path.exists():
            return 0
        try:
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files fail in many ways
            if isinstance(error, PermissionError) or of_machine(error):
                raise
            raise ValueError(
                f"{self._path}: expected a checkpoint, got a damaged file ({one_line(error)}); delete it to start over"
            ) from error
        _, unexpected = self._module.load_state_dict(saved["weights"], strict=False)
        if unexpected:
            raise ValueError(
                f"{self._path}: expected weights of this stage's model, got {unexpected[0]} and {len(unexpected) - 1} more"
                " unknown names"
            )
        for part, state in zip(self.stateful, saved["states"], strict=True):
            part.load_state_dict(state)
        return int(saved["step"])
