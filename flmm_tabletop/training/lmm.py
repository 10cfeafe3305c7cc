"""Second stage of flmm-tabletop: the tiny LLaVA learns to answer, by the loss on the next token of the answers alone.

Pictures, questions and answers go in; no mask, box or coordinate does. The result is an ordinary Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from flmm_core.data.dataset import Turn, read_dataset
from flmm_core.families.llava import LlavaFamily
from flmm_core.training.loop import LoopConfig, Losses, adamw, parameter_groups, train
from flmm_tabletop.training import packed_turns
from flmm_tabletop.training.frames import MEAN, STD, load_frames, normalised, rebrightened
from flmm_tabletop.training.packed_turns import Packing
from flmm_tabletop.training.tower import WordVotes
from flmm_tabletop.vision_tower import TabletopTowerConfig

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
IGNORED = -100
ALIGNED_LAYERS = (1, 2)
"""Decoder layers whose attention looks for what a word names; the one before them is free to join colours with kinds."""

SHARPNESS = 1.4
"""How strongly likeness draws attention."""


@dataclass(frozen=True)
class LmmSettings:
    """What the stage depends on beside its loop."""

    data: Path
    val: Path
    tower: Path
    batch: int = 8
    """Pictures."""
    short_turns: int = 12
    """Turns of at most ``short_length`` tokens for each picture."""
    short_length: int = 24
    long_turns: int = 1
    seed: int = 0
    hidden_size: int = 224
    layers: int = 7
    heads: int = 7
    head_size: int = 32
    intermediate_size: int = 512
    vocabulary: int = 1024


def train_lmm(out: Path, settings: LmmSettings, loop: LoopConfig, device: torch.device) -> None:
    """Train the LMM and save it in ``out/lmm`` with tokenizer and preprocessor, ready for ``from_pretrained``."""
    torch.manual_seed(settings.seed)
    pictures, held_out = list(read_dataset(settings.data)), list(read_dataset(settings.val))
    tokenizer = build_tokenizer((turn for picture in pictures[:3000] for turn in picture.turns), settings.vocabulary)
    model = build_lmm(tokenizer, settings)
    tower = AutoModel.from_pretrained(settings.tower)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.eval()  # the tower keeps its statistics; nothing else differs
    model.to(device)  # type: ignore[arg-type]
    model.model.vision_tower.to(memory_format=torch.channels_last)
    model.set_attn_implementation({"text_config": packed_turns.NAME})
    packer = Packer(model, tokenizer, settings)
    image_size = model.model.vision_tower.config.image_size
    frames = load_frames(settings.data, pictures, image_size)
    encoded = [packer.encode(picture.turns) for picture in pictures]
    with torch.no_grad():
        features = model.model.vision_tower(normalised(frames[:64], device)).last_hidden_state
    align_words(model, tokenizer, WordVotes.load(settings.tower), features.flatten(0, 1))

    def loss_at(step: int) -> Losses:
        rng = np.random.default_rng([settings.seed, step])
        epoch, first = divmod(step * settings.batch, len(pictures))
        order = np.random.default_rng([settings.seed, 1, epoch]).permutation(len(pictures))
        index = np.sort(np.take(order, range(first, first + settings.batch), mode="wrap"))
        batch = packer.pack([encoded[i] for i in index], rng)
        pixels = rebrightened(normalised(frames[index], device), rng)
        return {"answer": answer_loss(model, pixels, batch)}

    val_frames = load_frames(settings.val, held_out, image_size)
    val_encoded = [packer.encode(picture.turns) for picture in held_out[:160]]

    def measure(_: int) -> dict[str, float]:
        return _measure(model, packer, val_encoded, val_frames, device)

    for part in aligned_parts(model):
        part.requires_grad_(False)
    optimizer = adamw(parameter_groups(model.parameters(), loop), loop)
    train(model, loss_at, out=out, config=loop, settings=settings, device=device, optimizers=[optimizer], every=(500, measure))
    model.set_attn_implementation({"text_config": "sdpa"})
    model.half().save_pretrained(out / "lmm")
    tokenizer.save_pretrained(out / "lmm")
    CLIPImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(out / "lmm")


def build_tokenizer(turns: Iterable[Turn], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the questions and answers: their words become single tokens, every other text stays sayable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"USER: \n{turn.question} ASSISTANT: {turn.answer}" for turn in turns)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_lmm(tokenizer: PreTrainedTokenizerFast, settings: LmmSettings) -> LlavaForConditionalGeneration:
    """A tiny LLaVA with random weights."""
    vision = TabletopTowerConfig()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.head_size,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
        # Slow rotations: words must find pictures by what they show, hundreds of tokens away, with few channels a head.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.vocab[IMAGE],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def aligned_parts(model: LlavaForConditionalGeneration) -> list[nn.Module]:
    """What :func:`align_words` has laid out: it stays as it is, since learning to speak would scramble it."""
    attention = [m for m in model.modules() if isinstance(m, LlamaAttention) and m.layer_idx in ALIGNED_LAYERS]
    return [
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.get_input_embeddings(),
        model.lm_head,
        *attention,
    ]


@torch.no_grad()
def align_words(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, votes: WordVotes, features: torch.Tensor
) -> None:
    """Start the LMM where words and pictures already share a space; from random weights it stays blind for thousands of steps.

    - The projector turns each cell's vote for a word into that word's embedding, hands the code of positions on, and adds what
      else the tower saw at a lower volume.
    - In the layers of ``ALIGNED_LAYERS`` queries and keys compare what words mean, and outputs are the transpose of values, so
      that a token takes over what it names. Only slow rotations carry this, as likeness must not depend on distance; one
      channel marks pictures and makes a word look at them rather than at itself.
    - All other layers start as the identity, so that nothing blurs this before it is used. Every other head of theirs starts by
      looking at words only: the few words of a question would hardly be seen among hundreds of cells.

    Args:
        model: with random weights.
        tokenizer: of the model.
        votes: of the tower's stage.
        features: ``[cells, hidden size of the tower]``, the tower's features of some pictures.
    """
    content, width = votes.weight.shape[1], features.shape[1]
    known = [i for i, word in enumerate(votes.words) if " " not in word]
    votes = WordVotes(tuple(votes.words[i] for i in known), *(t[known].to(features) for t in (votes.weight, votes.bias)))
    meanings = torch.randn(len(known), width, device=features.device) * model.config.get_text_config().initializer_range
    meanings[:, content - 1 :] = 0  # the marker and the channels of positions
    _align_embeddings(model, tokenizer, dict(zip(votes.words, meanings, strict=True)), content)
    _align_projector(model, votes, meanings, features)
    _align_decoder(model, meanings, marker=content - 1)


def _align_embeddings(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, meaning_of: dict[str, torch.Tensor], content: int
) -> None:
    spread = model.config.get_text_config().initializer_range
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight
    for token, index in tokenizer.get_vocab().items():
        said = tokenizer.convert_tokens_to_string([token]).strip().lower()
        word = next((w for w in (said, said.removesuffix("s"), said.removesuffix("es")) if w in meaning_of), None)
        if word is not None:  # the rest of the embedding tells "mugs" from "mug"
            embeddings[index] = 0.8 * meaning_of[word] + 0.6 * embeddings[index]
    model.lm_head.weight.copy_(embeddings)
    embeddings[:, content:] = 0
    embeddings[:, content - 1] = -15 * spread


def _align_projector(
    model: LlavaForConditionalGeneration, votes: WordVotes, meanings: torch.Tensor, features: torch.Tensor
) -> None:
    spread = model.config.get_text_config().initializer_range
    linear = 8.0  # GELU is the identity far above zero and nothing far below
    words, content = votes.weight.shape
    marker, width = content - 1, features.shape[1]
    positions = width - content
    rest = width - words - positions
    seen = features[:, :content]
    cast_votes = seen @ votes.weight.T + votes.bias
    low, high = cast_votes.quantile(0.9, 0), cast_votes.quantile(0.999, 0)
    volume = linear / (high - low).clamp(min=0.1)
    mean = seen.mean(0)
    _, scale, axes = torch.linalg.svd(seen - mean, full_matrices=False)
    axes = axes[:rest] * (len(seen) ** 0.5 / scale[:rest, None].clamp(min=1e-3 * float(scale[0])))
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.zero_()
    first.weight[:words, :content] = volume[:, None] * votes.weight
    first.bias[:words] = volume * (votes.bias - low)
    first.weight[words : words + positions, content:] = torch.eye(positions)
    first.weight[words + positions :, :content] = axes
    first.bias[words:] = linear
    first.bias[words + positions :] -= axes @ mean
    second.weight[:, :words] = meanings.T / linear
    second.weight[content:, words : words + positions] = 2.5 * spread * torch.eye(positions)
    nn.init.orthogonal_(quiet := torch.empty(marker, rest, device=features.device), gain=0.3 * spread)
    second.weight[:marker, words + positions :] = quiet
    second.bias.copy_(-linear * second.weight[:, words:].sum(1))
    second.bias[marker] = 40 * spread


def _align_decoder(model: LlavaForConditionalGeneration, meanings: torch.Tensor, *, marker: int) -> None:
    text = model.config.get_text_config()
    # Rotary positions turn the first channels of each half too fast to compare tokens some hundred places apart.
    half = text.head_dim // 2
    slots = sorted(range(text.head_dim), key=lambda i: i % half, reverse=True)
    directions = meanings / meanings.norm(dim=1, keepdim=True)
    groups = -(-len(directions) // half)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        layer.mlp.down_proj.weight.zero_()
        if attention.layer_idx not in ALIGNED_LAYERS:
            attention.o_proj.weight.zero_()
            for head in range(0, text.num_attention_heads, 2):
                row = head * attention.head_dim + slots[0]
                for weight in (attention.q_proj.weight, attention.k_proj.weight):
                    weight[row] = 0
                    weight[row, marker] = 0.5
            continue
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        for head in range(text.num_attention_heads):
            group = directions[head % groups :: groups]
            own = [head * attention.head_dim + i for i in slots[: len(group) + 1]]
            for weight, sign in ((attention.q_proj.weight, 1.0), (attention.k_proj.weight, -1.0)):
                weight[own[: len(group)]] = SHARPNESS * group
                weight[own[-1], marker] = sign
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(0.15 * attention.v_proj.weight.T)
        attention.o_proj.weight[marker] = 0


@dataclass(frozen=True)
class EncodedTurn:
    """A turn as tokens after the picture; ``answer`` is the index of the answer's first token."""

    ids: tuple[int, ...]
    answer: int
    kind: str


@dataclass(frozen=True)
class PackedBatch:
    """Turns of several pictures; ``ids`` and ``labels`` are ``[pictures, packing.length - packing.prefix]``."""

    packing: Packing
    prefix_ids: tuple[int, ...]
    image_at: int
    """Index in ``prefix_ids`` of the one image token, which stands for all of them."""
    ids: torch.Tensor
    labels: torch.Tensor
    turns: tuple[tuple[EncodedTurn | None, ...], ...]


class Packer:
    """Tokenises turns exactly as the LLaVA family prompts for them, and packs them behind their pictures."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, settings: LmmSettings) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.device = model.device
        self.image_tokens = model.config.image_seq_length
        self.image_id = model.config.image_token_id
        ids = tokenizer(self._prompt("")).input_ids
        self.prefix_ids = tuple(ids[: ids.index(self.image_id) + 1])

    def _prompt(self, question: str) -> str:
        return LlavaFamily.template.format(image=IMAGE, text=question)

    def encode(self, turns: Sequence[Turn]) -> list[EncodedTurn]:
        """Tokenise turns."""
        prompts = [self._prompt(turn.question) for turn in turns]
        texts = [f"{p}{LlavaFamily.answer_separator}{t.answer}{EOS}" for p, t in zip(prompts, turns, strict=True)]
        both = self.tokenizer(texts, return_offsets_mapping=True)
        skip = len(self.prefix_ids)
        encoded = []
        for turn, prompt, ids, offsets in zip(turns, prompts, both.input_ids, both.offset_mapping, strict=True):
            first = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))
            encoded.append(EncodedTurn(tuple(ids[skip:]), first - skip, turn.kind))
        return encoded

    def pack(self, turns: Sequence[Sequence[EncodedTurn]], rng: np.random.Generator) -> PackedBatch:
        """Choose turns of each picture at random and lay them out."""
        limit = self.settings.short_length
        short = [self._choose([t for t in own if len(t.ids) <= limit], self.settings.short_turns, rng) for own in turns]
        long = [self._choose([t for t in own if len(t.ids) > limit], self.settings.long_turns, rng) for own in turns]
        slots = [(*a, *b) for a, b in zip(short, long, strict=True)]
        length = -(-max((len(t.ids) for own in long for t in own if t is not None), default=1) // 16) * 16
        groups = ((self.settings.short_turns, limit), (self.settings.long_turns, length))
        packing = Packing(len(self.prefix_ids) - 1 + self.image_tokens, groups)
        widths = [width for count, width in groups for _ in range(count)]
        ids = torch.zeros(len(turns), packing.length - packing.prefix, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for row, own in enumerate(slots):
            start = 0
            for turn, width in zip(own, widths, strict=True):
                if turn is not None:
                    ids[row, start : start + len(turn.ids)] = torch.tensor(turn.ids)
                    said = slice(start + turn.answer - 1, start + len(turn.ids) - 1)
                    labels[row, said] = torch.tensor(turn.ids[turn.answer :])
                start += width
        image_at = len(self.prefix_ids) - 1
        return PackedBatch(packing, self.prefix_ids, image_at, ids.to(self.device), labels.to(self.device), tuple(slots))

    def _choose(self, turns: Sequence[EncodedTurn], count: int, rng: np.random.Generator) -> list[EncodedTurn | None]:
        """``count`` different turns, filled up with None."""
        chosen = [turns[i] for i in rng.permutation(len(turns))[:count]]
        return [*chosen, *[None] * (count - len(chosen))]


def hidden_states(model: LlavaForConditionalGeneration, pixels: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Last hidden states of the turns' tokens, ``[pictures, packing.length - packing.prefix, d]``."""
    images = torch.stack(list(model.get_image_features(pixels.contiguous(memory_format=torch.channels_last)).pooler_output))
    embed = model.get_input_embeddings()
    prefix = embed(torch.tensor(batch.prefix_ids[: batch.image_at], device=pixels.device)).expand(len(pixels), -1, -1)
    output = model.model.language_model(
        inputs_embeds=torch.cat([prefix, images.to(prefix.dtype), embed(batch.ids)], 1),
        position_ids=batch.packing.positions(pixels.device),
        packing=batch.packing,
        use_cache=False,
    )
    return output.last_hidden_state[:, batch.packing.prefix :]


def answer_loss(model: LlavaForConditionalGeneration, pixels: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens."""
    said = batch.labels != IGNORED
    logits = model.lm_head(hidden_states(model, pixels, batch)[said])
    return F.cross_entropy(logits.float(), batch.labels[said])


@torch.no_grad()
def _measure(
    model: LlavaForConditionalGeneration,
    packer: Packer,
    encoded: Sequence[Sequence[EncodedTurn]],
    frames: np.ndarray,
    device: torch.device,
) -> dict[str, float]:
    """Share of answers whose every token is the most probable one given those before it: greedy answers that are right."""
    right: dict[str, list[bool]] = {}
    for i in range(0, len(encoded), 16):
        batch = packer.pack(encoded[i : i + 16], np.random.default_rng(i))
        with torch.autocast(device.type, torch.bfloat16):
            logits = model.lm_head(hidden_states(model, normalised(frames[i : i + 16], device), batch))
        agree = ((logits.argmax(-1) == batch.labels) | (batch.labels == IGNORED)).cpu()
        widths = [width for count, width in batch.packing.groups for _ in range(count)]
        for own, row in zip(batch.turns, agree, strict=True):
            for turn, part in zip(own, row.split(widths), strict=True):
                if turn is not None:
                    right.setdefault(turn.kind, []).append(bool(part.all()))
    return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
