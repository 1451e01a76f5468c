"""Side by side with a plain grpcio.aio server, in one run: see README.md."""

import sys
from pathlib import Path

# whose database servers are used here too; they find each other there
sys.path.append(str(Path(__file__).parents[1] / "tests"))
