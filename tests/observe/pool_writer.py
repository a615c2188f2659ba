"""Counts batches of eight into a shared pool until it is killed; given the pool's descriptor."""

import mmap
import sys

from modelserve.messages import BatchRecord, Exchange
from modelserve.observe.metrics import Metrics
from modelserve.observe.pool import Pool

BUCKETS = (0.001, 0.1)
SERIES = 40


def main() -> None:
    size = Pool.size(2, buckets=BUCKETS, max_series=SERIES)
    pool = Pool(mmap.mmap(int(sys.argv[1]), size), 2, buckets=BUCKETS, max_series=SERIES)
    metrics = Metrics(buckets=BUCKETS, max_series=SERIES)
    metrics.share(pool, 0)
    exchanges = []
    for _ in range(8):
        exchange = Exchange("http", "m")
        exchange.version, exchange.rows, exchange.total = "1", 1, 0.5
        exchanges.append(exchange)
    told = False
    while True:
        record = BatchRecord(8, 8, "idle", 1.0, 0.01)
        for exchange in exchanges:
            exchange.batch = record
        metrics.observe(exchanges)
        if not told:
            sys.stdout.write("going\n")
            sys.stdout.flush()
            told = True


main()
