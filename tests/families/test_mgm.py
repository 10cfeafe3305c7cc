"""MGM, MGM-HD and MGM-Gemma on tiny random models in the hub's layout: the checks of every family, and what is MGM's own."""

import json
import math

import family_checks
import pytest
import torch
from family_checks import REGIONS, SIZES
from safetensors.torch import save_file
from tiny_models import random_image, tokenizer
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from flmm_core.errors import LoadError
from flmm_core.families import Checkpoint, family_of
from flmm_core.families.mgm import MgmFamily, MgmGemmaFamily, MgmHdFamily
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import lmm_shape

KINDS = {"mgm": MgmFamily, "mgm_hd": MgmHdFamily, "mgm_gemma": MgmGemmaFamily}
LAYERS, HEADS, CELLS = 3, 4, 8
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def wordless_of_images():
    """The tiny tokenizer without a mark for images, as MGM's have none."""
    words = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str().replace("<image>", "<blank>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def save_openclip(folder, widths=(8, 12)):
    """An OpenCLIP ConvNeXt with a few of CLIP's other weights."""
    state = {
        "logit_scale": torch.ones(()), "text.token_embedding.weight": torch.randn(4, 4),
        "visual.head.mlp.fc1.weight": torch.randn(4, widths[-1]),
        "visual.trunk.stem.0.weight": torch.randn(widths[0], 3, 4, 4) / 4, "visual.trunk.stem.0.bias": torch.randn(widths[0]),
    }  # fmt: skip

    def norm(name, width):
        state[f"visual.trunk.{name}.weight"], state[f"visual.trunk.{name}.bias"] = torch.ones(width), torch.randn(width) / 4

    norm("stem.1", widths[0])
    norm("head.norm", widths[-1])
    for i, width in enumerate(widths):
        if i:
            norm(f"stages.{i}.downsample.0", widths[i - 1])
            state[f"visual.trunk.stages.{i}.downsample.1.weight"] = torch.randn(width, widths[i - 1], 2, 2) / 4
            state[f"visual.trunk.stages.{i}.downsample.1.bias"] = torch.randn(width)
        for j in range(i + 1):
            block = f"stages.{i}.blocks.{j}"
            norm(f"{block}.norm", width)
            for name, shape in {
                "gamma": (width,), "conv_dw.weight": (width, 1, 7, 7), "conv_dw.bias": (width,),
                "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
            }.items():  # fmt: skip
                state[f"visual.trunk.{block}.{name}"] = torch.randn(shape) / 4
    folder.mkdir(parents=True)
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return sum(widths)


def save_mgm(root, kind, *, seed=0, **changes):
    """An MGM of 3 layers x 4 heads with its towers beside it, 8 x 8 cells (MGM-HD: 2 x 2 tiles of them); the LMM's folder."""
    torch.manual_seed(seed)
    words = wordless_of_images()
    tiles = 2 if kind == "mgm_hd" else 1
    gemma = kind == "mgm_gemma"
    numbers = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 1 if gemma else 2, "head_dim": 16 if gemma else 8,
        "max_position_embeddings": 1024, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    }  # fmt: skip
    decoder = (GemmaForCausalLM(GemmaConfig(**numbers)) if gemma else LlamaForCausalLM(LlamaConfig(**numbers))).eval()
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=14 * CELLS,
            patch_size=14,
            projection_dim=16,
            initializer_range=0.3,
        )
    )
    vision.save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": 14 * CELLS}, crop_size=14 * CELLS).save_pretrained(root / "clip")
    details = save_openclip(root / "openclip-convnext-tiny")
    state = {name: value for name, value in decoder.state_dict().items() if not (gemma and name == "lm_head.weight")}
    for name, shape in {
        "mm_projector.0": (32, 24), "mm_projector.2": (32, 32), "vlm_uni_query_projector.1": (24, 24),
        "vlm_uni_aux_projector.1": (24, details), "vlm_uni_val_projector.1": (24, details),
    }.items():  # fmt: skip
        state |= {f"model.{name}.weight": torch.randn(shape) / 4, f"model.{name}.bias": torch.randn(shape[0]) / 4}
    for name, width in {"query": 24, "aux": details, "val": details}.items():
        norm = f"model.vlm_uni_{name}_projector.0"
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.randn(width) / 4}
    state["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"] = torch.zeros(24)  # towers may be saved along
    lmm = root / "lmm"
    lmm.mkdir()
    parts = {"model-00001-of-00002.safetensors": sorted(state)[::2], "model-00002-of-00002.safetensors": sorted(state)[1::2]}
    for file, names in parts.items():
        save_file({name: state[name].contiguous() for name in names}, lmm / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (lmm / "model.safetensors.index.json").write_text(json.dumps(index))
    config = numbers | {
        "architectures": ["MGMGemmaForCausalLM" if gemma else "MGMLlamaForCausalLM"],
        "model_type": "mgm_gemma" if gemma else "mgm", "rope_scaling": None,
        "image_aspect_ratio": "pad", "image_size_aux": 16 * CELLS * tiles, "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "model_zoo/OpenAI/clip", "mm_vision_tower_aux": "../openclip-convnext-tiny",
        "optimize_vision_tower": False, "optimize_vision_tower_aux": False, "tokenizer_model_max_length": 1024,
    }  # fmt: skip
    if tiles > 1:
        config |= {"image_grid": tiles, "image_global": True}
    (lmm / "config.json").write_text(json.dumps(config | changes))
    words.save_pretrained(lmm)
    return lmm


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save_mgm(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def lmm(folder):
    return FrozenLmm.from_pretrained(folder)


# --- the checks of every family ---


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_are_those_of_eager_attention(folder, size):
    family_checks.check_rows(folder, random_image(*size))


def test_answers_that_share_a_pass_are_those_of_each_alone(folder):
    family_checks.check_batches(folder, random_image(*SIZES["landscape"]))


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_region_of_the_image_is_the_same_region_of_the_maps(lmm, size, region):
    cell = max(size) / (CELLS * lmm.family.tiles)
    image = random_image(*size)
    if lmm.family.maps_per_head == 1:
        # The second stage of the tower has two places in a cell, and is enlarged to the first one's four.
        family_checks.check_position_truth(lmm, image, region, reach=cell)
        return
    for layer in range(LAYERS):
        start = 2 * layer * HEADS
        family_checks.check_position_truth(lmm, image, region, channels=slice(start, start + HEADS), reach=4 * cell)
        family_checks.check_position_truth(lmm, image, region, channels=slice(start + HEADS, start + 2 * HEADS), reach=cell)


def test_greedy_answers_are_those_of_the_plain_model(folder):
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES.values())]
    family_checks.check_greedy(folder, images, dtypes=(torch.float32,))
    family_checks.check_greedy(folder, images[:1], dtypes=(torch.bfloat16,))


def test_a_tiny_head_trains(folder):
    family_checks.check_training(folder)


# --- loading ---


def test_the_decoder_is_the_one_in_the_files(folder, kind, lmm):
    config = json.loads((folder / "config.json").read_text())
    gemma = kind == "mgm_gemma"
    numbers = {name: config[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")}  # fmt: skip
    plain = (GemmaForCausalLM(GemmaConfig(**numbers)) if gemma else LlamaForCausalLM(LlamaConfig(**numbers))).eval()
    state = Checkpoint(folder).json("model.safetensors.index.json")["weight_map"]
    own = lmm.model.state_dict()
    decoder = {
        name: own[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)]
        for name in plain.state_dict()
    }
    plain.load_state_dict(decoder)
    ids = torch.tensor([[1, 40, 41, 42]])
    torch.testing.assert_close(lmm.model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert {name for name in state if name.startswith("model.layers")} == {n for n in decoder if n.startswith("model.layers")}


def test_each_kind_has_its_family_and_channels(folder, kind):
    assert family_of(Checkpoint(folder)) is KINDS[kind]
    assert lmm_shape(folder).channels == (2 if kind == "mgm_hd" else 1) * LAYERS * HEADS


def test_a_checkpoint_without_one_of_its_weights_is_refused(tmp_path):
    folder = save_mgm(tmp_path, "mgm")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"any": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(ValueError, match="expected every weight of the model"):
        FrozenLmm.from_pretrained(folder)


def test_weights_that_are_not_mgms_are_refused(tmp_path):
    folder = save_mgm(tmp_path, "mgm")
    save_file({"model.mm_projector.4.weight": torch.zeros(1)}, folder / "more.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.mm_projector.4.weight"] = "more.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"expected MGM's weights only, got model\.mm_projector\.4\.weight too"):
        FrozenLmm.from_pretrained(folder)


def test_a_missing_tower_is_named(tmp_path):
    folder = save_mgm(tmp_path, "mgm", mm_vision_tower_aux="model_zoo/OpenAI/openclip-other")
    with pytest.raises(LoadError, match=r"expected its tower model_zoo/OpenAI/openclip-other in the folder .*, got none"):
        FrozenLmm.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mgm", {"optimize_vision_tower": True}, "expected optimize_vision_tower = False, got True"),
        ("mgm", {"mm_projector_type": "linear"}, "expected mm_projector_type = mlp2x_gelu, got linear"),
        ("mgm", {"architectures": ["MGMGemmaForCausalLM"]}, r"expected architectures = \['MGMLlamaForCausalLM'\], got"),
        ("mgm_hd", {"image_global": False}, "expected image_global = True, got False"),
    ],
)
def test_options_that_are_not_known_to_work_are_refused(tmp_path, kind, changes, words):
    with pytest.raises(LoadError, match=words):
        lmm_shape(save_mgm(tmp_path, kind, **changes))


def test_the_chat_template_decides(tmp_path):
    llama, gemma = (save_mgm(tmp_path / kind, kind) for kind in ("mgm", "mgm_gemma"))
    for folder in (llama, gemma):
        (folder / "chat_template.jinja").write_text(GEMMA_TEMPLATE)
    assert family_of(Checkpoint(gemma)) is MgmGemmaFamily
    with pytest.raises(LoadError, match="expected a chat template that writes USER:"):
        family_of(Checkpoint(llama))


# --- images and words ---


def test_the_mark_of_an_image_is_no_word_of_the_decoder(lmm):
    assert lmm.family.image_token_id >= lmm.model.get_input_embeddings().weight.shape[0]


def test_gemmas_prompt_is_that_of_its_chat_template(lmm, kind):
    if kind != "mgm_gemma":
        pytest.skip("Gemma's")
    chat = [{"role": "user", "content": "<image>\nwhere?"}]
    rendered = lmm.words.tokenizer.apply_chat_template(
        chat, chat_template=GEMMA_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert lmm.words.tokenizer.bos_token + lmm.family.prompt("where?") == rendered
    tokens = lmm.words.answer_tokens("where?", "The lemon.", lmm.family.prepare([random_image(60, 90)]).layouts)
    assert lmm.words.decode(tokens.prompt.ids).endswith("<start_of_turn>model\n")
    assert lmm.words.decode(tokens.ids) == "The lemon."


@torch.no_grad()
def test_two_images_keep_apart(lmm):
    images = [random_image(60, 90), random_image(70, 50, seed=1)]
    both = lmm.teacher_force(lmm.encode_images(images), "where?", "The lemon.")
    other = lmm.teacher_force(lmm.encode_images([images[0], random_image(70, 50, seed=2)]), "where?", "The lemon.")
    assert len(both.image_columns(0)) == len(both.image_columns(1)) == len(both.layouts[0].ids)
    second = [trace.merged_attention([(0, 1)], image=1) for trace in (both, other)]
    assert (second[0] / second[1]).log().std() > 1e-2
    # The first image's keys do not know the second one: in the first layer only the softmax's sum differs.
    first = [trace.merged_attention([(0, 1)])[0, : HEADS * lmm.family.maps_per_head].flatten(1) for trace in (both, other)]
    assert (first[0] / first[1]).log().std(dim=1).max() < 1e-4


@torch.no_grad()
def test_details_enrich_the_patches_that_they_lie_in(lmm, kind):
    """CLIP sees the same; of the detailed image the lower left quarter changes, but for its edges."""
    prepared = lmm.family.prepare([random_image(131, 131)])
    views, image = prepared.inputs["pixel_values"][0], prepared.inputs["pixel_values_aux"][0]
    changed = image.clone()
    size = image.shape[-1]
    changed[:, size * 9 // 16 : size * 15 // 16, size // 16 : size * 7 // 16] += 1.0
    with family_checks.local(lmm.model):
        before, after = (lmm.model.project_image(views, one) for one in (image, changed))
    moved = (before - after).abs().amax(dim=-1) > 1e-6
    quarter = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    quarter[4:, :4] = True
    assert torch.equal(moved[0].view(CELLS, CELLS), quarter)
    if kind == "mgm_hd":
        assert moved[3].view(CELLS, CELLS)[1:-1, 1:-1].all()
        assert not moved[[1, 2, 4]].any()


@torch.no_grad()
def test_gemma_scales_images_like_words(lmm, kind):
    if kind != "mgm_gemma":
        pytest.skip("Gemma's")
    seen = []
    layer = lmm.model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args, options: seen.append(args[0]), with_kwargs=True)
    try:
        whole = FrozenLmm(model=lmm.model, tokenizer=lmm.words.tokenizer, family=lmm.family, reuse_prefix=False)
        encoded = whole.encode_image(random_image(60, 90))
        trace = whole.teacher_force(encoded, "where?", "The lemon.")
    finally:
        hook.remove()
    torch.testing.assert_close(seen[0][0, trace.image_columns()], torch.cat(encoded.features.views) * math.sqrt(32))
    words = lmm.model.get_input_embeddings().weight[torch.tensor(trace.token_ids)] * math.sqrt(32)
    torch.testing.assert_close(seen[0][0, -len(trace.token_ids) :], words)
