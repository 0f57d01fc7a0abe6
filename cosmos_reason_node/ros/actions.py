# SPDX-License-Identifier: Apache-2.0
"""The action ``reason``: text as it comes, deadline, cancel.

Goals are always accepted: a rejection carries no reason, an abort carries a decision with a named error. The
number of goals is bounded by the pipeline's queue (BUSY).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from cosmos_reason_msgs.action import Reason
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future

from ..errors import CosmosReasonError, ErrorCode
from ..types import Source
from .executor import Resumer, caught
from .messages import decision_msg, duration_msg, query_from, seconds
from .services import NOT_ACTIVE, refused
from .session import Session

RESULT_KEPT_S = 300  # for clients that ask for the result late
_FEEDBACK_KEPT = 100  # for clients that stand still for a while; one message is one or a few tokens


class ReasonAction:
    """The action server; it exists in every lifecycle state.

    Args:
        node: its owner.
        session: the current session, None unless the node is active.
        resumer: of the node.
    """

    def __init__(self, node: Node, session: Callable[[], Session | None], resumer: Resumer) -> None:
        self._node = node
        self._session = session
        self._resumer = resumer
        self._tickets: dict[bytes, str] = {}  # goal id -> ticket id
        self._server = ActionServer(
            node,
            Reason,
            "reason",
            execute_callback=self._execute,
            cancel_callback=self._cancel,
            result_timeout=RESULT_KEPT_S,
            feedback_pub_qos_profile=QoSProfile(depth=_FEEDBACK_KEPT),
        )

    def destroy(self) -> None:
        """Destroy the server, before its node."""
        self._server.destroy()

    async def _execute(self, goal: ServerGoalHandle) -> Reason.Result:
        request, key, started = goal.request, bytes(goal.goal_id.uuid), time.monotonic()
        replied: Future = Future()

        def on_text(text: str, thinking: bool, tokens: int) -> None:
            elapsed = duration_msg(time.monotonic() - started)
            goal.publish_feedback(
                Reason.Feedback(text=text, thinking=thinking, tokens=tokens, elapsed=elapsed)
            )

        try:
            session = self._session()
            if session is None:
                raise CosmosReasonError(ErrorCode.NOT_ACTIVE, NOT_ACTIVE)
            self._tickets[key] = session.pipeline.ask(
                query_from(request),
                source=Source.ACTION,
                cameras=tuple(request.cameras),
                deadline_s=seconds(request.deadline),
                on_reply=partial(self._resumer.set_result, replied),
                on_text=caught(self._node, on_text),  # the client may have gone away
            )
            decision = await replied
        except CosmosReasonError as error:
            decision = refused(self._node, request, Source.ACTION, error)
        finally:
            self._tickets.pop(key, None)
        if goal.is_cancel_requested:
            goal.canceled()
        elif decision.error_code is ErrorCode.NONE:
            goal.succeed()
        else:
            goal.abort()
        return Reason.Result(decision=decision_msg(decision))

    def _cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        session = self._session()
        ticket_id = self._tickets.get(bytes(goal.goal_id.uuid))
        # The reply resumes _execute after this callback, when the goal's state is CANCELING.
        if session is not None and ticket_id is not None and session.pipeline.cancel(ticket_id):
            return CancelResponse.ACCEPT
        return CancelResponse.REJECT
