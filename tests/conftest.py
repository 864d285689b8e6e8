"""Settings of all tests."""

import os

# Messages of programs under test are compared as they are, and a temporary path may be longer than a terminal is wide.
os.environ["COLUMNS"] = "250"
