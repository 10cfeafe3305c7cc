"""MODEL_CARD.md against the simulated world, the defaults of training, and the weights that ship."""

import json
import re
from math import prod

import pytest
import torch
from documents import CARD, ROOT, commands, document, section, table, tables

from flmm_cli.train import STAGES
from flmm_core.data.samples import NO_ANSWERS
from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.sam.refiner import SamRefiner
from flmm_core.training.settings import LoopConfig
from flmm_core.weights.fingerprints import lmm_fingerprint, sam_fingerprint
from flmm_sim import language, scene
from flmm_tabletop.sam_tiny import TinySamConfig, build_tiny_sam

MODEL = ROOT / "flmm_tabletop" / "model"


def config(part):
    return json.loads((MODEL / part / "config.json").read_text(encoding="utf-8"))


def parameters(part, prefixes):
    """Numbers in the tensors of a part of the shipped model whose names begin so."""
    with (MODEL / part / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name.startswith(prefixes))


def heads():
    """Heads of the size of the shipped ones, without memory."""
    text = config("lmm")["text_config"]
    layers, size = text["num_hidden_layers"], text["hidden_size"]
    unet = UNetConfig(layers * text["num_attention_heads"], config("heads")["unet"]["base_channels"])
    with torch.device("meta"):
        return GroundingHeads(
            config=HeadsConfig(unet=unet, layers=layers, hidden_size=size), sam=SamRefiner(sam=build_tiny_sam(TinySamConfig()))
        )


def test_the_heads_know_what_they_were_trained_on():
    """Without fingerprints nothing would be checked when they are loaded."""
    origin = config("heads")["origin"]
    assert origin["lmm_fingerprint"] == lmm_fingerprint(MODEL / "lmm")
    assert origin["sam_fingerprint"] == sam_fingerprint(MODEL / "sam")


def test_simulated_world():
    rows = {row[0]: row[1] for row in table(document(CARD), "Data")}
    assert rows[f"Kinds ({len(scene.KINDS)})"] == ", ".join(scene.KINDS)
    assert rows[f"Colours ({len(scene.COLORS)})"].split(";")[0] == ", ".join(scene.COLORS)
    assert rows["Questions"].split(";")[0] == ", ".join(kind for kind in language.TURNS if kind not in NO_ANSWERS)


def test_defaults_of_training():
    rows = tables(section(document(CARD), "Training"))[1]
    *tabletop, heads_row = rows
    for row, stage in zip(tabletop, STAGES[:-1], strict=True):
        loop = stage.settings.LOOP
        assert int(row[1]) == loop.steps
        assert row[2] == f"{stage.settings().batch} images"
        assert (float(row[3]), float(row[4])) == (loop.learning_rate, loop.weight_decay), stage.name
    # The heads are trained by the general command, whose defaults are those of the paper.
    words = next(words for words in commands(section(document(CARD), "Training")) if words[:3] == ["flmm", "train", "heads"])
    given = dict(zip(words[3::2], words[4::2], strict=True))
    images, batch = int(given["--limit"]), int(given["--batch"])
    assert int(heads_row[1]) == int(given["--epochs"]) * images // batch
    assert heads_row[2] == f"{batch} images"
    assert (float(heads_row[3]), float(heads_row[4])) == (float(given["--learning-rate"]), LoopConfig.weight_decay)
    assert f"{given['--turns']} answers of each of {images:,} images" in heads_row[5]


def test_size_of_the_lmm():
    rows = {row[0]: row[3] for row in table(document(CARD), "Architecture")}
    lmm = config("lmm")
    text, vision = lmm["text_config"], lmm["vision_config"]
    size = f"{text['num_hidden_layers']} layers, {text['num_attention_heads']} heads of {text['head_dim']}"
    assert f"{size}, hidden size {text['hidden_size']}, MLP {text['intermediate_size']}" in rows["Decoder"]
    assert f"{text['vocab_size']} entries" in rows["Tokenizer"]
    words, positions = len(vision["words"]), vision["position_channels"]
    assert f"{words} votes for words and {positions} channels for its place" in rows["Vision tower"]
    assert f"{words + positions} to {text['hidden_size']} to {text['hidden_size']}" in rows["Projector"]
    channels = text["num_hidden_layers"] * text["num_attention_heads"]
    assert f"{channels} attention maps" in rows["U-Net"]
    assert f"{text['hidden_size']} to" in rows["Text projection, layer weights"]


def count_said(row):
    """Millions of parameters that the card gives a part, and their decimals."""
    said = next(cells[2] for cells in table(document(CARD), "Architecture") if cells[0] == row)
    number, decimals = re.fullmatch(r"(\d+\.(\d+)) M", said).groups()
    return float(number), len(decimals)


@pytest.mark.parametrize(
    ("row", "part", "prefixes"),
    [
        ("Vision tower", "lmm", ("vision_tower.",)),
        ("Projector", "lmm", ("multi_modal_projector.",)),
        ("Decoder", "lmm", ("language_model.",)),
        ("SAM, image encoder", "sam", ("image_encoder.",)),
        ("SAM, prompt encoder and mask decoder", "sam", ("prompt_encoder.", "mask_decoder.")),
    ],
)
def test_parameters_of_the_weights(row, part, prefixes):
    number, decimals = count_said(row)
    assert round(parameters(part, prefixes) / 1e6, decimals) == number


@pytest.mark.parametrize(
    ("row", "prefixes"),
    [
        ("U-Net", ("mask_head.",)),
        ("Text projection, layer weights", ("text_proj.", "text_layer_weights")),
        ("Keyword selector", ("keyword_selector.",)),
        ("Presence score", ("presence.",)),
    ],
)
def test_parameters_of_the_heads(row, prefixes):
    number, decimals = count_said(row)
    found = sum(tensor.numel() for name, tensor in heads().state_dict().items() if name.startswith(prefixes))
    assert round(found / 1e6, decimals) == number


def test_size_of_the_weights():
    said = int(re.search(r"\| Weights \| (\d+) MB ", document(CARD))[1])
    assert abs(sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) / 1e6 - said) < 2
