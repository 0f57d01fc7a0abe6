# SPDX-License-Identifier: Apache-2.0
# Workstation or server with an NVIDIA GPU (driver 580 or newer), x86_64: ROS 2 Jazzy, PyTorch with CUDA 13, TensorRT.
#
#     docker build -f docker/gpu.Dockerfile -t cosmos-reason:gpu .
#     docker run --rm --gpus all --network host --ipc host -v /models:/models cosmos-reason:gpu \
#         ros2 launch cosmos_reason_node reason.launch.py params_file:=gpu model:=/models/Cosmos-Reason1-7B
#
# PyTorch's wheels bring the CUDA libraries, so the base is ROS's own image. sm90 and sm100 (H100, B200) need TensorRT
# itself instead of TensorRT-RTX: --build-arg TENSORRT="tensorrt-cu13==10.16.*".
FROM ros:jazzy-ros-base-noble

ARG TENSORRT="tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video DEBIAN_FRONTEND=noninteractive
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-pip python3-dev \
        ros-jazzy-cv-bridge ros-jazzy-image-transport-plugins && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/cosmos_reason
COPY . .
RUN source /opt/ros/jazzy/setup.bash && scripts/setup.sh --gpu yes && \
    .venv/bin/pip install --no-cache-dir ${TENSORRT} -c requirements/constraints.txt

RUN printf '%s\n' '#!/bin/bash' 'set -e' 'source /opt/ros/jazzy/setup.bash' \
        'source /opt/cosmos_reason/scripts/env.sh' 'exec "$@"' > /entrypoint.sh && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
CMD ["ros2", "launch", "cosmos_reason_node", "reason.launch.py"]
