"""The recorder: what it captures is eager attention, and the model does not notice."""

import copy
import hashlib

import pytest
import torch
from tiny_models import random_image, save_llava
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    StaticCache,
)

from flmm_core.lmm.attention_recorder import ATTENTION_NAME, install, record
from flmm_core.lmm.frozen_lmm import FrozenLmm


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["mha", "gqa", "mqa"])
def folder(request, tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"), kv_heads=request.param)


def eager_rows(folder, lmm, image, ids, first):
    """Attention ``[l, q, t, image tokens]`` and hidden states ``[l, t, d]`` of tokens ``first ...``, by eager attention."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    pixels = lmm.family.prepare([random_image()]).inputs["pixel_values"]
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    columns = [i for i, token in enumerate(ids) if token == lmm.family.image_token_id]
    assert len(columns) == 16
    rows = torch.stack([layer[0, :, first:][..., columns] for layer in output.attentions])
    return rows, torch.stack([states[0, first:] for states in output.hidden_states[1:]])


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
@pytest.mark.parametrize("path", ["read", "chat"])
def test_captured_rows_are_eager_attention(folder, path, reuse):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
    image = lmm.encode_image(random_image())
    if path == "read":
        trace = lmm.teacher_force(image, "where is the lemon?", "The yellow lemon is left of the can.")
        prompt = lmm.family.prompt("where is the lemon?")
    else:
        trace = lmm.generate(image, "where is the lemon?", max_new_tokens=9)
        prompt = lmm.family.prompt("where is the lemon?")
        assert len(trace.token_ids) == 9
    start = trace.attention.start
    prompt_ids = lmm.words.expand(lmm.words.tokenizer(prompt).input_ids, image.layouts).ids
    rows, states = eager_rows(folder, lmm, image, [*prompt_ids, *trace.token_ids], len(prompt_ids))
    assert start == len(prompt_ids)
    assert rows.shape[2] == len(trace.token_ids) == trace.attention.tokens
    torch.testing.assert_close(trace.states, states, atol=1e-4, rtol=1e-4)
    spans = [(0, 1), (2, 5), (1, rows.shape[2]), (rows.shape[2] - 1, rows.shape[2])]
    expected = [rows[:, :, a:b].mean(2) for a, b in spans]
    maps = trace.merged_attention(spans)
    assert maps.shape == (4, 12, 4, 4)
    torch.testing.assert_close(maps, torch.stack([e.reshape(12, 4, 4) for e in expected]), atol=1e-5, rtol=0)
    assert maps.std() > 1e-3  # the maps say something, so equality means something


def test_the_model_does_not_notice(folder):
    """Logits of a prefill, a continued prefill and decoding steps are the same to the bit with the recorder and without."""
    plain = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    lmm = FrozenLmm.from_pretrained(folder)
    ids = torch.tensor([lmm.words.prompt_tokens("what is on the table?", lmm.family.prepare([random_image()]).layouts).ids])
    pixels = lmm.family.prepare([random_image()]).inputs["pixel_values"]

    def run(model):
        with torch.no_grad():
            logits, cache = [], None
            for part, images in ((ids[:, :-5], pixels), (ids[:, -5:-1], None), (ids[:, -1:], None), (ids[:, -1:], None)):
                output = model(input_ids=part, pixel_values=images, cache=cache, use_cache=True)
                cache = output.cache
                logits.append(output.logits)
            return torch.cat(logits, dim=1)

    def checksum(model):
        digest = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    before = checksum(plain)
    with record(start=3):
        recorded = run(lmm.model)
    assert torch.equal(recorded, run(plain))
    assert torch.equal(run(lmm.model), recorded)
    image = lmm.encode_image(random_image())
    lmm.generate(image, "what is on the table?", max_new_tokens=4)
    lmm.teacher_force_phrases(image, ["lemon"])
    assert checksum(lmm.model) == before
    assert not any(parameter.requires_grad for parameter in lmm.model.parameters())
    assert lmm.model.config.text_config._attn_implementation == ATTENTION_NAME
    assert lmm.model.config.vision_config._attn_implementation == "sdpa"


def test_only_wanted_queries_are_kept(folder):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=False)
    trace = lmm.teacher_force(lmm.encode_image(random_image()), "where is the lemon?", "The lemon.")
    for layer in trace.attention.layers:
        assert layer.queries.shape[1] == len(trace.token_ids)
        assert layer.queries.untyped_storage().nbytes() == layer.queries.nbytes  # no view that keeps the prompt alive


def test_spans_are_checked(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    trace = lmm.teacher_force(lmm.encode_image(random_image()), "where is the lemon?", "The lemon.")
    assert trace.merged_attention([]).shape == (0, 12, 4, 4)
    for span in ((2, 2), (-1, 1), (0, 99)):
        with pytest.raises(ValueError, match=r"expected 0 <= start < end <= \d+, got"):
            trace.merged_attention([span])


def test_one_sequence_at_a_time(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    with torch.no_grad(), record(start=0) as recorder:
        lmm.model(input_ids=torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="expected 1 sequences, got a batch of 2"):
        recorder.split([(0, 3)])
    assert [kept.tokens for kept in recorder.split([(0, 2), (1, 3)])] == [2, 2]


def test_attention_sinks_are_refused():
    """They take part in the softmax, and the keys do not show them."""
    small = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    config = GptOssConfig(
        **small, num_key_value_heads=2, vocab_size=50, num_local_experts=2, num_experts_per_tok=1, sliding_window=64
    )
    model = GptOssForCausalLM(config).eval()
    install(model)
    with torch.no_grad(), record(start=0), pytest.raises(ValueError, match=r"got attention sinks \(s_aux\)"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


@pytest.mark.parametrize("path", ["read", "chat"])
def test_half_precision_rows_are_as_exact_as_those_of_eager_attention(folder, path):
    """Measured against the same weights in float32: what is left is the rounding of the model itself."""
    lmm = FrozenLmm.from_pretrained(folder, dtype=torch.bfloat16, reuse_prefix=False)
    image = lmm.encode_image(random_image())
    if path == "read":
        trace = lmm.teacher_force(image, "where?", "The lemon.")
    else:
        trace = lmm.generate(image, "where?", max_new_tokens=6)
    prompt = lmm.words.prompt_tokens("where?", image.layouts, chat=path == "chat").ids
    ids, pixels = torch.tensor([[*prompt, *trace.token_ids]]), lmm.family.prepare([random_image()]).inputs["pixel_values"]
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16).eval()

    def rows_of(model):
        with torch.no_grad():
            output = model(input_ids=ids, pixel_values=pixels.to(model.dtype), output_attentions=True)
        return torch.stack([layer[0, :, len(prompt) :].float() for layer in output.attentions])

    eager, exact = rows_of(model), rows_of(model.float())
    columns, tokens = torch.arange(ids.shape[1]), range(len(trace.token_ids))
    rows = torch.stack([trace.attention.rows(i, tokens, columns) for i in range(3)])
    assert rows.dtype == torch.bfloat16
    ours, theirs = ((some - exact).abs().mean(dim=(1, 2, 3)) for some in (rows.float(), eager))
    assert (ours < 1.5 * theirs).all() and (theirs < 0.02).all()


def sliding_llava(folder):
    """A LLaVA whose decoder slides over 20 positions."""
    save_llava(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    config = model.config
    fields = {name: getattr(config.text_config, name) for name in SIZES}
    config.text_config = MistralConfig(**fields, sliding_window=20, rope_parameters=config.text_config.rope_parameters)
    other = LlavaForConditionalGeneration(config)
    other.load_state_dict(model.state_dict())
    other.save_pretrained(folder)
    return folder


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "rms_norm_eps",
)  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
@pytest.mark.parametrize("path", ["read", "chat"])
def test_a_sliding_window_is_not_forgotten(tmp_path, path, reuse):
    """With a cache of all positions the rows of a sliding layer are eager attention's too: nothing outside the window."""
    folder = sliding_llava(tmp_path)
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
    image = lmm.encode_image(random_image())
    read = path == "read"
    trace = lmm.teacher_force(image, "lemon", "The lemon.") if read else lmm.generate(image, "lemon", max_new_tokens=6)
    prompt = lmm.words.prompt_tokens("lemon", image.layouts).ids
    assert len(prompt) > 20
    rows, _ = eager_rows(folder, lmm, image, [*prompt, *trace.token_ids], len(prompt))
    maps = trace.merged_attention([(i, i + 1) for i in range(len(trace.token_ids))])
    torch.testing.assert_close(maps, rows.permute(2, 0, 1, 3).reshape(len(maps), 12, 4, 4), atol=1e-5, rtol=0)
    assert all(layer.window == 20 for layer in trace.attention.layers)
    assert (rows == 0).any() and rows.std() > 1e-3


def test_a_cache_that_drops_positions_is_refused(tmp_path):
    lmm = FrozenLmm.from_pretrained(sliding_llava(tmp_path), reuse_prefix=False)
    ids = torch.arange(40)[None] + 5
    cache = DynamicCache(config=lmm.model.config)
    with torch.no_grad():
        lmm.model(input_ids=ids, cache=cache, use_cache=True)
        expected = r"layer 0: expected keys of 41 positions, got 20; a layer with a sliding window of 20 gives no maps"
        with record(start=40, seen=40), pytest.raises(ValueError, match=expected):
            lmm.model(input_ids=ids[:, :1], cache=cache, use_cache=True)


def test_layers_without_attention_are_refused(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    with torch.no_grad(), record(start=0, layers=(0, 3)) as recorder:
        lmm.model(input_ids=torch.ones(1, 3, dtype=torch.long))
        with pytest.raises(ValueError, match=r"expected softmax attention in layers \[0, 3\], got none from \[3\]"):
            recorder.split([(0, 3)])


@pytest.mark.parametrize("kind", ["static", "padded"])
def test_room_and_padding_give_the_same_rows(folder, kind):
    """Unused room of a static cache is cut off, and padded positions get no attention."""
    lmm = FrozenLmm.from_pretrained(folder)
    ids = torch.arange(12)[None] + 5
    columns = torch.arange(12)
    start = 8
    with torch.no_grad(), record(start=start) as plain:
        lmm.model(input_ids=ids, cache=DynamicCache(), use_cache=True)
    if kind == "static":
        cache = StaticCache(config=lmm.model.config, max_cache_len=32)
        with torch.no_grad(), record(start=8) as other:
            for part in (ids[:, :10], ids[:, 10:11], ids[:, 11:]):
                lmm.model(input_ids=part, cache=cache, use_cache=True)
        at = columns
    else:
        left = torch.cat([torch.full((1, 3), 3), ids], dim=1)
        mask = (left != 3).long()
        mask[:, 3:] = 1
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        start += 3
        with torch.no_grad(), record(start=start) as other:
            lmm.model(input_ids=left, attention_mask=mask, position_ids=positions, cache=DynamicCache(), use_cache=True)
        at = columns + 3
    (expected,), (got,) = plain.split([(8, 12)]), other.split([(start, start + 4)])
    for layer in range(3):
        rows = got.rows(layer, range(4), at)
        torch.testing.assert_close(rows, expected.rows(layer, range(4), columns), atol=1e-5, rtol=0)


def test_soft_capped_scores(tmp_path):
    """Gemma 2 bends its scores, and SDPA refuses them: rows and logits are still those of its eager attention."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=8, initializer_range=0.5,
    )  # fmt: skip
    eager = Gemma2ForCausalLM._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    model = Gemma2ForCausalLM(config).eval()
    model.load_state_dict(eager.state_dict())
    install(model)
    ids = torch.arange(14)[None] + 5
    with torch.no_grad(), record(start=9) as recorder:
        cache = DynamicCache()
        logits = [model(input_ids=part, cache=cache, use_cache=True).logits for part in (ids[:, :9], ids[:, 9:13], ids[:, 13:])]
        expected = eager(input_ids=ids, output_attentions=True)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected.logits, atol=1e-4, rtol=1e-4)
    (kept,) = recorder.split([(9, 14)])
    assert {layer.window for layer in kept.layers} == {6, None}
    for layer in range(2):
        rows = kept.rows(layer, range(5), torch.arange(14))
        torch.testing.assert_close(rows, expected.attentions[layer][0, :, 9:], atol=1e-5, rtol=0)
