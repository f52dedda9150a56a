"""The targets' modules are imported by name, by pytest and by the fuzzers alike."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
