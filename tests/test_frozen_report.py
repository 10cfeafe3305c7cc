"""`flmm verify-frozen` and what it counts as a difference: changed weights and changed tokens are found."""

import json

import pytest
import torch
from tiny_models import random_image
from transformers import LlavaForConditionalGeneration

from flmm_cli import main as cli
from flmm_cli.verify_frozen import QUESTIONS, SIZES, drawn_images
from flmm_core.lmm.attention_recorder import ATTENTION_NAME
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.loading import load_plain
from flmm_core.verification.frozen_report import BATCH, CACHED, UNCACHED, Outcome, compare, verify_frozen
from flmm_core.verification.plain_answers import END, PlainAnswer, _near, plain_answers
from flmm_core.weights.fingerprints import lmm_fingerprint
from flmm_tabletop import MODEL


@pytest.fixture(scope="module")
def folder(tiny_llava):
    return tiny_llava


IMAGES = {"wide": random_image(), "tall": random_image(65, 33, seed=1)}
ASKED = ("where is the lemon?", "a")


def verified(folder, **options):
    loaded = load_plain(folder, device="cpu", dtype=torch.float32)
    return verify_frozen(loaded, IMAGES, ASKED, max_new_tokens=6, **options)


def test_a_served_model_is_frozen(folder):
    report = verified(folder)
    assert report.frozen and not report.changed and report.differing == 0
    assert [(answer.image, answer.question) for answer in report.answers] == [(i, q) for i in IMAGES for q in ASKED]
    assert all(answer.tokens == 6 and set(answer.outcomes) == {UNCACHED, CACHED, BATCH} for answer in report.answers)
    assert set(report.before) >= set(LlavaForConditionalGeneration.from_pretrained(folder).state_dict())
    assert "12 of 12 identical" in report.summary() and json.loads(json.dumps(report.record()))["frozen"]


def test_plain_answers_are_those_of_transformers_from_pixels(folder):
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    loaded = load_plain(folder, device="cpu", dtype=torch.float32)
    for (name, question), answer in plain_answers(loaded, IMAGES, ASKED, max_new_tokens=6):
        ids = loaded.tokenizer(f"USER: {'<image>' * 16}\n{question} ASSISTANT:", return_tensors="pt")
        pixels = loaded.family.prepare([IMAGES[name]]).inputs["pixel_values"]
        output = model.generate(**ids, pixel_values=pixels, do_sample=False, max_new_tokens=6)
        assert answer.ids == tuple(output[0, ids.input_ids.shape[1] :].tolist())


def test_a_changed_weight_is_found(folder, monkeypatch):
    generate = FrozenLmm.generate

    def nudge(self, *args, **options):
        with torch.no_grad():
            self.model.get_parameter("lm_head.weight")[5, 7] += 1e-7
        return generate(self, *args, **options)

    monkeypatch.setattr(FrozenLmm, "generate", nudge)
    report = verified(folder)
    assert report.changed == ("lm_head.weight",) and not report.frozen
    assert "weights changed: ('lm_head.weight',)" in report.summary()


def test_a_changed_token_is_found(folder, monkeypatch):
    generate = FrozenLmm.generate

    def other(self, image, text, **options):
        return generate(self, image, "b" if text == "a" and self.decoder.reuse_prefix else text, **options)

    monkeypatch.setattr(FrozenLmm, "generate", other)
    report = verified(folder)
    assert not report.frozen and not report.changed and report.differing == len(IMAGES)
    found = [(answer.question, way) for answer in report.answers for way, one in answer.outcomes.items() if one.differs]
    assert found == [("a", CACHED)] * len(IMAGES)


def test_where_answers_part():
    plain = PlainAnswer((7, 8, END), ({7: 0.0}, {8: 0.0, 9: 0.25}, {END: 0.0, 4: 0.5}))
    assert compare(plain, [7, 8, END]) == Outcome()
    assert compare(plain, [7, 5, 6]) == Outcome(1, 8, 5, None)
    assert compare(plain, [7, 9, 6]) == Outcome(1, 8, 9, 0.25)
    assert compare(plain, [7, 8, 4]) == Outcome(2, END, 4, 0.5)
    assert compare(plain, [7, 8]) == Outcome(2, END, None, None)
    assert compare(plain, [7, END]) == Outcome(1, 8, END, None)
    assert compare(plain, [7, 8, END, 3]) == Outcome(3, None, 3, None)
    assert [one.differs for one in (Outcome(), Outcome(1, 8, 5), Outcome(1, 8, 9, 0.0))] == [False, True, False]
    assert str(Outcome(1, 8, 9, 0.25)) == "token 1: two best scores a rounding apart (0.25)"


def test_only_half_precision_rounds():
    scores = torch.tensor([float("-inf"), 8.0, 7.9, 7.0, 7.95])
    assert _near(scores, torch.float32, set()) == {}
    near = _near(scores, torch.bfloat16, {2, 4})
    assert set(near) == {1, END} and near[END] == pytest.approx(0.05, abs=1e-5)
    assert set(_near(scores, torch.float16, set())) == {1}


def test_a_tapped_model_and_nothing_to_ask_are_refused(folder):
    lmm = FrozenLmm.from_pretrained(folder)
    assert lmm.model.config.get_text_config()._attn_implementation == ATTENTION_NAME
    loaded = load_plain(folder, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="got 0 images and 1 questions"):
        verify_frozen(loaded, {}, ["a"], max_new_tokens=2)
    verify_frozen(loaded, {"wide": IMAGES["wide"]}, ["a"], max_new_tokens=2)
    with pytest.raises(ValueError, match="expected one without the attention recorder"):
        verify_frozen(loaded, IMAGES, ["a"], max_new_tokens=2)


def run(*words):
    return cli.main(["verify-frozen", *map(str, words), "--device", "cpu"])


def test_the_shipped_lmm_is_frozen(tmp_path, capsys):
    (tmp_path / "questions.txt").write_text("what is on the table?\n\nwhere is the mug?\n", encoding="utf-8")
    out = tmp_path / "made" / "report.json"
    words = ("flmm-tabletop", "--questions", tmp_path / "questions.txt", "--json", out, "--max-new-tokens", 12)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert printed.count("identical") == 3 * 2 * len(SIZES) + 1 and "flmm-tabletop in float32 on cpu: frozen" in printed
    record = json.loads(out.read_text())
    assert record["model"] == {"lmm": {"source": "flmm-tabletop", "fingerprint": lmm_fingerprint(MODEL / "lmm")}}
    assert record["command"].startswith("flmm verify-frozen flmm-tabletop --questions ")
    assert {"torch", "transformers"} <= set(record["versions"])
    assert record["weights"]["before"] == record["weights"]["after"] and record["weights"]["changed"] == []
    assert [answer["question"] for answer in record["answers"][:2]] == ["what is on the table?", "where is the mug?"]
    assert record["images"] == {name: list(size) for name, size in SIZES.items()}


def test_a_difference_is_exit_status_1(folder, tmp_path, capsys, monkeypatch):
    IMAGES["wide"].save(tmp_path / "wide.png")
    (tmp_path / "questions.txt").write_text("a\n", encoding="utf-8")
    words = (folder, "--images", tmp_path, "--questions", tmp_path / "questions.txt", "--max-new-tokens", 4)
    assert run(*words) == 0
    generate = FrozenLmm.generate
    monkeypatch.setattr(FrozenLmm, "generate", lambda self, image, text, **options: generate(self, image, "b", **options))
    capsys.readouterr()
    assert run(*words) == 1
    printed = capsys.readouterr().out
    assert "NOT frozen" in printed and "differs at token" in printed and "0 of 2 identical" in printed


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--images", "", "expected files of .png, .jpg, .jpeg, .webp, .bmp"),
        ("--images", "none", "--images: expected a folder"),
        ("--questions", "empty.txt", "--questions: expected a question in each line"),
        ("--dtype", "int8", "dtype: expected one of auto, float32, bfloat16, float16"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, option, value, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert run(folder, option, value if option == "--dtype" else tmp_path / value) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("flmm verify-frozen: ") and message in line


def test_default_questions_and_images():
    assert len(QUESTIONS) == len(set(QUESTIONS)) == 20
    images = drawn_images()
    assert {name: image.size for name, image in images.items()} == SIZES
    assert all(
        image.tobytes() == again.tobytes() for image, again in zip(images.values(), drawn_images().values(), strict=True)
    )
