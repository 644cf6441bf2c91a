"""Synthetic speech by eSpeak NG, from the optional package espeakng-loader (GPL-3): data for any machine."""

import ctypes
import functools
import itertools
import threading

import numpy as np

from tfvq.errors import UserError
from tfvq.extras import extra

_RETRIEVAL = 2  # AUDIO_OUTPUT_RETRIEVAL: the callback gets the samples
_PHONEME_EVENTS = 1
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_LAST_EVENT = 0
_PHONEME_EVENT = 7

_SUBJECTS = ("the old captain", "a young farmer", "my neighbour", "the quiet girl", "our teacher", "his brother")
_VERBS = ("carried", "painted", "found", "forgot", "borrowed", "counted", "washed", "sold")
_OBJECTS = ("three yellow boxes", "a heavy wooden chair", "the letters", "some fresh bread", "eight small stones")
_PLACES = ("behind the house", "near the harbour", "on Thursday morning", "before the rain", "in town", "at noon")


def sentences(num: int) -> list[str]:
  """Different English sentences of little meaning, at most 1440."""
  words = list(itertools.product(_SUBJECTS, _VERBS, _OBJECTS, _PLACES))
  # A stride that is coprime to the number of combinations makes neighbouring sentences differ in every word.
  chosen = [" ".join(words[631 * index % len(words)]) for index in range(num)]
  return [sentence[0].upper() + sentence[1:] + "." for sentence in chosen]


class _Event(ctypes.Structure):
  """espeak_EVENT of speak_lib.h."""

  _fields_ = (
    ("type", ctypes.c_int),
    ("unique_identifier", ctypes.c_uint),
    ("text_position", ctypes.c_int),
    ("length", ctypes.c_int),
    ("audio_position_ms", ctypes.c_int),
    ("sample", ctypes.c_int),
    ("user_data", ctypes.c_void_p),
    ("string", ctypes.c_char * 8),
  )


class Espeak:
  """The eSpeak NG library; one per process, see `espeak`.

  Raises:
    UserError: The package espeakng-loader is not installed.
  """

  def __init__(self):
    with extra("espeak"):
      import espeakng_loader

    self._library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_path = espeakng_loader.get_data_path().encode()
    self.sample_rate_hz = self._library.espeak_Initialize(_RETRIEVAL, 0, data_path, _DO_NOT_EXIT | _PHONEME_EVENTS)
    self._parts, self._phones = [], []
    self._lock = threading.Lock()  # the library is not thread-safe
    # The library keeps the callback's address, so this object must stay alive.
    self._callback = ctypes.CFUNCTYPE(
      ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
    )(self._receive)
    self._library.espeak_SetSynthCallback(self._callback)

  def say(self, voice: str, text: str) -> tuple[np.ndarray, tuple[tuple[float, str], ...]]:
    """Speech and its phones.

    Args:
      voice: Such as "en-us+m3".
      text: What to say.

    Returns:
      Float32 [T] in -1..1 at `sample_rate_hz`; (end in seconds, eSpeak's mnemonic) of each phone.

    Raises:
      UserError: There is no such voice.
    """
    text = text.encode()
    with self._lock:
      if self._library.espeak_SetVoiceByName(voice.encode()):
        raise UserError(f"eSpeak NG has no voice {voice!r}; they look like en-us+m3.")
      self._parts, self._phones = [], []
      self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
      self._library.espeak_Synchronize()
      parts, phones = self._parts, self._phones
    audio = np.concatenate(parts or [np.zeros(0, np.int16)]).astype(np.float32) / 32768
    # An event marks the start of a phone, which is the end of the one before it.
    ends = [begin for begin, _ in phones[1:]] + [len(audio)]
    return audio, tuple((end / self.sample_rate_hz, name) for end, (_, name) in zip(ends, phones, strict=True))

  def _receive(self, samples, num_samples, events):
    if samples and num_samples:
      self._parts.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
    index = 0
    while events and events[index].type != _LAST_EVENT:
      if events[index].type == _PHONEME_EVENT:
        self._phones.append((events[index].sample, events[index].string.decode("utf-8", "replace") or "_"))
      index += 1
    return 0


@functools.cache
def espeak() -> Espeak:
  """The library, loaded on first use."""
  return Espeak()
