import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import cost


def test_the_limit_is_whichever_is_slower():
    # 0.5 ms of a core: 16 cores read 32,000, of which one process reads what Python's lock leaves.
    slow = cost.limit(7000, cpu=5e-4)
    assert slow.by == 'compute' and slow.cores == pytest.approx(3.5)
    assert slow.reached == 1 / cost.LOCKED < 32_000
    few = cost.limit(7000, cpu=5e-4, cores=2)
    assert few.by == 'input' and few.reached == pytest.approx(4000)
    assert 'the input is the limit' in str(few) and 'the computation is the limit' in str(slow)
    assert cost.limit(30_000, cpu=5e-4).by == 'input'
    assert cost.limit(30_000, cpu=5e-4, processes=8).by == 'compute'
    with pytest.raises(InputError, match='must be positive'):
        cost.limit(7000, cpu=0)


def test_a_record_costs_by_its_bytes_and_more_where_it_is_packed():
    assert cost.cpu_seconds(2e5, True) == 2 * cost.cpu_seconds(1e5, True) > cost.cpu_seconds(2e5, False) > 0
