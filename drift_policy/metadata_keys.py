"""Names of the facts in a checkpoint's metadata that programs read back."""

ACTION_SPACE = "action_space"  # what the action numbers mean
CONTROL_RATE = "control_hz"  # steps a second of the demonstrations, or null
ENVIRONMENT_MADE = "environment_made"  # id and arguments of the environment, or null without one
INITIAL_CHECKPOINT = (
    "initial_checkpoint"  # of a fine-tuned policy: path as given, folder and sha256 of its first weights
)
SIMULATORS = "simulators"  # package -> version of what simulated the environment
TRAINED_EPISODES = "trained_episodes"  # hashes of the episodes trained on, for tasks without an environment
