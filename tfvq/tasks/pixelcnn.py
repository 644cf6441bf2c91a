"""The PixelCNN of a config."""

from tfvq import models
from tfvq.errors import UserError


def check_pixelcnn(config) -> None:
  """Checks `tfvq.configs.common.pixelcnn` settings, which are at `config.prior`.

  Raises:
    UserError: They cannot work.
  """
  if config.kernel_size % 2 == 0:
    raise UserError(f"config.prior.kernel_size is {config.kernel_size}; it must be odd.")


def build_pixelcnn(config, num_values: int, grid_shape: tuple[int, ...], **arguments) -> models.PixelCNN:
  """The PixelCNN that `tfvq.configs.common.pixelcnn` settings describe.

  Args:
    config: The settings.
    num_values: K, number of values.
    grid_shape: (H, W), or (H, W, G).
    **arguments: Conditions, and other arguments of `tfvq.models.PixelCNN`.
  """
  return models.PixelCNN(
    num_values,
    grid_shape,
    filters=config.filters,
    num_layers=config.num_layers,
    kernel_size=config.kernel_size,
    hidden_units=config.hidden_units,
    dropout=config.dropout,
    **arguments,
  )
