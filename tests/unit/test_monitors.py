# SPDX-License-Identifier: Apache-2.0
from cosmos_reason_node.monitors import MonitorSchedule, Task, monitor_queries
from cosmos_reason_node.types import QueryKind


def test_queries_follow_the_task_and_the_chosen_monitors():
    task = Task("open the drawer", "pull the handle", ("reach", "pull"))
    affordance, next_action = monitor_queries(task, ("affordance", "next_action"), 5)
    assert (affordance.kind, affordance.action, affordance.options) == (
        QueryKind.AFFORDANCE,
        "pull the handle",
        (),
    )
    assert (next_action.kind, next_action.options) == (QueryKind.NEXT_ACTION, ("reach", "pull"))
    assert {query.think_tokens for query in (affordance, next_action)} == {5}
    assert monitor_queries(Task(" "), ("completion",), 5) == ()
    affordance, next_action = monitor_queries(task, ("affordance", "next_action"), 5, ("next_action",))
    assert (affordance.think_tokens, next_action.think_tokens) == (5, 0)


def test_the_camera_asked_longest_ago_is_next():
    schedule = MonitorSchedule(("a", "b", "c"), stride=2)
    for camera in ("c", "b", "a"):
        schedule.window_moved(camera, 1, 0)
    order = []
    for tick in (3, 5, 7):
        camera = schedule.next()
        order.append(camera)
        schedule.asked(camera, tick - 2)
        schedule.window_moved(camera, tick, 0)
    assert sorted(order) == ["a", "b", "c"]
    assert schedule.next() == order[0]


def test_a_window_that_waits_is_superseded_by_the_next():
    schedule = MonitorSchedule(("a",), stride=2)
    for tick in (1, 3, 5):
        schedule.window_moved("a", tick, tick * 10)
    assert schedule.superseded == 2
    assert schedule.asked("a", 5) == 50, "the moment the window was complete"
    assert schedule.next() is None


def test_a_window_that_moved_less_than_the_stride_is_not_due():
    schedule = MonitorSchedule(("a",), stride=6)
    schedule.window_moved("a", 1, 0)
    schedule.asked("a", 1)
    schedule.window_moved("a", 5, 0)
    assert schedule.next() is None
    schedule.window_moved("a", 7, 0)
    assert schedule.next() == "a"


def test_ticks_that_jump_back_are_due_at_once():
    schedule = MonitorSchedule(("a",), stride=6)
    schedule.window_moved("a", 101, 0)
    schedule.asked("a", 101)
    schedule.window_moved("a", 3, 0)
    assert schedule.next() == "a"


def test_ask_again_needs_a_window_and_forget_drops_it():
    schedule = MonitorSchedule(("a", "b"), stride=2)
    schedule.ask_again()
    assert schedule.next() is None
    schedule.window_moved("a", 1, 0)
    schedule.asked("a", 1)
    schedule.ask_again()
    assert schedule.next() == "a"
    schedule.forget()
    assert schedule.next() is None
    assert schedule.superseded == 1
