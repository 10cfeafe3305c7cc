"""The seam between the project and kinds of LMMs: who reads a checkpoint, where images are, what a family has a say in."""

import copy
import json

import pytest
import torch
from row_checks import cells, changed_columns, check_greedy, check_rows
from tiny_models import random_image
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from flmm_core import families
from flmm_core.families import Checkpoint, GridLayout, LmmShape, family_of
from flmm_core.families.llava import LlavaFamily
from flmm_core.images.geometry import long_side_geometry
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.checkpoints import lmm_shape

VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = "{% for message in messages %}[INST] <image>\n{{ message['content'][1]['text'] }} [/INST]{% endfor %}"


@pytest.fixture(scope="module")
def folder(tiny_llava):
    return tiny_llava


def checkpoint(folder, config, **files):
    folder.mkdir(exist_ok=True)
    for name, fields in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return Checkpoint(folder)


@pytest.mark.parametrize("place", ["chat_template", "processor_config", "tokenizer_config", "jinja", "list", None])
def test_a_checkpoint_is_known_by_its_chat_template(tmp_path, place):
    def one(template):
        if place is None:
            return checkpoint(tmp_path, {"model_type": "llava"})
        if place == "jinja":
            (tmp_path / "chat_template.jinja").write_text(template)
            return checkpoint(tmp_path, {"model_type": "llava"})
        if place == "list":
            named = [{"name": "other", "template": "x"}, {"name": "default", "template": template}]
            return checkpoint(tmp_path, {"model_type": "llava"}, tokenizer_config={"chat_template": named})
        return checkpoint(tmp_path, {"model_type": "llava"}, **{place: {"chat_template": template}})

    known = one(VICUNA)
    assert family_of(known) is LlavaFamily
    assert known.prompt == ("USER: <image>\n{text} ASSISTANT:" if place else "")
    if place:
        with pytest.raises(ValueError, match=r"llava: expected a chat template that writes USER: ... ASSISTANT:, got"):
            family_of(one(MISTRAL))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("USER: {{ messages[0]['content'] + ' ASSISTANT:' }}", "USER: <image>\n{text} ASSISTANT:"),
        ("{{ raise_exception('no') }}", "{{ raise_exception('no') }}"),
    ],
    ids=["text", "unfit"],
)
def test_templates_of_other_kinds(tmp_path, template, prompt):
    assert checkpoint(tmp_path, {}, chat_template={"chat_template": template}).prompt == prompt


def test_a_checkpoint_that_two_families_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "twin", LlavaFamily)
    with pytest.raises(ValueError, match="got llava and twin"):
        family_of(checkpoint(tmp_path, {"model_type": "llava"}))


def test_a_checkpoint_needs_no_model_type(tmp_path, monkeypatch):
    """Families may look at other files than ``config.json``."""

    class Parts(LlavaFamily):
        @classmethod
        def claims(cls, checkpoint):
            return checkpoint.json("llm/config.json").get("model_type") == "llama"

    monkeypatch.setitem(families.FAMILIES, "parts", Parts)
    (tmp_path / "llm").mkdir()
    with pytest.raises(ValueError, match=r"expected a config\.json in the folder, got none"):
        family_of(Checkpoint(tmp_path))
    (tmp_path / "llm" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert family_of(Checkpoint(tmp_path)) is Parts


def grid_layout(height, width, frame=56, cells=4, skipped=0):
    geometry = long_side_geometry(image_height=height, image_width=width, frame=frame, grid_height=cells, grid_width=cells)
    return GridLayout(geometry, 7, skipped)


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_grid_layout_puts_cells_in_their_places(skipped):
    layout = grid_layout(48, 64, skipped=skipped)
    assert layout.ids == (7,) * (16 + skipped)
    rows = torch.arange(2 * 3 * 5 * (16 + skipped)).reshape(2, 3, 5, -1).float()
    maps = layout.maps(rows)
    assert maps.shape == (5, 6, 4, 4)
    assert maps[4, 5, 2, 3] == rows[1, 2, 4, skipped + 11]
    with pytest.raises(ValueError, match=rf"image columns: expected {16 + skipped}, got 15"):
        layout.maps(rows[..., :15])


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
def test_two_images_in_one_prompt_stay_apart(folder, reuse):
    """Each image has its own columns, and its maps are those of eager attention to them."""
    lmm = FrozenLmm.from_pretrained(folder, reuse_prefix=reuse)
    images = [random_image(48, 64, seed=1), random_image(70, 31, seed=2)]
    encoded = lmm.encode_images(images)
    trace = lmm.teacher_force(encoded, "which is the lemon?", "The left one.")
    first, second = (trace.image_columns(i) for i in (0, 1))
    assert not set(first.tolist()) & set(second.tolist())
    prompt = lmm.words.prompt_tokens("which is the lemon?", encoded.layouts)
    assert [prompt.ids[i] for i in (*first, *second)] == [lmm.family.image_token_id] * 32
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([[*prompt.ids, *trace.token_ids]]),
            pixel_values=lmm.family.prepare(images).inputs["pixel_values"],
            output_attentions=True,
        )
    for i, columns in enumerate((first, second)):
        rows = torch.stack([layer[0, :, len(prompt.ids) :][..., columns] for layer in output.attentions])
        maps = trace.merged_attention([(0, len(trace.token_ids))], image=i)
        torch.testing.assert_close(maps, rows.mean(dim=2).reshape(1, 12, 4, 4), atol=1e-5, rtol=0)
    assert [layout.geometry.image_height for layout in trace.layouts] == [48, 70]
    written = lmm.generate(encoded, "which is the lemon?", max_new_tokens=4)
    assert written.merged_attention([(0, 4)], image=1).shape == (1, 12, 4, 4)


def test_a_prompt_with_too_few_marks_is_refused(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    layouts = lmm.encode_image(random_image()).layouts
    with pytest.raises(ValueError, match="prompt: expected one <image> for each of 2 images, got 1"):
        lmm.words.expand(lmm.words.tokenizer(lmm.family.prompt("x")).input_ids, layouts * 2)


class Doubled(GridLayout):
    """A layout with two maps for each head."""

    def maps(self, rows):
        return torch.cat([super().maps(rows), super().maps(rows)], dim=1)


class Own(LlavaFamily):
    """A family that has another say wherever it may."""

    maps_per_head = 2
    system = "USER and ASSISTANT talk. "
    kept = "nothing"

    @classmethod
    def map_layers(cls, text):
        return (0, 2)

    def prepare(self, images):
        prepared = super().prepare(images)
        layouts = tuple(Doubled(one.geometry, one.image_token_id) for one in prepared.layouts)
        return families.PreparedImages(prepared.inputs, layouts)

    def model_state(self, model):
        return "of the image"

    def restore_state(self, model, state):
        self.kept = state


def test_channels_layers_system_and_state_are_the_familys(folder, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "llava", Own)
    assert lmm_shape(folder) == LmmShape(3, 4, 32, maps_per_head=2, mapless_layers=1)
    assert lmm_shape(folder).channels == 16
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    assert lmm.shape.channels == 16
    read = lmm.teacher_force(image, "where?", "The lemon.")
    assert lmm.family.kept == "nothing", "expected a first reading to put nothing back"
    again = lmm.teacher_force(image, "where?", "The lemon.")
    assert lmm.family.kept == "of the image"
    torch.testing.assert_close(again.merged_attention([(0, 1)]), read.merged_attention([(0, 1)]), atol=1e-5, rtol=0)
    assert [layer.layer for layer in read.attention.layers] == [0, 2]
    assert read.merged_attention([]).shape == (0, 16, 4, 4)
    assert read.merged_attention([(0, 1)]).shape == (1, 16, 4, 4)
    written = lmm.generate(image, "where?", max_new_tokens=2)
    assert written.image_starts[0] > read.image_starts[0]
    whole = FrozenLmm.from_pretrained(folder, reuse_prefix=False)
    assert whole.generate(whole.encode_image(random_image()), "where?", max_new_tokens=2).token_ids == written.token_ids


def test_a_family_may_forbid_the_reuse_of_a_prefix(folder, monkeypatch):
    monkeypatch.setattr(LlavaFamily, "reuses_prefix", False)
    lmm = FrozenLmm.from_pretrained(folder)
    image = lmm.encode_image(random_image())
    lmm.teacher_force(image, "where?", "The lemon.")
    assert not image.prefixes


class Composed(LlavaFamily):
    """A bare decoder that is given embeddings: for families whose vision part transformers does not know."""

    def encode(self, model, prepared):
        return super().encode(self.vision, prepared)

    def model_inputs(self, model, ids, features):
        embeddings = model.get_input_embeddings()(ids).clone()
        embeddings[ids == self.image_token_id] = torch.cat(features.views)
        return {"inputs_embeds": embeddings}


@pytest.mark.parametrize("reuse", [False, True], ids=["whole", "prefix"])
def test_a_bare_decoder_may_be_given_embeddings(folder, reuse):
    whole = FrozenLmm.from_pretrained(folder)
    vision = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    decoder = LlamaForCausalLM(vision.config.text_config).eval()
    decoder.model.load_state_dict(vision.model.language_model.state_dict())
    decoder.lm_head.load_state_dict(vision.lm_head.state_dict())
    decoder.generation_config = vision.generation_config
    family = Composed.__new__(Composed)
    family.__dict__.update(whole.family.__dict__, vision=vision)
    lmm = FrozenLmm(model=decoder, tokenizer=whole.words.tokenizer, family=family, reuse_prefix=reuse)
    traces = []
    for one in (whole, lmm):
        image = one.encode_image(random_image())
        traces.append((one.generate(image, "where?", max_new_tokens=6), one.teacher_force(image, "where?", "The lemon.")))
    for expected, got in zip(*traces, strict=True):
        assert got.token_ids == expected.token_ids
        spans = [(0, len(got.token_ids))]
        torch.testing.assert_close(got.merged_attention(spans), expected.merged_attention(spans), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(48, 64), (65, 33), (51, 51)], ids=["landscape", "portrait", "square"])
def test_llava_rows_words_and_places(folder, size):
    lmm = FrozenLmm.from_pretrained(folder)
    image = random_image(*size)
    check_rows(lmm, [image])
    check_greedy(lmm, [image])
    encoded = lmm.encode_image(image)
    (features,) = encoded.features.views
    for row, column in ((0, 0), (1, 3), (3, 2)):
        other = features.clone()
        other[row * 4 + column] += 1
        given = copy.copy(encoded.features.given)
        given.pooler_output = [other]
        columns = changed_columns(lmm, encoded, families.ImageFeatures((other,), given))
        expected = torch.zeros(1, 4, 4)
        expected[0, row, column] = 1
        assert torch.equal(cells(encoded.layouts[0], columns), expected)


def test_llava_rows_of_two_images(folder):
    check_rows(FrozenLmm.from_pretrained(folder), [random_image(48, 64), random_image(70, 31, seed=1)])
