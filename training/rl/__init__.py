# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning with verifiable rewards: GRPO, asynchronous and fault tolerant."""
