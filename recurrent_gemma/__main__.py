"""``python -m recurrent_gemma``: the same as ``recurrent-gemma``."""

import sys

from recurrent_gemma.cli import main

if __name__ == "__main__":
    sys.exit(main())
