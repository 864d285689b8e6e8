#!/bin/sh
# Make an environment with LeRobot, which wants other versions of PyTorch and diffusers than the project, and run the
# plug-in's tests there; benchmarks.lerobot_latency runs in it, too (rich).
# Usage: integrations/lerobot_policy_drift/test.sh [folder of the environment]
set -e
here=$(cd "$(dirname "$0")" && pwd)
environment=${1:-"$here/.venv"}
[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
"$environment/bin/pip" install -q -e "$here/../.." -e "$here[test]" "gym-pusht>=0.1.5" "pymunk<7" rich
cd "$here"
exec "$environment/bin/python" -m pytest tests -q
