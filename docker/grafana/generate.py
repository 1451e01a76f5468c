"""Generate dashboards/ from boards/: ``python docker/grafana/generate.py [OUT]``, or ``make dashboards``.

Not here:  what the boards show (boards/), alerts (docker/prometheus/rules), what the metrics mean (docs/METRICS.md).
"""

import sys
from pathlib import Path

from boards import calls, delivery, overview, process, store
from boards.panels import render


def generate(out: Path) -> None:
    """Write the files of all boards into a folder."""
    for board in (calls.BOARD, delivery.BOARD, store.BOARD, process.BOARD):
        (out / f"{board.uid}.json").write_text(render(board, overview.PANELS))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
