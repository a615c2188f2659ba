"""What is to be known of the bodies that schemathesis makes, and no JSON Schema can say.

Loaded by it, where SCHEMATHESIS_HOOKS names this file.
"""

from typing import Any

import schemathesis

_EXACT = 2**53


def _integers(value: Any) -> Any:
    """Write whole numbers without a fraction.

    To JSON Schema 4.0 is an integer. In an integer tensor it is refused, as Triton does.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_integers(one) for one in value]
    if isinstance(value, dict):
        return {name: _integers(one) for name, one in value.items()}
    return value


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Change a body before it is sent."""
    return _integers(body)
