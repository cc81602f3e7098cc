"""`python -m tests.golden`: plan every case again and rewrite its outcome."""

import json
import sys

from tests.golden import FOLDER, outcome, read_case


def main() -> int:
    changed = 0
    for path in sorted(FOLDER.glob("*.json")):
        case = read_case(path)
        wishes = {key: case[key] for key in ("model", "machine", "strategy", "never")}
        text = json.dumps({**wishes, **outcome(case)}, indent=2) + "\n"
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            changed += 1
    sys.stderr.write(f"{changed} golden plans changed; look at the difference\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
