"""Who a task set belongs to: properties as Spark 4 hands them over, and such as nobody should send."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.fairqueue.errors import MAX_COST_CORE_S
from jobs.fairqueue.scheduler import FairScheduler
from jobs.fairqueue.spark.identity import (
    JOB_PROPERTY,
    MAX_NAME_CHARS,
    JobIdentity,
    bounded,
    decode_tag,
    encode_tag,
    identify,
)

SESSION = "ffcf1aa1-d6dc-4ff0-a49d-aac1d8f9a401"
OPERATION = "0b44624f-56a9-44ce-b829-2fb49a486236"


def of(properties: dict[str, str], spark_job: int = 7) -> JobIdentity:
    return identify(properties, lambda: spark_job, default_user="nobody")


def operation_tag(user: str) -> str:
    return f"SparkConnect_OperationTag_User_{user}_Session_{SESSION}_Operation_{OPERATION}"


def session_tag(user: str, tag: str) -> str:
    return f"SparkConnect_SessionTag_User_{user}_Session_{SESSION}_Tag_{tag}"


@pytest.mark.parametrize(
    ("properties", "job"),
    [
        ({}, "nobody spark-job 7"),
        ({"spark.sql.execution.root.id": "3"}, "nobody execution 3"),
        ({"spark.sql.execution.root.id": "3", "spark.jobGroup.id": "etl"}, "nobody group etl"),
        ({"spark.jobGroup.id": "etl", JOB_PROPERTY: '{"user": "ann", "job": "j1"}'}, "ann job j1"),
        ({"spark.jobGroup.id": "etl", JOB_PROPERTY: '{"user": "ann"}'}, "ann group etl"),
        ({"spark.job.tags": operation_tag("ann")}, f"ann operation {OPERATION}"),
    ],
)
def test_the_most_telling_name_wins(properties: dict[str, str], job: str) -> None:
    assert of(properties).job == job


def test_the_connection_says_who_the_user_is_and_the_owner_what_the_job_costs() -> None:
    tag = encode_tag(
        {"job": "j1", "user": "bob", "cost_core_s": 12.5, "class": "walk", "size": 3, "stages": 2}
    )
    tags = ",".join(["spark-session-1", operation_tag("ann"), session_tag("ann", tag)])
    claims = {"spark.job.tags": tags, JOB_PROPERTY: '{"user": "bob", "job": "bob\'s"}'}
    assert of(claims) == JobIdentity("ann", "ann job j1", "ann: walk", 12.5, 3.0, 2, class_given=True)


@pytest.mark.parametrize("user", ["a_Session_b", f"a_Session_{SESSION}", "a b", "é", "a_Operation_b"])
def test_users_with_odd_names_over_connect(user: str) -> None:
    assert of({"spark.job.tags": operation_tag(user)}).user == user


def test_jobs_that_are_operations_of_connect_say_so() -> None:
    tags = {"spark.job.tags": operation_tag("a b")}
    assert of(tags).operation == ("a b", SESSION, OPERATION)
    named = encode_tag({"job": "of several operations"})
    assert of({"spark.job.tags": f"{tags['spark.job.tags']},{named}"}).operation is None


def test_a_tag_of_the_client_cannot_pass_for_that_of_its_operation() -> None:
    forged = session_tag("ann", operation_tag("bob"))
    assert of({"spark.job.tags": f"{forged},{operation_tag('ann')}"}).user == "ann"
    assert of({"spark.job.tags": forged}).user == "nobody"


def call_site(user: str) -> str:
    return (
        f'Spark Connect - session_id: "{SESSION}"\nuser_context {{\n  user_id: "{user}"\n}}\nplan {{\n  ro...'
    )


@pytest.mark.parametrize("tags", ["", operation_tag("bob"), "spark-session-1"])
def test_a_client_that_sets_the_tags_itself_stays_who_it_is(tags: str) -> None:
    found = of(
        {"spark.job.tags": tags, "callSite.short": call_site("ann"), "spark.sql.execution.root.id": "3"}
    )
    assert (found.user, found.job) == ("ann", "ann execution 3")


@pytest.mark.parametrize(
    ("printed", "user"),
    [(r"\303\251t\303\251", "été"), (r"a\"b\\c", 'a"b\\c'), (r"\377", "bob"), ("x" * 99, "bob")],
)
def test_names_as_the_call_site_prints_them(printed: str, user: str) -> None:
    site = call_site(printed)[:128]
    tags = operation_tag("bob" if user == "bob" else user)
    found = of({"spark.job.tags": tags, "callSite.short": site})
    assert found.user == user
    assert found.job.endswith(f" operation {OPERATION}")


def test_equal_names_of_two_users_are_two_jobs() -> None:
    names = {of({JOB_PROPERTY: json.dumps({"user": user, "job": "nightly"})}).job for user in ("ann", "bob")}
    assert len(names) == 2


def test_queries_of_a_connect_user_are_one_class_unless_described() -> None:
    begin_of_a_plan = {
        "spark.job.tags": operation_tag("ann"),
        "callSite.short": 'Spark Connect - session_id: "f',
    }
    assert of(begin_of_a_plan).job_class == "ann: query"
    assert of({**begin_of_a_plan, "spark.job.description": "sales by day"}).job_class == "ann: sales by day"


@pytest.mark.parametrize("cost", [-1, "12", True, None, [1], float("nan"), float("inf")])
def test_a_cost_that_is_none_counts_as_undeclared(cost: object) -> None:
    assert of({JOB_PROPERTY: json.dumps({"cost_core_s": cost})}).cost_core_s is None


@pytest.mark.parametrize("cost", [1e12, 1e300, 10**400])
def test_numbers_beyond_what_the_scheduler_takes_are_its_largest(cost: float) -> None:
    found = of({JOB_PROPERTY: json.dumps({"cost_core_s": cost, "size": cost, "stages": cost})})
    assert found.cost_core_s == MAX_COST_CORE_S
    scheduler = FairScheduler(2)
    scheduler.submit_job(
        0.0, "job", "ann", cost_core_s=found.cost_core_s, size=found.size, stages=found.stages
    )
    scheduler.add_stage(0.0, "job", "stage")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("alice", "job x"), ("alice job", "x")),
        (("alice", "x job y"), ("alice job x", "y")),
        (("alice\\", "x"), ("alice\\ job", "x")),
        (("alice\n", "x"), ("alice\x00", "x")),
        (("alice\n", "x"), ("alice\ufffd", "x")),
        (("alice:", "x"), ("alice", ": x")),
        (("alice: a", "b"), ("alice", "a: b")),
    ],
)
def test_names_of_two_users_never_meet(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = (
        of({"spark.job.tags": f"{operation_tag(user)},{encode_tag({'job': name, 'class': name})}"})
        for user, name in (one, other)
    )
    assert first.user != second.user
    assert first.job != second.job
    assert first.job_class != second.job_class


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "x" * 10_000
    assert len(bounded(long)) <= MAX_NAME_CHARS
    assert bounded(long + "a") != bounded(long + "b")
    assert bounded("a\nb\x00").startswith("a\ufffdb\ufffd… ")
    assert bounded("déjà vu") == "déjà vu"


TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.sampled_from(
            ["SparkConnect_OperationTag_User_", "SparkConnect_SessionTag_User_", "_Tag_", "_Session_"]
        )
        | st.sampled_from(["_Operation_", SESSION, "ann", ",", "fairqueue.", "\n", ""])
    ).map("".join),
    st.binary(max_size=40).map(lambda data: "fairqueue." + base64.urlsafe_b64encode(data).decode()),
    st.recursive(
        st.none() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)
    ).map(
        lambda value: json.dumps(
            dict.fromkeys(("user", "job", "class", "cost_core_s", "size", "stages"), value)
        )
    ),
)
KEYS = [JOB_PROPERTY, "spark.job.tags", "spark.jobGroup.id", "spark.sql.execution.root.id", "callSite.short"]


@given(st.dictionaries(st.sampled_from(KEYS), TEXTS))
def test_nothing_that_a_client_sends_breaks_it(properties: dict[str, str]) -> None:
    found = of(properties)
    for name in (found.user, found.job, found.job_class):
        assert 0 < len(name) <= MAX_NAME_CHARS
        assert name.isprintable()
    assert found.cost_core_s is None or 0 <= found.cost_core_s <= MAX_COST_CORE_S
    assert found.stages is None or found.stages >= 1


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.floats(allow_nan=False) | st.none()))
def test_tags_carry_any_description(description: dict[str, object]) -> None:
    tag = encode_tag(description)
    assert decode_tag(tag) == description
    assert "," not in tag
    assert not tag.isspace()
