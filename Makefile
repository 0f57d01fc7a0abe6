# SPDX-License-Identifier: Apache-2.0
# Each target does its own set-up; a second run takes seconds.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint format setup test-setup nano nano-rl bench clean clean-all

# make demo VIDEO=my.mp4 TASK="put the cup on the shelf"     make demo CAMERA=/dev/video0
VIDEO ?=
CAMERA ?=
TASK ?=
ACTION ?=
OPTIONS ?=
SECONDS_LIMIT ?=
MODEL ?=
export VIDEO CAMERA TASK ACTION OPTIONS SECONDS_LIMIT MODEL

# make test PYTEST_ARGS="tests/unit -k window"
PYTEST_ARGS ?=

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: setup ## watch a replayed robot episode (or VIDEO=file, CAMERA=/dev/video0) and leave build/demo/report.html
	@. scripts/env.sh && python -m cosmos_reason_node.demo --video "$$VIDEO" --camera "$$CAMERA" --task "$$TASK" \
	    --action "$$ACTION" --options "$$OPTIONS" --seconds "$$SECONDS_LIMIT" --model "$$MODEL"

test: test-setup ## lint, then all tests that need no GPU
	@$(MAKE) --no-print-directory _lint
	@. scripts/env.sh && python -m pytest -m "not gpu" --durations=10 $(PYTEST_ARGS)

lint: test-setup _lint ## ruff and mypy

_lint:
	@. scripts/env.sh && ruff check . && ruff format --check . && mypy

format: test-setup ## let ruff format and fix what it can
	@. scripts/env.sh && ruff format . && ruff check --fix .

setup: ## virtual environment, ROS 2 (sourced, else wheels), messages
	@scripts/setup.sh

test-setup: ## the same, and launch, test tools, simulator
	@scripts/setup.sh --test

nano: test-setup ## make the nano checkpoint anew in build/nano: simulate, train, evaluate (hours on two cores)
	@. scripts/env.sh && python -m training.nano generate
	@. scripts/env.sh && python -m training.nano train
	@. scripts/env.sh && python -m training.nano evaluate

nano-rl: test-setup ## second stage of nano, after `make nano`: other clips, GRPO, evaluated before and after (hours)
	@. scripts/env.sh && python -m training.rl.nano && python -m training.rl --config training/configs/rl_nano.yaml
	@. scripts/env.sh && python -m training.nano compare && \
	    python -m training.nano evaluate --model build/nano/rl/run/model --stage rl

bench: test-setup ## cost of images, capture to decision, questions about a sliding window; writes build/benchmarks/*.json
	@mkdir -p build/benchmarks
	@. scripts/env.sh && python -m benchmarks.ingest --json build/benchmarks/ingest.json
	@. scripts/env.sh && python -m benchmarks.decision --json build/benchmarks/decision.json
	@. scripts/env.sh && python -m benchmarks.streaming --json build/benchmarks/streaming.json

clean: ## remove what was built; the virtual environment stays
	rm -rf build/ros2 build/setup build/demo ros2_ws/build ros2_ws/install ros2_ws/log

clean-all: clean ## remove the virtual environment and build/ (nano's training data too)
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis
