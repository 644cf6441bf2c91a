"""Configs of models that are made of other models and layers."""

import keras


def serialized_parts(model: keras.Model, names: tuple[str, ...]) -> dict:
  """The configs of the attributes of a model that are models, layers or None, by name."""
  return {name: keras.saving.serialize_keras_object(getattr(model, name)) for name in names}


def deserialized_parts(config: dict, names: tuple[str, ...]) -> dict:
  """A model's config with these parts made from their configs, as arguments of the model's class."""
  deserialize = keras.saving.deserialize_keras_object
  return {name: deserialize(value) if name in names else value for name, value in config.items()}
