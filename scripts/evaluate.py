"""Check an evaluation file: the same as the command evaluate."""

import sys

from dynamic_dpo.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
