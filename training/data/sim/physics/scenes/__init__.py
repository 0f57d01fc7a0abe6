# SPDX-License-Identifier: Apache-2.0
"""The scenes. Each module has ``PLANS`` (name -> share) and ``script(plan, split, rng) -> Script``."""
