"""Answer what the trainer says of the data that came with the code in the current folder, as an apply does; errors in
it end this with 2. Argument: the project root. Python 3.8, with the modules of that very code, else nothing is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

try:
    from trainer.bundle.data_check import of_release
    from trainer.state import Layout
except ImportError:  # of a time before bundles
    print("{}")
    sys.exit()
found = of_release(Layout(Path(sys.argv[1])))
print(json.dumps({"lines": [*found.lines, *found.errors]}))
if found.errors:
    sentence = f"the data of the bundle in use has {len(found.errors)} errors; send a corrected one, or roll it back"
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
