# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each is ``python -m benchmarks.<name> --json FILE``; results/ keeps the last runs."""
