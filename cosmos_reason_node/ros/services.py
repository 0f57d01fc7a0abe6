# SPDX-License-Identifier: Apache-2.0
"""The services: query, set_task, capture, correct, load_model. They convert and pass on."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from cosmos_reason_msgs.srv import Capture, Correct, LoadModel, SetTask
from cosmos_reason_msgs.srv import Query as QuerySrv
from rclpy.node import Node
from rclpy.task import Future

from ..errors import CosmosReasonError, ErrorCode
from ..monitors import Task
from ..queries import refusal
from ..types import Decision, Query, QueryKind, Source, Verdict
from .executor import Resumer, create_async_service
from .messages import decision_msg, model_msg, query_from, seconds
from .model_swap import ModelSwap
from .session import Session

NOT_ACTIVE = "the node is not active: configure and activate it first"


class Services:
    """Creates the services; they exist in every lifecycle state (NOT_ACTIVE where they have no meaning).

    Args:
        node: their owner.
        session: the current session, None unless the node is active.
        changed: called when the status has changed.
        swap: loads other checkpoints.
        resumer: of the node.
    """

    def __init__(
        self,
        node: Node,
        session: Callable[[], Session | None],
        changed: Callable[[], None],
        swap: ModelSwap,
        resumer: Resumer,
    ) -> None:
        self._node = node
        self._session = session
        self._changed = changed
        self._swap = swap
        self._resumer = resumer
        create_async_service(node, LoadModel, "load_model", self._load_model, self._load_failed)
        create_async_service(node, QuerySrv, "query", self._query, self._query_failed)
        for name, srv_type, callback in (
            ("set_task", SetTask, self._set_task),
            ("capture", Capture, self._capture),
            ("correct", Correct, self._correct),
        ):
            node.create_service(srv_type, name, self._named_errors(callback))

    async def _query(self, request: QuerySrv.Request, response: QuerySrv.Response) -> QuerySrv.Response:
        replied: Future = Future()
        session = self._session()
        try:
            if session is None:
                raise CosmosReasonError(ErrorCode.NOT_ACTIVE, NOT_ACTIVE)
            session.pipeline.ask(
                query_from(request),
                source=Source.SERVICE,
                cameras=tuple(request.cameras),
                deadline_s=seconds(request.deadline),
                on_reply=partial(self._resumer.set_result, replied),
            )
        except CosmosReasonError as error:
            replied.set_result(refused(self._node, request, Source.SERVICE, error))
        response.decision = decision_msg(await replied)
        return response

    def _query_failed(self, error: Exception, response: QuerySrv.Response) -> QuerySrv.Response:
        response.decision.error_code = int(ErrorCode.INTERNAL)
        response.decision.error_msg = f"the request could not be handled: {type(error).__name__}: {error}"
        return response

    def _set_task(self, request: SetTask.Request, response: SetTask.Response) -> SetTask.Response:
        task = Task(request.task, request.affordance_action, tuple(request.action_options))
        self._active().set_task(task)
        self._changed()
        return response

    def _capture(self, request: Capture.Request, response: Capture.Response) -> Capture.Response:
        if math.isnan(request.before) or math.isnan(request.after):
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "before and after must be numbers of seconds")
        path, response.before = self._active().capture(request.before, request.after, request.label)
        response.path = str(path)
        self._changed()
        return response

    def _correct(self, request: Correct.Request, response: Correct.Response) -> Correct.Response:
        try:
            verdict = Verdict(request.verdict)
        except ValueError as error:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, f"verdict must be a Decision.VERDICT_*, not {request.verdict}"
            ) from error
        path, response.message = self._active().correct(
            request.decision_id, verdict, request.answer, request.note
        )
        response.path = str(path or "")
        self._changed()
        return response

    async def _load_model(
        self, request: LoadModel.Request, response: LoadModel.Response
    ) -> LoadModel.Response:
        try:
            await self._swap.load(request.path)
        except CosmosReasonError as error:
            self._node.get_logger().error(f"{request.path!r} was not put in service: {error.message}")
            response.error_code, response.error_msg = int(error.code), error.message
        session = self._session()
        response.model = model_msg(session.host.status.info if session else None)
        return response

    def _load_failed(self, error: Exception, response: LoadModel.Response) -> LoadModel.Response:
        response.error_code = int(ErrorCode.INTERNAL)
        response.error_msg = f"the request could not be handled: {type(error).__name__}: {error}"
        return response

    def _active(self) -> Session:
        session = self._session()
        if session is None:
            raise CosmosReasonError(ErrorCode.NOT_ACTIVE, NOT_ACTIVE)
        return session

    def _named_errors(self, callback: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """``callback`` with its errors put into the reply: none of them may end the node."""

        def answered(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except CosmosReasonError as error:
                response.error_code = int(error.code)
                response.error_msg = error.message
            except Exception as error:
                self._node.get_logger().error(traceback.format_exc())
                response.error_code = int(ErrorCode.INTERNAL)
                response.error_msg = f"the request could not be handled: {type(error).__name__}: {error}"
            return response

        return answered


def refused(node: Node, request: Any, source: Source, error: CosmosReasonError) -> Decision:
    """Reply to a request (a service's or a goal) that has not reached the pipeline."""
    try:
        query = query_from(request)
    except CosmosReasonError:
        query = Query(QueryKind.QUESTION, request.task, request.action, request.question)
    return refusal(query, source, error.code, error.message, node.get_clock().now().nanoseconds)
