# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and the models they hold."""
