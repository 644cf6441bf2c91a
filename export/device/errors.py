"""The error that users can fix."""


class CodecError(ValueError):
  """An error that the user can fix: one sentence that says what is wrong, where, and what to do."""
