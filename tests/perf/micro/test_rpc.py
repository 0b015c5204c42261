from perf.micro.rpc import ENDS, Load, lines_of, measure


async def test_each_pair_of_ends_takes_each_load() -> None:
    found = await measure(1, (Load("a few", 2, 0.0, 4),))

    assert {("a few", calling, answering) for calling in ENDS for answering in ENDS} == set(found)
    assert all(one.p50 > 0 for taken in found.values() for one in taken)
    assert 4 == len(lines_of(found))
