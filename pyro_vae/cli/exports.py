"""`pyro-vae export`: the encoder and the decoder of a run as files that need neither Pyro nor this library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pyro_vae.cli.console import add_run_options, add_split_options, echo, first_data, rebuilt
from pyro_vae.cli.parser import Parser
from pyro_vae.exporting import export

__all__ = ["run"]

EXAMPLES = 32  # data that the programs are compared on


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae export",
        usage="pyro-vae export RUN [options]",
        description="Write the encoder and the decoder of a trained run as programs that need neither Pyro nor this "
        "library and take any number of data: encoder.pt2 and decoder.pt2 for torch.export, encoder.onnx and "
        "decoder.onnx where onnx and onnxscript are installed, and export.json with the names, shapes and types of "
        "inputs and outputs.",
    )
    add_run_options(parser)
    parser.add_argument("--out", type=str | None, default=None, metavar="DIR", help="Folder. Default: RUN/export.")
    parser.add_argument(
        "--only",
        type=Literal["encoder", "decoder"] | None,
        default=None,
        metavar="{encoder,decoder}",
        help="Write one of them. Default: both.",
    )
    parser.add_argument(
        "--onnx",
        type=bool | None,
        default=None,
        metavar="{true,false}",
        help="Also write ONNX files. Default: where onnx is installed.",
    )
    add_split_options(parser)
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Rebuild a run and export its pair."""
    options = _parser().read(argv)
    loaded = rebuilt(options)
    args = first_data(loaded, options.split, EXAMPLES, options.root, at_most=True)
    folder = loaded.path / "export" if options.out is None else Path(options.out)
    echo(repr(export(loaded, folder, *args, only=options.only, onnx=options.onnx)))
