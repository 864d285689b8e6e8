"""Settings of all tests."""

import os

from hypothesis import settings

# Messages of programs under test are compared as they are, and a temporary path may be longer than a terminal is wide.
os.environ["COLUMNS"] = "250"

# How long an example takes says how busy the machine is; pytest's own time limit ends what hangs.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")
