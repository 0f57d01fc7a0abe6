# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning on samples that share windows."""
