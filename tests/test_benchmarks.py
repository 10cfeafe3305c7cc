"""The field's benchmarks: figures by hand, protocols, and the commands on tiny data of the true layouts."""

import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_public_data as tiny
from pycocotools import mask as coco_mask
from transformers import BertConfig, BertModel, BertTokenizer

from flmm_cli.main import main
from flmm_core.data.formats import open_dataset
from flmm_core.data.samples import Expression, Sample, refer_turn
from flmm_core.evaluation.benchmarks import first_of_each, narratives, reasoning, referring, run_benchmark
from flmm_core.evaluation.cases import Case, ImageCases, extremes, figures_of, recall_figures
from flmm_core.evaluation.conversations import Conversation, MaskedPhrase, bert_similarity, conversation_figures
from flmm_core.evaluation.details import ask_sample, detail_figures, holds
from flmm_core.evaluation.pages import extremes_page, markdown_table
from flmm_core.evaluation.published import published_figures
from flmm_core.types import GroundedAnswer, GroundedPhrase

LEFT, RIGHT = tiny.box_mask(tiny.LEFT), tiny.box_mask(tiny.RIGHT)
NOTHING = np.zeros_like(LEFT)
SIZES = {"left": int(LEFT.sum()), "right": int(RIGHT.sum())}


def sample_of(ignored=()):
    rles = tuple(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (LEFT, RIGHT))
    return Sample(path=tiny.Path("a.jpg"), turns=(), names=("left", "right"), rles=rles, ignored=ignored)


def images_of(*cases):
    return [ImageCases(i, tiny.Path(f"{i}.jpg"), tuple(group), 1.0) for i, group in enumerate(cases)]


def test_figures_by_hand():
    sample = sample_of()
    half = LEFT.copy()
    half[:25] = False  # rows 25 to 40 of 10 to 40 stay: IoU 0.5
    cases = [Case.of("a", LEFT, sample, (0,)), Case.of("b", half, sample, (0,)), Case.of("c", RIGHT, sample, (0,))]
    found = figures_of(images_of(cases[:2], cases[2:]))
    left, right = SIZES["left"], SIZES["right"]
    assert found["cIoU"].value == pytest.approx(1.5 * left / (3 * left + right))
    assert found["gIoU"].value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["precision at IoU 0.5"].value == pytest.approx(2 / 3)
    assert found["precision at IoU 0.6"].value == pytest.approx(1 / 3)
    assert "no-target accuracy" not in found


def test_nothing_meant():
    """gRefCOCO: an empty mask for nothing is right, and any mask is wrong and adds to the union."""
    sample = sample_of()
    cases = [Case.of("none", NOTHING, sample, ()), Case.of("dog", LEFT, sample, ()), Case.of("both", NOTHING, sample, (0, 1))]
    found = figures_of(images_of(cases))
    assert found["no-target accuracy"].value == 0.5
    assert found["target accuracy"].value == 0.0
    assert found["gIoU"].value == pytest.approx(1 / 3)
    assert found["cIoU"].value == 0.0
    assert [case.overlap.union for case in cases] == [0, SIZES["left"], SIZES["left"] + SIZES["right"]]


def test_ignored_pixels_count_neither_way():
    sample = sample_of(ignored=(1,))
    assert Case.of("a", LEFT | RIGHT, sample, (0,)).iou == 1.0
    assert not Case.of("a", RIGHT, sample, ()).masked


def test_iou_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    sample = sample_of()
    for _ in range(20):
        found = rng.random(LEFT.shape) < 0.3
        case = Case.of("a", found, sample, (1,))
        (expected,) = coco_mask.iou([case.rle], [sample.rles[1]], [0])[0]
        assert case.iou == pytest.approx(expected)


def test_average_recall_is_the_integral_of_recall():
    rng = np.random.default_rng(1)
    sample = sample_of()
    tags = [("thing", "singular"), ("stuff", "plural")]
    cases = [
        Case.of("a", (LEFT & (rng.random(LEFT.shape) < share)), sample, (0,), tags[i % 2])
        for i, share in enumerate(np.linspace(0, 1, 9))
    ]
    found = recall_figures(images_of(cases))
    thresholds = np.linspace(0, 1, 20001)
    for name, chosen in (("all", cases), ("thing", cases[::2]), ("plural", cases[1::2])):
        recall = [np.mean([case.iou >= t for case in chosen]) for t in thresholds]
        assert found[f"average recall: {name}"].value == pytest.approx(np.trapezoid(recall, thresholds), abs=1e-3)


def test_best_and_worst_share_no_image():
    sample = sample_of()
    images = images_of(*([Case.of("a", mask, sample, (0,))] for mask in (RIGHT, LEFT, LEFT | RIGHT)))
    best, worst = extremes(images, 2)
    assert [image.index for image in best] == [1, 2]
    assert [image.index for image in worst] == [0]


class Truth:
    """A pipeline that finds what is true, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def encode(self, image):
        return image.shape[:2]

    def refer(self, size, phrases, *, max_phrases):
        self.asked.append(list(phrases))
        assert max_phrases == len(phrases)
        return self._answer(size, [(words, self.answers[words]) for words in phrases])

    def ground(self, size, question, text, ranges):
        self.asked.append((question, text))
        return self._answer(size, [(text[a:b], self.answers[text[a:b]]) for a, b in ranges])

    def chat(self, size, question):
        self.asked.append(question)
        return self._answer(size, [("x", LEFT), ("y", RIGHT)])

    def _answer(self, size, found):
        import torch

        phrases = tuple(GroundedPhrase(w, 0, len(w), torch.from_numpy(m), (0, 0, 1, 1), 1.0) for w, m in found)
        return GroundedAnswer("answer", phrases, *size)


def test_both_protocols(tmp_path):
    folder = tiny.write_refcoco(tmp_path)
    main(["convert-data", str(folder)])
    dataset = open_dataset(f"{folder}@train")
    pipeline = Truth({"red cup": LEFT, "cup on the left": LEFT, "blue person": RIGHT})
    (apart,) = run_benchmark(pipeline, dataset, referring("apart"), tell=pytest.fail)
    assert pipeline.asked == [["red cup"], ["cup on the left"], ["blue person"]]
    assert [case.iou for case in apart.cases] == [1.0, 1.0, 1.0]
    pipeline.asked.clear()
    (together,) = run_benchmark(pipeline, dataset, referring("together"), tell=pytest.fail)
    assert pipeline.asked == [["red cup", "blue person"]]
    assert figures_of([together])["cIoU"].value == 1.0
    with pytest.raises(ValueError, match="expected one of together, apart, got both"):
        referring("both")
    assert first_of_each([Expression("a", ()), Expression("b", ())]) == [Expression("a", ()), Expression("b", ())]


def test_narratives_and_questions(tmp_path):
    pipeline = Truth({"cup": LEFT, "cups": LEFT | RIGHT, "wall.": ~(LEFT | RIGHT)})
    images = run_benchmark(pipeline, open_dataset(str(tiny.write_png(tmp_path))), narratives, tell=pytest.fail)
    found = recall_figures(images)
    assert len(images) == 2 and all(figure.value == 1.0 for figure in found.values())
    assert sorted(found) == [f"average recall: {tag}" for tag in ("all", "plural", "singular", "stuff", "thing")]
    pipeline = Truth({"the café’s cup": LEFT})
    images = run_benchmark(pipeline, open_dataset(str(tiny.write_reasonseg(tmp_path))), reasoning, tell=pytest.fail)
    assert [len(image.cases) for image in images] == [2, 1]
    assert all(case.iou == 1.0 for image in images for case in image.cases), "the other box is to be ignored"


def test_broken_samples_are_told_and_skipped(tmp_path):
    folder = tiny.write_reasonseg(tmp_path)
    (folder / "val" / "a.jpg").write_bytes(b"nothing")
    told = []
    images = run_benchmark(Truth({"the café’s cup": LEFT}), open_dataset(str(folder)), reasoning, tell=told.append)
    assert [image.path.name for image in images] == ["b.jpg"] and "a.jpg" in told[0]


def test_a_damaged_image_does_not_end_conversations(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)  # METEOR is computed in the tests of its own
    folder = tiny.write_gcg(tmp_path)
    path = folder / "GranDf_HA_images" / "val_test" / "sa_3.jpg"
    path.write_bytes(path.read_bytes()[:700])
    out = tmp_path / "out.json"
    assert main(["eval", "gcg", f"{folder}@val", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["images"] == 1 and "sa_3.jpg" in record["skipped"][0]


def test_published_figures_stand_beside_their_data_set():
    assert ("LLaVA-1.5-7B", 75.2) in published_figures("refcoco", "val", "cIoU")
    assert ("LLaVA-1.5-7B", 63.7) in published_figures("refcoco+", "val", "cIoU")
    assert published_figures("grefcoco", "val", "cIoU") == published_figures("refcoco", "val", "gIoU") == []
    assert published_figures("refcoco", "testA", "cIoU") == []
    assert ("DeepSeekVL-1.3B", 64.9) in published_figures("x", "val2017", "average recall: all")
    sample = sample_of()
    figures = figures_of(images_of([Case.of("a", LEFT, sample, (0,))]))
    table = markdown_table(figures, {"cIoU": [("LLaVA-1.5-7B", 75.2)]})
    assert "| cIoU | 1.000 | " in table and "LLaVA-1.5-7B 0.752" in table


def test_a_page_stands_alone_and_escapes(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)
    refs = json.loads((folder / "grefs(unc).json").read_text())
    refs[0]["sentences"][0]["sent"] = "<b>cup</b>"
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    dataset = open_dataset(f"{folder}@val")
    images = run_benchmark(Truth({"<b>cup</b>": LEFT, "green dog": NOTHING}), dataset, referring("apart"), tell=pytest.fail)
    page = extremes_page("res <x>", "table", dataset, images)
    assert "<b>" not in page and "res &lt;x&gt;" in page and page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page


@pytest.mark.parametrize(
    ("suite", "write", "row"),
    [("res", tiny.write_grefcoco, "no-target accuracy"), ("png", tiny.write_png, "average recall: thing"),
     ("reasonseg", tiny.write_reasonseg, "gIoU"), ("viscot", tiny.write_viscot, "right after a closer look")],
)  # fmt: skip
def test_commands(tmp_path, capsys, suite, write, row):
    folder = write(tmp_path)
    data = f"{folder}@val" if suite == "res" else str(folder)
    out = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "html")}
    options = [str(part) for name, path in out.items() for part in (f"--{name}", path)]
    assert main(["eval", suite, data, *options, "--device", "cpu"]) == 0
    assert row in capsys.readouterr().out
    record = json.loads(out["json"].read_text())
    assert row in [entry["figure"] for entry in record["rows"]]
    assert record["protocol"] == ("expressions apart" if suite == "res" else "")
    assert {"command", "model", "versions", "images", "skipped"} <= set(record)
    assert row in out["markdown"].read_text() and out["html"].read_text().startswith("<!DOCTYPE html>")


def test_given_words_are_grounded_where_they_stand(tmp_path):
    """``ground`` reads an answer as if the LMM had written it, as ``chat`` would have grounded it."""
    from flmm_core.pipeline import GroundingPipeline
    from flmm_sim.renderer import TabletopRenderer

    pipeline = GroundingPipeline.from_pretrained(device="cpu")
    with TabletopRenderer() as renderer:
        image = pipeline.encode(renderer.sample(seed=1).image)
    question = "what is on the table?"
    said = pipeline.chat(image, question)
    ranges = [(phrase.start, phrase.end) for phrase in said.phrases]
    read = pipeline.ground(image, question, said.text, ranges)
    assert [phrase.text for phrase in read.phrases] == [phrase.text for phrase in said.phrases]
    for one, other in zip(said.phrases, read.phrases, strict=True):
        assert (one.mask != other.mask).sum() < 5
    with pytest.raises(ValueError, match="ranges: expected characters of an answer"):
        pipeline.ground(image, question, said.text, [(0, 1000)])


def test_a_turn_of_nothing_is_no_case():
    assert referring("together")(Truth({}), (1, 1), Sample(tiny.Path("a"), (refer_turn([]),), (), ())) == []


# --- conversations ---------------------------------------------------------------------------------------------------------


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def conversation(found, caption="a red cup stands beside a blue box", true=(("red cup", LEFT), ("blue box", RIGHT))):
    return Conversation(
        0, tiny.Path("a.jpg"), caption, tuple(MaskedPhrase(words, rle(mask)) for words, mask in found),
        ("A red cup stands beside a blue box.",), tuple(MaskedPhrase(words, rle(mask)) for words, mask in true), 1.0,
    )  # fmt: skip


@pytest.fixture
def no_java(monkeypatch):
    """Words are not compared, which takes long."""
    monkeypatch.setattr(shutil, "which", lambda _: None)


def test_masks_of_conversations_by_hand(no_java):
    half = LEFT.copy()
    half[:25] = False
    right = conversation([("cup", LEFT), ("box", RIGHT)])
    partly = conversation([("cup", half), ("cup", half), ("dog", RIGHT)])
    found = conversation_figures([right, partly])
    assert found["mIoU"].value == pytest.approx((1 + (1 + 0.5) / 2) / 2), "each mask is paired once"
    assert found["mask recall (words not compared)"].value == 1.0
    nothing = conversation_figures([conversation([])])
    assert nothing["AP50"].value == nothing["mIoU"].value == nothing["mask recall (words not compared)"].value == 0.0
    alone = conversation_figures([right])["AP50"]
    assert (alone.value, alone.low, alone.high) == pytest.approx((1.0, 1.0, 1.0))


def test_average_precision_resamples_images(no_java):
    """Half of the images have all masks, the others none: an interval around one half, as wide as that of a share of images."""
    right = conversation([("cup", LEFT), ("box", RIGHT)])
    nothing = conversation([("cup", ~LEFT & ~RIGHT)])
    wide = conversation_figures([right, nothing] * 4)["AP50"]
    narrow = conversation_figures([right, nothing] * 32)["AP50"]
    for figure in (wide, narrow):
        assert figure.low < figure.value < figure.high
    assert narrow.high - narrow.low < 0.6 * (wide.high - wide.low)
    truth = conversation_figures([right] * 3 + [nothing])["AP50"].value
    assert truth == pytest.approx(0.75, abs=0.01), "all that is found before the first false one is right"


def test_phrases_are_recalled_by_their_words(no_java):
    right = conversation([("cup", LEFT), ("box", RIGHT)])
    half = LEFT.copy()
    half[:25] = False
    partly = conversation([("cup", half), ("cup", half), ("dog", RIGHT)])

    def alike(some, others):
        return np.array([[1.0 if b in a else 0.0 for b in others] for a in some])

    recalled = conversation_figures([right, partly], alike)
    assert recalled["mask recall"].value == 0.75, "a dog is no blue box"


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java: `apt-get install default-jre-headless`")
def test_words_of_conversations(monkeypatch):
    meteor = pytest.importorskip(
        "pycocoevalcap.meteor.meteor",
        reason="pycocoevalcap is not installed: `make setup`, or `pip install -r requirements-eval.txt`",
    )
    monkeypatch.setattr(meteor, "Meteor", functools.cache(meteor.Meteor))  # each reads its tables for 8 s of CPU
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")  # what starts soonest
    found = [("cup", LEFT)]
    same = conversation_figures([conversation(found), conversation(found, true=())])
    other = conversation_figures([conversation(found, "a dog"), conversation(found, "it is a blue box")])
    assert same["METEOR"].value == pytest.approx(1.0) and other["METEOR"].value < 0.5
    assert other["METEOR"].low < other["METEOR"].value < other["METEOR"].high
    assert same["CIDEr"].value >= other["CIDEr"].value


def test_words_of_conversations_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert np.isnan(conversation_figures([conversation([("cup", LEFT)])])["METEOR"].value)


def test_bert_compares_phrases(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cup", "box", "red"]))
    config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    found = bert_similarity(str(tmp_path))(["red cup", "box"], ["box", "cup", "red cup"])
    assert found.shape == (2, 3)
    assert found[0, 2] == pytest.approx(1.0, abs=1e-5) and found[1, 0] == pytest.approx(1.0, abs=1e-5)
    assert found[0, 0] < 1.0


def test_conversations_of_a_data_set(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)  # METEOR costs 10 s of CPU, and is computed above
    folder = tiny.write_gcg(tmp_path)
    (folder / "GranDf_HA_images" / "val_test" / "sa_3.jpg").unlink()
    out = tmp_path / "out.json"
    assert main(["eval", "gcg", f"{folder}@val", "--json", str(out), "--markdown", str(tmp_path / "a.md")]) == 0
    record = json.loads(out.read_text())
    assert [row["figure"] for row in record["rows"]] == [
        "METEOR", "CIDEr", "AP50", "mIoU", "mask recall (words not compared)"
    ]  # fmt: skip
    assert record["images"] == 1 and "sa_3.jpg" in record["skipped"][0]
    assert "AP50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "true", "right"),
    [
        ("The bowl is red.", "Red", True),
        ("It is a red bowl, I think.", "the red bowl", True),
        ("It is reddish.", "red", False),
        ("bowl red", "red bowl", False),
        ("anything", "?!", False),
    ],
)
def test_an_answer_holds_the_true_one_word_for_word(answer, true, right):
    assert holds(answer, true) == right


def test_details_by_hand(tmp_path, monkeypatch):
    """One of two parts is found, and one answer becomes right by looking closer."""
    (first, second) = open_dataset(str(tiny.write_viscot(tmp_path)))

    def look(pipeline, image, question):
        cup = "cup" in question
        box = tiny.LEFT if cup else None
        sizes = {True: (tiny.HEIGHT, tiny.WIDTH), False: (tiny.WIDTH, tiny.HEIGHT)}
        answer = SimpleNamespace(text="red" if cup else "it is blue", image_height=sizes[cup][0], image_width=sizes[cup][1])
        return SimpleNamespace(box=box, answer=answer)

    monkeypatch.setattr("flmm_core.evaluation.details.look_closer", look)
    pipeline = SimpleNamespace(encode=lambda image: image, chat=lambda image, text: SimpleNamespace(text="it is blue"))
    images = [ask_sample(pipeline, sample, index) for index, sample in enumerate((first, second))]
    figures = detail_figures(images)
    assert figures["right at once"].value == 0.5 and figures["right after a closer look"].value == 1.0
    assert figures["part found (IoU 0.5)"].value == 0.5 and figures["IoU of the part"].value == 0.5
    assert [one.count for one in figures.values()] == [2] * 6
