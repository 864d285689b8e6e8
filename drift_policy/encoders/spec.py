"""What a policy is told about one key of its observations."""

from dataclasses import dataclass, field

from drift_policy.errors import ConfigurationError

KINDS = ("state", "image")
CHANNELS = (1, 3, 4)  # grey, RGB, RGB and depth
# Below this share of the image a crop is a mistake: the policy would train on a corner of what the camera sees.
_SMALLEST_CROP = 0.5


@dataclass
class ObservationSpec:
    """One observation key of a policy.

    Raises:
        ConfigurationError: a shape that is not of its kind, or a crop or scaling that cannot work.
    """

    kind: str = "state"  # "state" is a vector of numbers, "image" a camera
    shape: list[int] = field(default_factory=list)  # one step: [numbers], or [channels, height, width]
    resize: list[int] | None = None  # images: [height, width] they are scaled to before the crop; null keeps theirs
    crop: list[int] | None = None  # images: [height, width], random in training, central otherwise; null is no crop

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"Observation kind {self.kind!r} is unknown: expected one of {sorted(KINDS)}.")
        if self.kind == "state":
            self._check_state()
        else:
            self._check_image()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of an image as the encoder's network sees it, after scaling and crop."""
        height, width = self.crop or self.resize or self.shape[1:]
        return height, width

    def _check_state(self) -> None:
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise ConfigurationError(f"A state observation has the shape [numbers per step], not {self.shape}.")
        if self.crop is not None or self.resize is not None:
            raise ConfigurationError("A state observation has no resize and no crop: those are for kind: image.")

    def _check_image(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigurationError(f"An image observation has the shape [channels, height, width], not {self.shape}.")
        if self.shape[0] not in CHANNELS:
            hint = " The channels come first." if self.shape[2] in CHANNELS else ""
            raise ConfigurationError(
                f"An image observation has {', '.join(map(str, CHANNELS))} channels, but the shape "
                f"[channels, height, width] = {self.shape} says {self.shape[0]}.{hint}"
            )
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise ConfigurationError(f"{name} is [height, width] of an image, but is {value}.")
        if self.crop is not None:
            self._check_crop(self.crop)

    def _check_crop(self, crop: list[int]) -> None:
        height, width = self.resize or self.shape[1:]
        if crop[0] > height or crop[1] > width:
            raise ConfigurationError(f"A crop of {crop} does not fit into an image of {[height, width]}.")
        share = crop[0] * crop[1] / (height * width)
        if share < _SMALLEST_CROP:
            raise ConfigurationError(
                f"A crop of {crop} keeps only {share:.0%} of an image of {[height, width]}: the policy would not see "
                "most of it. Scale the image first (resize: [height, width]) or take a larger crop."
            )
