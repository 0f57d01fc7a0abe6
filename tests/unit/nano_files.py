# SPDX-License-Identifier: Apache-2.0
"""A directory that describes a model like nano, without weights."""

import shutil
from pathlib import Path

NANO = Path(__file__).parents[2] / "models" / "nano"


def described(directory: Path) -> Path:
    """Copy nano's description (tokenizer, configuration) to ``directory``."""
    for name in ("tokenizer.json", "config.json", "preprocessor_config.json", "cosmos_reason.json"):
        shutil.copy(NANO / name, directory / name)
    return directory
