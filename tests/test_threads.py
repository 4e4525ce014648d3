"""The shared pool: results in order, errors out, no nesting, settings obeyed."""

from __future__ import annotations

import threading
import time

import pytest

import sparsefmt
from sparsefmt import threads


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch):
    monkeypatch.setattr(threads, "_num_threads", None)
    monkeypatch.delenv(threads.ENVIRONMENT_VARIABLE, raising=False)


def test_the_argument_beats_the_setting_beats_the_environment(monkeypatch):
    assert threads.num_threads() >= 1
    monkeypatch.setenv(threads.ENVIRONMENT_VARIABLE, "3")
    assert threads.num_threads() == 3
    sparsefmt.set_num_threads(5)
    assert threads.num_threads() == 5
    assert threads.num_threads(2) == 2


@pytest.mark.parametrize("wrong", [0, -1, "none", "1.5"])
def test_wrong_numbers(wrong, monkeypatch):
    for use in (threads.num_threads, sparsefmt.set_num_threads):
        with pytest.raises(ValueError, match="threads must be"):
            use(wrong)
    monkeypatch.setenv(threads.ENVIRONMENT_VARIABLE, str(wrong))
    with pytest.raises(ValueError, match=threads.ENVIRONMENT_VARIABLE):
        threads.num_threads()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_results_come_in_order_however_long_they_take(count):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(threads.in_order(work, range(30), count)) == [item * item for item in range(30)]
    assert list(threads.in_order(work, [], count)) == []


def test_few_items_are_in_flight():
    """A consumer that is slow does not let results pile up: that is what bounds the memory of saving."""
    started = []
    results = threads.in_order(started.append, range(1000), 2)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 2 * 2 + 1


@pytest.mark.parametrize("count", [1, 3])
def test_errors_come_out_and_the_rest_is_dropped(count):
    done = []

    def work(item):
        if item == 3:
            raise KeyError("three")
        done.append(item)

    with pytest.raises(KeyError, match="three"):
        list(threads.in_order(work, range(1000), count))
    assert len(done) < 20
    assert list(threads.in_order(str, range(3), count)) == ["0", "1", "2"]


def test_workers_do_not_start_workers():
    """Nested parallel work is done in place: with a pool of two it would wait for itself forever."""

    def inner(item):
        return threading.current_thread()

    def outer(item):
        return {threading.current_thread(), *threads.in_order(inner, range(5), 2)}

    for names in threads.in_order(outer, range(8), 2):
        assert len(names) == 1


def test_a_larger_pool_does_not_disturb_a_smaller_one():
    first = threads.in_order(str, range(50), 2)
    assert next(first) == "0"
    assert list(threads.in_order(str, range(50), 9)) == list(map(str, range(50)))
    assert list(first) == list(map(str, range(1, 50)))


class TestShare:
    @pytest.mark.parametrize("count", [0, 1, 2, 50])
    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_each_number_once(self, count, workers):
        seen = []
        threads.share(seen.append, count, workers)
        assert sorted(seen) == list(range(count))

    def test_others_help(self):
        both = threading.Barrier(2, timeout=20)
        threads.share(lambda number: both.wait(), 2, 2)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_errors_come_out(self, workers):
        def work(number):
            time.sleep(0.002)
            if number == 7:
                raise RuntimeError("seven")

        with pytest.raises(RuntimeError, match="seven"):
            threads.share(work, 20, workers)

    def test_a_busy_pool_delays_nobody(self):
        """Others who sit on all workers: this thread does everything, and does not wait for its turn in the queue."""
        release, sitting = threading.Event(), threading.Semaphore(0)

        def sit(_):
            sitting.release()
            release.wait(20)

        pool = threads._get_pool(2)
        size = threads._pool_size
        blockers = [pool.submit(sit, None) for _ in range(size)]
        for _ in blockers:
            assert sitting.acquire(timeout=20)
        seen = []
        started = time.monotonic()
        threads.share(seen.append, 10, 2)
        assert seen == list(range(10))
        assert time.monotonic() - started < 10
        release.set()

    def test_workers_do_not_hand_on(self):
        def work(number):
            inner = []
            threads.share(lambda n: inner.append(threading.get_ident()), 4, 3)
            assert set(inner) == {threading.get_ident()}

        list(threads.in_order(work, range(6), 2))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_items_are_handed_over_together(count):
    handed = []

    def work(item):
        handed.append(threading.get_ident())
        return -item

    sizes = [threads.AT_ONCE // 4] * 9 + [3 * threads.AT_ONCE, 1, 1]
    found = list(threads.in_batches(work, iter(range(12)), sizes.__getitem__, count))
    assert found == [-item for item in range(12)]
    assert len(handed) == 12
    assert (threading.get_ident() in handed) == (count == 1)


@pytest.mark.parametrize("count", [1, 3])
def test_few_batches_are_in_flight(count):
    """Each of what one thread is handed at a time, and no more of the items are made than that."""
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    found = threads.in_batches(lambda item: item, items(), lambda item: threads.AT_ONCE // 2, count)
    assert next(found) == 0
    assert len(made) <= 2 * (count + 1)
    assert list(found) == list(range(1, 100))


def test_an_error_in_a_batch_comes_out():
    def work(item):
        if item == 5:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError, match="5"):
        list(threads.in_batches(work, range(50), lambda item: 1, 2))
