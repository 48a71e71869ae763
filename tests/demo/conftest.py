from __future__ import annotations

import sys
from pathlib import Path

# The generator is a tool beside the package, run as a script and never installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "demo_models"))
