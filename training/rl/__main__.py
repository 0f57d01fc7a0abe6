# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning: ``python -m training.rl --config training/configs/rl_nano.yaml``.

Started again, it goes on from the last checkpoint in ``run.output``. docs/rl.md describes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Run; 0 when the model is written."""
    parser = argparse.ArgumentParser(
        prog="python -m training.rl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs/")
    options = parser.parse_args()

    from cosmos_reason_node.errors import CosmosReasonError
    from training.data.problems import DataError
    from training.sft.loop import Interrupted, TrainingError
    from training.sft.store import StoreError

    from .books import BooksError
    from .config import ConfigError, load_config

    try:
        config = load_config(options.config)
        if config.run.launcher == "inline":
            from .loop import run_inline as run
        else:
            from .actors import run_ray as run
        run(config)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:  # the driver's, on Ray; the trainer is another process and dies with it
        print("stopped; start again to go on from the last checkpoint", file=sys.stderr)
        return 130
    except (ConfigError, DataError, CosmosReasonError, TrainingError, BooksError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
