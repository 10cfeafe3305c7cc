"""A checkpoint's own generation settings: which ones shape answers here, and which ones are ignored, by name.

They are settled once, when an LMM is loaded. ``model.generate`` alone and this package then decode with the same settings, and
``flmm verify-frozen`` compares the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from flmm_core.families import Checkpoint, LoadedLmm
from flmm_core.lmm.tokens import is_mark

KEPT = frozenset(
    {
        "bos_token_id", "eos_token_id", "pad_token_id", "min_new_tokens",
        "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens",
        "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits",
    }
)  # fmt: skip
"""Settings that are kept: the ids of special tokens, and all that shapes the scores of greedy decoding."""

_GREEDY = "answers are greedy"
_LENGTH = "max_new_tokens of the command limits answers"
_OUTPUTS = "what generate returns is chosen here"
_PLAIN = (_GREEDY, _LENGTH, _OUTPUTS)
"""Reasons that most checkpoints give occasion for; they change nothing that the user did not choose."""

IGNORED: Mapping[str, Mapping[str, Any]] = {
    _GREEDY: {
        "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "top_h": None, "typical_p": 1.0,
        "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "watermarking_config": None,
    },
    _LENGTH: {"max_length": 20, "max_new_tokens": None, "min_length": 0, "max_time": None},
    _OUTPUTS: {
        "output_attentions": False, "output_hidden_states": False, "output_scores": False, "output_logits": False,
        "return_dict_in_generate": False, "return_dict": True,
    },
    "keys and values stay in a cache that grows with the answer": {
        "use_cache": True, "cache_implementation": None, "cache_config": None, "max_cache_len": None,
        "prefill_chunk_size": None, "compile_config": None, "disable_compile": None, "continuous_batching_config": None,
        "low_memory": None,
    },
    "one answer is decoded, token by token, from the LMM's own scores": {
        "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0, "early_stopping": False,
        "constraints": None, "force_words_ids": None, "num_return_sequences": 1, "penalty_alpha": None, "dola_layers": None,
        "guidance_scale": None, "token_healing": None, "use_mtp": None, "is_assistant": None, "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4, "assistant_early_exit": None,
        "assistant_lookbehind": 10, "target_lookbehind": 10, "assistant_ensemble_weight": None,
        "prompt_lookup_num_tokens": None, "max_matching_ngram_size": None, "speculation_type": None,
    },
    "an answer ends with an end token, or is cut": {"stop_strings": None, "forced_eos_token_id": None},
    "there is no encoder": {"forced_bos_token_id": None, "decoder_start_token_id": None},
}  # fmt: skip
"""Settings that are ignored, by the reason, each with the value that means what is done anyway."""

_UNKNOWN = "unknown to this package"
_ABOUT_THE_FILE = ("transformers_version", "_from_model_config", "_commit_hash")
_OF_CONFIG = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""Settings that a forward pass takes from the model's config, with the values that are needed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnSettings:
    """The generation settings in a checkpoint's files, before a model is loaded. transformers never reads them by itself: it
    refuses some, and takes the method of generation from others.
    """

    found: Mapping[str, Any]
    """By name, as the files say; None for a setting that is not set."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, folder: str = "") -> OwnSettings:
        """Read ``generation_config.json``; without one ``config.json``, which older checkpoints have them in.

        Args:
            checkpoint: of any family.
            folder: of it, with the decoder's files; empty for its own.
        """
        path = PurePosixPath(folder)
        raw = checkpoint.json(str(path / "config.json"))
        config = {**(raw.get("text_config") or {}), **{name: value for name, value in raw.items() if value is not None}}
        name = str(path / "generation_config.json")
        if checkpoint.file(name) is not None:
            flags = {name: value for name, value in config.items() if name in _OF_CONFIG}
            return cls({**flags, **checkpoint.json(name)})
        known = KEPT.union(*IGNORED.values())
        return cls({name: value for name, value in config.items() if name in known})

    @property
    def ignored(self) -> dict[str, str]:
        """The reason by name, for each setting that asks for something else than what is done."""
        return {name: why for name, value in self.found.items() if (why := _reason(name, value))}

    def config(self) -> GenerationConfig:
        """The settings that are kept."""
        return GenerationConfig(**{name: value for name, value in self.found.items() if name in KEPT and value is not None})

    def log_ignored(self, source: str) -> None:
        """Say in one line which settings of a checkpoint are ignored, and why."""
        reasons = self.ignored
        if reasons:
            level = logging.INFO if set(reasons.values()) <= set(_PLAIN) else logging.WARNING
            named = {why: [name for name, reason in reasons.items() if reason == why] for why in reasons.values()}
            groups = (f"{', '.join(f'{name}={self.found[name]!r}' for name in names)} ({why})" for why, names in named.items())
            _log.log(level, "LMM %s: generation settings that are ignored: %s", source, "; ".join(groups))


def settle(loaded: LoadedLmm, checkpoint: Checkpoint) -> None:
    """Let answers end where the assistant's turn ends, and forward passes return what this package reads.

    Args:
        loaded: as its family loaded it; its model's settings are changed.
        checkpoint: that it is from.
    """
    model: Any = loaded.model
    model.generation_config.eos_token_id = _end_ids(model.generation_config.eos_token_id, loaded, checkpoint)
    for config in (model.config, model.config.get_text_config()):
        for name, value in _OF_CONFIG.items():
            setattr(config, name, value)


def _reason(name: str, value: Any) -> str:
    """Why a setting is ignored; empty if it is kept, or asks for nothing else than what is done."""
    if name in KEPT or name in _ABOUT_THE_FILE or value is None:
        return ""
    for why, neutral in IGNORED.items():
        if name in neutral:
            means_nothing = value == neutral[name] or (value is False and neutral[name] is None)
            return "" if means_nothing else why
    return _UNKNOWN


def _end_ids(own: int | list[int] | None, loaded: LoadedLmm, checkpoint: Checkpoint) -> int | list[int] | None:
    """Ids that end an answer: the checkpoint's own, and the mark with which a turn of the assistant ends.

    That mark is what the chat template writes behind an assistant's message; without a template, what the family does. A model
    without any end id gets the tokenizer's.
    """
    ends = [] if own is None else [own] if isinstance(own, int) else list(own)
    tokenizer = loaded.tokenizer
    written = checkpoint.turn_end(str(tokenizer.eos_token or "")) or loaded.family.turn_end or ""
    end = first_mark(tokenizer, written)
    if end is None and not ends:
        end = tokenizer.eos_token_id
    return own if end is None or end in ends else [*ends, end]


def first_mark(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """Id of the special token with which a text begins, white space aside; None if it begins with words."""
    found = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if is_mark(token) and text.lstrip().startswith(token.content)
    }
    return found[max(found, key=len)] if found else None
