"""The figures in README.md and MODEL_CARD.md: written by scripts/write_figures.py from measured files, and by nobody else."""

import json
import re

import pytest
from documents import CARD, README, REFERENCE, ROOT, document, loaded_script, tables

from flmm_core.config import DEFAULT_MODEL
from flmm_core.loading.checkpoints import fingerprints
from flmm_sim.language import QUESTION_KINDS

MADE_UP = {
    "docs/eval_tabletop.json": {
        "command": "flmm eval tabletop --json x.json",
        "data": "flmm scenes --split test --seed 0 --count 3",
        "images": 3,
        "rows": [
            {"figure": "answers: list", "value": 0.5, "low": 0.25, "high": 0.75, "count": 1234},
            {"figure": "answers: all", "value": None, "low": None, "high": None, "count": 0},
            {"figure": "chat: mean IoU, SAM", "value": 0.1, "low": 0.0, "high": 0.2, "count": 7},
            *(
                {"figure": name, "value": 0.9, "low": 0.8, "high": 1.0, "count": 7}
                for name in (
                    "right chat answers and refer names: cIoU, U-Net",
                    "chat: cIoU, SAM",
                    "chat, right answers: cIoU, SAM",
                    "refer: cIoU, SAM",
                    "absence without mask: chat",
                    "absence without mask: refer",
                    "selector: F1 of phrases",
                )
            ),
        ],
    },
    "docs/attention.json": {
        "command": "flmm attention --json y.json",
        "images": 2,
        "names": 9,
        "random": {"pointing": 0.03, "attention": 0.07},
        "heads": [
            {"layer": 3, "head": 0, "pointing": 0.96, "low": 0.95, "high": 0.97, "attention": 0.85, "count": 9},
            {"layer": 0, "head": 2, "pointing": 0.5, "low": 0.4, "high": 0.6, "attention": 0.3, "count": 9},
        ],
    },
    "docs/other_words.json": {
        "command": "python scripts/measure_other_words.py --json z.json",
        "images": "flmm scenes --split test --seed 0 --count 20",
        "groups": {
            "signs": {"texts": 4, "ended": 4, "cut": 0, "declined": 3, "longest_answer_tokens": 9},
            "all": {"texts": 1000, "ended": 999, "cut": 1, "declined": 500, "longest_answer_tokens": 64},
        },
        "upper_case": {"pairs": 160, "same": 152, "right_in_lower_case": 140, "right_in_upper_case": 139},
    },
}


@pytest.fixture(scope="module")
def script():
    return loaded_script("write_figures")


def block(name):
    return f"before\n<!-- figures: {name} -->\nold\n<!-- end of figures -->\nafter\n"


WRITTEN = [README, CARD, REFERENCE, *(f"docs/{name}.md" for name in ("reliability", "data", "fleet", "ablations"))]


@pytest.mark.parametrize("name", WRITTEN)
def test_documents_hold_what_the_script_writes(script, name):
    text = document(name)
    assert script.written(text, script.read_reports(ROOT)) == text, "run: python scripts/write_figures.py"


def test_every_block_is_in_a_document(script):
    found = {name: re.findall(r"<!-- figures: (\w+) -->", document(name)) for name in script.DOCUMENTS}
    assert found == {
        README: ["summary"],
        CARD: ["evaluation", "attention", "other_words"],
        "docs/reliability.md": ["reliability", "delivery", "pairing"],
        REFERENCE: ["picking"],
        "docs/data.md": ["baseline", "res_together", "res_apart", "gres", "png", "reasonseg", "gcg", "viscot"],
        "docs/fleet.md": ["fleet"],
        "docs/ablations.md": ["ablations"],
        "docs/training_free.md": ["training_free"],
    }
    assert set(script.BLOCKS) == {name for names in found.values() for name in names}


def test_readme_stays_short(script):
    """Also once everything was measured."""
    answers = [{**MADE_UP["docs/eval_tabletop.json"]["rows"][0], "figure": f"answers: {kind}"} for kind in QUESTION_KINDS]
    rows = [*answers, *MADE_UP["docs/eval_tabletop.json"]["rows"][1:]]
    full = script.written(document(README), {"docs/eval_tabletop.json": {**MADE_UP["docs/eval_tabletop.json"], "rows": rows}})
    assert len(full.splitlines()) < 220


def test_figures_are_of_the_shipped_weights(script):
    reports = {name: report for name, report in script.read_reports(ROOT).items() if "model" in report}
    if not reports:
        pytest.skip("nothing was measured yet")
    shipped = fingerprints(lmm=DEFAULT_MODEL, heads=DEFAULT_MODEL, sam=DEFAULT_MODEL)
    for name, report in reports.items():
        measured = {part: entry["fingerprint"] for part, entry in report["model"].items()}
        assert measured == {part: shipped[part] for part in measured}, f"measure {name} again"


@pytest.mark.parametrize("name", [README, CARD])
def test_no_placeholders(name):
    assert "…" not in document(name)


def test_evaluation(script):
    made = script.written(block("evaluation"), MADE_UP)
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert "Measured by `flmm eval tabletop --json x.json` on 3 scenes" in made
    rows = tables(made)[0]
    assert rows[:2] == [["answers: list", "0.500", "0.250 to 0.750", "1,234"], ["answers: all", "-", "-", "0"]]
    assert len(rows) == len(MADE_UP["docs/eval_tabletop.json"]["rows"])


def test_summary_leaves_out_what_the_card_alone_shows(script):
    rows = [row[0] for row in tables(script.written(block("summary"), MADE_UP))[0]]
    assert rows == [row["figure"] for row in MADE_UP["docs/eval_tabletop.json"]["rows"] if "mean IoU" not in row["figure"]]


def test_summary_misses_no_row_silently(script):
    report = {**MADE_UP["docs/eval_tabletop.json"], "rows": MADE_UP["docs/eval_tabletop.json"]["rows"][:-1]}
    with pytest.raises(ValueError, match="expected a row 'selector: F1 of phrases', got none"):
        script.written(block("summary"), {"docs/eval_tabletop.json": report})


def test_attention(script):
    made = script.written(block("attention"), MADE_UP)
    assert "Measured by `flmm attention --json y.json` on 9 names in 2 images; the best 2 of 2 heads." in made
    assert "](docs/images/attention.png)" in made
    assert tables(made)[0] == [
        ["layer 3, head 0", "0.960", "0.950 to 0.970", "0.850"],
        ["layer 0, head 2", "0.500", "0.400 to 0.600", "0.300"],
        ["a random point; attention spread evenly", "0.030", "", "0.070"],
    ]


def test_other_words(script):
    made = script.written(block("other_words"), MADE_UP)
    assert "Measured by `python scripts/measure_other_words.py --json z.json`" in made
    assert tables(made)[0] == [
        ["signs", "4", "1.000", "0.000", "0.750", "9"],
        ["all", "1,000", "0.999", "0.001", "0.500", "64"],
    ]
    assert "Of 160 questions about the table, 0.950 got the same answer" in made


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("summary", "flmm eval tabletop --json docs/eval_tabletop.json"),
        ("evaluation", "flmm eval tabletop --json docs/eval_tabletop.json"),
        ("attention", "flmm attention --out docs/images/attention.png --json docs/attention.json"),
        ("other_words", "python scripts/measure_other_words.py --json docs/other_words.json"),
    ],
)
def test_what_was_not_measured_is_said_to_be_so(script, name, command):
    made = script.written(block(name), {})
    assert f"\nNot measured yet. `{command}` measures it.\n" in made
    assert script.written(made, {}) == made


def test_unknown_block(script):
    with pytest.raises(
        ValueError,
        match=r"expected one of summary, evaluation, attention, other_words, reliability, picking, pairing, .*, got 'speed'",
    ):
        script.written(block("speed"), {})


def test_reports_are_read_where_they_are(script, tmp_path):
    assert script.read_reports(tmp_path) == {}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "attention.json").write_text(json.dumps({"names": 9}))
    assert script.read_reports(tmp_path) == {"docs/attention.json": {"names": 9}}
