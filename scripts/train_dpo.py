"""Train with a configuration file: the same as the command train-dpo."""

import sys

from dynamic_dpo.cli.train_dpo import main

if __name__ == "__main__":
    sys.exit(main())
