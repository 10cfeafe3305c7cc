"""A checkpoint's own generation settings: penalties and ends are kept, all else is ignored by name, on both sides alike."""

import json
import logging

import pytest
import torch
from tiny_models import random_image
from transformers import GenerationConfig

from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.generation_settings import IGNORED, KEPT, OwnSettings
from flmm_core.lmm.loading import load_plain
from flmm_core.verification.frozen_report import BATCH, CACHED, UNCACHED, verify_frozen

IMAGE = random_image()
ASKED = ("where is the lemon?", "a")
TOKENS = 8

OTHER = {
    "do_sample": True, "temperature": 0.1, "top_k": 3, "top_p": 0.2, "min_p": 0.4, "top_h": 0.4, "typical_p": 0.3,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "watermarking_config": {"greenlist_ratio": 0.1, "bias": 9.0},
    "max_length": 5, "max_new_tokens": 2, "min_length": 900, "max_time": 1e-9,
    "output_attentions": True, "output_hidden_states": True, "output_scores": True, "output_logits": True,
    "return_dict_in_generate": True, "return_dict": False,
    "use_cache": False, "cache_implementation": "static", "cache_config": {"nbits": 4}, "max_cache_len": 7,
    "prefill_chunk_size": 3, "compile_config": {"fullgraph": True}, "disable_compile": True,
    "continuous_batching_config": {"a": 1}, "low_memory": True,
    "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "length_penalty": 3.0, "early_stopping": "never",
    "constraints": [1], "force_words_ids": [[5]], "num_return_sequences": 2, "penalty_alpha": 0.6, "dola_layers": "high",
    "guidance_scale": 3.0, "token_healing": True, "use_mtp": True, "is_assistant": True, "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.9, "assistant_early_exit": 1,
    "assistant_lookbehind": 3, "target_lookbehind": 3, "assistant_ensemble_weight": 0.5, "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 3, "speculation_type": "dflash",
    "stop_strings": ["e", "a"], "forced_eos_token_id": 2, "forced_bos_token_id": 9, "decoder_start_token_id": 9,
}  # fmt: skip
"""For each setting that is ignored, a value that asks for something else."""


def shaped(free):
    """For each setting that is kept, a value that changes greedy answers of which the first is ``free``."""
    first, second = free[:2]
    return {
        "eos_token_id": [2, free[4]], "bos_token_id": 1, "pad_token_id": 3, "min_new_tokens": 4,
        "repetition_penalty": 1.7, "encoder_repetition_penalty": 1.4, "no_repeat_ngram_size": 1,
        "encoder_no_repeat_ngram_size": 1, "bad_words_ids": [[first]], "sequence_bias": [[[first], -9.0], [[7], 3.0]],
        "suppress_tokens": [first, second], "begin_suppress_tokens": [first],
        "exponential_decay_length_penalty": [2, 4.0], "remove_invalid_values": True, "renormalize_logits": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tiny_llava, tmp_path_factory):
    """``checkpoint(own, of_config)``: a folder of the tiny LLaVA with these settings in its two files."""

    def made(own=None, of_config=None, text_config=None):
        folder = tmp_path_factory.mktemp("own")
        for path in tiny_llava.iterdir():
            if path.name not in ("config.json", "generation_config.json"):
                (folder / path.name).symlink_to(path)
        config = json.loads((tiny_llava / "config.json").read_text())
        config["text_config"] = {**config["text_config"], **(text_config or {})}
        (folder / "config.json").write_text(json.dumps({**config, **(of_config or {})}))
        if own is not None:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 3, **own}))
        return folder

    return made


@pytest.fixture(scope="module")
def plain_ids(checkpoint):
    """``plain_ids(settings)``: greedy ids of ``model.generate`` for the first image, of a model that no file sets up."""
    loaded = load_plain(checkpoint({}), device="cpu", dtype=torch.float32)
    words = "USER: " + "<image>" * 16 + f"\n{ASKED[0]} ASSISTANT:"
    inputs = loaded.tokenizer(words, return_tensors="pt")
    pixels = loaded.family.prepare([IMAGE]).inputs["pixel_values"]

    def ids(settings):
        config = GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 3, **settings}, max_new_tokens=TOKENS)
        output = loaded.model.eval().generate(**inputs, pixel_values=pixels, generation_config=config)
        return output[0, inputs.input_ids.shape[1] :].tolist()

    return ids


def checked(folder):
    """Plain and served answers are equal in every way to answer; returns the loaded LMM, which has the recorder then."""
    loaded = load_plain(folder, device="cpu", dtype=torch.float32)
    report = verify_frozen(loaded, {"image": IMAGE}, ASKED, max_new_tokens=TOKENS)
    assert all(set(answer.outcomes) == {UNCACHED, CACHED, BATCH} for answer in report.answers)
    assert report.frozen and all(one.identical for one in report.outcomes), report.summary()
    assert report.record()["ignored_settings"] == loaded.ignored_settings
    assert all(name in report.summary() for name in loaded.ignored_settings)
    return loaded


def test_every_setting_of_transformers_is_in_the_table():
    names = set(GenerationConfig().to_dict()) - {"transformers_version", "_from_model_config"}
    ignored = [name for group in IGNORED.values() for name in group]
    assert names - KEPT - set(ignored) == set()
    assert len(ignored) == len(set(ignored)) and not KEPT & set(ignored)
    assert set(OTHER) == set(ignored) and set(shaped(range(9))) == KEPT


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_that_is_ignored_changes_nothing(checkpoint, name):
    """Alone in generation_config.json or in config.json, and by its name."""
    expected = GenerationConfig(eos_token_id=2, pad_token_id=3)
    own = OwnSettings.of(_Files(generation_config={"eos_token_id": 2, "pad_token_id": 3, name: OTHER[name]}))
    old = OwnSettings.of(_Files(config={"eos_token_id": 2, "text_config": {"pad_token_id": 3, name: OTHER[name]}}))
    for settings in (own, old):
        assert settings.config() == expected
        assert list(settings.ignored) == [name] and settings.ignored[name] in IGNORED


class _Files:
    """A checkpoint of these files."""

    def __init__(self, **files):
        self._files = {f"{name}.json": fields for name, fields in files.items()}

    def file(self, name):
        return name if name in self._files else None

    def json(self, name):
        return self._files.get(name, {})


@pytest.mark.parametrize("place", ["own", "of_config", "text_config"])
def test_all_that_is_ignored_together_changes_no_answer(checkpoint, plain_ids, place, caplog):
    """From files to answers, read and written: each of these settings gave other words, or an error of transformers."""
    # transformers itself refuses one of them in config.json, with one line
    given = OTHER if place == "own" else {name: value for name, value in OTHER.items() if name != "compile_config"}
    with caplog.at_level(logging.INFO):
        loaded = checked(checkpoint(**{place: given}))
    (line,) = [record for record in caplog.records if "generation settings that are ignored" in record.message]
    assert line.levelname == "WARNING" and "use_cache=False, " in line.message
    assert set(loaded.ignored_settings) == set(given)
    reading = []
    for reuse in (False, True):
        lmm = FrozenLmm(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family, reuse_prefix=reuse)
        image = lmm.encode_image(IMAGE)
        assert list(lmm.generate(image, ASKED[0], max_new_tokens=TOKENS).token_ids) == plain_ids({})
        reading += [lmm.teacher_force(image, ASKED[0], "a red mug").states for _ in range(2)]
        assert lmm.generate_batch([lmm.question(image, text, max_new_tokens=3) for text in ASKED])[0].token_ids
    for states in reading[1:]:
        torch.testing.assert_close(states, reading[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(KEPT))
def test_a_setting_that_is_kept_shapes_answers_as_it_does_in_generate(checkpoint, plain_ids, name, caplog):
    own = {name: shaped(plain_ids({}))[name]}
    expected = plain_ids(own)
    silent = ("bos_token_id", "pad_token_id", "remove_invalid_values", "renormalize_logits", "min_new_tokens")
    assert (expected == plain_ids({})) == (name in silent), "the value does not show whether the setting is kept"
    loaded = checked(checkpoint(own))
    lmm = FrozenLmm(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family)
    trace = lmm.generate(lmm.encode_image(IMAGE), ASKED[0], max_new_tokens=TOKENS)
    assert list(trace.token_ids) == (expected[:-1] if trace.ended else expected)
    assert not loaded.ignored_settings and "ignored" not in caplog.text


def test_answers_are_no_shorter_than_is_asked(checkpoint, plain_ids):
    ends = [2, plain_ids({})[1]]
    assert len(plain_ids({"eos_token_id": ends})) == 2
    loaded = checked(checkpoint({"eos_token_id": ends, "min_new_tokens": 4}))
    lmm = FrozenLmm(model=loaded.model, tokenizer=loaded.tokenizer, family=loaded.family)
    assert len(lmm.generate(lmm.encode_image(IMAGE), ASKED[0], max_new_tokens=TOKENS).token_ids) >= 4


def test_sampling_and_unknown_settings_are_named(checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        loaded = load_plain(checkpoint({"temperature": 0.7, "do_sample": True}), device="cpu", dtype=torch.float32)
        assert loaded.ignored_settings == {"temperature": "answers are greedy", "do_sample": "answers are greedy"}
        (line,) = [record for record in caplog.records if "ignored" in record.message]
        assert line.levelname == "INFO" and line.message.endswith(
            "ignored: temperature=0.7, do_sample=True (answers are greedy)"
        )
    assert OwnSettings.of(_Files(generation_config={"beams": 3})).ignored == {"beams": "unknown to this package"}
    usual = {"num_beams": 1, "do_sample": False, "use_cache": True, "max_new_tokens": None, "transformers_version": "4.40"}
    assert OwnSettings.of(_Files(generation_config=usual)).ignored == {}


def test_a_checkpoint_that_names_no_end_gets_one(checkpoint):
    loaded = load_plain(checkpoint({"eos_token_id": None}), device="cpu", dtype=torch.float32)
    assert loaded.model.generation_config.eos_token_id == [2]


def test_a_file_that_cannot_be_read_is_named(checkpoint):
    """transformers went on without it."""
    folder = checkpoint({})
    for broken in (b"{'use_cache': false}", b"\xff\xfe"):
        (folder / "generation_config.json").write_bytes(broken)
        with pytest.raises(ValueError, match=r"generation_config\.json: expected JSON, got "):
            load_plain(folder, device="cpu", dtype=torch.float32)
