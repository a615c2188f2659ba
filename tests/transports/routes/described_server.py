"""Serve the models whose descriptions are tested, until SIGTERM. Prints the address when ready.

python described_server.py [admin] [key=KEY]
"""

import sys

import described_models as models

import modelserve as ms


def main(arguments: list[str]) -> None:
    """Serve."""
    scopes = {"read", "infer", "admin"}
    given = [one.removeprefix("key=") for one in arguments if one.startswith("key=")]
    keys = {f"caller {n}": (ms.APIKeys.hash(key), scopes) for n, key in enumerate(given)}
    with ms.ModelRepository() as repository:
        repository.add("digits", models.digits(1))
        for model in (models.several(), models.fixed(), models.words()):
            repository.add(model)
        ms.serve(
            repository,
            http="127.0.0.1:0",
            admin="admin" in arguments,
            authenticator=ms.APIKeys(keys) if keys else None,
            on_ready=lambda url: sys.stdout.write(f"{url}\n") and sys.stdout.flush(),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
