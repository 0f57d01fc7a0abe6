# SPDX-License-Identifier: Apache-2.0
"""Named errors that reach users.

``ErrorCode`` mirrors the constants of ``cosmos_reason_msgs/msg/ErrorCode``; a contract test keeps the two
equal. Codes are grouped by hundreds so that a client can react to a group it does not know in detail.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """Why a decision, a reply or a goal has no answer. 0 means that it has one."""

    NONE = 0

    # 1xx: the request cannot be served as asked; change the request.
    INVALID_REQUEST = 100
    UNKNOWN_CAMERA = 101
    QUESTION_TOO_LONG = 102
    NO_TASK = 103
    NOT_AVAILABLE = 104

    # 2xx: nothing to look at.
    NO_FRAMES = 200
    STALE_FRAMES = 201
    BAD_IMAGE = 202

    # 3xx: not now; the same request may succeed later.
    NOT_ACTIVE = 300
    BUSY = 301
    DEADLINE_EXCEEDED = 302
    CANCELED = 303
    SUPERSEDED = 304

    # 4xx: the engine or the model.
    ENGINE_NOT_READY = 400
    ENGINE_DIED = 401
    ENGINE_FAILED = 402
    OUT_OF_MEMORY = 403
    MODEL_NOT_FOUND = 404
    MODEL_INVALID = 405

    # 5xx: recording.
    RECORDING_FAILED = 500
    DISK_BUDGET_EXCEEDED = 501
    RECORDING_BUSY = 502

    # 9xx: a fault of the node; its log has the traceback.
    INTERNAL = 900


class CosmosReasonError(Exception):
    """An error with a code and a message that says what to do about it.

    Args:
        code: which kind of failure.
        message: one sentence or two for the user: what happened, what to do.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[ErrorCode, str]]:
        # The default reduction calls the class with the message alone; this error crosses process boundaries.
        return (type(self), (self.code, self.message))
