"""Serve the network over HTTP: python serve.py [HOST:PORT]"""

import sys

from lines import serve_lines

import modelserve as ms


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    with ms.ModelRepository() as repository:
        serve_lines(repository)
        ms.serve(
            repository, http=address, on_ready=lambda url: print(f"ready on {url}", flush=True)
        )


if __name__ == "__main__":
    main()
