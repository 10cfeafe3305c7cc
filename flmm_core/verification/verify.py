"""``python -m flmm_core.verification.verify DIR...``: compare every stage with reference data of the published method.

Each folder is one case, or holds some. Models are loaded and run as everywhere else, from image files and phrases on;
sizes, names and channels come from the files. Prints the largest difference of each stage, and exits with status 1 if one
exceeds its tolerance or a case cannot be run.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flmm_core.common.plain_text import one_line
from flmm_core.families import Checkpoint, family_of
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.tokens import AnswerTokens
from flmm_core.lmm.trace import LmmTrace
from flmm_core.loading import checkpoints
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import RefinerConfig, SamImage, SamRefiner
from flmm_core.verification.reference_data import EXPECTED, Check, Wanted, difference, missed_iou, wrong
from flmm_core.verification.reference_files import arrays, cases, fields, heads_file, image, sam_file

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What was not compared."""
    error: str = ""
    """Why the case was not run to its end, in one line."""

    @property
    def passed(self) -> bool:
        """Whether the case was run and nothing exceeds its tolerance."""
        return not self.error and all(check.passed for check in self.checks)


@torch.no_grad()
def verify_case(folder: Path) -> Outcome:
    """Run one case.

    Args:
        folder: with ``manifest.json``.
    """
    checks: list[Check] = []
    notes: list[str] = []
    if (folder / "inputs.json").is_file() or (folder / "lmm").is_dir():
        stages = _lmm_case(folder, notes)
    else:
        stages = _unet_case(folder) if (folder / "unet_head.pth").is_file() else _refiner_case(folder)
    error = ""
    try:
        for check in stages:
            checks.append(check)  # what came before an error is kept
        error = "" if checks else f"reference data {folder}: expected something to compare with, got nothing"
    except Exception as caught:  # of the libraries that read and run; the other cases are run all the same
        kind = "" if isinstance(caught, ValueError) else f"{type(caught).__name__}: "
        error = kind + one_line(caught)
        if isinstance(caught, KeyError):
            error = f"reference data {folder}: expected an entry {error.removeprefix(kind)}, got none"
    return Outcome(tuple(checks), tuple(notes), error)


def _unet_case(folder: Path) -> Iterator[Check]:
    head = checkpoints.load_mask_head(folder / "unet_head.pth")
    outputs = arrays(folder / "outputs.npz")
    for name, maps in arrays(folder / "inputs.npz").items():
        key = name.replace("attn", "logits")
        yield Check(name, "U-Net output", difference(head(torch.from_numpy(maps)), outputs[key]), key)


def _refiner_case(folder: Path) -> Iterator[Check]:
    sam = load_sam(sam_file(folder))
    inputs, outputs = arrays(folder / "inputs.npz"), arrays(folder / "outputs.npz")
    for name in [key.removesuffix("_coarse") for key in inputs if key.endswith("_coarse")]:
        want, refiner = Wanted(outputs, name), SamRefiner(sam=sam)
        seen = refiner.encode_image(np.asarray(image(folder, name)))
        coarse = torch.from_numpy(inputs[f"{name}_coarse"])
        texts = [torch.from_numpy(inputs[f"{name}_text{i}"]) for i in range(len(coarse))]
        yield want.check("SAM input size", (seen.input_height, seen.input_width), want["sam_input_size"], "sam_input_size")
        yield from want.compare("SAM embedding", "image_embedding", seen.embedding[0])
        prompts = refiner.prompts(seen, coarse, texts)
        yield from want.compare("boxes", "boxes", prompts.boxes)
        yield from want.compare("SAM mask prompts", "prompt_masks", prompts.masks)
        refined = refiner(seen, coarse, texts)
        yield from want.compare("SAM low-res logits", "low_res_masks", refined.low_res)
        yield from want.compare("SAM predicted IoU", "iou_predictions", refined.iou)
        yield from want.compare("SAM logits", "sam_masks", refiner.to_image(refined.low_res, seen))
        for part in ("mask", "box", "text"):
            less = SamRefiner(sam=sam, config=RefinerConfig(**{f"use_{part}": False}))
            if any(key.startswith(f"no_{part}_") for key in want.arrays):
                yield from want.compare("SAM low-res logits", f"no_{part}_low_res_masks", less(seen, coarse, texts).low_res)
        many = SamRefiner(sam=sam, config=RefinerConfig(multimask=True))
        if any(key.startswith("multimask_") for key in want.arrays):
            full = many.to_image(many(seen, coarse, texts).low_res, seen)
            yield from want.compare("SAM logits", "multimask_sam_masks", full)
            if "multimask_sam_masks_positive_packbits" in want:
                positive = want["multimask_sam_masks_positive_packbits"]
                bits = wrong(np.packbits(full.numpy() > 0).tolist(), positive.tolist())
                yield Check(name, "mask IoU", bits, "multimask_sam_masks_positive_packbits, bytes that differ")


def _lmm_case(folder: Path, notes: list[str]) -> Iterator[Check]:
    manifest, inputs = (fields(folder / name) for name in ("manifest.json", "inputs.json"))
    words = inputs.get("prompt_text") or re.sub(r"<[^<>]*>", "", inputs["prompt"]).strip()
    known = family_of(Checkpoint(folder / "lmm")).settings
    said = {**manifest.get("config", {}), **inputs}
    settings = {name: said[name] for name in known if name in said}
    options = {"refer_prompt": words, "reuse_prefix": False, "settings": settings}
    lmm = checkpoints.load_lmm(folder / "lmm", device=CPU, dtype=torch.float32, **options)
    with tempfile.TemporaryDirectory() as scratch:
        path = heads_file(folder, Path(scratch))
        shape = checkpoints.lmm_shape(folder / "lmm")
        heads = checkpoints.load_heads(path, shape=shape, sam=load_sam(sam_file(folder)))
    outputs = arrays(folder / "outputs.npz")
    for sample in inputs["samples"]:
        name = sample["name"]
        case = _Sample(image(folder, name), sample, manifest, inputs, Wanted(outputs, name), lmm, heads)
        missing = set(EXPECTED)
        for check in case.run():
            missing.discard(check.stage)
            yield check
        notes.append(f"not compared: {name}: {', '.join(case.want.unread)}")
        if missing:
            notes.append(f"no reference: {name}: {', '.join(sorted(missing))}")


@dataclass(frozen=True)
class _Sample:
    """An image of a case with its phrases."""

    image: Image.Image
    sample: dict[str, Any]
    manifest: dict[str, Any]
    inputs: dict[str, Any]
    want: Wanted
    lmm: FrozenLmm
    """Reads every prompt from its beginning."""
    heads: GroundingHeads

    def run(self) -> Iterator[Check]:
        """All stages; then the other ways to the same maps, and the whole path at once."""
        yield from self._images()
        encoded = self.lmm.encode_image(self.image)
        yield from self._features(encoded)
        trace, spans = self.lmm.teacher_force_phrases(encoded, self.sample["phrases"])
        ranges = [(span.token_start, span.token_end) for span in spans]
        yield from self._sequence(trace, ranges)
        yield from self._states(trace)
        sam = self.heads.sam.encode_image(np.asarray(self.image))
        yield from self._masks(trace, ranges, self.want, sam)
        family, model, tokenizer = self.lmm.family, self.lmm.model, self.lmm.words.tokenizer
        again = FrozenLmm(model=model, tokenizer=tokenizer, family=family, refer_prompt=self.lmm.refer_prompt)
        prefixed = again.encode_image(self.image)
        maps = again.teacher_force_phrases(prefixed, self.sample["phrases"])[0].merged_attention(ranges, merge=self._merge)
        yield self.want.check("merged maps", maps, self.want["mask_attentions"], "mask_attentions, cached prefix")
        for name, one, begun in (("whole", self.lmm, encoded), ("cached prefix", again, prefixed)):
            yield from self._generated(name, one, begun, sam)
        pipeline = GroundingPipeline(lmm=again, heads=self.heads)
        masks = [phrase.mask for phrase in pipeline.refer(pipeline.encode(self.image), self.sample["phrases"]).phrases]
        for mask, logits in zip(masks, self.want["sam_pred_masks"], strict=True):
            yield Check(self.want.sample, "mask IoU", missed_iou(mask, logits), "sam_pred_masks > 0, whole path")

    @property
    def _merge(self) -> Any:
        return self.manifest.get("config", {}).get("merge", "mean")

    def _images(self) -> Iterator[Check]:
        prepared = self.lmm.family.prepare([self.image])
        for key, name in {
            "pixel_values": "pixel_values", "image_tensor": "pixel_values", "image_tensor_aux": "pixel_values_aux",
        }.items():  # fmt: skip
            yield from self.want.compare("pixel values", key, prepared.inputs.get(name, torch.zeros(0)))
        yield from self.want.compare("pixel values", "chat_pixel_values", prepared.inputs.get("pixel_values", torch.zeros(0)))

    def _features(self, encoded: EncodedImage) -> Iterator[Check]:
        expected = self.want["projected_image_features"]
        got = torch.cat(encoded.features.views)
        got = got.reshape(expected.shape) if got.numel() == expected.size else got
        yield self.want.check("image features", got, expected, "projected_image_features")

    def _sequence(self, trace: LmmTrace, ranges: Sequence[tuple[int, int]]) -> Iterator[Check]:
        """Ids and positions, whether the reference's ids have one mark for the image or all of its tokens."""
        start, stop = int(trace.image_columns()[0]), int(trace.image_columns()[-1]) + 1
        prompt = self.lmm.words.prompt_tokens(self.lmm.refer_prompt, trace.layouts).ids
        got, expected = [*prompt, *trace.token_ids], self.want["input_ids"].tolist()
        marks = len(expected) - (len(got) - (stop - start))
        outside = [*expected[:start], *expected[start + marks :]]
        yield Check(self.want.sample, "token ids", wrong([*got[:start], *got[stop:]], outside), "input_ids")
        groups = self.want["expanded_mask_ids" if "expanded_mask_ids" in self.want else "mask_ids"]
        for i, (first, last) in enumerate(ranges):
            own = range(trace.attention.start + first, trace.attention.start + last)
            yield Check(self.want.sample, "token positions", wrong(own, np.flatnonzero(groups == i)), f"phrase {i}")
        if "image_positions" in self.want:
            positions = self.want["image_positions"]
        elif marks > 1:
            positions = np.flatnonzero(self.want["input_ids"] == self.want["input_ids"][start])
        else:
            positions = np.flatnonzero(groups == -100)
        yield Check(self.want.sample, "image positions", wrong(trace.image_columns().tolist(), positions), "image positions")

    def _states(self, trace: LmmTrace) -> Iterator[Check]:
        """Hidden states and attention of the answer's tokens, as far as the reference keeps them."""
        states, rows = self.want.last("hidden_states"), self.want.last("attention_rows_mean_over_heads")
        if states is not None:
            count = min(len(trace.token_ids), states.shape[1])
            yield self.want.check("hidden states", trace.states[:, -count:], states[1:, -count:], "hidden_states")
        logits = self.want.last("logits")
        if logits is not None:
            got, count = self.lmm.model.get_output_embeddings()(trace.states[-1]), min(len(trace.token_ids), len(logits))
            yield self.want.check("word logits", got[-count:], logits[-count:], "logits")
        mixed = self.want.last("layer_weighted_hidden_states")
        if mixed is not None:
            got, count = self._mixed(trace), min(len(trace.token_ids), len(mixed))
            yield self.want.check("hidden states", got[-count:], mixed[-count:], "layer_weighted_hidden_states")
        if rows is not None and len(rows) == len(trace.attention.layers):
            count, columns = min(len(trace.token_ids), rows.shape[1]), torch.arange(rows.shape[2])
            tokens = range(len(trace.token_ids) - count, len(trace.token_ids))
            got = torch.stack([trace.attention.rows(layer, tokens, columns).mean(dim=0) for layer in range(len(rows))])
            yield self.want.check("attention rows", got, rows[:, -count:], "attention rows")

    def _mixed(self, trace: LmmTrace) -> Tensor:
        """``[t, d]`` sum of the layers' outputs by the text prompt's weights."""
        return self.heads.mix(trace.states)[0]

    def _masks(self, trace: LmmTrace, ranges: Sequence[tuple[int, int]], want: Wanted, sam: SamImage) -> Iterator[Check]:
        """From attention to masks."""
        maps = trace.merged_attention(ranges, merge=self._merge)
        yield from want.compare("merged maps", "mask_attentions", maps)
        yield from want.compare("U-Net output", "mask_head_output", self.heads.mask_head(maps))
        states = self.heads.mix(trace.states)
        texts = [self.heads.text_tokens(states[:, first:last]) for first, last in ranges]
        for i, text in enumerate(texts):
            yield from want.compare("text tokens", f"text_embeds_{i}", text)
        coarse = self.heads.coarse_masks(maps, trace.geometry).logits
        size = want["pred_masks"].shape[-2:]
        seen = coarse if coarse.shape[-2:] == size else F.interpolate(coarse[:, None], self.image.size[::-1], mode="bilinear")
        yield from want.compare("un-padded logits", "pred_masks", seen)
        yield from want.compare("boxes", "boxes", self.heads.sam.prompts(sam, coarse, texts).boxes)
        refined = self.heads.sam(sam, coarse, texts)
        yield from want.compare("SAM predicted IoU", "iou_predictions", refined.iou)
        logits = self.heads.sam.to_image(refined.low_res, sam)
        yield from want.compare("SAM logits", "sam_pred_masks", logits)
        for mask, expected in zip((logits > 0).numpy(), want["sam_pred_masks"], strict=True):
            yield Check(want.sample, "mask IoU", missed_iou(mask, expected), f"{want.prefix}sam_pred_masks > 0")

    def _generated(self, path: str, lmm: FrozenLmm, encoded: EncodedImage, sam: SamImage) -> Iterator[Check]:
        """Maps of an answer that was written are those of the same answer read, and the reference's where it has one."""
        question = self.inputs.get("question", self.lmm.refer_prompt)
        trace = lmm.generate(encoded, question, max_new_tokens=self.manifest.get("config", {}).get("max_new_tokens", 8))
        if not trace.token_ids:
            return
        prompt = lmm.words.prompt_tokens(question, encoded.layouts, chat=True)
        each = [(i, i + 1) for i in range(len(trace.token_ids))]
        maps = trace.merged_attention(each)
        if lmm.family.image_token_id not in trace.token_ids:  # a random model may write it, but nobody can read it
            read = lmm.teacher_force_tokens(encoded, AnswerTokens(prompt, trace.token_ids, trace.token_offsets), trace.text)
            yield self.want.check("merged maps", maps, read.merged_attention(each), f"generated = read, {path}")
        if "answer_output_ids" not in self.want:
            return
        if "chat_input_ids" in self.want:
            yield Check(
                self.want.sample, "token ids", wrong(prompt.ids, self.want["chat_input_ids"]), f"chat_input_ids, {path}"
            )
        count = len(self.want["answer_output_ids"])
        ids = wrong(trace.token_ids[:count], self.want["answer_output_ids"])
        yield Check(self.want.sample, "token ids", ids, f"answer_output_ids, {path}")
        yield from self.want.compare("merged maps", "answer_attention_maps", maps[:count].transpose(0, 1))
        yield from self.want.compare("hidden states", "answer_hidden_states", self._mixed(trace)[:count])
        yield from self._masks(trace, [tuple(span) for span in self.inputs["spans"]], self.want.part("ground_"), sam)


def report(folder: Path) -> bool:
    """Run a case and print its stages; whether all passed."""
    outcome = verify_case(folder)
    print(folder.name)
    for check in outcome.checks:
        limits = f"{check.difference:10.2e}  tolerance {check.tolerance:7.0e}  {'ok' if check.passed else 'EXCEEDED':<8}"
        print(f"  {check.sample:<12} {check.stage:<20} {limits}  {check.note}")
    for note in outcome.notes:
        print(f"  {note}")
    within = sum(check.passed for check in outcome.checks)
    print(f"  {within} of {len(outcome.checks)} within their tolerance")
    if outcome.error:
        print(f"  {folder.name}: not run to its end: {outcome.error}")
    print()
    return outcome.passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flmm_core.verification.verify", description=__doc__.split("\n\n")[1])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a case, or a folder of cases")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        results = [report(folder) for folder in cases(options.folders)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
