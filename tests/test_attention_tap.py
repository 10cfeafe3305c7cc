"""The tap: what it captures is eager attention, and the model does not notice."""

import hashlib

import pytest
import torch
from tiny_models import random_image, save_llava
from transformers import LlavaForConditionalGeneration

from flmm_core.attention_tap import TAP_NAME, record
from flmm_core.frozen_lmm import FrozenLmm


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["mha", "gqa", "mqa"])
def folder(request, tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"), kv_heads=request.param)


def eager_rows(folder, lmm, image, ids, first):
    """Attention ``[l, q, t, image tokens]`` and hidden states ``[l, t, d]`` of tokens ``first ...``, by eager attention."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    pixels = lmm.family.prepare(random_image()).pixel_values
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
        trace = lmm.read_answer(image, "where is the lemon?", "The yellow lemon is left of the can.")
        prompt = lmm.family.prompt("where is the lemon?")
    else:
        trace = lmm.generate(image, "where is the lemon?", max_new_tokens=9)
        prompt = lmm.family.prompt("where is the lemon?")
        assert len(trace.token_ids) == 9
    start = trace.kept.start
    prompt_ids = lmm.words.expand(lmm.words.tokenizer(prompt).input_ids, 16)
    rows, states = eager_rows(folder, lmm, image, [*prompt_ids, *trace.token_ids], len(prompt_ids))
    assert start == len(prompt_ids)
    assert rows.shape[2] == len(trace.token_ids) == trace.kept.tokens
    torch.testing.assert_close(trace.hidden_states, states, atol=1e-4, rtol=1e-4)
    spans = [(0, 1), (2, 5), (1, rows.shape[2]), (rows.shape[2] - 1, rows.shape[2])]
    for merge in ("mean", "max"):
        expected = [rows[:, :, a:b].mean(2) if merge == "mean" else rows[:, :, a:b].amax(2) for a, b in spans]
        maps = trace.merged_attention(spans, merge=merge)
        assert maps.shape == (4, 12, 4, 4)
        torch.testing.assert_close(maps, torch.stack([e.reshape(12, 4, 4) for e in expected]), atol=1e-5, rtol=0)
    assert trace.merged_attention(spans).std() > 1e-3  # the maps say something, so equality means something


def test_the_model_does_not_notice(folder):
    """Logits of a prefill, a continued prefill and decoding steps are the same to the bit with the tap and without."""
    plain = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    lmm = FrozenLmm.from_pretrained(folder)
    ids = torch.tensor([lmm.words.prompt_ids("what is on the table?", 16)])
    pixels = lmm.family.prepare(random_image()).pixel_values

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
        tapped = run(lmm.model)
    assert torch.equal(tapped, run(plain))
    assert torch.equal(run(lmm.model), tapped)
    image = lmm.encode_image(random_image())
    lmm.generate(image, "what is on the table?", max_new_tokens=4)
    lmm.read_phrases(image, ["lemon"])
    assert checksum(lmm.model) == before
    assert not any(parameter.requires_grad for parameter in lmm.model.parameters())
    assert lmm.model.config.text_config._attn_implementation == TAP_NAME
    assert lmm.model.config.vision_config._attn_implementation == "sdpa"


def test_only_wanted_queries_are_kept(folder):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=False)
    trace = lmm.read_answer(lmm.encode_image(random_image()), "where is the lemon?", "The lemon.")
    for layer in trace.kept.layers:
        assert layer.queries.shape[1] == len(trace.token_ids)
        assert layer.queries.untyped_storage().nbytes() == layer.queries.nbytes  # no view that keeps the prompt alive


def test_spans_are_checked(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    trace = lmm.read_answer(lmm.encode_image(random_image()), "where is the lemon?", "The lemon.")
    assert trace.merged_attention([]).shape == (0, 12, 4, 4)
    for span in ((2, 2), (-1, 1), (0, 99)):
        with pytest.raises(ValueError, match=r"expected 0 <= start < end <= \d+, got"):
            trace.merged_attention([span])


def test_one_sequence_at_a_time(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    with torch.no_grad(), record(start=0), pytest.raises(ValueError, match="expected one sequence, got a batch of 2"):
        lmm.model(input_ids=torch.ones(2, 3, dtype=torch.long))
