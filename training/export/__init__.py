# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to ONNX graphs and TensorRT engines; ``python -m training.export``."""
