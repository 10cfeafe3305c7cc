"""Mixed hidden states are weighted sums of those that the plain model gives, and nothing else is kept."""

import gc

import pytest
import torch
from tiny_models import random_image
from transformers import LlavaForConditionalGeneration

from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.hidden_states import StateMixer, mixing

QUESTION, ANSWER = "where is the lemon?", "The lemon is left of the can."
LAYER_WEIGHTS = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])


@pytest.fixture(scope="module")
def folder(tiny_llava):
    return tiny_llava


def plain_states(folder, lmm, trace, prompt):
    """``[l, t, d]`` of the answer's tokens by the plain model."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=lmm.model.dtype).eval()
    pixels = lmm.family.prepare([random_image()]).inputs["pixel_values"].to(model.dtype)
    ids = torch.tensor([[*prompt.ids, *trace.token_ids]])
    with torch.no_grad():
        states = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states
    return torch.cat(states[1:])[:, len(prompt.ids) :].float()


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
@pytest.mark.parametrize("way", ["read", "written"])
def test_mixtures_are_weighted_sums_of_the_plain_models_states(folder, way, reuse):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
    image = lmm.encode_image(random_image())
    for layer_weights in (LAYER_WEIGHTS, None):
        if way == "read":
            trace = lmm.teacher_force(image, QUESTION, ANSWER, layer_weights=layer_weights)
        else:
            trace = lmm.generate(image, QUESTION, max_new_tokens=5, layer_weights=layer_weights)
        states = plain_states(folder, lmm, trace, lmm.words.prompt_tokens(QUESTION, image.layouts, chat=way == "written"))
        expected = states if layer_weights is None else torch.einsum("kl,ltd->ktd", layer_weights, states)
        assert trace.states.dtype == torch.float32
        torch.testing.assert_close(trace.states, expected, atol=1e-4, rtol=1e-4)


def test_half_precision_states_are_summed_in_float32(folder):
    lmm = FrozenLmm.from_pretrained(folder, dtype=torch.bfloat16, reuse_prefix=False)
    image = lmm.encode_image(random_image())
    trace = lmm.teacher_force(image, QUESTION, ANSWER, layer_weights=LAYER_WEIGHTS)
    states = plain_states(folder, lmm, trace, lmm.words.prompt_tokens(QUESTION, image.layouts))
    torch.testing.assert_close(trace.states, torch.einsum("kl,ltd->ktd", LAYER_WEIGHTS, states), atol=1e-6, rtol=1e-6)


def test_the_states_of_the_prompt_are_not_kept(folder):
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=False)
    image = lmm.encode_image(random_image())
    prompt = lmm.words.prompt_tokens(QUESTION, image.layouts).ids
    inputs = lmm.family.model_inputs(lmm.model, torch.tensor([prompt]), image.features)

    def kept():
        gc.collect()
        return sum(
            issubclass(type(thing), torch.Tensor) and thing.shape[-2:] == (len(prompt), 32) for thing in gc.get_objects()
        )

    before = kept()
    with torch.no_grad(), mixing(lmm.model, start=len(prompt), seen=0, layer_weights=LAYER_WEIGHTS) as mixer:
        lmm.model(**inputs, logits_to_keep=1)
        assert kept() == before
    assert mixer.split([(len(prompt), len(prompt))])[0].shape == (2, 0, 0)
    assert not any(module._forward_hooks for module in lmm.model.get_decoder().modules())


def test_rows_from_a_position_on_in_several_passes():
    mixer = StateMixer(start=3, seen=1, layer_weights=LAYER_WEIGHTS)
    states = torch.randn(3, 6, 4)  # of positions 1 ... 6
    for first, last in ((0, 1), (1, 4), (4, 5), (5, 6)):
        for layer in range(3):
            mixer.add(layer, states[layer, None, first:last])
    torch.testing.assert_close(mixer.split([(3, 7)])[0], torch.einsum("kl,ltd->ktd", LAYER_WEIGHTS, states[:, 2:]))


def test_what_cannot_be_mixed_is_refused(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"layer weights: expected \[k, 3\], got \[2, 4\]"):
        lmm.teacher_force(lmm.encode_image(random_image()), QUESTION, ANSWER, layer_weights=torch.ones(2, 4))
