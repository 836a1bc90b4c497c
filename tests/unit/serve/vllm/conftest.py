"""What these tests share with those of the embedded engine is imported from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[4]))
