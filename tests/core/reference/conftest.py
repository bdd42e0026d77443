"""Label processes import the sample references by name, so their folder is on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # spawned processes take over the path
