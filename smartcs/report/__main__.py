"""``python -m smartcs.report RUN_DIR``: the page and pictures of a training run, made again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from smartcs.report.run_page import write_run_report
from smartcs.training.commandline import UsageError, run_command

_DESCRIPTION = """\
Write report.html and figures/*.png into the folder of a training run, finished or not.

Training does so by itself; this makes them again, for example after an interrupted run or an update of smartcs.
"""


@dataclass(frozen=True)
class ReportConfig:
    """What to report on."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run."""


def main() -> int:
    config = tyro.cli(ReportConfig, prog="python -m smartcs.report", description=_DESCRIPTION)
    folder = Path(config.run).expanduser()
    if not folder.is_dir():
        raise UsageError(f"no folder {config.run!r}: expected the output folder of a training run")
    print(write_run_report(folder))
    return 0


if __name__ == "__main__":
    run_command(main)
