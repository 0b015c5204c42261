from clients.wire.rates import Rate, Rates


def test_a_burst_goes_at_once_and_then_so_many_a_second():
    now = [0.0]
    rates = Rates(2.0, 3.0, clock=lambda: now[0])

    assert [0.0, 0.0, 0.0, 0.5] == [rates.take("ann") for _ in range(4)]
    now[0] = 0.5
    assert [0.0, 0.5] == [rates.take("ann") for _ in range(2)]
    now[0] = 1_000.0
    assert [0.0, 0.0, 0.0, 0.5] == [rates.take("ann") for _ in range(4)]


def test_names_do_not_share_and_are_bounded():
    rates = Rates(1.0, 1.0, max_names=2, clock=lambda: 0.0)

    assert [0.0, 0.0, 1.0] == [rates.take(name) for name in ("ann", "bob", "ann")]
    rates.take("cy")
    assert len(rates._buckets) == 2


def test_several_are_taken_at_once_or_none():
    now = [0.0]
    rates, rate = Rates(1.0, 1.0, clock=lambda: now[0]), Rate(10.0, 20.0)

    assert [0.0, 0.5, 0.0] == [rates.spend("ann", count, rate) for count in (15, 10, 5)]
    now[0] = 0.5
    assert 0.0 == rates.spend("ann", 5, rate)


def test_more_than_a_burst_are_given_to_a_full_bucket_and_are_paid_back():
    now = [0.0]
    rates, rate = Rates(1.0, 1.0, clock=lambda: now[0]), Rate(10.0, 20.0)

    assert 0.0 == rates.spend("ann", 50, rate)
    assert 3.1 == rates.spend("ann", 1, rate)
    now[0] = 3.1
    assert 0.0 == rates.spend("ann", 1, rate)
