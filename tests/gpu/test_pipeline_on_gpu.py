"""The path on a GPU: what it computes is what the CPU computes, nothing waits on the host, and full memory is survived."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from flmm_core.chat.batching import chat_batch
from flmm_core.errors import MemoryFullError
from flmm_core.families import Checkpoint
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import load_plain
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.verification.frozen_report import verify_frozen
from flmm_core.weights.sources import registered_parts

PHRASES = ["the red mug", "the yellow lemon", "the green can", "the table"]


def picture(width=320, height=240, seed=0):
    """Coloured things on a table."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (150, 120, 90))
    draw = ImageDraw.Draw(image)
    for color in ((200, 30, 30), (230, 210, 40), (40, 160, 60)):
        x, y = random.integers(0, width - 60), random.integers(0, height - 50)
        draw.ellipse((x, y, x + 60, y + 50), fill=color)
    return image


@pytest.fixture(scope="module")
def parts():
    return registered_parts("flmm-tabletop")


def pipeline(parts, device, **options):
    return GroundingPipeline.from_pretrained(**parts, device=device, presence_threshold=0.0, **options)


def overlaps(answer, other):
    assert [phrase.text for phrase in answer.phrases] == [phrase.text for phrase in other.phrases]
    for one, two in zip(answer.phrases, other.phrases, strict=True):
        either = (one.mask | two.mask).sum()
        yield (one.mask & two.mask).sum() / either if either else 1.0


def test_masks_are_those_of_the_cpu(parts):
    here, there = (pipeline(parts, device, dtype="float32") for device in ("cpu", "cuda"))
    for seed, size in enumerate(((320, 240), (200, 300), (640, 480))):
        image = picture(*size, seed)
        expected, got = (one.refer(one.encode(image), PHRASES) for one in (here, there))
        assert all(phrase.pixels.is_cuda for phrase in got.phrases)
        assert min(overlaps(expected, got)) >= 0.98
        expected, got = (one.chat(one.encode(image), "what is on the table?") for one in (here, there))
        assert got.text == expected.text
        assert min(overlaps(expected, got), default=1.0) >= 0.98


def test_further_commands_on_a_picture_agree_with_the_first(parts):
    one = pipeline(parts, "cuda", dtype="float32")
    image = one.encode(picture())
    first, again = (one.refer(image, PHRASES) for _ in range(2))
    assert min(overlaps(first, again)) >= 0.99


def test_answers_that_are_written_together_are_those_that_are_written_alone(parts):
    """Alone they are decoded by CUDA graphs, together they are not."""
    one = pipeline(parts, "cuda", dtype="float32")
    asked = [
        (one.encode(picture(seed=i)), text) for i, text in enumerate(("what is on the table?", "what is there?", "where?"))
    ]
    alone = [one.chat(image, text) for image, text in asked]
    together = chat_batch(one, [ChatCommand(image, text) for image, text in asked])
    for expected, got in zip(alone, together, strict=True):
        assert got.text == expected.text
        assert min(overlaps(expected, got), default=1.0) >= 0.98


def test_the_embedding_of_the_second_stream_is_that_of_the_first(parts):
    one = pipeline(parts, "cuda")
    pixels = np.asarray(picture(640, 480))
    beside = one.encode(pixels).start_sam().result().embedding
    torch.testing.assert_close(beside, one.heads.sam.encode_image(pixels).embedding, atol=1e-3, rtol=1e-3)


def eager_rows(parts, lmm, image, ids, start, dtype):
    """``[l, q, t, s]`` of eager attention over a whole sequence, of tokens from ``start`` on."""
    model = load_plain(parts["lmm"], device="cuda", dtype=dtype).model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = lmm.family.model_inputs(model, ids, image.features)
        attentions = model(**inputs, use_cache=True, output_attentions=True).attentions
    return torch.stack([layer[0, :, start:].float() for layer in attentions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_are_those_of_eager_attention(parts, dtype):
    """In bfloat16 measured against float32: they are as near to it as eager attention's own."""
    lmm = FrozenLmm.from_pretrained(parts["lmm"], device="cuda", dtype=dtype)
    image = lmm.encode_image(picture())
    trace = lmm.generate(image, "what is on the table?", max_new_tokens=12)
    prompt = lmm.words.prompt_tokens("what is on the table?", image.layouts, chat=True).ids
    ids = torch.tensor([[*prompt, *trace.token_ids]], device="cuda")
    columns, tokens = torch.arange(ids.shape[1], device="cuda"), range(len(trace.token_ids))
    rows = torch.stack([trace.attention.rows(i, tokens, columns).float() for i in range(lmm.shape.layers)])
    eager = eager_rows(parts, lmm, image, ids, len(prompt), dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(rows, eager, atol=1e-5, rtol=0)
        return
    exact = eager_rows(parts, lmm, image, ids, len(prompt), torch.float32)
    ours, theirs = ((some - exact).abs().mean(dim=(1, 2, 3)) for some in (rows, eager))
    assert (ours < 1.5 * theirs).all() and (theirs < 0.02).all()


def test_graphs_decode_as_the_model_does(parts):
    whole = FrozenLmm.from_pretrained(parts["lmm"], device="cuda", cuda_graphs=False)
    graphs = FrozenLmm.from_pretrained(parts["lmm"], device="cuda")
    layer_weights = torch.rand(3, whole.shape.layers, device="cuda")
    for seed in range(2):
        images = [lmm.encode_image(picture(seed=seed)) for lmm in (whole, graphs)]
        for question in ("what is on the table?", "where is the red mug?"):
            expected, got = (
                lmm.generate(image, question, max_new_tokens=40, layer_weights=layer_weights)
                for lmm, image in zip((whole, graphs), images, strict=True)
            )
            assert got.token_ids == expected.token_ids
            torch.testing.assert_close(got.states, expected.states, atol=1e-3, rtol=1e-3)
            spans = [(i, i + 1) for i in range(len(got.token_ids))]
            torch.testing.assert_close(got.merged_attention(spans), expected.merged_attention(spans), atol=1e-5, rtol=0)
    decoder = graphs.decoder.static
    assert decoder and decoder._usable and decoder._step and decoder._step._graph is not None, "expected a graph in use"
    short = decoder._step
    graphs.generate(images[1], "what is on the table?", max_new_tokens=500, layer_weights=layer_weights)
    assert decoder._step is not short, "expected a larger room"


def test_a_graph_is_captured_while_sam_works(parts):
    one = pipeline(parts, "cuda")
    for seed in range(3):
        one.lmm.forget()
        answer = one.chat(one.encode(picture(1280, 960, seed)), "what is on the table?")
        assert one.lmm.decoder.static and one.lmm.decoder.static._usable and answer.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_greedy_text_is_that_of_the_plain_model(parts, dtype):
    plain = load_plain(Checkpoint(parts["lmm"]).source, device="cuda", dtype=dtype)
    images = {str(seed): picture(seed=seed) for seed in range(3)}
    report = verify_frozen(plain, images, ("what is on the table?", "where is the red mug?"), max_new_tokens=24)
    assert report.frozen, report.summary()


def test_full_memory_refuses_the_command_and_the_next_one_works(parts):
    one = pipeline(parts, "cuda", image_cache=0)
    expected = one.refer(one.encode(picture()), PHRASES)
    one.images.forget()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 2**25, dtype=torch.uint8, device="cuda")
    with pytest.raises(MemoryFullError, match="expected enough free memory"):
        one.refer(one.encode(picture(2000, 1500)), PHRASES)
    del hog
    torch.cuda.empty_cache()
    got = one.refer(one.encode(picture()), PHRASES)
    assert min(overlaps(expected, got)) >= 0.99
