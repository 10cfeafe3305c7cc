"""Trains the heads: everything that F-LMM learns on top of a frozen LMM.

These are the U-Net, text projection, layer weights, SAM's prompt encoder and mask decoder (F-LMM, section 4), the keyword
selector (weight 0.3) and, beyond the paper, the presence score, which learns from names of objects that are absent. Training
runs on one or many GPUs and machines (``torchrun --nproc_per_node 8 -m flmm_cli train heads ...``); the images of a step depend
on its number alone, not on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from flmm_core.common.devices import resolve_device
from flmm_core.config import GroundingConfig
from flmm_core.data.formats import open_dataset
from flmm_core.data.samples import Dataset
from flmm_core.data.visit import spread
from flmm_core.families import LoadedLmm
from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import HeadsOrigin, fingerprints, lmm_shape, load_lmm, save_heads
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.training.attention_heads import best_channels
from flmm_core.training.batches import Batches
from flmm_core.training.examples import ExampleReader, TraceCache
from flmm_core.training.heads_stage import HeadsStage, figures_of
from flmm_core.training.loop import Losses, accelerator_on, adamw, parameter_groups, train
from flmm_core.training.settings import HeadsSettings, LoopConfig
from flmm_core.verification.weight_checksums import total_checksum, weight_checksums

DRAWN = 6
"""Held-out images that are drawn at each measurement."""


def train_heads(out: Path, settings: HeadsSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the heads and save them in ``out/heads``.

    Args:
        out: folder of results.
        settings: of the stage.
        loop: of the loop; its steps follow from ``settings.epochs``.
        device: type of device; each of several processes takes one of its own.

    Raises:
        RuntimeError: the weights of the LMM changed.
    """
    accelerator = accelerator_on(device)
    # Data first, so that a mistake in them is reported before an LMM is loaded.
    data, val = ([open_dataset(source) for source in sources] for sources in (settings.data, settings.val))
    frozen = _Frozen.load(settings, accelerator)
    before = frozen.checksum()
    examples = frozen.reader(data, "train", settings.limit, settings.variants)
    held_out = frozen.reader(val, "val", settings.val_samples, 1)
    heads = _new_heads(settings, frozen.refiner, examples).to(accelerator.device)
    stage = HeadsStage(heads, settings)
    batches = Batches(len(examples), settings, accelerator, loop.accumulate)
    loop = replace(loop, steps=batches.steps)
    wrapped = accelerator.prepare(stage)

    def loss_at(step: int) -> Losses:
        places = batches.at(step)
        batch = [examples.read(*batches.image(place)) for place in places]
        return wrapped(batch, [np.random.default_rng([settings.seed, 4, place]) for place in places])

    def measure(step: int) -> dict[str, float]:
        return _measured(stage, held_out, accelerator, out / "pictures" / f"step_{step:06d}.png")

    train(
        wrapped,
        loss_at,
        out=out,
        config=loop,
        settings=settings,
        accelerator=accelerator,
        optimizers=[_optimizer(heads, settings, loop)],
        every=(min(settings.measure_every, loop.steps), measure),
    )
    if (after := frozen.checksum()) != before:
        raise RuntimeError(f"LMM {settings.lmm}: expected weights as before, {before[:12]}, got {after[:12]}")
    if accelerator.is_main_process:
        print(f"LMM: unchanged, {before[:12]}; skipped images: {len(examples.skipped | held_out.skipped)}")
        origin = HeadsOrigin.of(lmm=settings.lmm, sam=settings.sam, image_tokens=settings.image_tokens)
        save_heads(heads, out / "heads", origin=origin)
    accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Frozen:
    """The models that do not learn, and readers of images through them."""

    lmm: FrozenLmm
    refiner: SamRefiner
    """Its prompt encoder and mask decoder learn with the heads; its image encoder does not."""
    dtype: torch.dtype
    """Number format of the LMM."""
    settings: HeadsSettings
    processes: int
    """Processes that share the cache's size limit."""

    @classmethod
    def load(cls, settings: HeadsSettings, accelerator: Accelerator) -> _Frozen:
        """Load LMM and SAM for the process's device."""
        refiner = SamRefiner(sam=load_sam(settings.sam)).to(accelerator.device)
        dtype = resolve_device(GroundingConfig(device=str(accelerator.device), dtype=settings.dtype))[1]
        lmm = load_lmm(settings.lmm, device=accelerator.device, dtype=dtype, image_tokens=settings.image_tokens)
        return cls(lmm, refiner, dtype, settings, accelerator.num_processes)

    def checksum(self) -> str:
        """Checksum of the LMM's weights."""
        return _checksum(self.lmm)

    def reader(self, opened: Sequence[Dataset[Any]], folder: str, limit: int, variants: int) -> ExampleReader:
        """A reader of data sets, with a cache in a folder of the configured cache.

        Args:
            opened: the data sets.
            folder: name of the cache's folder.
            limit: most images of each data set; 0 for all.
            variants: choices of an image's turns and expressions.
        """
        settings = self.settings
        datasets = [limited(dataset, limit) for dataset in opened]
        options = {"turns": settings.turns, "variants": variants, "seed": settings.seed}
        cache = None
        if settings.cache:
            made_from: dict[str, str | int | float] = {
                f"data_{number}": dataset.fingerprint() for number, dataset in enumerate(datasets)
            }
            made_from |= fingerprints(lmm=settings.lmm, sam=settings.sam)
            made_from |= {"dtype": str(self.dtype), "image_tokens": settings.image_tokens, **options}
            room = int(settings.cache_gigabytes * 1e9 / self.processes)
            cache = TraceCache(Path(settings.cache) / folder, made_from, room)
        return ExampleReader(datasets, lmm=self.lmm, refiner=self.refiner, cache=cache, tell=tqdm.write, **options)


def _new_heads(settings: HeadsSettings, refiner: SamRefiner, examples: ExampleReader) -> GroundingHeads:
    """Untrained heads for the LMM of the settings."""
    shape = lmm_shape(settings.lmm)
    kept = best_channels(examples, settings.attention_heads) if settings.attention_heads else ()
    torch.manual_seed(settings.seed)
    unet = UNetConfig(shape.channels, settings.base_channels, kept, settings.sink_quantile)
    config = HeadsConfig(unet=unet, layers=shape.layers, hidden_size=shape.hidden_size)
    return GroundingHeads(config=config, sam=refiner)


def _optimizer(heads: GroundingHeads, settings: HeadsSettings, loop: LoopConfig) -> torch.optim.Optimizer:
    """AdamW; SAM's parts have a learning rate of their own."""
    sam = [parameter for parameter in heads.sam.parameters() if parameter.requires_grad]
    others = [parameter for name, parameter in heads.named_parameters() if not name.startswith("sam.")]
    return adamw(parameter_groups(others, loop) + parameter_groups(sam, loop, factor=settings.sam_rate), loop)


def _measured(stage: HeadsStage, held_out: ExampleReader, accelerator: Accelerator, picture: Path) -> dict[str, float]:
    """Figures on the held-out images, which the processes share; the main process draws some of them."""
    indices = range(accelerator.process_index, len(held_out), accelerator.num_processes)
    seen = (held_out.read(index, 0) for index in tqdm(indices, desc="held out", unit="image", leave=False))
    sums = accelerator.reduce(stage.sums(seen).to(accelerator.device))
    if accelerator.is_main_process:
        drawn = stage.draw([held_out.read(index, 0) for index in range(min(DRAWN, len(held_out)))])
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn).save(picture)
    return figures_of(sums.cpu())


def limited(dataset: Dataset[Any], limit: int) -> Dataset[Any]:
    """A data set of at most ``limit`` images, spread over it; 0 for all of them."""
    return replace(dataset, entries=[dataset.entries[i] for i in spread(len(dataset), limit or None)])


def _checksum(lmm: FrozenLmm) -> str:
    return total_checksum(weight_checksums(LoadedLmm(lmm.model, lmm.words.tokenizer, lmm.family)))
