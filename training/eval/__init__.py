# SPDX-License-Identifier: Apache-2.0
"""Evaluation: benchmarks, protocols, rollouts through the node's engine, scores, reports.

    benchmarks / simulated -> Item -> rollout -> Prediction -> scoring -> report -> markdown, page, export

Asking and scoring are apart: predictions are kept as text, and are scored again without the model.
"""
