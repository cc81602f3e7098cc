"""`python -m moerun`, for a moerun whose console script is not on the path.

Knows: the door of the command line.
Does not know: anything else.
"""

import sys

from moerun.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
