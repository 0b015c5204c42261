from head_service.control.rates import Rates


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
