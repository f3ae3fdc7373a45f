"""Train with a configuration file: the same as the command train-sft."""

import sys

from dynamic_dpo.cli.train_sft import main

if __name__ == "__main__":
    sys.exit(main())
