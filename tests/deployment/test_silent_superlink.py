"""A SuperLink that was up and answers no more is named once, and not while it starts."""

from itertools import pairwise

from deployment import server


def test_it_is_named_when_it_has_been_silent_for_long_and_again_only_after_it_was_up(monkeypatch):
    now, up, looks = [0.0], [False], []
    monkeypatch.setattr(server.time, "monotonic", lambda: now[0])

    def is_up():
        looks.append(now[0])
        return up[0]

    look = server._silent(is_up)

    def named_within(seconds):
        end, named = now[0] + seconds, []
        while now[0] < end:
            now[0] += 0.5
            if look():
                named.append(now[0])
        return named

    assert named_within(60) == []  # it starts
    up[0] = True
    assert named_within(10) == []
    up[0] = False
    (when,) = named_within(100)
    assert 78 < when <= 70 + server.SILENT_SECONDS + 2 * server.LOOK_SECONDS
    up[0] = True
    assert named_within(10) == []
    up[0] = False
    assert len(named_within(100)) == 1
    assert min(after - before for before, after in pairwise(looks)) >= server.LOOK_SECONDS
