"""Another process with the same functions: notes how the saved state of each tells its code."""

import json
import sys
from pathlib import Path

DATA_DIR, OUT = sys.argv[1:]

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "scripts")]

from test_repeatability import REPEATABLE, source_of

codes = {
    name: source_of(DATA_DIR, map_fn=map_fn).get_state()["user_code"]
    for name, map_fn in REPEATABLE.items()
}
Path(OUT).write_text(json.dumps(codes))
