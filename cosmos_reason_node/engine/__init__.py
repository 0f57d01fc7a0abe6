# SPDX-License-Identifier: Apache-2.0
"""Engines: whatever turns windows and queries into answers, behind the protocol in ``base``."""
