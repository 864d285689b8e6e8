"""The choice of a device."""

import torch

from drift_policy.errors import ConfigurationError


def choose_device(name: str | torch.device, setting: str = "device") -> torch.device:
    """Return the device called `name`; "auto" is a GPU where there is one.

    Args:
        name: of the device, as torch knows it.
        setting: what the user calls it, for messages.

    Raises:
        ConfigurationError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"{setting}={name} cannot be used ({str(error).splitlines()[0].rstrip('.')}): try {setting}=auto."
        ) from error
    return device
