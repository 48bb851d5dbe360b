"""What schemathesis asks before each case: whether to send it.

Things that later cases need are not deleted. Of the coverage phase, which makes thousands of cases and knows no limit,
every n-th case of an operation is sent.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import schemathesis
from schemathesis.core import NOT_SET

KEPT = frozenset(json.loads(os.environ["WHENCE_TEST_KEPT"]))
EVERY = int(os.environ["WHENCE_TEST_EVERY"])
seen: Counter[str] = Counter()


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    named = [] if case.path_parameters in (None, NOT_SET) else [str(value) for value in case.path_parameters.values()]
    if case.method.upper() == "DELETE" and not KEPT.isdisjoint(named):
        return False
    if case.meta is None or case.meta.phase.name.value != "coverage":
        return True
    seen[case.operation.label] += 1
    return seen[case.operation.label] % EVERY == 1 % EVERY
