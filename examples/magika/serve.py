"""Publish magika's model into a repository and serve it over HTTP: python serve.py [HOST:PORT]"""

import sys
from tempfile import TemporaryDirectory

from content_types import content_type, model_file

import modelserve as ms


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    with TemporaryDirectory() as directory, ms.ModelRepository(directory) as repository:
        version = repository.publish("magika", model_file())
        print(f"published magika version {version}")
        repository.add(content_type(repository))
        ms.serve(
            repository, http=address, on_ready=lambda url: print(f"ready on {url}", flush=True)
        )


if __name__ == "__main__":
    main()
