"""LeRobot: the policy inside its policy type "drift", and that policy as a checkpoint of ours.

The policy type itself is the distribution integrations/lerobot_policy_drift. Nothing here needs LeRobot. Programs call
`conversion.convert_checkpoint`, which is not imported here, so that the command answers quickly.
"""
