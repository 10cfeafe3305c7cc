"""HPT on tiny random models: the checks of every family, how the parts are put together, prompts and tokens."""

import json

import family_checks
import pytest
import torch
from family_checks import REGIONS, SIZES
from safetensors.torch import load_file, save_file
from tiny_models import random_image, tokenizer
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flmm_core.families import Checkpoint, family_of
from flmm_core.families.hpt import HptAir15Family, HptAirFamily
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape
from flmm_core.weights.fingerprints import lmm_fingerprint

KINDS = {"air": HptAirFamily, "air-1.5": HptAir15Family}
ENDS = {"air": "<|im_end|>", "air-1.5": "<|eot_id|>"}
TOWERS = {"air": (CLIPVisionConfig, CLIPVisionModel), "air-1.5": (SiglipVisionConfig, SiglipVisionModel)}
CELLS = {"air": 7, "air-1.5": 8}
CHAT = {
    "air": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}",
    "air-1.5": "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
}


def save_hpt(folder, kind):
    """3 layers x 4 heads; patches of 56 pixels, and a tower that was trained on 5 x 5 of them."""
    torch.manual_seed(0)
    known = tokenizer()
    # The decoder knows the end of a turn in place of the image's token.
    core = Tokenizer.from_str(known.backend_tokenizer.to_str().replace("<image>", ENDS[kind]))
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=[ENDS[kind]],
    )  # fmt: skip
    words.save_pretrained(folder / "llm")
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(folder / "llm")
    config, tower = TOWERS[kind]
    vision = config(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=280, patch_size=56,
    )  # fmt: skip
    tower(vision).save_pretrained(folder / "visual_encoder")
    size = {"shortest_edge": 280} if kind == "air" else {"height": 280, "width": 280}
    images = CLIPImageProcessor if kind == "air" else SiglipImageProcessor
    images(size=size).save_pretrained(folder / "visual_encoder")
    (folder / "projector").mkdir()
    fields = {"model_type": "projector", "visual_hidden_size": 24, "llm_hidden_size": 32, "depth": 2, "bias": True}
    (folder / "projector" / "config.json").write_text(json.dumps({**fields, "hidden_act": "gelu"}))
    weights = {"model.0.weight": (32, 24), "model.0.bias": (32,), "model.2.weight": (32, 32), "model.2.bias": (32,)}
    save_file({name: torch.randn(shape) * 0.3 for name, shape in weights.items()}, folder / "projector" / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, kind):
    return save_hpt(tmp_path_factory.mktemp("hpt"), kind)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- the checks of every family ---


@pytest.mark.parametrize("size", SIZES)
def test_rows(folder, size):
    family_checks.check_rows(folder, random_image(*SIZES[size]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("size", SIZES)
def test_position_truth(lmm, size, region):
    family_checks.check_position_truth(lmm, random_image(*SIZES[size]), REGIONS[region])


def test_greedy(folder):
    family_checks.check_greedy(folder, [random_image(*size) for size in SIZES.values()])


def test_a_head_trains(folder):
    family_checks.check_training(folder)


# --- the parts ---


def test_known_by_its_folders(folder, kind, lmm):
    assert family_of(Checkpoint(folder)) is KINDS[kind]
    assert lmm_shape(folder).channels == lmm.shape.channels == 12
    assert not any(value.is_meta for value in [*lmm.model.parameters(), *lmm.model.buffers()])


@torch.no_grad()
@pytest.mark.parametrize("config", ["", '{"model_type": "llama"}'])
def test_a_config_of_the_whole_says_nothing(tmp_path, kind, config):
    """The hub's folders have one, HPT-Air's is empty."""
    folder = save_hpt(tmp_path / "hpt", kind)
    before = lmm_fingerprint(folder)
    (folder / "config.json").write_text(config)
    assert family_of(Checkpoint(folder)) is KINDS[kind]
    assert lmm_fingerprint(folder) == before


def test_the_parts_are_put_together(folder, kind, lmm):
    """Features are those of the tower's last layer but one, and words those of the bare decoder behind them."""
    image = random_image(*SIZES["landscape"])
    prepared = lmm.family.prepare([image])
    tower = TOWERS[kind][1].from_pretrained(folder / "visual_encoder").eval()
    interpolated = tower.embeddings.interpolate_pos_encoding
    tower.embeddings.interpolate_pos_encoding = lambda *sizes: interpolated(*sizes).half().float()
    states = tower(**prepared.inputs, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    own = states[-2][:, 1:] if kind == "air" else states[-2]
    weights = load_file(folder / "projector" / "model.safetensors")
    first = F.gelu(F.linear(own, weights["model.0.weight"], weights["model.0.bias"]))
    expected = F.linear(first, weights["model.2.weight"], weights["model.2.bias"])
    features = lmm.family.encode(lmm.model, prepared)
    torch.testing.assert_close(torch.stack(features.views), expected, atol=1e-5, rtol=0)

    decoder = LlamaForCausalLM.from_pretrained(folder / "llm").eval()
    decoder.generation_config.eos_token_id = lmm.model.generation_config.eos_token_id
    ids = torch.tensor([lmm.words.prompt_tokens("where is the lemon?", prepared.layouts, chat=True).ids])
    start, count = ids[0].tolist().index(lmm.family.image_token_id), CELLS[kind] ** 2
    before, after = (decoder.get_input_embeddings()(part) for part in (ids[:, :start], ids[:, start + count :]))
    embeds = torch.cat([before, *[view[None] for view in features.views], after], dim=1)
    mask = torch.ones_like(ids)
    written = decoder.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=10)[0].tolist()
    trace = lmm.generate(lmm.encode_image(image), "where is the lemon?", max_new_tokens=10)
    assert trace.token_ids == tuple(written[:-1] if trace.ended else written)


def test_position_embeddings_pass_through_float16(folder, kind, lmm):
    trained = TOWERS[kind][1].from_pretrained(folder / "visual_encoder").embeddings
    table = lmm.model.model.vision_tower.embeddings.position_embedding.weight
    assert torch.equal(table, table.half().float())
    cells = CELLS[kind] ** 2
    frame = CELLS[kind] * 56
    exact = trained.interpolate_pos_encoding(torch.zeros(1, cells + int(kind == "air"), 24), frame, frame)[0]
    torch.testing.assert_close(table, exact, atol=1e-5, rtol=2**-11)
    assert not torch.equal(table, exact)
    same = FrozenLmm.from_pretrained(folder, settings={"image_size": 280})  # as it was trained: nothing to interpolate
    assert torch.equal(same.model.model.vision_tower.embeddings.position_embedding.weight, trained.position_embedding.weight)
    assert same.encode_image(random_image()).image_tokens == 25


def test_settings(folder, kind):
    other = FrozenLmm.from_pretrained(folder, settings={"instruction": "USER: {input} ASSISTANT:", "visual_select_layer": -1})
    assert other.family.prompt("{x}?") == "USER: <image>\n{x}? ASSISTANT:"
    assert other.model.config.vision_feature_layer == -1
    with pytest.raises(ValueError, match=r"settings: expected some of \['image_size', .*\], got frame"):
        FrozenLmm.from_pretrained(folder, settings={"frame": 280})


def test_projectors_of_other_depths(tmp_path, kind):
    folder = save_hpt(tmp_path, kind)
    edit(folder / "projector" / "config.json", depth=1, bias=False)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*model\.2|Unexpected key.*2\.weight"):
        FrozenLmm.from_pretrained(folder)
    weight = torch.randn(32, 24)
    save_file({"model.0.weight": weight}, folder / "projector" / "model.safetensors")
    lmm = FrozenLmm.from_pretrained(folder)
    assert torch.equal(lmm.model.model.multi_modal_projector(torch.eye(24)), weight.T)


def test_any_part_counts_for_the_fingerprint(tmp_path, kind):
    folder = save_hpt(tmp_path, kind)
    seen = {lmm_fingerprint(folder)}
    for part in ("llm", "visual_encoder", "projector"):
        path = folder / part / "model.safetensors"
        state = load_file(path)
        name = sorted(state)[0]
        save_file({**state, name: state[name] + 1}, path)
        seen.add(lmm_fingerprint(folder))
    assert len(seen) == 4
    path.unlink()
    with pytest.raises(ValueError, match="expected weights"):
        lmm_fingerprint(folder)


# --- words ---


def test_prompts_are_the_chat_formats(lmm, kind):
    lmm.words.tokenizer.chat_template = CHAT[kind]
    for images in (1, 2):
        message = {"role": "user", "content": "<image>\n" * images + "where is the lemon?"}
        expected = lmm.words.tokenizer.apply_chat_template([message], tokenize=False)
        assert lmm.family.prompt("where is the lemon?", images) == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_image_takes_the_place_of_its_mark(lmm, kind, size):
    layouts = lmm.family.prepare([random_image(*SIZES[size])]).layouts
    before, after = (lmm.words.tokenizer(part).input_ids for part in lmm.family.prompt("where is it?").split("<image>"))
    tokens = lmm.words.prompt_tokens("where is it?", layouts)
    image = (lmm.family.image_token_id,) * CELLS[kind] ** 2
    assert lmm.family.image_token_id >= lmm.model.config.text_config.vocab_size
    assert tokens.ids == (*before, *image, *after[1:])  # without a second beginning of the sequence
    assert tokens.image_starts == (len(before),)


def test_phrases_are_tokenised_apart(lmm):
    phrases = ["the lemon", "green can", "mug"]
    trace, spans = lmm.teacher_force_phrases(lmm.encode_image(random_image()), phrases)
    parts = [lmm.words.tokenizer(phrase + ".", add_special_tokens=False).input_ids for phrase in phrases]
    assert trace.token_ids == tuple(token for part in parts for token in part)
    assert [lmm.words.decode(trace.token_ids[span.token_start : span.token_end]) for span in spans] == phrases
    with pytest.raises(ValueError, match="answer: expected at least one word"):
        lmm.teacher_force(lmm.encode_image(random_image()), "where?", " ")


def test_the_end_of_a_turn_ends_an_answer(lmm, kind, tmp_path):
    end = lmm.words.tokenizer.convert_tokens_to_ids(ENDS[kind])
    assert end != lmm.words.tokenizer.unk_token_id
    assert lmm.model.generation_config.eos_token_id == [2, end]
    folder = save_hpt(tmp_path / "a", kind)
    edit(folder / "llm" / "generation_config.json", eos_token_id=[end, 2])
    assert FrozenLmm.from_pretrained(folder).model.generation_config.eos_token_id == [end, 2]
