"""docs/real_models.md: every family of the registry, its commands, and the arithmetic of its tables."""

import re

import pytest
from documents import REAL_MODELS, code_blocks, commands, document, names, section, table, tables

from flmm_core.families import FAMILIES

TEXT = 128 + 64
"""Tokens of a prompt and an answer."""
PHRASES = 5
CELLS = 64 * 64
COMPUTERS = {
    "Orin Nano 8 GB": 0.75 * 8,
    "Orin NX 16 GB": 0.75 * 16,
    "GPU 24 GB": 0.85 * 24,
    "AGX Orin 64 GB": 0.75 * 64,
    "Thor 128 GB": 0.75 * 128,
}
"""What may be used of their memory, GB."""


def rows(title):
    """Rows of the table of a section, by family, in the table's order."""
    return {names(row[0])[0]: row[1:] for row in table(document(REAL_MODELS), title)}


def number(cell):
    return float(cell.replace(",", ""))


CHECKPOINTS, IMAGES, SUMS = (rows(title) for title in ("Checkpoints", "What an image takes", "Computers"))


@pytest.mark.parametrize("found", [CHECKPOINTS, IMAGES, SUMS], ids=["checkpoints", "images", "computers"])
def test_tables_have_every_family(found):
    assert list(found) == list(FAMILIES)


def test_sections_are_the_families():
    headings = re.findall(r"^### (.+)$", section(document(REAL_MODELS), "Families"), re.M)
    assert headings == list(FAMILIES)


# --- arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_weights(family):
    """Parameters times two bytes; where they come from the sizes of files, these are of two bytes each as well."""
    _, parameters, known_from, download, weights = CHECKPOINTS[family]
    assert number(weights) == pytest.approx(2 * number(parameters), abs=0.001)
    assert known_from in ("files", "counted", "stated")
    if known_from == "files":
        assert number(download) == pytest.approx(2 * number(parameters), abs=0.0101)  # of rounding to 10^7 parameters
    else:
        assert download == "not checked"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_image_takes(family):
    tokens, layers, key_heads, size, cache, channels, maps, reading = map(number, IMAGES[family])
    assert cache == round(2 * layers * key_heads * size * 2 * (tokens + TEXT) / 1e6)
    assert maps == round(channels * CELLS * 4 * PHRASES / 1e6)
    assert reading == pytest.approx(2 * number(CHECKPOINTS[family][1]) * tokens / 1e3, abs=0.051)


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_fit_the_family(family):
    """Whole multiples of the maps of each head; layers and heads are the checkpoint's."""
    channels, layers = number(IMAGES[family][5]), number(IMAGES[family][1])
    assert channels % FAMILIES[family].maps_per_head == 0
    if FAMILIES[family].map_layers.__func__ is FAMILIES["llava"].map_layers.__func__:  # every layer gives maps
        assert channels % (FAMILIES[family].maps_per_head * layers) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_computers(family):
    total, *fits = SUMS[family]
    cache, maps = number(IMAGES[family][4]), number(IMAGES[family][6])
    expected = number(CHECKPOINTS[family][4]) + (cache + maps) / 1e3 + sam_and_heads()
    assert number(total) == pytest.approx(expected, abs=0.0101)
    assert fits == ["yes" if number(total) <= room else "no" for room in COMPUTERS.values()]


def test_names_of_computers():
    header = next(line for line in section(document(REAL_MODELS), "Computers").splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")][2:] == list(COMPUTERS)


def sam_and_heads():
    return float(re.search(r"\*\*SAM and heads\*\*: ([\d.]+) GB", document(REAL_MODELS))[1])


def test_sam_and_heads():
    from flmm_core.heads.unet import UNetConfig, UNetHead

    unet = sum(weight.numel() for weight in UNetHead(UNetConfig(in_channels=2048)).parameters())
    attention = 16 * 4096**2 * 4  # one matrix of ViT-L, bytes
    assert round(unet / 1e6, 1) == 8.4 and round(attention / 1e9, 2) == 1.07
    assert sam_and_heads() == pytest.approx(1.25 + 2 * attention / 1e9 + 4 * unet / 1e9, abs=0.0051)


def test_published_figures():
    """Only for families with published heads, and the same in their sections."""
    for family, figures in rows("Published figures").items():
        *expressions, narratives = figures
        text = section(document(REAL_MODELS), "Families", family)
        assert f"{' / '.join(expressions)}; {narratives} on PNG" in text
    without = [family for family in FAMILIES if family not in rows("Published figures")]
    assert not [family for family in without if "on PNG" in section(document(REAL_MODELS), "Families", family)]


# --- commands: that options and parameters exist is tested for every document --------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_commands_of_a_family(family):
    """Its checkpoint by name, or downloaded into the folder that the commands take; heads that are given or trained."""
    text = section(document(REAL_MODELS), "Families", family)
    by_start = {tuple(words[:2]): words for words in commands(text)}
    ground, node = by_start["flmm", "ground"], by_start["python", "-m"]
    download, train = by_start.get(("hf", "download")), by_start.get(("flmm", "train"))
    lmm, heads = (value(ground, f"--{part}") for part in ("lmm", "heads"))
    assert {f"lmm:={lmm}", f"heads:={heads}", f"sam:={value(ground, '--sam')}"} <= set(node)
    checkpoint = names(CHECKPOINTS[family][0])[0]
    assert (download[2] if download else lmm) == checkpoint
    assert not download or value(download, "--local-dir") == lmm
    assert (train is None) == ("Published heads: non-commercial" in text) == heads.endswith(".pth")
    if train:
        assert (value(train, "--lmm"), f"{value(train, '--out')}/heads", value(train, "--sam")) == (
            lmm,
            heads,
            value(ground, "--sam"),
        )
        assert download, "flmm train heads takes folders only"
    assert "Licence of the LMM: " in text


def value(words, option):
    return words[words.index(option) + 1]


def test_says_what_was_not_done():
    text = document(REAL_MODELS)
    assert "No large checkpoint has been run with this project yet" in text
    assert "not checked" in text and not code_blocks(text, "python")
    assert ["published F-LMM heads", "non-commercial"] in tables(section(text, "Licences"))[0]
