# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: ``python -m training.sft --config training/configs/sft_nano.yaml``.

Started again, it goes on from the last checkpoint in ``run.output``. docs/sft.md describes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Run; 0 when the model is written."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs/")
    options = parser.parse_args()

    from cosmos_reason_node.errors import CosmosReasonError
    from training.data.problems import DataError

    from .config import ConfigError
    from .launch import launch
    from .loop import Interrupted, TrainingError
    from .store import StoreError

    try:
        launch(options.config)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except (ConfigError, DataError, CosmosReasonError, TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = "make room in run.output if it is full, then start again: it goes on from the last checkpoint"
        print(f"error: {error}: {what}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
