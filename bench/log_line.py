"""What a request's log line costs the loop, and the thread that writes it.

python -m bench.log_line
"""

from __future__ import annotations

import os
import sys
import time

from kvatlas.common.log import configure_logs, logger

LINES = 4_000
ROUNDS = 5
MEMBERS = {
    "request": "0123456789abcdef", "model": "demo", "path": "/v1/chat/completions", "status": 200,
    "endpoint": "10.0.0.1:8000", "prompt_tokens": 1_234, "match_tokens": 1_024, "tenant": None,
    "cached_tokens": 1_024, "ttft_ms": 12.3, "total_ms": 456.7, "lookup_ms": 0.4, "retries": 0,
}  # fmt: skip


def main() -> int:
    """Write lines to /dev/null; print microseconds per line."""
    null = os.open(os.devnull, os.O_WRONLY)
    stderr = os.dup(2)
    os.dup2(null, 2)
    writer = configure_logs("info", json=True)
    log = logger("http")
    on_loop, whole = [], []
    for _ in range(ROUNDS):
        cpu, all_cpu = time.thread_time(), time.process_time()
        for _ in range(LINES):
            log.info("request.finished", **MEMBERS)
        on_loop.append((time.thread_time() - cpu) / LINES * 1e6)
        time.sleep(0.2)
        whole.append((time.process_time() - all_cpu) / LINES * 1e6)
    os.dup2(stderr, 2)
    print("| a request's log line | us |\n| --- | --- |")
    print(f"| on the loop | {min(on_loop):.1f} |\n| in all | {min(whole):.1f} |")
    print(f"| dropped | {writer.dropped} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
