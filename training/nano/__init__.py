# SPDX-License-Identifier: Apache-2.0
"""The bundled small checkpoint, from nothing: ``python -m training.nano --help``."""
