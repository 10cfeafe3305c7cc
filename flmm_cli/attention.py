"""`flmm attention`: shows where the frozen LMM attends while it names objects."""

from __future__ import annotations

import argparse
from pathlib import Path

from flmm_cli.shared.held_out import rendered_scenes
from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.records import provenance, write_json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "attention",
        help="draw the attention maps of the heads that localise best",
        description="Ranks the attention heads of the frozen LMM by how often the peak of their map lies on the named object,"
        " on held-out images with true masks, and draws the maps of the best ones beside the resulting masks: for two names"
        " in each of a few other images of that data set, or for an image of your own.",
    )
    parser.add_argument("image", type=Path, nargs="?", help="image file (default: images of the data set)")
    parser.add_argument("text", nargs="*", help="a question about IMAGE in quotes; with --refer one or more phrases")
    parser.add_argument("--refer", action="store_true", help="the text is phrases to ground, not a question")
    parser.add_argument("--data", type=Path, help="folder of a data set (default: render scenes of the split `test`)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes to render (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=100, help="images on which the heads are ranked (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=4, help="heads to show (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=6, help="phrases to show (default: %(default)s)")
    parser.add_argument("--first", type=int, help="first image of the data set to show (default: the one after --rank)")
    add_output(
        parser,
        "--out",
        output={"image": True},
        default=Path("attention.png"),
        help="the drawing (default: %(default)s)",
    )
    add_output(parser, "--json", help="write the figures of every head to this file")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Rank the heads, draw, and write what was asked for."""
    require_counts(args, "rank", "maps", "rows")
    if args.image and (not args.text or (len(args.text) > 1 and not args.refer)):
        raise ValueError(f"text: expected one question in quotes, or phrases with --refer, got {len(args.text)} arguments")
    config = grounding_config(args)

    from tqdm import tqdm

    from flmm_core.data.tabletop import read_dataset
    from flmm_core.data.visit import usable_samples
    from flmm_core.drawing.attention_figure import AttentionRow, draw_attention
    from flmm_core.evaluation.attention_maps import attention_rows, clear_names, rank_heads
    from flmm_core.images.files import read_image, write_image
    from flmm_core.pipeline import GroundingPipeline

    context = provenance(args, config)
    first = args.rank if args.first is None else args.first
    pipeline = GroundingPipeline.from_config(config)
    data = args.data or rendered_scenes(first + 3 * args.rows, args.seed, 1)
    samples = usable_samples(read_dataset(data), tell=tqdm.write)
    ranking = rank_heads(pipeline, samples[: args.rank], tell=tqdm.write)
    channels = ranking.best(args.maps)
    rows: list[AttentionRow] = []
    if args.image:
        rows = attention_rows(pipeline, read_image(args.image), args.text if args.refer else args.text[0], channels)[
            : args.rows
        ]
    else:
        for sample, turn in clear_names(samples[first:]):
            if len(rows) < args.rows:
                names = [turn.answer[span.start : span.end] for span in turn.spans]
                rows += attention_rows(pipeline, sample.image(), names, channels, (sample, turn))
        rows = rows[: args.rows]
    best, (layer, head) = ranking.pointing(channels[0]), ranking.layer_and_head(channels[0])
    print(
        f"best head (layer {layer}, head {head}, counted from 0): its peak lies on the named object for {best.value:.1%} of"
        f" {best.count} names (95 % interval {best.low:.1%} to {best.high:.1%}; at random {ranking.random_pointing:.1%});"
        f" {ranking.attention_share(channels[0]):.1%} of its attention falls on the cells of the object (if uniform"
        f" {ranking.random_attention:.1%})"
    )
    write_image(args.out, draw_attention(rows, ranking.chart(), channels), args.command)
    print(f"attention maps: {args.out}")
    if args.json:
        source = str(args.data) if args.data else f"flmm scenes --split test --seed {args.seed}"
        write_json(args.json, {**context, "data": source, **ranking.record()}, args.command)
        print(f"figures: {args.json}")
    return 0
