"""Live bytes against sums by hand."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from simulations.planning.live_bytes import LiveBytes

KIB = 1024


def test_what_is_freed_counts_no_longer_and_the_peak_stays() -> None:
    with LiveBytes() as live:
        first = torch.zeros(KIB, dtype=torch.uint8)
        second = torch.zeros(2 * KIB, dtype=torch.uint8)
        assert live.live == 3 * KIB
        del second
        assert (live.live, live.peak) == (KIB, 3 * KIB)
        del first
    assert live.live == 0


def test_a_view_takes_nothing_and_holds_what_it_sees() -> None:
    with LiveBytes() as live:
        whole = torch.zeros(4, KIB, dtype=torch.uint8)
        part = whole[1]
        assert live.live == 4 * KIB
        del whole
        assert live.live == 4 * KIB
        del part
        assert live.live == 0


def test_what_the_backward_pass_makes_counts() -> None:
    weight = torch.ones(KIB, requires_grad=True)
    with LiveBytes([weight]) as live:
        kept = weight * weight
        assert live.live == 2 * 4 * KIB
        kept.sum().backward()
        assert live.live == 3 * 4 * KIB
        assert live.peak > live.live


def test_tensors_without_values_count_as_if_they_had_some() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        large = torch.empty(2**40, dtype=torch.uint8)
        assert live.live == 2**40
        del large
        assert live.live == 0
