"""The key `tasks`: all, a number of them, or names."""

from itertools import pairwise

import pytest

from common.data.choose_tasks import choose_tasks

KNOWN = ["add", "age", "city", "double", "first", "last", "vowels"]


def test_all_tasks_are_the_default():
    assert choose_tasks("all", KNOWN, 0) == {*KNOWN}


def test_of_two_numbers_of_tasks_the_larger_one_holds_the_smaller_ones():
    for known in (KNOWN, [f"task {number}" for number in range(150)]):  # Python draws from few as it does not from many
        chosen = [choose_tasks(str(number), known, 3) for number in range(1, len(known) + 1)]
        assert [len(tasks) for tasks in chosen] == [*range(1, len(known) + 1)]
        assert all(smaller < larger for smaller, larger in pairwise(chosen))
        assert chosen[-1] == {*known}


def test_the_seed_draws_the_tasks():
    assert choose_tasks("3", KNOWN, 1) == choose_tasks("3", KNOWN, 1)
    assert len({frozenset(choose_tasks("3", KNOWN, seed)) for seed in range(20)}) > 5


def test_tasks_may_be_named():
    assert choose_tasks("city", KNOWN, 0) == {"city"}
    assert choose_tasks(" add, vowels,add", KNOWN, 0) == {"add", "vowels"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("frst,add", "tasks: the data has no task 'frst': did you mean first"),
        ("zebra", "tasks: the data has no task 'zebra': expected some of add, age, city, double, first, last, vowels"),
        ("add,", "tasks: the data has no task ''"),
        ("", "tasks: the data has no task ''"),
        ("0", "tasks must be a number from 1 to 7, the tasks of the data, got 0"),
        ("8", "tasks must be a number from 1 to 7, the tasks of the data, got 8"),
        ("-1", "tasks: the data has no task '-1'"),
    ],
)
def test_tasks_that_are_not_there_are_an_error_in_one_line(wanted, message):
    with pytest.raises(ValueError) as error:
        choose_tasks(wanted, KNOWN, 0)
    assert str(error.value).startswith(message)
