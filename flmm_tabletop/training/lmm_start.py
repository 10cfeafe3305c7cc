"""Initial state of flmm-tabletop's LMM: its tokenizer, its sizes, and weights that make a word similar to its visual evidence.

None of these weights is frozen. From entirely random weights the LMM would ignore the image for thousands of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from flmm_core.data.samples import Turn
from flmm_tabletop.training.settings import LmmSettings
from flmm_tabletop.vision_tower import TabletopTowerConfig

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"

EMBEDDING = 0.4
"""Standard deviation of embeddings and of the meanings of words."""
SIGHT = 0.7
"""Factor of a word's meaning in the features of a cell with evidence for it."""
PLACE = 0.28
"""Standard deviation of the features of each position channel."""
LIKENESS = 0.73
"""Norm of the rows with which the mimetic heads compare words."""
LIKE_HEADS = 3
"""Mimetic heads of a layer."""


def build_tokenizer(turns: Iterable[Turn], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the questions and answers: their words become single tokens, any other text can still be encoded."""
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


def build_lmm(
    tokenizer: PreTrainedTokenizerFast, vision: TabletopTowerConfig, settings: LmmSettings
) -> LlavaForConditionalGeneration:
    """A tiny LLaVA in its initial state; its tower has random weights."""
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
        # Slow rotations, as words must match image tokens hundreds of positions away with few channels for each head.
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
    _start(model, tokenizer, vision)
    return model


@torch.no_grad()
def _start(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, vision: TabletopTowerConfig) -> None:
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight
    nn.init.normal_(embeddings, std=EMBEDDING)
    nn.init.normal_(model.lm_head.weight, std=0.02)
    meanings = torch.randn(len(vision.words), embeddings.shape[1]) * EMBEDDING
    _start_words(embeddings, tokenizer, vision.words, meanings)
    _start_projector(model.model.multi_modal_projector, meanings, vision.position_channels)
    layers = model.model.language_model.layers
    for layer in layers:
        for name, weight in layer.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # each layer begins as the identity
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    for layer in layers[:-1]:
        _start_alike(layer.self_attn, meanings)


def _start_words(
    embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerFast, words: Sequence[str], meanings: torch.Tensor
) -> None:
    """Give every token that spells a word most of its meaning; the rest of the embedding distinguishes "mugs" from "mug"."""
    meaning_of = dict(zip(words, meanings, strict=True))
    for token, index in tokenizer.get_vocab().items():
        spelt = tokenizer.convert_tokens_to_string([token]).strip().lower()
        word = next((w for w in (spelt, spelt.removesuffix("s"), spelt.removesuffix("es")) if w in meaning_of), None)
        if word is not None:
            embeddings[index] = 0.8 * meaning_of[word] + 0.6 * embeddings[index]


def _start_projector(projector: Any, meanings: torch.Tensor, positions: int) -> None:
    """Map evidence to meanings and pass positions on; the remaining hidden units start at random, with half the weight.

    Args:
        projector: LLaVA's, from ``words + positions`` channels.
        meanings: ``[words, hidden size]``.
        positions: channels of positions.
    """
    first, second = projector.linear_1, projector.linear_2
    words, laid_out = len(meanings), len(meanings) + 2 * positions
    if first.out_features < laid_out:
        raise ValueError(f"expected a hidden size of at least {laid_out} for the tower's channels, got {first.out_features}")
    for linear in (first, second):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    first.weight[:laid_out] = 0
    second.weight *= 0.5
    first.weight[:words, :words] = torch.eye(words)
    second.weight[:, :words] = SIGHT * meanings.T
    places = torch.randn(second.out_features, positions) * PLACE
    for sign, start in ((1, words), (-1, words + positions)):  # gelu(x) - gelu(-x) = x: positions pass unchanged
        first.weight[start : start + positions, words:] = sign * torch.eye(positions)
        second.weight[:, start : start + positions] = sign * places


def _start_alike(attention: Any, meanings: torch.Tensor) -> None:
    """Give queries and keys of some heads one projection (mimetic start; Trockman and Kolter, 2023).

    A word then attends to cells with its evidence from the first step. Only channels that rotary positions hardly rotate are
    used, as the similarity must not depend on distance.
    """
    size = attention.head_dim
    half = size // 2
    slow = [i for i in range(size) if i % half >= 7 * half // 16]
    span = torch.linalg.qr(meanings.T)[0]
    for head in range(min(LIKE_HEADS, attention.q_proj.out_features // size)):
        turned = torch.linalg.qr(torch.randn(span.shape[1], len(slow)))[0].T
        rows = [head * size + i for i in slow]
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            weight[rows] = LIKENESS * turned @ span.T
