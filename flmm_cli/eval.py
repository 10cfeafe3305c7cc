"""`flmm eval`: measures a grounding model on images with known answers and masks.

Every suite is an entry of :data:`SUITES`; this file prints and writes what it reports.
"""

from __future__ import annotations

import argparse

from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_cli.shared.outputs import write_output
from flmm_cli.shared.records import provenance, write_json
from flmm_cli.shared.table import format_table
from flmm_cli.suites.baseline import BASELINE
from flmm_cli.suites.field import BENCHMARKS
from flmm_cli.suites.tabletop import PICKING, TABLETOP
from flmm_core.common.output_files import mark

SUITES = {suite.name: suite for suite in (TABLETOP, PICKING, *BENCHMARKS, BASELINE)}
"""In the order in which `flmm eval --help` lists them."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("eval", help="measure a model", description="Measures a grounding model.")
    suites = parser.add_subparsers(title="what to measure", dest="suite", metavar="SUITE", required=True)
    for suite in SUITES.values():
        options = suites.add_parser(suite.name, help=suite.help, description=suite.description)
        suite.add_options(options)
        add_model_options(options)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write the requested files."""
    suite = SUITES[args.suite]
    require_counts(args, *suite.counts)
    config = grounding_config(args)
    data = suite.open_data(args)
    context = provenance(args, config)
    report = suite.measure(args, config, data)
    print(format_table(report.headers, report.rows, width=120))
    if report.summary:
        print(report.summary)
    if args.json:
        write_json(args.json, {**context, **report.record}, args.command)
        print(f"figures: {args.json}")
    if "markdown" in args and args.markdown:
        write_output(args.markdown, f"{report.markdown}\n<!-- {mark(args.command)} -->\n")
        print(f"table: {args.markdown}")
    if "html" in args and args.html and report.page:
        write_output(args.html, f"{report.page()}\n<!-- {mark(args.command)} -->\n")
        print(f"best and worst images: {args.html}")
    return 0
