"""A speech codec for devices, which needs only numpy and LiteRT.

>>> codec = SpeechCodec()
>>> codes = codec.encode(np.zeros(16_000, np.float32))
>>> codes.shape
(125, 2)
>>> codec.decode(codes, speaker="fr").shape
(16000,)
"""

from .codec import SpeechCodec
from .errors import CodecError

__all__ = ["CodecError", "SpeechCodec"]
