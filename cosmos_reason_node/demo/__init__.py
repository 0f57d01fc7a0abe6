# SPDX-License-Identifier: Apache-2.0
"""The demo and its report. Starts the runtime as any user would; the runtime never imports it."""
