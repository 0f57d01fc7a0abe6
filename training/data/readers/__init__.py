# SPDX-License-Identifier: Apache-2.0
"""One reader a layout; each yields ``schema.Sample`` and reports what it had to leave out."""
