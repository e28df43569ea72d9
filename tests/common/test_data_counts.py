"""Counts of what was cut, left out or skipped, over all clients."""

from common.data_counts import CutCounts, DataCounts, over_all_clients


def test_splits_add_up_by_kind():
    first, second = (DataCounts(CutCounts(9, 1, 2, 3), CutCounts(8, n, 1, 1)) for n in (0, 4))
    found = over_all_clients([first, second])
    assert (found.train, found.evaluation) == (CutCounts(18, 2, 4, 6), CutCounts(16, 4, 2, 2))
    assert (found.train.num_left_out, found.evaluation.num_left_out) == (6, 6)


def test_bad_rows_of_data_that_is_dealt_out_count_once():
    dealt_out, own = DataCounts(num_bad_rows=3), DataCounts(num_bad_rows=4, is_own=True)
    assert over_all_clients([dealt_out, dealt_out]).num_bad_rows == 3
    assert over_all_clients([own, own]).num_bad_rows == 8
    assert over_all_clients([dealt_out, own, dealt_out, own]).num_bad_rows == 11
    assert [over_all_clients(some).is_own for some in ([own, own], [own, dealt_out])] == [True, False]
