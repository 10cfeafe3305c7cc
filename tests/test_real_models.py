"""docs/real_models.md: every family of the registry, its commands, and the arithmetic of its tables."""

import re

import pytest
from documents import README, REAL_MODELS, code_blocks, commands, document, loaded_script, names, section, table, tables

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


CHECKPOINTS, IMAGES, SIZES, SUMS = (rows(title) for title in ("Checkpoints", "What an image takes", "Image sizes", "Computers"))


@pytest.mark.parametrize("found", [CHECKPOINTS, IMAGES, SIZES, SUMS], ids=["checkpoints", "images", "sizes", "computers"])
def test_tables_have_every_family(found):
    assert list(found) == list(FAMILIES)


def test_particulars_have_every_family():
    """With where the heads come from, as README says it, and two licences."""
    published = {
        name: row[3].startswith("published") for row in table(document(README), "Use a real LMM") for name in names(row[1])
    }
    found = rows("Families")
    assert list(found) == list(FAMILIES)
    assert {family: heads for family, (heads, *_) in found.items()} == {
        family: "published" if known else "train" for family, known in published.items()
    }
    assert all(text for particulars in found.values() for text in particulars)


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


@pytest.fixture(scope="module")
def image_sizes():
    return loaded_script("write_image_sizes")


@pytest.mark.parametrize("family", FAMILIES)
def test_image_sizes(family, image_sizes):
    """VGA is as the script computes it now, and as in the other table, but for tokens between cells; so is each limit."""
    vga, hd, large, keys, maps, queries, limit, limited, known_from = SIZES[family]
    cost = image_sizes.cost(family, image_sizes.VGA)
    assert vga == f"{cost.tokens:,} ({cost.grid_width} x {cost.grid_height})"
    assert queries == f"{cost.queries / 1e6:.1f}" and known_from in image_sizes.FROM
    assert [cells.split(" / ")[0] for cells in (keys, maps)] == [f"{cost.keys_values / 1e6:,.0f}", f"{cost.maps / 1e6:,.1f}"]
    tokens, layers, key_heads, size, _, channels, *_ = map(number, IMAGES[family])
    assert cost.tokens == tokens + (30 if family == "smolvlm" else 0)
    assert cost.keys_values == 2 * layers * key_heads * size * 2 * cost.tokens
    assert cost.maps == channels * cost.grid_width * cost.grid_height * 4
    counts = [number(cell.split(" ")[0]) for cell in (vga, hd, large)]
    needed = counts[1] > 1.5 * counts[0]
    assert (limit, limited) == ("", "") if not needed else number(limited) <= number(limit) == int(1.5 * counts[0])


def sam_and_heads():
    return float(re.search(r"\*\*SAM and heads\*\*: ([\d.]+) GB", document(REAL_MODELS))[1])


def test_sam_and_heads():
    from flmm_core.heads.unet import UNetConfig, UNetHead

    unet = sum(weight.numel() for weight in UNetHead(UNetConfig(in_channels=2048)).parameters())
    attention = 16 * 4096**2 * 4  # one matrix of ViT-L, bytes
    assert round(unet / 1e6, 1) == 8.4 and round(attention / 1e9, 2) == 1.07
    assert sam_and_heads() == pytest.approx(1.25 + 2 * attention / 1e9 + 4 * unet / 1e9, abs=0.0051)


def test_published_figures():
    """Only for families with published heads."""
    figures = rows("Published figures")
    assert figures and all(rows("Families")[family][0] == "published" for family in figures)
    assert all(50 < number(cell) < 90 for cells in figures.values() for cell in cells)


# --- commands: that options and parameters exist is tested for every document --------------------------------------------


def assigned(words):
    """Variables that a line of a shell block sets."""
    return dict(re.findall(r"^(\w+)=(.+)$", word)[0] for word in words)


def test_commands():
    """Checkpoints are those of the table, commands take the variables that were set, heads lie where they were trained."""
    given, trained = (assigned(words) for words in commands(section(document(REAL_MODELS), "Commands")) if "=" in words[0])
    checkpoints = {names(row[0])[0]: family for family, row in CHECKPOINTS.items()}
    assert rows("Families")[checkpoints[given["LMM"]]][0] == "published" and given["HEADS"].endswith(".pth")
    assert rows("Families")[checkpoints[trained["LMM"]]][0] == "train"
    by_start = {tuple(words[:2]): words for words in commands(section(document(REAL_MODELS), "Commands"))}
    ground, node, train = (by_start[start] for start in (("flmm", "ground"), ("python", "-m"), ("flmm", "train")))
    assert [value(ground, f"--{part}") for part in ("lmm", "heads", "sam")] == ["$LMM", "$HEADS", "$SAM"]
    assert {"lmm:=$LMM", "heads:=$HEADS", "sam:=$SAM"} <= set(node)
    assert (value(train, "--lmm"), value(train, "--sam"), f"{value(train, '--out')}/heads") == (
        "$LMM",
        "$SAM",
        trained["HEADS"],
    )
    assert given["SAM"] in next(words[1] for words in by_start.values() if words[0] == "wget")
    assert by_start["hf", "download"][2] in checkpoints


def value(words, option):
    return words[words.index(option) + 1]


def test_says_what_was_not_done():
    text = document(REAL_MODELS)
    assert "No large checkpoint has been run with this project yet" in text
    assert "not checked" in text and not code_blocks(text, "python")
    assert ["published F-LMM heads", "non-commercial"] in tables(section(text, "Licences"))[0]
