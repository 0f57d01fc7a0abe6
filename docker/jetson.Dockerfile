# SPDX-License-Identifier: Apache-2.0
# Jetson Thor on JetPack 7: CUDA 13, TensorRT 10.13, PyTorch and Python 3.12 come with NVIDIA's image, ROS 2 Jazzy on top.
#
#     docker build -f docker/jetson.Dockerfile -t cosmos-reason:jetson .        # on the board: aarch64
#     docker run --rm --runtime nvidia --network host --ipc host -v /models:/models cosmos-reason:jetson \
#         python -m training.export --build-only --out /models/nano-fp16-sm110 --target sm110
#     docker run --rm --runtime nvidia --network host --ipc host -v /models:/models cosmos-reason:jetson \
#         ros2 launch cosmos_reason_node reason.launch.py params_file:=jetson model:=/models/Cosmos-Reason1-7B
#
# Jetson Orin (sm87) gets Ubuntu 24.04 with JetPack 7.2: name an image whose PyTorch has sm_87 kernels with --build-arg BASE=.
ARG BASE=nvcr.io/nvidia/pytorch:25.08-py3
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 COSMOS_REASON_NO_APT=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN apt-get update && apt-get install -y --no-install-recommends curl gnupg python3-venv && \
    curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key | \
        gpg --dearmor -o /usr/share/keyrings/ros-archive-keyring.gpg && \
    echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] http://packages.ros.org/ros2/ubuntu noble main" \
        > /etc/apt/sources.list.d/ros2.list && \
    apt-get update && apt-get install -y --no-install-recommends ros-jazzy-ros-base ros-jazzy-cv-bridge \
        python3-colcon-common-extensions && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/cosmos_reason
COPY . .
# torch, numpy and tensorrt are the image's own; the project's other requirements are pure Python or have aarch64 wheels.
# The image's constraints pin every package it came with, older ones than these.
RUN PIP_CONSTRAINT= pip install --no-cache-dir --no-build-isolation $(grep -vE '^(#|torch|numpy)' requirements/runtime.txt) PyYAML && \
    source /opt/ros/jazzy/setup.bash && cd ros2_ws && \
    colcon build --merge-install --cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE=/usr/bin/python3

RUN printf '%s\n' '#!/bin/bash' 'set -e' 'source /opt/ros/jazzy/setup.bash' \
        'source /opt/cosmos_reason/ros2_ws/install/setup.bash' 'exec "$@"' > /entrypoint.sh && \
    chmod +x /entrypoint.sh
ENV PYTHONPATH=/opt/cosmos_reason
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "cosmos_reason_node", "reason.launch.py", "params_file:=jetson", "model:=/models/Cosmos-Reason1-7B"]
