"""Second stage of flmm-tabletop: the tiny LLaVA learns to answer, and to attend to the objects that it names.

It is trained on images, questions and answers, without masks, boxes or coordinates. The targets of attention are the votes of
the tower, which was trained on words alone. The tower is frozen, everything else learns. The result is an ordinary Hugging Face
folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, CLIPImageProcessor, LlavaForConditionalGeneration

from flmm_core.common.output_files import replaced_folder
from flmm_core.data.samples import REFER
from flmm_core.data.tabletop import read_dataset
from flmm_core.data.visit import usable_samples
from flmm_core.training.loop import Losses, accelerator_on, adamw, parameter_groups, train
from flmm_core.training.settings import LoopConfig
from flmm_core.weights.folders import HUGGING_FACE_FILES
from flmm_tabletop.training import packed_turns
from flmm_tabletop.training.frames import MEAN, STD, load_frames
from flmm_tabletop.training.image_votes import load_votes
from flmm_tabletop.training.lmm_start import build_lmm, build_tokenizer
from flmm_tabletop.training.looking import AHEAD_HEADS, LOOK_HEADS, looking_loss
from flmm_tabletop.training.muon import Muon
from flmm_tabletop.training.packed_turns import WatchedHeads
from flmm_tabletop.training.settings import LmmSettings
from flmm_tabletop.training.turn_packer import IGNORED, EncodedTurn, PackedBatch, TurnPacker, looking_targets

KIND_WEIGHTS: Mapping[str, float] = {
    "where": 2.0,
    "relation": 2.0,
    "list": 1.5,
    "count": 1.5,
    "presence": 1.5,
    "absence": 1.5,
    "unknown": 0.4,
    "talk": 0.4,
    REFER: 0.2,
}
"""Weights of the answers of a kind, if not 1: more for hard ones; less for refer mode, where the order of names is random."""

TOKENIZED = 3000
"""Images whose turns the tokenizer is trained on."""
MEASURED = 160
"""Held-out images that are measured during training."""


def train_lmm(out: Path, settings: LmmSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the LMM and save it in ``out/lmm`` with tokenizer and preprocessor, ready for ``from_pretrained``."""
    torch.manual_seed(settings.seed)
    samples, held_out = (usable_samples(read_dataset(folder), tell=tqdm.write) for folder in (settings.data, settings.val))
    tokenizer = build_tokenizer((turn for sample in samples[:TOKENIZED] for turn in sample.turns), settings.vocabulary)
    tower = AutoModel.from_pretrained(settings.tower)
    model = build_lmm(tokenizer, tower.config, settings)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    model.eval()  # keeps the tower's batch statistics; no other module differs in training mode
    model.to(device)  # type: ignore[arg-type]
    model.set_attn_implementation({"text_config": packed_turns.NAME})
    packer = TurnPacker(tokenizer, image_tokens=model.config.image_seq_length, groups=settings.turns)
    frame = tower.config.image_size
    frames, val_frames = load_frames(settings.data, samples, frame), load_frames(settings.val, held_out, frame)
    held_out = held_out[:MEASURED]
    votes = load_votes(out / "votes", settings.tower, samples, frames, device)
    val_votes = load_votes(out / "val_votes", settings.tower, held_out, val_frames, device)
    encoded, val_encoded = ([packer.encode(sample.turns) for sample in own] for own in (samples, held_out))

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, step])
        epoch, first = divmod(step * settings.batch, len(samples))
        order = np.random.default_rng([settings.seed, 1, epoch]).permutation(len(samples))
        index = np.sort(np.take(order, range(first, first + settings.batch), mode="wrap"))
        batch = packer.pack([encoded[i] for i in index], rng)
        answer, looking = lmm_losses(model, packer, torch.from_numpy(votes[index].astype(np.float32)), batch)
        return {"answer": answer, "looking": settings.looking * looking}

    def measure(_: int) -> dict[str, float]:
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.bf16):
            return _measure(model, packer, val_encoded, val_votes)

    optimizers = lmm_optimizers(model, settings, loop)
    train(
        model,
        loss_at,
        out=out,
        config=loop,
        settings=settings,
        accelerator=accelerator_on(device),
        every=(500, measure),
        optimizers=optimizers,
    )
    model.set_attn_implementation({"text_config": "sdpa"})
    processor = CLIPImageProcessor(size={"shortest_edge": frame}, crop_size=frame, image_mean=MEAN, image_std=STD)
    with replaced_folder(out / "lmm", HUGGING_FACE_FILES, "LMM") as folder:
        for part in (model.half(), tokenizer, processor):
            part.save_pretrained(folder)


def lmm_optimizers(
    model: LlavaForConditionalGeneration, settings: LmmSettings, loop: LoopConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's matrices, AdamW for all other trained parameters."""
    embeddings = model.get_input_embeddings().weight
    matrices = [p for p in model.model.language_model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in (embeddings, *matrices)}
    rest = [p for p in model.parameters() if id(p) not in known]
    held = {"params": [embeddings], "lr": settings.embedding_rate, "weight_decay": 0.0}
    return [
        Muon(matrices, lr=settings.matrix_rate, weight_decay=loop.weight_decay),
        adamw([*parameter_groups(rest, loop), held], loop),
    ]


def hidden_states(
    model: LlavaForConditionalGeneration,
    packer: TurnPacker,
    votes: torch.Tensor,
    batch: PackedBatch,
    watched: WatchedHeads | None = None,
) -> torch.Tensor:
    """Last hidden states of the turns' tokens, ``[images, packing.length - packing.prefix, d]``.

    Args:
        model: with the attention of packed turns.
        packer: that packed the batch.
        votes: ``[images, cells, words]`` of the tower.
        batch: turns of these images.
        watched: heads whose attention is recorded.
    """
    device = model.device
    images = model.model.multi_modal_projector(model.model.vision_tower.features(votes.to(device)))
    embed = model.get_input_embeddings()
    prefix = embed(torch.tensor(packer.before_image, device=device)).expand(len(images), -1, -1)
    output = model.model.language_model(
        inputs_embeds=torch.cat([prefix, images.to(prefix.dtype), embed(batch.ids.to(device))], 1),
        position_ids=batch.packing.positions(device),
        packing=batch.packing,
        watched=watched,
        use_cache=False,
    )
    return output.last_hidden_state[:, batch.packing.prefix :]


def lmm_losses(
    model: LlavaForConditionalGeneration, packer: TurnPacker, votes: torch.Tensor, batch: PackedBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of the answers' tokens, and mean cross-entropy of the attention of some heads.

    Args:
        model: with the attention of packed turns.
        packer: that packed the batch.
        votes: ``[images, cells, words]`` of the tower, float32 on the CPU.
        batch: turns of these images.
    """
    watched = WatchedHeads({**LOOK_HEADS, **AHEAD_HEADS})
    states = hidden_states(model, packer, votes, batch, watched)
    weights = torch.zeros(batch.labels.shape)
    for place in batch.turns:
        weights[place.image, place.predicting] = KIND_WEIGHTS.get(place.turn.kind, 1.0)
    predicting = (batch.labels != IGNORED).to(states.device)
    labels, weights = (x.to(states.device)[predicting] for x in (batch.labels, weights))
    each = F.cross_entropy(model.lm_head(states[predicting]).float(), labels, reduction="none")
    words = model.model.vision_tower.config.words
    total, terms = torch.zeros((), device=states.device), 0
    for heads, ahead in ((LOOK_HEADS, False), (AHEAD_HEADS, True)):
        seen = {layer: watched.seen[layer] for layer in heads if layer in watched.seen}
        loss, count = looking_loss(seen, looking_targets(batch, votes, words, ahead=ahead))
        total, terms = total + loss.to(total), terms + count
    return (each * weights).sum() / weights.sum(), total / max(terms, 1)


@torch.no_grad()
def _measure(
    model: LlavaForConditionalGeneration, packer: TurnPacker, encoded: Sequence[Sequence[EncodedTurn]], votes: np.ndarray
) -> dict[str, float]:
    """Share, by kind, of the answers that greedy decoding would reproduce."""
    right: dict[str, list[bool]] = {}
    for i in range(0, len(encoded), 16):
        batch = packer.pack(encoded[i : i + 16], np.random.default_rng(i))
        logits = model.lm_head(hidden_states(model, packer, torch.from_numpy(votes[i : i + 16].astype(np.float32)), batch))
        agree = (logits.argmax(-1).cpu() == batch.labels) | (batch.labels == IGNORED)
        for place in batch.turns:
            right.setdefault(place.turn.kind, []).append(bool(agree[place.image, place.predicting].all()))
    return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
