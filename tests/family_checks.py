"""What every family of LMMs is checked for, on tiny random models.

A family's test builds a checkpoint of a few layers, loads it as everywhere else, and calls these. Let the decoder have an
``initializer_range`` of 0.3 or so: with transformers' 0.02 tiny models look at nothing in particular.
"""

from collections.abc import Iterable

import torch
from PIL import Image
from static_checks import check_static
from tiny_models import random_image
from torch import nn

from flmm_core.heads.unet import UNetConfig, UNetHead
from flmm_core.images.geometry import unpad
from flmm_core.lmm import attention_recorder
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape, load_plain
from flmm_core.lmm.position_truth import (  # noqa: F401 - some are for the families' tests
    ANSWER,
    INSIDE,
    OUTSIDE,
    QUESTION,
    REGIONS,
    local,
    position_truth,
)
from flmm_core.lmm.trace import LmmTrace
from flmm_core.training.losses import mask_losses
from flmm_core.verification.frozen_report import CACHED, UNCACHED, FrozenReport, verify_frozen

SIZES = {"landscape": (101, 173), "portrait": (173, 101), "square": (131, 131)}
"""Height and width of images that fit no grid."""


def with_prefix(lmm: FrozenLmm, reuse: bool) -> FrozenLmm:
    """The same model, which encodes an image once or reads it anew each time."""
    return FrozenLmm(model=lmm.model, tokenizer=lmm.words.tokenizer, family=lmm.family, reuse_prefix=reuse)


# --- (a) captured rows equal eager attention ---


def check_channels(lmm: FrozenLmm, trace: LmmTrace) -> None:
    """Each channel is named by the layer and the head that it is made of: those of one head alone are its channels."""
    heads, layers = lmm.shape.heads, lmm.decoder.map_layers
    places = trace.channel_heads()
    assert sorted(places) == sorted([(layer, head) for layer in layers for head in range(heads)] * lmm.shape.maps_per_head)
    for layer, head in ((0, 0), (len(layers) - 1, heads - 1), (0, heads - 1)):
        rows = torch.zeros(len(layers), heads, 1, len(trace.layouts[0].ids))
        rows[layer, head] = 1
        lit = trace.layouts[0].maps(rows)[0].flatten(1).sum(1) > 0
        assert [place == (layers[layer], head) for place in places] == lit.tolist()


@torch.no_grad()
def check_rows(source, image: Image.Image, *, tolerance: float = 1e-5) -> None:
    """Rows and maps of a read and of a written answer are those of eager attention over the whole sequence.

    With and without a cached prefix; a layer that gives maps must have eager attention of its own.
    """
    loaded = FrozenLmm.from_pretrained(source)
    for reuse in (False, True):
        lmm = with_prefix(loaded, reuse)
        encoded = lmm.encode_image(image)
        read = lmm.teacher_force(encoded, QUESTION, ANSWER)
        written = lmm.generate(encoded, QUESTION, max_new_tokens=6)
        for trace, chat in ((read, False), (written, True)):
            assert trace.token_ids
            prompt = lmm.words.prompt_tokens(QUESTION, encoded.layouts, chat=chat)
            assert trace.attention.start == len(prompt.ids)
            eager = eager_attention(lmm, encoded, [*prompt.ids, *trace.token_ids])
            tokens = range(len(trace.token_ids))
            assert len(eager) == len(trace.attention.layers) == len(lmm.decoder.map_layers)
            own = torch.stack([layer[0, :, len(prompt.ids) :] for layer in eager])
            everywhere = torch.arange(own.shape[-1])
            rows = torch.stack([trace.attention.rows(i, tokens, everywhere) for i in range(len(eager))])
            torch.testing.assert_close(rows, own, atol=tolerance, rtol=0)
            maps = trace.merged_attention([(i, i + 1) for i in tokens])
            assert maps.shape == (len(tokens), lmm.shape.channels, trace.geometry.grid_height, trace.geometry.grid_width)
            torch.testing.assert_close(maps, trace.layouts[0].maps(own[..., trace.image_columns()]), atol=tolerance, rtol=0)
        check_channels(lmm, read)


@torch.no_grad()
def check_batches(source, image: Image.Image, *, tolerance: float = 1e-5) -> None:
    """Answers that share a pass, and those decoded in static shapes, with and without a cached prefix.

    One image of a family is enough, as :func:`check_together` puts one of another shape beside it.
    """
    loaded = FrozenLmm.from_pretrained(source)
    for reuse in (False, True):
        lmm = with_prefix(loaded, reuse)
        encoded = lmm.encode_image(image)
        check_batch(lmm, encoded, tolerance=tolerance)
        check_together(lmm, encoded, tolerance=tolerance)
        check_static(lmm, [image])


@torch.no_grad()
def check_batch(lmm: FrozenLmm, encoded: EncodedImage, *, tolerance: float = 1e-5) -> None:
    """Answers that are read together are those that are read one by one: rows of all positions, and states."""
    turns = [(QUESTION, ANSWER), ("what is there?", "A mug."), (QUESTION, f"{ANSWER} {ANSWER}")]
    for (prompt, answer), trace in zip(turns, lmm.teacher_force_batch(encoded, turns), strict=True):
        assert trace.text == answer
        check_alike(trace, lmm.teacher_force(encoded, prompt, answer), tolerance=tolerance)


@torch.no_grad()
def check_together(lmm: FrozenLmm, encoded: EncodedImage, *, tolerance: float = 1e-5) -> None:
    """Answers about several images that are written in one batch are those that are written one by one."""
    other = lmm.encode_image(random_image(140, 90, seed=5))
    asked = [(encoded, QUESTION, 6), (other, "what is there, and what is left of it?", 9), (encoded, "what?", 3)]
    alone = [lmm.generate(image, text, max_new_tokens=most) for image, text, most in asked]
    for _ in range(2):  # the second time, prompts' beginnings are kept
        questions = [lmm.question(image, text, max_new_tokens=most) for image, text, most in asked]
        for one, trace in zip(alone, lmm.generate_batch(questions), strict=True):
            assert (trace.text, trace.ended) == (one.text, one.ended)
            check_alike(trace, one, tolerance=tolerance)
    again = lmm.generate(encoded, QUESTION, max_new_tokens=6)
    check_alike(again, alone[0], tolerance=tolerance)


def check_alike(trace: LmmTrace, alone: LmmTrace, *, tolerance: float) -> None:
    """Rows of all positions, and states, are those of a sequence that had no neighbours."""
    assert (trace.token_ids, trace.attention.start) == (alone.token_ids, alone.attention.start)
    columns, tokens = torch.arange(alone.attention.layers[0].keys.shape[1]), range(len(alone.token_ids))
    for i in range(len(alone.attention.layers)):
        assert trace.attention.layers[i].keys.shape == alone.attention.layers[i].keys.shape
        rows, expected = trace.attention.rows(i, tokens, columns), alone.attention.rows(i, tokens, columns)
        torch.testing.assert_close(rows, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(trace.states, alone.states, atol=100 * tolerance, rtol=1e-3)


def eager_attention(lmm: FrozenLmm, encoded, ids) -> list[torch.Tensor]:
    """``[1, q, s, s]`` of each layer that gives maps, from the model's own eager attention; the recorder is put back."""
    text = lmm.model.config.get_text_config()
    names = [name for name in lmm.model.config.sub_configs if getattr(lmm.model.config, name, None) is text]
    lmm.model.set_attn_implementation({names[0]: "eager"} if names else "eager")
    try:
        inputs = lmm.family.model_inputs(lmm.model, torch.tensor([list(ids)]), encoded.features)
        attentions = lmm.model(**inputs, use_cache=False, output_attentions=True).attentions
    finally:
        attention_recorder.install(lmm.model)
    if len(attentions) == len(lmm.decoder.map_layers):  # linear layers have none
        return list(attentions)
    return [attentions[layer] for layer in lmm.decoder.map_layers]


# --- (b) position truth ---


@torch.no_grad()
def check_position_truth(
    lmm: FrozenLmm,
    image: Image.Image,
    region: tuple[float, float, float, float],
    *,
    channels: slice = slice(None),
    reach: float = 0.0,
    parts: Iterable[nn.Module] = (),
) -> None:
    """Position truth of one region; arguments as of :func:`flmm_core.lmm.position_truth.position_truth`."""
    (found,) = position_truth(lmm, image, [region], channels=channels, reach=reach, parts=tuple(parts))
    assert found.outside < OUTSIDE, f"cells outside of the region change: {found.picture}"
    assert found.inside > INSIDE, f"cells of the region do not change: {found.picture}"


# --- (c) greedy text identical with and without grounding ---


def check_greedy(source, images: Iterable[Image.Image], *, dtypes=(torch.float32, torch.bfloat16), tokens: int = 12) -> None:
    """Token ids are those of ``generate`` of a model whose attention is not recorded yet, and its weights stay as they are.

    Without a cached prefix always; with one, a bfloat16 model may choose another token where its two best scores are a
    rounding apart, as reading the prompt in two passes rounds otherwise with or without this package.

    Args:
        source: folder of the checkpoint.
        images: some.
        dtypes: of the model.
        tokens: longest answer.
    """
    named = {str(i): image for i, image in enumerate(images)}
    for dtype in dtypes:
        plain = load_plain(source, device="cpu", dtype=dtype)
        questions = (QUESTION, "Please give me a description of the image.")
        report = verify_frozen(plain, named, questions, max_new_tokens=tokens)
        assert len(report.answers) == len(named) * len(questions)
        assert report.frozen, (dtype, report.summary())
        assert all(answer.outcomes[UNCACHED].identical for answer in report.answers), dtype
        assert plain.family.reuses_prefix == all(CACHED in answer.outcomes for answer in report.answers)


def limited_report(source, image_tokens: int, images: Iterable[Image.Image], *, tokens: int = 6) -> FrozenReport:
    """The comparison with the plain model, both with the same limit of an image's tokens."""
    plain = load_plain(source, device="cpu", dtype=torch.float32, image_tokens=image_tokens)
    return verify_frozen(plain, {str(i): image for i, image in enumerate(images)}, [QUESTION], max_new_tokens=tokens)


# --- (e) a tiny head trains ---


def check_training(source, image: Image.Image | None = None, *, steps: int = 20) -> None:
    """A small U-Net of the family's channels learns the masks of two phrases, and nothing else learns anything."""
    torch.manual_seed(0)
    image = image or random_image(*SIZES["landscape"])
    lmm = FrozenLmm.from_pretrained(source)
    trace, spans = lmm.teacher_force_phrases(lmm.encode_image(image), ["the lemon", "green can"])
    maps = trace.merged_attention([(span.token_start, span.token_end) for span in spans])
    head = UNetHead(UNetConfig(lmm_shape(source).channels, base_channels=4))
    targets = torch.zeros_like(unpad(head(maps), trace.geometry))
    targets[0, :, : targets.shape[2] // 2] = 1
    targets[1, targets.shape[1] // 2 :] = 1
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = sum(mask_losses(unpad(head(maps), trace.geometry), targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert not any(parameter.requires_grad for parameter in lmm.model.parameters())


@torch.no_grad()
def check_own_inputs(lmm: FrozenLmm, plain, image: Image.Image, question: str, theirs) -> None:
    """Logits and greedy ids are those of a plain model on its own processor's inputs ``theirs`` for the same question."""
    encoded = lmm.encode_image(image)
    ours = lmm.family.model_inputs(lmm.model, theirs["input_ids"], encoded.features)
    torch.testing.assert_close(lmm.model(**ours).logits, plain(**theirs).logits, atol=1e-4, rtol=1e-4)
    output = plain.generate(**theirs, do_sample=False, max_new_tokens=8)[0, theirs["input_ids"].shape[1] :]
    assert lmm.generate(encoded, question, max_new_tokens=8).token_ids == tuple(output.tolist())


def check_tiled_processor(lmm: FrozenLmm, processor, image: Image.Image) -> None:
    """Prompt, tokens, pixels and sizes are those of the processor of a LLaVA with tiles."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is the lemon?"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert lmm.family.prompt("where is the lemon?") == prompt
    expected = processor(images=image, text=prompt, return_tensors="pt")
    prepared = lmm.family.prepare([image])
    assert list(lmm.words.prompt_tokens("where is the lemon?", prepared.layouts).ids) == expected.input_ids[0].tolist()
    torch.testing.assert_close(prepared.inputs["pixel_values"], expected.pixel_values[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.inputs["image_sizes"], expected.image_sizes)
