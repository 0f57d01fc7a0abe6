# SPDX-License-Identifier: Apache-2.0
"""From camera pixels to the vision tower's input: one implementation for node, training and evaluation."""
