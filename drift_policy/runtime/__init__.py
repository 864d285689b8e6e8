"""What a robot loop needs: action queue, guard, planner, exported policies, server and client.

Nothing in here imports torch, but for what runs or exports a PyTorch policy: `export`, `timed_policy`.
"""
