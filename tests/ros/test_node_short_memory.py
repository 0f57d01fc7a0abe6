# SPDX-License-Identifier: Apache-2.0
"""Images too large for memory to hold a window of them."""

from __future__ import annotations

import pytest

from tests.ros.client import Client
from tests.ros.node_process import running_node
from tests.ros.recording import WINDOW, correct, corrected, images, whole_window

pytestmark = pytest.mark.ros


def test_large_images_outlast_memory_where_the_model_samples_them(tmp_path):
    """Seven seconds of these images fill the memory, and a window takes eight."""
    client, bags = Client(), tmp_path / "bags"
    memory = {"record_dir": str(bags), "record_buffer_mb": 16}
    try:
        with running_node(tmp_path / "node.log", cameras=("front=image_raw",), **memory, **WINDOW):
            client.camera("image_raw", rate=10.0, height=240, width=320)
            client.ready()
            decision = whole_window(client)
            response = correct(client, decision)
            assert response.message == f"kept, images in {response.path}"
            assert corrected(response.path, tmp_path / "data") == [(decision.decision_id, "no")]
            assert images(response.path) < 70, "of the older ones only those that are sampled"
    finally:
        client.close()
