"""PaliGemma 2 and 1 on tiny random models: soft-capped scores, a sliding window, a prompt that sees all of itself."""

import family_checks
import hugging_face_models
import pytest
import torch
from family_checks import ANSWER, QUESTION, REGIONS, SIZES
from tiny_models import random_image
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from flmm_core.lmm.frozen_lmm import FrozenLmm

PROMPTS = [QUESTION, "two\nlines\r\nof words", ""]


def save(folder, *, second=True, window=4096):
    torch.manual_seed(0)
    words = hugging_face_models.words(image_token="<image>")
    sizes = {"vocab_size": len(words), "num_hidden_layers": 4, "head_dim": 8, **hugging_face_models.TEXT}
    soft = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": window}
    text = Gemma2Config(**sizes, **soft) if second else GemmaConfig(**sizes)
    vision = SiglipVisionConfig(image_size=64, patch_size=8, vision_use_head=False, **hugging_face_models.TOWER)
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"), projection_dim=32,
        hidden_size=32,
    )  # fmt: skip
    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, image_seq_length=64)
    return hugging_face_models.save(folder, PaliGemmaForConditionalGeneration(config), words, processor)


@pytest.fixture(scope="module", params=["second", "first"])
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("paligemma"), second=request.param == "second")


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


@pytest.mark.parametrize("name", SIZES)
def test_rows_are_those_of_eager_attention(folder, name):
    family_checks.check_rows(folder, random_image(*SIZES[name]))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


def test_rows_behind_a_window_that_does_not_hold_the_image(tmp_path):
    """Sliding layers see the image's last cells only, or none of them; the others see them all."""
    folder = save(tmp_path, window=24)
    family_checks.check_rows(folder, random_image(*SIZES["landscape"]))
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))
    lmm = FrozenLmm.from_pretrained(folder)
    trace = lmm.teacher_force(lmm.encode_image(random_image()), QUESTION, ANSWER)
    assert [layer.window for layer in trace.attention.layers] == [24, None, 24, None]
    seen = trace.merged_attention([(0, 1)]).reshape(4, 4, 64) > 0
    assert not seen[::2, :, 0].any() and seen[1::2].all()


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("name", SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, name, region):
    family_checks.check_position_truth(lmm, random_image(*SIZES[name]), region)


@torch.no_grad()
def test_the_prompt_sees_all_of_itself_and_the_answer_what_is_before_it(lmm):
    """So nothing of an image may serve two prompts, and words that are read later change nothing."""
    image = lmm.encode_image(random_image())
    assert not lmm.decoder.reuse_prefix
    questions = (QUESTION, "where is the mug?")
    read = {(q, a): lmm.teacher_force(image, q, a) for q in questions for a in (ANSWER, "The yellow mug.")}
    keys = {asked: trace.attention.layers[1].keys[:, :64] for asked, trace in read.items()}
    assert torch.allclose(keys[QUESTION, ANSWER], keys[QUESTION, "The yellow mug."], atol=1e-5)
    assert not torch.allclose(keys[QUESTION, ANSWER], keys["where is the mug?", ANSWER], atol=1e-2)
    first, other = (read[QUESTION, answer].states[:, :2] for answer in (ANSWER, "The yellow mug."))
    torch.testing.assert_close(first, other, atol=1e-4, rtol=1e-4)


def test_greedy_answers_are_those_of_the_plain_model(folder):
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())]
    family_checks.check_greedy(folder, images)


def processed(folder, images, text):
    """What PaliGemma's own processor makes of a prompt."""
    own = FrozenLmm.from_pretrained(folder)
    processor = PaliGemmaProcessor(own.family.image_processor, own.words.tokenizer)
    theirs = processor(images=[images], text="<image>" * len(images) + text, return_tensors="pt")
    return {name: theirs[name] for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")}


@torch.no_grad()
def test_answers_are_those_of_the_processors_inputs(folder, lmm):
    image = random_image(*SIZES["landscape"])
    theirs = processed(folder, [image], QUESTION)
    plain = PaliGemmaForConditionalGeneration.from_pretrained(folder).eval()
    family_checks.check_own_inputs(lmm, plain, image, QUESTION, theirs)


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


@pytest.mark.parametrize("names", [("landscape",), ("portrait", "square")], ids="-".join)
@pytest.mark.parametrize("text", PROMPTS)
def test_prompt_and_images_are_the_processors(folder, lmm, names, text):
    """But for line breaks in the user's words, which would end the prompt."""
    images = [random_image(*SIZES[name], seed=i) for i, name in enumerate(names)]
    theirs = processed(folder, images, " ".join(text.splitlines()))
    prepared = lmm.family.prepare(images)
    ids = torch.tensor([lmm.words.prompt_tokens(text, prepared.layouts).ids])
    assert torch.equal(theirs["input_ids"], ids)
    assert torch.equal(theirs["pixel_values"], prepared.inputs["pixel_values"])
    inputs = lmm.family.model_inputs(lmm.model, ids, lmm.family.encode(lmm.model, prepared))
    assert torch.equal(theirs["token_type_ids"], inputs["token_type_ids"])


def test_a_prompt_without_its_end_is_refused(lmm):
    prepared = lmm.family.prepare([random_image()])
    features = lmm.family.encode(lmm.model, prepared)
    with pytest.raises(ValueError, match="prompt: expected a line break at its end"):
        lmm.family.model_inputs(lmm.model, torch.tensor([[1, 5]]), features)


def test_a_model_of_single_questions_has_no_history(lmm):
    layouts = lmm.family.prepare([random_image(64, 64)]).layouts
    with pytest.raises(ValueError, match="history: expected none, as paligemma answers single questions, got 1 turns"):
        lmm.words.prompt_tokens("why?", layouts, chat=True, history=[("what?", "a mug")])
